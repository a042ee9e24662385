from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import CHATML, make_model, make_tokenizer
from skillbasis.corpus import Corpus, load_corpus
from skillbasis.errors import ArtifactError, CorpusError, SkillbasisError, UsageError
from skillbasis.evaluate.likelihood import Likelihood, measure_likelihood
from skillbasis.lm import LanguageModel, wrap
from skillbasis.select import Candidates, select
from tiny import CONTEXT, TEMPLATE, tiny_lm

ROWS = [
    ("what is three?", "three"),
    ("so what is three plus four, and what is the answer to that?", "the answer is \\boxed{7}"),
    ("plus", "7"),
    ("what?", "so " * 20 + "what"),
]


def corpus_of(path: Path, rows: list[tuple[str, str]] = ROWS) -> Corpus:
    lines = [json.dumps({"id": f"r{i}", "prompt": p, "response": r}) for i, (p, r) in enumerate(rows)]
    (path / "rows.jsonl").write_text("\n".join(lines))
    return load_corpus(path / "rows.jsonl")


def by_hand(lm: LanguageModel, prompt: str, response: str, max_length: int = CONTEXT) -> list[float]:
    """NLL in nats of every response token, from one forward pass per row without padding."""
    if lm.tokenizer.chat_template:
        before, after, special = f"<s>[user]{prompt}[assistant]", f"{response}</s>\n", False
    else:
        before, after, special = f"{prompt}\n", response, True
    # The texts are made so that no token spans prompt and response: both apart are what both together are.
    ids = lm.tokenizer(before, add_special_tokens=special)["input_ids"]
    n_prompt = len(ids)
    ids = (ids + lm.tokenizer(after, add_special_tokens=False)["input_ids"])[:max_length]
    assert ids == lm.tokenizer(before + after, add_special_tokens=special)["input_ids"][:max_length]
    with torch.inference_mode():
        logits = lm.model(torch.tensor([ids])).logits[0].double()
    return [float(-torch.log_softmax(logits[place - 1], -1)[ids[place]]) for place in range(n_prompt, len(ids))]


@pytest.mark.parametrize("template", [None, TEMPLATE])
@pytest.mark.parametrize("batch_tokens", [1, 200, 8192])
def test_equals_rows_one_by_one(tmp_path: Path, template: str | None, batch_tokens: int) -> None:
    lm = tiny_lm(template=template)
    likelihood = measure_likelihood(corpus_of(tmp_path), lm, batch_tokens=batch_tokens)
    assert likelihood.ids == ["r0", "r1", "r2", "r3"]
    for i, (prompt, response) in enumerate(ROWS):
        nll = by_hand(lm, prompt, response)
        # float32 logits against float64: the last bits of sums over 300 entries
        assert likelihood.mean_nll[i] == pytest.approx(np.mean(nll), rel=1e-5)
        assert likelihood.max_nll[i] == pytest.approx(max(nll), rel=1e-5)
        assert likelihood.n_tokens[i] == len(nll)
    assert len(set(likelihood.n_tokens)) > 2, "rows of one length would not test the padding"


def test_a_response_is_cut_at_max_length(tmp_path: Path) -> None:
    lm = tiny_lm()
    corpus = corpus_of(tmp_path, ROWS[:1] + ROWS[3:])
    likelihood = measure_likelihood(corpus, lm, max_length=15)
    nll = by_hand(lm, *ROWS[3], max_length=15)
    assert 0 < len(nll) < len(by_hand(lm, *ROWS[3]))
    assert likelihood.n_tokens[1] == len(nll)
    assert likelihood.mean_nll[1] == pytest.approx(np.mean(nll), rel=1e-5)


def test_a_row_without_a_response_within_max_length_is_marked_and_ranks_last(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path)
    likelihood = measure_likelihood(corpus, tiny_lm(), max_length=12)
    unread = likelihood.n_tokens == 0
    assert unread.any() and not unread.all()
    np.testing.assert_array_equal(np.isnan(likelihood.mean_nll), unread)
    rows = select(Candidates.of(corpus, likelihood=likelihood), "low-nll", len(corpus), seed=0)
    assert {row.id for row in rows[-unread.sum() :]} == {corpus.ids[i] for i in np.flatnonzero(unread)}
    with pytest.raises(SkillbasisError, match="no row has a response within 2 tokens; raise --max-length"):
        measure_likelihood(corpus, tiny_lm(), max_length=2)


def test_a_model_that_gives_nan_is_reported_with_the_row(tmp_path: Path) -> None:
    lm = tiny_lm()
    with torch.no_grad():
        lm.model.lm_head.weight[5] = math.nan
    with pytest.raises(SkillbasisError, match="NaN or infinity for row 'r1'"):  # the longest comes first
        measure_likelihood(corpus_of(tmp_path), lm, batch_tokens=1)


def test_progress_counts_rows_and_tokens(tmp_path: Path) -> None:
    calls: list[tuple[int, int, int]] = []
    lm, corpus = tiny_lm(), corpus_of(tmp_path)
    measure_likelihood(corpus, lm, batch_tokens=1, on_progress=lambda *counts: calls.append(counts))
    n_tokens = sum(len(lm.tokenizer(f"{prompt}\n{response}")["input_ids"]) for prompt, response in ROWS)
    assert [call[:2] for call in calls] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert calls[-1][2] == n_tokens


def alone_by_hand(
    lm: LanguageModel, before: str, special: bool, after: str, max_tokens: int | None = None
) -> list[float]:
    """NLL in nats of the tokens of `after` behind those of `before`, but for the very first of the sequence."""
    context = lm.tokenizer(before, add_special_tokens=special)["input_ids"]
    ids = context + lm.tokenizer(after, add_special_tokens=False)["input_ids"][:max_tokens]
    with torch.inference_mode():
        logits = lm.model(torch.tensor([ids])).logits[0].double()
    places = range(max(1, len(context)), len(ids))
    return [float(-torch.log_softmax(logits[place - 1], -1)[ids[place]]) for place in places]


@pytest.mark.parametrize("family", ["gpt_neox", "olmo2", "falcon_alibi"])
@pytest.mark.parametrize(
    ("adds", "template", "before", "end"),
    [
        ("<s> $A", None, "", ""),
        ("$A", None, "", ""),  # no BOS: nothing predicts the first token
        ("<s> $A", TEMPLATE, "<s>[assistant]", "</s>\n"),  # BOS is the template's, and so is the opening
        ("$A", CHATML, "<|im_start|>assistant\n", "<|im_end|>\n"),
        ("<s> $A", "{{ bos_token }}{% for m in messages %}{{ m['content'] }};{% endfor %}", "<s>", ";"),  # no opening
    ],
)
@pytest.mark.parametrize("batch_tokens", [1, 8192])
def test_responses_alone_equal_rows_one_by_one(
    tmp_path: Path, family: str, adds: str, template: str | None, before: str, end: str, batch_tokens: int
) -> None:
    tokenizer = make_tokenizer(adds=adds)
    tokenizer.chat_template = template
    lm = wrap(make_model(family), tokenizer, family)
    corpus = corpus_of(tmp_path)
    likelihood = measure_likelihood(corpus, lm, batch_tokens=batch_tokens, alone=True)
    assert likelihood.alone_nll is not None
    for i, (_, response) in enumerate(ROWS):
        nll = alone_by_hand(lm, before, template is None, response + end)
        assert len(nll) == likelihood.n_tokens[i] - (not before and adds == "$A")
        if not nll:
            assert np.isnan(likelihood.alone_nll[i]), "one token, and nothing before it"
            continue
        # float32 logits against float64: the last bits of sums over 300 entries
        assert likelihood.alone_nll[i] == pytest.approx(np.mean(nll), rel=1e-5)
    given_prompt = measure_likelihood(corpus, lm, batch_tokens=batch_tokens)
    assert given_prompt.alone_nll is None
    np.testing.assert_array_equal(likelihood.mean_nll, given_prompt.mean_nll)
    np.testing.assert_array_equal(likelihood.max_nll, given_prompt.max_nll)
    assert not np.allclose(likelihood.mean_nll, likelihood.alone_nll, rtol=1e-2), "the prompt says something"


def test_alone_the_same_tokens_are_read_as_behind_the_prompt(tmp_path: Path) -> None:
    lm = tiny_lm()
    likelihood = measure_likelihood(
        corpus_of(tmp_path, [*ROWS, ("what is plus? " * 9, "7")]), lm, max_length=15, alone=True
    )
    assert likelihood.alone_nll is not None
    nll = alone_by_hand(lm, "", True, ROWS[3][1], max_tokens=int(likelihood.n_tokens[3]))
    assert 0 < len(nll) == likelihood.n_tokens[3] < len(alone_by_hand(lm, "", True, ROWS[3][1]))
    assert likelihood.alone_nll[3] == pytest.approx(np.mean(nll), rel=1e-5)
    assert likelihood.n_tokens[4] == 0 and np.isnan(likelihood.alone_nll[4]), "no token of it was left"


def test_a_template_that_does_not_show_its_opening(tmp_path: Path) -> None:
    refuses = (
        TEMPLATE + "{% if not add_generation_prompt and messages|length < 2 %}{{ raise_exception('no') }}{% endif %}"
    )
    corpus, lm = corpus_of(tmp_path), tiny_lm(template=refuses)
    assert measure_likelihood(corpus, lm).n_tokens.all()
    with pytest.raises(CorpusError, match=r"does not show how it opens an answer \(no\); measure .* prompt only"):
        measure_likelihood(corpus, lm, alone=True)


def test_progress_counts_a_row_when_it_is_read_both_ways(tmp_path: Path) -> None:
    calls: list[tuple[int, int, int]] = []
    lm, corpus = tiny_lm(), corpus_of(tmp_path)
    measure_likelihood(corpus, lm, batch_tokens=1, alone=True, on_progress=lambda *counts: calls.append(counts))
    n_tokens = sum(
        len(lm.tokenizer(text)["input_ids"])
        for prompt, response in ROWS
        for text in (f"{prompt}\n{response}", response)
    )
    assert [call[0] for call in calls] == [0, 1, 1, 2, 2, 3, 3, 4]
    assert calls[-1] == (4, 4, n_tokens)


def table(**changes: Any) -> Likelihood:
    values: dict[str, Any] = {
        "ids": ["a", "b", "c"],
        "mean_nll": np.array([1.0, 2.0, 3.0]),
        "max_nll": np.array([4.0, 5.0, 6.0]),
        "n_tokens": np.array([7, 8, 9]),
    }
    return Likelihood(**values | changes)


def test_a_saved_table_comes_back(tmp_path: Path) -> None:
    table().save(tmp_path / "nll.parquet")
    loaded = Likelihood.load(tmp_path / "nll.parquet")
    assert loaded.ids == ["a", "b", "c"]
    for name in ("mean_nll", "max_nll", "n_tokens"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(table(), name))
    assert loaded.alone_nll is None, "as in tables made before there was such a column"
    table(alone_nll=np.array([5.0, np.nan, 4.0])).save(tmp_path / "nll.parquet")
    loaded = Likelihood.load(tmp_path / "nll.parquet")
    np.testing.assert_array_equal(loaded.alone_nll, [5.0, np.nan, 4.0])


def test_a_table_is_brought_into_the_order_of_ids() -> None:
    aligned = table().aligned(["c", "a"])
    assert (aligned.ids, aligned.mean_nll.tolist(), aligned.n_tokens.tolist()) == (["c", "a"], [3.0, 1.0], [9, 7])
    assert aligned.alone_nll is None
    both = table(alone_nll=np.array([5.0, 6.0, 4.0])).aligned(["c", "a"])
    np.testing.assert_array_equal(both.alone_nll, [4.0, 5.0])
    with pytest.raises(ArtifactError, match=r"2 of 3 rows have no likelihood, the first is 'x'"):
        table().aligned(["a", "x", "y"])


def test_files_that_are_no_table(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pytest.raises(UsageError, match="no table of likelihoods at .*nothing.parquet"):
        Likelihood.load(tmp_path / "nothing.parquet")
    pq.write_table(pa.table({"id": ["a"], "mean_nll": [1.0], "tokens": [1]}), tmp_path / "other.parquet")
    with pytest.raises(UsageError, match="column max_nll is missing"):
        Likelihood.load(tmp_path / "other.parquet")
