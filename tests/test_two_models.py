"""Axes that two models share, spread or lack, planted; what is shown of those that differ; the whole comparison."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from skillbasis.basis import Scores, SkillBasis
from skillbasis.basis.basis import STABILITY
from skillbasis.corpus import Corpus
from skillbasis.errors import ArtifactError, UsageError
from skillbasis.interpret.comparison import compare
from skillbasis.interpret.plain_table import aligned, markdown
from skillbasis.interpret.two_models import ScoredBasis, TwoModels, read_two_models

MakeCorpus = Callable[[list[tuple[str, str]]], Corpus]
N = 400


def basis(k: int, name: str) -> SkillBasis:
    """Unit axes of a space of eight features, as a basis of some model."""
    config: dict[str, Any] = {"model": name, "weights_fingerprint": name, "block_ids": [0]}
    config |= {"hidden_size": 8, "method": "pca", "settings": {"normalize_blocks": False}}
    config |= {"explained_variance_ratio": [0.5 / 2**i for i in range(k)], "total_variance": 10.0}
    directions = np.eye(8, dtype=np.float32)[:k].reshape(k, 1, 8)
    return SkillBasis(directions, np.zeros((1, 8), np.float32), np.arange(k, 0.0, -1), np.ones(k), config)


def scored(name: str, values: np.ndarray, *, of: SkillBasis | None = None, ids: list[str] | None = None) -> ScoredBasis:
    of = of or basis(values.shape[1], name)
    rows = ids or [f"row-{i}" for i in range(len(values))]
    norm = np.linalg.norm(values, axis=1)
    return ScoredBasis(name, of, Scores(rows, values, norm, norm + 1, of.fingerprint))


def planted() -> tuple[np.ndarray, np.ndarray]:
    """Scores of A: s, t, u, w, own. Of B: t, u and w, reflected so that each is in all; -s with noise; another own."""
    rng = np.random.default_rng(0)
    s, t, u, w, a, b = rng.standard_normal((6, N))
    reflected = np.stack([t, u, w], axis=1) @ (np.eye(3) - 2 / 3)  # no two correlate by more than 2/3
    return np.stack([s, t, u, w, a], axis=1), np.column_stack([reflected, -s + 0.3 * a * s, b])


def test_planted_axes_are_told_apart() -> None:
    a, b = planted()
    found = read_two_models(scored("A", a), scored("B", b))
    assert [axis.status for axis in found.axes[0]] == ["shared", *["spread"] * 3, "only here"]
    assert [axis.status for axis in found.axes[1]] == [*["spread"] * 3, "shared", "only here"]
    first = found.axes[0][0]
    assert first.partner == 3 and first.correlation is not None and first.correlation < -0.9
    assert first.low is not None and first.high is not None and first.low < first.correlation < first.high
    assert [axis.variance_share for axis in found.axes[0]] == [0.5, 0.25, 0.125, 0.0625, 0.03125]
    assert found.axes[0][4].r_squared.high < 0.1 < 0.9 < found.axes[0][1].r_squared.low
    assert "A: shared: d0; spread: d1, d2, d3; only here: d4." in found.sentences()[0]
    assert "All of B explains 0." in found.sentences()[0]


def test_spread_axes_become_shared_where_less_counts_as_the_same() -> None:
    a, b = planted()
    sides = scored("A", a), scored("B", b)  # t, u and w have matches with 4/9 of their variance
    assert [axis.status for axis in read_two_models(*sides, same=0.3).axes[0]] == [*["shared"] * 4, "only here"]
    assert [axis.status for axis in read_two_models(*sides, same=0.9).axes[0]][1:4] == ["spread"] * 3
    for same in (0.0, 1.0):
        with pytest.raises(UsageError, match="the share from which on axes count as the same is between 0 and 1"):
            read_two_models(*sides, same=same)


def test_what_the_examples_cannot_tell_is_undecided() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((25, 1))
    found = read_two_models(scored("A", x + rng.standard_normal((25, 1))), scored("B", np.hstack([x, x**2])))
    interval = found.axes[0][0].r_squared
    assert interval.low < 0.5 < interval.high and found.axes[0][0].status == "undecided"
    three = read_two_models(scored("A", rng.standard_normal((3, 2))), scored("B", rng.standard_normal((3, 2))))
    assert {axis.status for side in three.axes for axis in side} == {"undecided"}  # no interval at all
    json.dumps(three.to_json(), allow_nan=False)
    assert "-" in three.text()


def test_unrelated_models_share_nothing() -> None:
    rng = np.random.default_rng(2)
    found = read_two_models(scored("A", rng.standard_normal((N, 4))), scored("B", rng.standard_normal((N, 3))))
    assert {axis.status for side in found.axes for axis in side} == {"only here"}
    assert [axis.partner for axis in found.axes[0]].count(None) == 1  # B has three


def test_a_strong_match_within_chance_is_not_shared() -> None:
    rng = np.random.default_rng(3)
    found = read_two_models(scored("A", rng.standard_normal((8, 6))), scored("B", rng.standard_normal((8, 6))))
    best = found.comparison.pairs[0]
    assert best.correlation**2 > 0.5  # of 36 correlations over 8 rows
    assert "shared" not in {axis.status for side in found.axes for axis in side}


def texts() -> list[tuple[str, str]]:
    """Rows whose answers say which end of A's own axis they lie at; some of them with marks of Markdown and HTML."""
    own = planted()[0][:, 4]
    words = [f"{'dogs bark' if value > 0 else 'cats purr'} {i} <b>bold</b> ```" for i, value in enumerate(own)]
    return [(f"question {i} | # heading", word) for i, word in enumerate(words)]


def test_examples_of_the_axes_that_differ(make_corpus: MakeCorpus) -> None:
    a, b = planted()
    sides = scored("A", a), scored("B", b)
    found = read_two_models(*sides, corpus=make_corpus(texts()), n_examples=3)
    description = found.descriptions[0]
    assert description is not None
    assert [entry["direction"] for entry in description["directions"]] == [1, 2, 3, 4]
    own = description["directions"][3]
    by_cosine = np.argsort(-a[:, 4] / np.linalg.norm(a, axis=1))
    assert own["positive"][0]["id"] == f"row-{by_cosine[0]}"
    assert {"dogs", "bark"} <= {word["word"] for word in own["keywords"]["positive"]}
    assert {"cats", "purr"} <= {word["word"] for word in own["keywords"]["negative"]}
    page = found.to_markdown()
    assert page.startswith("# Two models, one corpus\n") and page.count("\n# Axes of ") == 2
    assert "| d4 | only here | d4 |" in page and "\n## Direction 4\n" in page and "\n## Direction 0\n" in page
    assert page.index("## Direction 4") < page.index("# Axes of B") < page.rindex("## Direction 4")
    assert "\n# Directions" not in page and "\n# heading" not in page
    json.dumps(found.to_json(), allow_nan=False)
    assert found.to_json()["a"]["not_shared"]["directions"][0]["direction"] == 1


def test_shared_axes_need_no_examples(make_corpus: MakeCorpus) -> None:
    a = planted()[0]
    found = read_two_models(scored("A", a), scored("B", -a[:, ::-1]), corpus=make_corpus(texts()))
    assert {axis.status for side in found.axes for axis in side} == {"shared"} and found.descriptions == (None, None)


def test_only_shared_examples_count(make_corpus: MakeCorpus) -> None:
    a, b = planted()
    more = scored(
        "B", np.vstack([b[::-1], 99 + b[:5]]), ids=[f"row-{i}" for i in range(N)][::-1] + [f"x{i}" for i in range(5)]
    )
    found = read_two_models(scored("A", a), more, corpus=make_corpus(texts()))
    whole = read_two_models(scored("A", a), scored("B", b), corpus=make_corpus(texts()))
    assert found.comparison.n == N
    assert [axis.status for axis in found.axes[1]] == [axis.status for axis in whole.axes[1]]
    assert found.descriptions[1] is not None and found.descriptions[1]["n_examples"] == N


def test_unstable_axes_are_marked() -> None:
    a, b = planted()
    of_a = basis(5, "A")
    entries = [{"direction": k, "unstable": k == 3} for k in range(5)]
    known = replace(of_a, config=of_a.config | {STABILITY: {"basis": of_a.fingerprint, "directions": entries}})
    found = read_two_models(scored("A", a, of=known), scored("B", b))
    assert [axis.unstable for axis in found.axes[0]] == [False, False, False, True, False]
    assert "d3 (unstable)" in found.text() and "d3 (unstable)" in found.to_markdown()
    both = compare(known, scored("B", b).basis, scored("A", a, of=known).scores, scored("B", b).scores)
    assert "d3 (unstable)" in both.text() and both.to_json()["unstable_a"] == [3] and both.to_json()["unstable_b"] == []


def test_scores_and_corpus_that_do_not_belong(make_corpus: MakeCorpus) -> None:
    a, b = planted()
    side_a, side_b = scored("A", a), scored("B", b)
    with pytest.raises(ArtifactError, match="the scores were made with another basis"):
        read_two_models(ScoredBasis("A", side_b.basis, side_a.scores), side_b)
    with pytest.raises(ArtifactError, match="share no examples by id"):
        read_two_models(side_a, scored("B", b, ids=[f"x{i}" for i in range(N)]))
    with pytest.raises(ArtifactError, match="350 of 400 scored examples are not in the corpus, .*give the corpus that"):
        read_two_models(side_a, side_b, corpus=make_corpus(texts()[:50]))


# --- both ways of comparing in one ---


def test_bases_of_one_shape_and_with_scores_are_compared_both_ways(make_corpus: MakeCorpus) -> None:
    a, b = planted()
    first, second = scored("m", a), scored("m", b, of=basis(5, "m"))
    spans = compare(first.basis, second.basis, names=("one", "two"))
    assert spans.spans is not None and spans.scores is None and spans.two_models is None
    assert "A: one\nB: two\nspans: principal angles 0.0 to 0.0 degrees, overlap 1.000 (random: 0.625)" in spans.text()
    full = compare(first.basis, second.basis, first.scores, second.scores, corpus=make_corpus(texts()))
    assert full.spans is not None and full.scores is not None and isinstance(full.two_models, TwoModels)
    assert "scores of 400 shared examples: mean matched |r| 0." in full.text() and "p = 0.005" in full.text()
    page = full.to_markdown()
    assert page.startswith("# Two bases\n") and "\n# Two models, one corpus\n" in page and "| d0 | d3 | -0.9" in page
    record = json.loads(json.dumps(full.to_json(), allow_nan=False))
    assert record["spans"]["overlap"] == 1 and record["scores"]["n"] == 400 and record["two_models"]["same"] == 0.5


def test_what_cannot_be_compared() -> None:
    a, b = planted()
    first, second = scored("A", a), scored("B", b)
    with pytest.raises(ArtifactError, match="the bases are of different shape"):
        compare(first.basis, second.basis)
    with pytest.raises(UsageError, match="scores are compared with scores; give those of both bases, or of none"):
        compare(first.basis, second.basis, first.scores)
    with pytest.raises(UsageError, match="what differs on a corpus is seen by the scores"):
        compare(first.basis, first.basis, corpus=object())  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="made with another basis"):
        compare(first.basis, second.basis, second.scores, first.scores)


def test_tables_by_hand() -> None:
    rows = [("name", "n"), ("a|b <i>", "7"), ("long\nname", "10")]
    assert aligned([("name", "n"), ("ab", "7"), ("c", "10")]) == "name   n\nab     7\nc     10"
    assert markdown(rows) == "| name | n |\n| --- | ---: |\n| a\\|b &lt;i> | 7 |\n| long name | 10 |"
