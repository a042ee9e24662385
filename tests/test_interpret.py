"""Interpretation: exemplars, keywords, attributes, and the description that ties them together."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from skillbasis.errors import ArtifactError, CorpusError, UsageError
from skillbasis.interpret import (
    AttributeTable,
    attribute_table,
    correlate,
    describe_basis,
    keywords,
    ranking_values,
    token_counts,
    top_examples,
    write_description,
)
from skillbasis.interpret.attributes import answer_type, text_attributes
from skillbasis.interpret.keywords import tokens

ANIMALS = ("cat", "dog", "owl", "fox", "hen", "bee", "ant", "cow", "pig", "rat", "elk", "bat")


@dataclass(frozen=True)
class Scores:
    ids: list[str]
    scores: np.ndarray
    norm: np.ndarray
    raw_norm: np.ndarray


def make_corpus(responses: list[str], **columns: list[Any]) -> Any:
    from datasets import Dataset

    n = len(responses)
    defaults: dict[str, list[Any]] = {
        "id": [f"row-{i}" for i in range(n)],
        "prompt": [[{"role": "user", "content": f"Question {i}"}] for i in range(n)],
        "response": responses,
        "answer": ["1"] * n,
        "labels": [["all"]] * n,
        "extra": ["{}"] * n,
    }
    return SimpleNamespace(rows=Dataset.from_dict(defaults | columns))


def make_scores(scores: np.ndarray, ids: list[str] | None = None) -> Scores:
    norm = np.full(len(scores), 10.0)
    return Scores(ids or [f"row-{i}" for i in range(len(scores))], scores, norm, norm)


def words_at(rng: np.random.Generator, n: int = 12) -> str:
    return " ".join(rng.choice(ANIMALS, size=n))


# Keywords


def test_tokens_keep_latex_and_operators_and_mask_numbers() -> None:
    assert tokens(r"So \frac{1}{2} + 1,000.5 = X, don't") == [
        "so",
        r"\frac",
        "<num>",
        "<num>",
        "+",
        "<num>",
        "=",
        "x",
        "don't",
    ]
    assert tokens(r"\Delta \delta \[ a != b ->") == [r"\Delta", r"\delta", r"\[", "a", "!=", "b", "->"]
    assert tokens("求面积 ok") == ["求", "面", "积", "ok"]
    assert token_counts(["1 2 cat", "cat"]) == {"<num>": 2, "cat": 2}


def test_log_odds_against_a_hand_worked_example() -> None:
    # a: x x x y, b: x y y y; background x y (plus one each: shares 1/2), prior of 4 tokens: alpha = 2 for both.
    # x: log((3+2)/(4+4-5)) - log((1+2)/(4+4-3)) = log(5/3) - log(3/5); variance 1/5 + 1/3 = 8/15.
    z = (math.log(5 / 3) - math.log(3 / 5)) / math.sqrt(8 / 15)
    of_a, of_b = keywords(["x x x y"], ["x y y y"], ["x y"], prior_tokens=4)
    assert [(k.word, k.count_a, k.count_b) for k in of_a] == [("x", 3, 1)]
    assert [(k.word, k.count_a, k.count_b) for k in of_b] == [("y", 1, 3)]
    assert of_a[0].z == pytest.approx(z) == pytest.approx(1.3990, abs=1e-4)
    assert of_b[0].z == pytest.approx(-z)
    # The default prior is the mean size of the groups, here 4 tokens too.
    assert keywords(["x x x y"], ["x y y y"], token_counts(["x y"])) == (of_a, of_b)


def test_prior_follows_the_background() -> None:
    # "rare" and "common" gain the same, three to one; the prior says that "common" was to be expected in both groups.
    a, b = ["rare rare rare common common common"] * 3, ["rare common"] * 3
    of_a, of_b = keywords(a, b, ["common " * 98, "rare"], prior_tokens=50)
    assert ([k.word for k in of_a], [k.word for k in of_b]) == (["rare"], ["common"])
    of_a, of_b = keywords(a, b, ["common rare"], prior_tokens=50)
    assert (of_a, of_b) == ([], [])


def test_one_text_that_repeats_a_word_does_not_speak_for_its_group() -> None:
    a = ["zebra " * 50 + "cat", "cat dog", "dog cat", "cat"]
    b = ["dog", "dog", "dog", "dog"]
    assert "zebra" not in {k.word for k in keywords(a, b, a + b)[0]}
    assert keywords(a, b, a + b, min_texts=1)[0][0].word == "zebra"
    b = ["zebra dog"] * 3 + ["dog"]  # enough texts of the other group do not help either
    assert "zebra" not in {k.word for k in keywords(a, b, a + b)[0]}


@pytest.mark.parametrize(("a", "b"), [([], ["cat dog"]), ([""], [""]), (["cat"], ["cat cat"])])
def test_keywords_are_empty_where_nothing_can_be_compared(a: list[str], b: list[str]) -> None:
    assert keywords(a, b, a + b) == ([], [])


# Exemplars


def test_order_by_cosine_projection_and_raw_cosine() -> None:
    scores = np.array([[3.0], [2.0], [-1.0], [-4.0]])
    norm, raw_norm = np.array([10.0, 2.0, 1.0, 8.0]), np.array([4.0, 5.0, 4.0, 10.0])
    texts, mean_scores = ["cat", "dog", "owl", "fox"], np.array([5.0])

    def ends(by: Any) -> tuple[list[int], list[int]]:
        positive, negative = top_examples(scores, norm, raw_norm, mean_scores, texts, 0, by=by)
        return [e.row for e in positive], [e.row for e in negative]

    assert ends("cosine") == ([1, 0], [2, 3])  # .3, 1, -1, -.5
    assert ends("projection") == ([0, 1], [3, 2])
    assert ends("raw_cosine") == ([0, 1], [3, 2])  # 2, 1.4, 1, .1
    exemplar = top_examples(scores, norm, raw_norm, mean_scores, texts, 0, by="raw_cosine", ids=list("abcd"))[0][1]
    assert (exemplar.id, exemplar.row, exemplar.score, exemplar.cosine) == ("b", 1, 2.0, pytest.approx(1.4))


def test_rows_of_zero_norm_have_no_cosine() -> None:
    scores, norm = np.array([[0.0], [1.0], [-1.0]]), np.array([0.0, 2.0, 2.0])
    assert np.isnan(ranking_values(scores, norm, norm, np.zeros(1))[0, 0])
    by_cosine = top_examples(scores, norm, norm, np.zeros(1), ["cat", "dog", "owl"], 0)
    assert [[e.row for e in end] for end in by_cosine] == [[1], [2]]
    by_projection = top_examples(scores, norm, norm, np.zeros(1), ["cat", "dog", "owl"], 0, by="projection")
    assert [[e.row for e in end] for end in by_projection] == [[1, 0], [2]]
    assert math.isnan(by_projection[0][1].cosine)


def test_near_duplicates_are_left_out() -> None:
    rng = np.random.default_rng(0)
    long = words_at(rng, 40)
    texts = [f"{long} 17", f"{long} 18", f"{long.upper()} 170,000.5", words_at(rng, 40), words_at(rng, 40), long[:60]]
    scores = np.array([[6.0], [5.0], [4.0], [3.0], [2.0], [1.0]])
    scores = np.concatenate([scores, -scores])
    texts += [words_at(rng, 40) for _ in range(6)]
    ones = np.full(12, 10.0)
    positive, negative = top_examples(scores, ones, ones, np.zeros(1), texts, 0, n=4)
    assert [e.row for e in positive] == [0, 3, 4, 5]
    assert [e.row for e in negative] == [6, 7, 8, 9]


def test_search_for_unlike_examples_is_bounded() -> None:
    read = []

    class Texts(list[str]):
        def __getitem__(self, index: Any) -> Any:
            read.append(index)
            return "the same text every time"

    n = 5_000
    scores, ones = np.arange(n, dtype=float)[:, None] - n / 2, np.full(n, 1e4)
    positive, negative = top_examples(scores, ones, ones, np.zeros(1), Texts(), 0, n=2)
    assert ([e.row for e in positive], [e.row for e in negative]) == ([n - 1], [0])
    assert len(read) == 200


def test_ties_go_by_corpus_order_and_no_row_is_at_both_ends() -> None:
    scores, ones = np.array([[1.0], [0.0], [1.0], [0.0], [0.0]]), np.ones(5)
    positive, negative = top_examples(scores, ones, ones, np.zeros(1), list(ANIMALS[:5]), 0)
    assert [e.row for e in positive] == [0, 2, 1]
    assert [e.row for e in negative] == [3, 4]


@pytest.mark.parametrize("n", [1, 5])
def test_constant_scores_have_no_ends(n: int) -> None:
    ones = np.ones(n)
    assert top_examples(np.ones((n, 1)), ones, ones, np.zeros(1), list(ANIMALS[:n]), 0) == ([], [])


def test_unknown_direction_and_order_are_named() -> None:
    one = np.ones(1)
    with pytest.raises(UsageError, match="no direction 2; the scores have directions 0 to 0"):
        top_examples(np.ones((1, 1)), one, one, one, ["cat"], 2)
    with pytest.raises(UsageError, match="did you mean 'cosine'"):
        ranking_values(np.ones((1, 1)), one, one, one, "cosin")  # type: ignore[arg-type]


# Attributes


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("42", "integer"),
        ("$-1,234$", "integer"),
        ("50\\%", "integer"),
        (r"\frac{3}{4}", "fraction"),
        (r"\dfrac12", "fraction"),
        ("3/4", "fraction"),
        ("3.14", "fraction"),
        ("x+1", "expression"),
        (r"2\sqrt{3}", "expression"),
        (r"(1, \pi)", "expression"),
        (r"\text{Evelyn}", "text"),
        ("B", "text"),
        ("The 3 red boxes", "text"),
        ("", "none"),
        (None, "none"),
    ],
)
def test_answer_types(answer: str | None, expected: str) -> None:
    assert answer_type(answer) == expected


def test_measured_attributes_of_one_example() -> None:
    found = text_attributes("Add 1.", "Wait, let me recheck.\nLet\u2019s verify: 1+1=2. \\boxed{2}", "2")
    assert found["response_characters"] == 52
    assert found["response_words"] == 8
    assert found["response_lines"] == 2
    assert found["response_sentences"] == 2
    assert found["response_digit_share"] == pytest.approx(4 / 52)
    assert found["response_operator_share"] == pytest.approx(2 / 52)
    assert found["response_latex_per_100_words"] == pytest.approx(12.5)
    assert found["response_share"] == pytest.approx(52 / 58)
    assert found["response_boxed"] == 1
    assert found["response_backtracking_per_100_words"] == pytest.approx(25)  # "wait", "let me re..."
    assert found["response_verification_per_100_words"] == pytest.approx(12.5)  # "verify"
    assert (found["answer_type=integer"], found["answer_type=none"]) == (1, 0)
    empty = text_attributes("Add 1.", "", None)
    assert empty["response_words"] == 0
    assert math.isnan(empty["response_digit_share"])
    assert math.isnan(empty["response_boxed"])


def test_columns_of_the_corpus_become_attributes() -> None:
    extras = [
        {"level": 1, "used": True, "source": "a", "tags": [1], "note": "n1", "mixed": 1, "nested": {"a": 1}},
        {"level": 2.5, "used": False, "source": "b", "tags": [], "note": "n1", "mixed": "x", "level ": None},
        {"level": None, "used": True, "source": "b", "note": "n1", "response_words": 7, "huge": 10**400},
        {"level": float("nan"), "huge": 5},
    ]
    corpus = make_corpus(["cat"] * 4, extra=[json.dumps(e) for e in extras], labels=[["x", "y"], ["x"], ["y"], []])
    table = attribute_table(corpus.rows)
    columns = dict(zip(table.names, table.values.T, strict=True))
    nan = math.nan
    np.testing.assert_array_equal(columns["level"], [1, 2.5, nan, nan])
    np.testing.assert_array_equal(columns["used"], [1, 0, 1, nan])
    np.testing.assert_array_equal(columns["source=a"], [1, 0, 0, nan])
    np.testing.assert_array_equal(columns["source=b"], [0, 1, 1, nan])
    np.testing.assert_array_equal(columns["huge"], [nan, nan, nan, 5])
    np.testing.assert_array_equal(columns["response_words (2)"], [nan, nan, 7, nan])
    np.testing.assert_array_equal(columns["label=x"], [1, 1, 0, nan])
    np.testing.assert_array_equal(columns["label=y"], [1, 0, 1, nan])
    np.testing.assert_array_equal(columns["response_words"], [1, 1, 1, 1])
    assert not {"tags", "nested", "mixed", "note", "note=n1"} & columns.keys()


def test_text_columns_with_many_values_are_no_category() -> None:
    for n, expected in ((20, 20), (21, 0)):
        corpus = make_corpus(["cat"] * n, extra=[json.dumps({"source": f"s{i}"}) for i in range(n)])
        assert sum(name.startswith("source=") for name in attribute_table(corpus.rows).names) == expected


@pytest.mark.parametrize("extra", ["{", "[1]"])
def test_damaged_extra_columns_name_the_row(extra: str) -> None:
    with pytest.raises(CorpusError, match="row 'row-0'"):
        attribute_table(make_corpus(["cat"], extra=[extra]).rows)


def test_correlations_equal_scipy_with_ties_and_missing_values() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(1)
    values = rng.normal(size=(60, 3))
    attributes = np.column_stack([rng.normal(size=60), rng.integers(0, 3, 60), values[:, 1] + rng.normal(size=60)])
    attributes[:25, 0] = np.nan
    values[50:, 2] = np.nan
    found = correlate(AttributeTable(("a", "b", "c"), attributes), values)
    assert [(c.direction, c.name) for c in found] == [(k, name) for k in range(3) for name in "abc"]
    for c in found:
        x, y = attributes[:, "abc".index(c.name)], values[:, c.direction]
        both = ~np.isnan(x) & ~np.isnan(y)
        expected = spearmanr(x[both], y[both])
        assert c.n == both.sum()
        assert c.correlation == pytest.approx(expected.statistic, abs=1e-12)
        assert c.p_value == pytest.approx(expected.pvalue, rel=1e-9)
        assert c.low < c.correlation < c.high


def test_interval_equals_the_published_example() -> None:
    # ci.spear of Bonett's R package statpsych, 95 %.
    y = [21, 4, 9, 12, 35, 18, 10, 22, 24, 1, 6, 8, 13, 16, 19]
    x = [67, 28, 30, 28, 52, 40, 25, 37, 44, 10, 14, 20, 28, 40, 51]
    (found,) = correlate(AttributeTable(("x",), np.array(x, float)[:, None]), np.array(y, float)[:, None])
    assert (found.correlation, found.low, found.high) == pytest.approx((0.8699639, 0.5840951, 0.9638297), abs=1e-7)


def test_holm_runs_over_all_attributes_and_directions() -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(size=(40, 2))
    attributes = np.column_stack([values[:, 0] + rng.normal(size=40), rng.normal(size=40), values[:, 1] * 2 + 1])
    found = correlate(AttributeTable(("a", "b", "c"), attributes), values)
    assert len(found) == 6
    largest = 0.0
    for rank, c in enumerate(sorted(found, key=lambda c: c.p_value)):  # Holm by its definition
        largest = max(largest, (6 - rank) * c.p_value)
        assert c.p_holm == pytest.approx(min(largest, 1.0))
    perfect = max(found, key=lambda c: c.correlation)
    assert (perfect.name, perfect.direction, perfect.correlation) == ("c", 1, pytest.approx(1.0))
    assert math.isnan(perfect.low)


def test_what_has_no_correlation_is_left_out() -> None:
    nan = math.nan
    attributes = np.array([[1, 2, 1, nan], [1, 5, nan, nan], [1, 3, 2, nan], [1, 4, 3, nan], [1, 9, nan, nan]])
    values = np.array([[1.0, 7.0], [2.0, 7.0], [0.0, 7.0], [3.0, 7.0], [1.5, 7.0]])
    found = correlate(AttributeTable(("constant", "good", "three rows", "missing"), attributes), values)
    assert [(c.name, c.direction) for c in found] == [("good", 0)]
    assert correlate(AttributeTable((), np.empty((5, 0))), values) == []


# The whole


@pytest.fixture(scope="module")
def planted() -> tuple[Any, Scores, np.ndarray]:
    """Direction 0 is whether the response says "wait", direction 1 is noise; the score table is in reverse order."""
    rng = np.random.default_rng(3)
    waits = rng.random(600) < 0.3
    responses = [words_at(rng) + (" wait " if w else " ") + words_at(rng) for w in waits]
    extra = [json.dumps({"waits": bool(w), "source": str(rng.choice(["web", "book"]))}) for w in waits]
    scores = np.column_stack([waits - waits.mean(), rng.normal(size=600)])
    ids = [f"row-{i}" for i in range(600)]
    norm = np.full(600, 10.0)
    return make_corpus(responses, extra=extra), Scores(ids[::-1], scores[::-1], norm, norm), waits


def test_planted_direction_is_recovered(planted: tuple[Any, Scores, np.ndarray]) -> None:
    corpus, scores, waits = planted
    description = describe_basis(scores, np.zeros(2), np.array([3.0, 1.0]), 8.0, corpus)
    assert json.loads(json.dumps(description, allow_nan=False)) == description
    assert (description["n_examples"], description["by"]) == (600, "cosine")
    first, second = description["directions"]
    assert (first["direction"], first["explained_variance"], first["variance_fraction"]) == (0, 3.0, 0.375)
    assert first["keywords"]["positive"][0]["word"] == "wait"
    assert first["keywords"]["positive"][0]["z"] > 4
    assert "wait" not in {k["word"] for k in first["keywords"]["negative"]}
    assert len(first["positive"]) == len(first["negative"]) == 10
    assert all("wait" in e["response"] for e in first["positive"])
    assert not any("wait" in e["response"] for e in first["negative"])
    assert [e["id"] for e in first["positive"]] == [f"row-{i}" for i in np.flatnonzero(waits)[:10]]
    by_name = {a["name"]: a for a in first["attributes"]}
    assert by_name["waits"]["correlation"] == pytest.approx(1.0)
    assert by_name["waits"]["low"] is None
    assert by_name["response_backtracking_per_100_words"]["p_holm"] < 1e-50
    # Noise goes with nothing: Holm keeps 600 random rows from looking like a finding.
    assert all(a["p_holm"] > 0.05 for a in second["attributes"])
    assert not {"answer_type=integer", "label=all"} & {a["name"] for a in first["attributes"] + second["attributes"]}
    assert description["n_attributes_tested"] % 2 == 0


def test_scores_may_be_a_subset_of_the_corpus(planted: tuple[Any, Scores, np.ndarray]) -> None:
    corpus, scores, _ = planted
    part = Scores(scores.ids[:40], scores.scores[:40], scores.norm[:40], scores.raw_norm[:40])
    description = describe_basis(part, np.zeros(2), np.ones(2), None, corpus, n_examples=3)
    assert description["n_examples"] == 40
    shown = {e["id"] for d in description["directions"] for e in d["positive"] + d["negative"]}
    assert shown <= set(part.ids)
    assert description["directions"][0]["variance_fraction"] is None
    assert max(len(d["positive"]) for d in description["directions"]) == 3


def test_scores_of_another_corpus_are_refused() -> None:
    corpus = make_corpus(["cat", "dog"])
    ones = np.ones(1)
    with pytest.raises(ArtifactError, match=r"2 of 3 scored examples are not in the corpus, for instance 'x'"):
        describe_basis(make_scores(np.zeros((3, 1)), ["row-0", "x", "y"]), ones, ones, None, corpus)
    with pytest.raises(ArtifactError, match="2 of 2 scored examples"):
        describe_basis(make_scores(np.zeros((2, 1)), ["x", "y"]), ones, ones, None, corpus)
    with pytest.raises(ArtifactError, match="'row-0' more than once"):
        describe_basis(make_scores(np.zeros((2, 1)), ["row-0", "row-0"]), ones, ones, None, corpus)
    with pytest.raises(ArtifactError, match="no rows"):
        describe_basis(make_scores(np.zeros((0, 1))), ones, ones, None, corpus)
    twice = make_corpus(["cat", "dog"], id=["row-0", "row-0"])
    with pytest.raises(ArtifactError, match="more than once in the corpus"):
        describe_basis(make_scores(np.zeros((1, 1))), ones, ones, None, twice)


def test_scores_of_another_basis_or_not_finite_are_refused() -> None:
    corpus, ones = make_corpus(["cat", "dog"]), np.ones(1)
    with pytest.raises(ArtifactError, match="the scores have 2 directions and the basis 1"):
        describe_basis(make_scores(np.zeros((2, 2))), ones, ones, None, corpus)
    with pytest.raises(ArtifactError, match="not all finite"):
        describe_basis(make_scores(np.array([[1.0], [math.nan]])), ones, ones, None, corpus)


@pytest.mark.parametrize("n", [1, 60])
def test_one_row_and_constant_scores_have_a_description_that_says_nothing(n: int, tmp_path: Path) -> None:
    corpus = make_corpus([f"{ANIMALS[i % 12]} {'x' * i}" for i in range(n)])
    description = describe_basis(make_scores(np.zeros((n, 1))), np.zeros(1), np.ones(1), None, corpus)
    (direction,) = description["directions"]
    assert (description["n_examples"], description["n_attributes_tested"]) == (n, 0)
    assert direction["positive"] == direction["negative"] == direction["attributes"] == []
    assert direction["keywords"] == {"positive": [], "negative": []}
    write_description(tmp_path, description)
    assert "all examples score the same" in (tmp_path / "directions.md").read_text()


def test_text_of_the_corpus_cannot_act_in_the_markdown(tmp_path: Path) -> None:
    hostile = "```\n<script>alert(1)</script>\n````\n# Heading\r\x1b[31m\u202e" + "~" * 5
    corpus = make_corpus(
        [hostile, "owl dog fox hen bee", *("cat ant " + "cow " * i for i in range(8))],
        id=["a`b\n# <b>x</b>", *(f"row-{i}" for i in range(1, 10))],
        extra=[json.dumps({"k`\n<i>": "a`" if i < 3 else "\ud800|b" * 40}) for i in range(10)],
    )
    scores = make_scores(np.arange(10, 0, -1.0)[:, None] - 5, corpus.rows["id"][:])
    description = describe_basis(scores, np.zeros(1), np.ones(1), None, corpus)
    write_description(tmp_path / "new", description)
    assert json.loads((tmp_path / "new" / "directions.json").read_text(encoding="utf-8")) == description
    assert description["directions"][0]["positive"][0]["response"] == hostile
    text = (tmp_path / "new" / "directions.md").read_text(encoding="utf-8")
    assert not set(text) & set("\r\x1b\u202e")
    assert "\ufffd[31m\ufffd~~~~~" in text
    # Read it as CommonMark does: a fence is closed only by a line of as many backticks or more.
    outside, fence = [], ""
    for line in text.split("\n"):
        if fence:
            fence = "" if re.fullmatch(rf"`{{{len(fence)},}} *", line) else fence
        elif match := re.match("`{3,}", line):
            fence = match.group()
        else:
            outside.append(line)
    assert fence == ""
    plain = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", "\n".join(outside))  # without code spans
    assert "<" not in plain
    assert [line for line in plain.split("\n") if line.startswith("# ")] == ["# Directions"]
    assert "`` a`b # <b>x</b> ``" in text


def test_long_texts_are_cut_with_a_mark_and_roles_are_shown() -> None:
    corpus = make_corpus(
        ["cat" * 1000, "dog"],
        prompt=[
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}],
            [{"role": "user", "content": "Who?"}],
        ],
    )
    (direction,) = describe_basis(make_scores(np.array([[1.0], [-1.0]])), np.zeros(1), np.ones(1), None, corpus)[
        "directions"
    ]
    response = direction["positive"][0]["response"]
    assert response == ("cat" * 1000)[:2000] + " [... cut; 3,000 characters in all]"
    assert direction["positive"][0]["prompt"] == "system: Be brief.\n\nuser: Why?"
    assert direction["negative"][0]["prompt"] == "Who?"


def test_description_is_the_same_each_time(planted: tuple[Any, Scores, np.ndarray]) -> None:
    corpus, scores, _ = planted
    first, second = (describe_basis(scores, np.zeros(2), np.ones(2), 8.0, corpus, by="raw_cosine") for _ in range(2))
    assert first == second
