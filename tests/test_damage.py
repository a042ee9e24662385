from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from skillbasis.corpus import row_text
from skillbasis.errors import ArtifactError, SkillbasisError, UsageError
from skillbasis.lm import LanguageModel
from skillbasis.steer import SteeringVector, steer
from skillbasis.steer.damage import prepare, text_damage
from tiny import CONTEXT, HIDDEN, TEMPLATE, tiny_lm, user

torch.set_num_threads(1)

ROWS = [
    (user("what is three"), "so the answer is 7"),
    (user("a"), "four"),
    (user("what is three plus four"), "so so so so"),
]
SCOPES = ("all", "prompt", "last-prompt", "generated", "from:0", "from:4")
CLOSE: dict[str, Any] = {"rel": 1e-4, "abs": 1e-5}  # float32 logits, batched or alone


@pytest.fixture(scope="module", params=[None, TEMPLATE], ids=["plain", "template"])
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return tiny_lm(template=request.param)


@pytest.fixture
def vector(lm: LanguageModel) -> SteeringVector:
    values = np.random.default_rng(0).standard_normal((2, HIDDEN)).astype(np.float32)
    return SteeringVector("d0+", (0, 1), values, "raw", lm.identity)


def by_hand(lm: LanguageModel, rows: list[Any], vector: SteeringVector, alpha: float, scope: str) -> dict[str, float]:
    """The oracle: every text alone, and token by token with a cache, so that nothing but the prompt is read at once."""
    nll, nll_base, kl = [], [], []
    for prompt, response in rows:
        text = row_text(prompt, response, lm.tokenizer)
        ids = lm.tokenizer(text.text, add_special_tokens=text.add_special_tokens)["input_ids"]
        n_prompt = len(lm.tokenizer(text.prompt_text, add_special_tokens=text.add_special_tokens)["input_ids"])
        with torch.inference_mode():
            plain = lm.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
            with steer(lm, vector, alpha, scope=scope):
                out = lm.model(input_ids=torch.tensor([ids[:n_prompt]]), use_cache=True)
                logits = [out.logits[0, -1]]
                for token in ids[n_prompt:-1]:
                    out = lm.model(input_ids=torch.tensor([[token]]), past_key_values=out.past_key_values)
                    logits.append(out.logits[0, -1])
        for place, moved in zip(range(n_prompt, len(ids)), logits, strict=True):
            before, after = plain[place - 1], moved.double().log_softmax(-1)
            nll.append(-float(after[ids[place]]))
            nll_base.append(-float(before[ids[place]]))
            kl.append(sum(math.exp(p) * (p - q) for p, q in zip(before.tolist(), after.tolist(), strict=True)))
    return {
        "perplexity": math.exp(np.mean(nll)),
        "perplexity_base": math.exp(np.mean(nll_base)),
        "kl": float(np.mean(kl)),
        "n_tokens": len(nll),
        "n_rows": len(rows),
        "n_broken_rows": 0,
    }


@pytest.mark.parametrize("scope", SCOPES)
def test_damage_is_that_of_each_text_alone_as_it_is_generated(
    lm: LanguageModel, vector: SteeringVector, scope: str
) -> None:
    expected = by_hand(lm, ROWS, vector, 1.5, scope)
    for batch_tokens in (1, 24, 2048):
        assert text_damage(lm, ROWS, vector, 1.5, scope, batch_tokens=batch_tokens) == pytest.approx(expected, **CLOSE)
    assert expected["kl"] > 0.01


def test_relative_vector(lm: LanguageModel, vector: SteeringVector) -> None:
    relative = replace(vector, unit="relative", values=vector.values / vector.norms[:, None].astype(np.float32))
    expected = by_hand(lm, ROWS, relative, 0.2, "generated")
    assert text_damage(lm, ROWS, relative, 0.2, "generated") == pytest.approx(expected, **CLOSE)


def test_scopes_differ(lm: LanguageModel, vector: SteeringVector) -> None:
    """Else the test above could not fail by taking one scope for another."""
    kl = [text_damage(lm, ROWS, vector, 1.5, scope)["kl"] for scope in SCOPES if scope != "from:0"]
    assert min(abs(a - b) for i, a in enumerate(kl) for b in kl[:i]) > 1e-3


@pytest.mark.parametrize("kept_bytes", [0, 1 << 28])
def test_no_strength_does_no_damage(lm: LanguageModel, vector: SteeringVector, kept_bytes: int) -> None:
    baseline = prepare(lm, ROWS, kept_bytes=kept_bytes)
    assert (baseline.logits is None) == (kept_bytes == 0)
    damage = text_damage(lm, baseline, vector, 0.0)
    assert damage["kl"] == 0.0 and damage["perplexity"] == damage["perplexity_base"]


def test_a_baseline_that_keeps_its_logits_gives_the_same_figures(lm: LanguageModel, vector: SteeringVector) -> None:
    kept = prepare(lm, ROWS, batch_tokens=24)
    assert kept.logits is not None and len(kept.logits) > 1
    anew = prepare(lm, ROWS, batch_tokens=24, kept_bytes=0)
    for scope in SCOPES:
        assert text_damage(lm, kept, vector, 1.5, scope) == text_damage(lm, anew, vector, 1.5, scope)


def test_logits_are_kept_up_to_the_bytes_allowed(lm: LanguageModel, vector: SteeringVector) -> None:
    needed = text_damage(lm, ROWS, vector, 0.0)["n_tokens"] * lm.model.config.vocab_size * 4
    assert prepare(lm, ROWS, kept_bytes=needed).logits is not None
    assert prepare(lm, ROWS, kept_bytes=needed - 1).logits is None


def test_vocabulary_in_chunks(lm: LanguageModel, vector: SteeringVector, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = text_damage(lm, ROWS, vector, 0.5)
    monkeypatch.setattr("skillbasis.steer.damage._CHUNK_VALUES", 3 * lm.model.config.vocab_size + 1)
    assert text_damage(lm, ROWS, vector, 0.5) == pytest.approx(whole, rel=1e-6)


def test_the_generated_scope_leaves_the_first_token_alone(lm: LanguageModel, vector: SteeringVector) -> None:
    plain = tiny_lm()
    row = [(user("what is three"), "x")]
    assert len(plain.tokenizer("x", add_special_tokens=False)["input_ids"]) == 1
    vector = replace(vector, model=plain.identity)
    assert text_damage(plain, row, vector, 3.0, "generated")["kl"] == 0.0
    assert text_damage(plain, row, vector, 3.0, "last-prompt")["kl"] > 0.01


def test_rows_without_a_response_are_left_out(lm: LanguageModel, vector: SteeringVector) -> None:
    few = text_damage(lm, [*ROWS, (user("what"), "")], vector, 0.5)
    assert few == text_damage(lm, ROWS, vector, 0.5) and few["n_rows"] == 3
    with pytest.raises(SkillbasisError, match=f"no row has a response within {CONTEXT} tokens"):
        text_damage(lm, [(user("what"), "")], vector, 0.5)
    with pytest.raises(SkillbasisError, match="no row has a response within 2 tokens"):
        text_damage(lm, ROWS, vector, 0.5, max_length=2)


def test_a_first_token_that_nothing_predicts_does_not_count(vector: SteeringVector) -> None:
    lm = tiny_lm(template="{% for m in messages %}{{ m['content'] }}{% endfor %}")
    vector = replace(vector, model=lm.identity)
    assert len(lm.tokenizer("x", add_special_tokens=False)["input_ids"]) == 1
    assert text_damage(lm, [(user("a"), "x")], vector, 0.5)["n_tokens"] == 1
    assert text_damage(lm, [(user(""), "xyz")], vector, 0.5)["n_tokens"] == 2
    with pytest.raises(SkillbasisError, match="no row has a response"):
        text_damage(lm, [(user(""), "x")], vector, 0.5)


def test_a_model_steered_to_pieces_is_counted_not_averaged(vector: SteeringVector) -> None:
    lm = tiny_lm()
    vector = replace(vector, model=lm.identity, values=np.full_like(vector.values, 1e38))
    rows = [*ROWS[:2], (user("what is three plus four"), "so so so so the answer")]
    damage = text_damage(lm, rows, vector, 3.0)
    base = text_damage(lm, rows, vector, 0.0)
    assert (damage["perplexity"], damage["kl"], damage["n_broken_rows"]) == (None, None, 3)
    assert damage["perplexity_base"] == base["perplexity_base"] and json.dumps(damage, allow_nan=False)
    # Only the longest row has a token behind this place, and only its later predictions are broken.
    lengths = [len(lm.tokenizer(row_text(*row, lm.tokenizer).text)["input_ids"]) for row in rows]
    partly = text_damage(lm, rows, vector, 3.0, f"from:{max(lengths) - 2}", batch_tokens=1)
    assert sorted(lengths)[-2] <= max(lengths) - 2
    assert (partly["perplexity"], partly["kl"], partly["n_broken_rows"]) == (None, None, 1)


def test_refusals(lm: LanguageModel, vector: SteeringVector) -> None:
    other = tiny_lm(seed=1)
    with pytest.raises(ArtifactError, match="was made for model"):
        text_damage(other, ROWS, vector, 0.5)
    with pytest.raises(ArtifactError, match="baseline was made with other weights than those of 'tiny'; prepare"):
        text_damage(lm, prepare(other, ROWS), vector, 0.5)
    with pytest.raises(UsageError, match="unknown scope 'promt'"):
        text_damage(lm, ROWS, vector, 0.5, "promt")
    broken = tiny_lm()
    with torch.no_grad():
        broken.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(SkillbasisError, match=r"NaN or infinity for row \d \(0-based\) without steering"):
        text_damage(broken, ROWS, replace(vector, model=broken.identity), 0.5)


@pytest.mark.parametrize("family", ["gemma2", "falcon_alibi", "gpt2", "qwen3_moe"])
def test_families_with_padding(loaded: Callable[..., LanguageModel], family: str) -> None:
    lm = loaded(family)
    rows = [([{"role": "user", "content": "two and three " * n}], "is the sum of " * n) for n in (1, 3, 2)]
    values = np.random.default_rng(0).standard_normal((1, lm.hidden_size)).astype(np.float32)
    vector = SteeringVector("d0+", (1,), values, "raw", lm.identity)
    for scope in ("all", "last-prompt", "generated"):
        together = text_damage(lm, rows, vector, 1.0, scope)
        alone = [text_damage(lm, [row], vector, 1.0, scope) for row in rows]
        weights = [figures["n_tokens"] for figures in alone]
        assert together["kl"] == pytest.approx(np.average([a["kl"] for a in alone], weights=weights), rel=1e-3)
        logs = [math.log(figures["perplexity"]) for figures in alone]
        assert math.log(together["perplexity"]) == pytest.approx(np.average(logs, weights=weights), rel=1e-4)
