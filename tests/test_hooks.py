"""Steering hooks on every family and cache, held against adding at listed places of single unpadded texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache, StaticCache

from conftest import FAMILIES, make_model
from skillbasis.blocks import block_output, find_blocks
from skillbasis.errors import ArtifactError, UsageError
from skillbasis.lm import LanguageModel, weights_fingerprint
from skillbasis.steer import SteeringVector, steer
from tiny import tiny_lm

torch.set_num_threads(1)

Load = Callable[..., LanguageModel]
SCOPES = ("all", "prompt", "last-prompt", "generated", "from:3", "from:6")
PROMPTS = [[1, 50, 60, 70], [1, 80], [1, 90, 100, 110, 120, 130, 140, 150, 160, 170]]
LENGTHS = [len(prompt) for prompt in PROMPTS]
ANSWERS = [[51, 52, 53, 54, 55], [61, 62, 63, 64, 65], [71, 72, 73, 74, 75]]
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-4}  # float32, other orders of sums; steering moves logits by > 0.1


def vector_for(lm: LanguageModel, blocks: Sequence[int] = (0, 2), unit: Any = "raw") -> SteeringVector:
    values = np.random.default_rng(0).standard_normal((len(blocks), lm.hidden_size)).astype(np.float32)
    return SteeringVector("d0+", tuple(blocks), values, unit, lm.identity)


def places_of(scope: str, n_prompt: int, n_all: int) -> list[int]:
    every = list(range(n_all))
    if scope.startswith("from:"):
        return every[int(scope.removeprefix("from:")) :]
    return {"all": every, "prompt": every[:n_prompt], "last-prompt": [n_prompt - 1], "generated": every[n_prompt:]}[
        scope
    ]


@contextmanager
def added_by_hand(lm: LanguageModel, vector: SteeringVector, alpha: float, places: list[int]) -> Iterator[None]:
    """The oracle: adds at listed places of one unpadded text that is read in one pass."""

    def hook_of(values: np.ndarray) -> Any:
        def add(_module: Any, _args: Any, output: Any) -> Any:
            hidden = block_output(output).clone()
            for place in places:
                size = float(hidden[0, place].norm()) if vector.unit == "relative" else 1.0
                hidden[0, place] += alpha * size * torch.from_numpy(values)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return add

    handles = [
        lm.blocks[block].register_forward_hook(hook_of(values))
        for block, values in zip(vector.block_ids, vector.values, strict=True)
    ]
    yield
    for handle in handles:
        handle.remove()


def by_hand(lm: LanguageModel, ids: list[int], vector: SteeringVector, alpha: float, places: list[int]) -> torch.Tensor:
    """(tokens, vocabulary) logits of one text."""
    with added_by_hand(lm, vector, alpha, places):
        return logits(lm, [ids])[0]


def logits(lm: LanguageModel, ids: list[list[int]], **arguments: Any) -> torch.Tensor:
    with torch.inference_mode():
        return lm.model(input_ids=torch.tensor(ids), **{"use_cache": False} | arguments).logits


def padded(rows: list[list[int]], side: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask and position ids."""
    longest = max(map(len, rows))
    gaps = [[0] * (longest - len(row)) for row in rows]
    ids = [gap + row if side == "left" else row + gap for row, gap in zip(rows, gaps, strict=True)]
    ones = [[1] * len(row) for row in rows]
    mask = torch.tensor([gap + o if side == "left" else o + gap for o, gap in zip(ones, gaps, strict=True)])
    return torch.tensor(ids), mask, (mask.cumsum(1) - 1).clamp(min=0)


def n_hooks(model: Any) -> int:
    """Hooks on the model beside those that transformers itself keeps for reading hidden states."""
    hooks = [h for m in model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    return sum(hook.__module__.startswith("skillbasis") for hook in hooks)


# Every family


@pytest.mark.parametrize("family", FAMILIES)
def test_block_outputs_are_moved_by_exactly_alpha_times_the_vector(loaded: Load, family: str) -> None:
    """What a hook behind it sees, and what the next block is given; afterwards the logits are the same bits."""
    lm = loaded(family)
    vector = vector_for(lm, (0, 1, 3))
    before = logits(lm, [PROMPTS[2]])
    with steer(lm, vector, 0.0):
        assert torch.equal(logits(lm, [PROMPTS[2]]), before)
    given: dict[int, tuple[Any, Any]] = {}
    moved: dict[int, torch.Tensor] = {}
    handles = []
    try:
        with steer(lm, vector, -1.5):
            for i, block in enumerate(lm.blocks):
                handles += [block.register_forward_pre_hook(keep_input(given, i), with_kwargs=True)]
                handles += [block.register_forward_hook(keep_output(moved, i))]
            steered = logits(lm, [PROMPTS[2]])
    finally:
        for handle in handles:
            handle.remove()
    for i, block in enumerate(lm.blocks):
        args, kwargs = given[i]
        with torch.inference_mode():
            plain = block_output(block(*args, **kwargs))  # what it makes of the same input without steering
        shift = torch.zeros(lm.hidden_size)
        if i in vector.block_ids:
            shift = -1.5 * torch.from_numpy(vector.values[vector.block_ids.index(i)])
        assert torch.equal(moved[i], plain + shift)
        assert i == 0 or torch.equal(args[0] if args else kwargs["hidden_states"], moved[i - 1])
    assert (steered - before).abs().max() > 0.1
    assert torch.equal(logits(lm, [PROMPTS[2]]), before) and n_hooks(lm.model) == 0


def keep_input(where: dict[int, tuple[Any, Any]], block: int) -> Any:
    return lambda _module, args, kwargs: where.__setitem__(block, (args, kwargs))


def keep_output(where: dict[int, torch.Tensor], block: int) -> Any:
    return lambda _module, _args, output: where.__setitem__(block, block_output(output).clone())


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_of_a_steered_model_are_the_moved_ones(loaded: Load, family: str) -> None:
    """transformers keeps them by hooks of its own, which it set when the model was first asked for them."""
    lm = loaded(family)
    ids = torch.tensor([PROMPTS[2]])
    with torch.inference_mode():
        plain = lm.model(input_ids=ids, output_hidden_states=True).hidden_states
        with steer(lm, vector_for(lm, (1,)), 2.0):
            moved = lm.model(input_ids=ids, output_hidden_states=True).hidden_states
    shift = 2.0 * torch.from_numpy(vector_for(lm, (1,)).values[0])
    assert torch.equal(moved[1], plain[1])
    assert torch.equal(moved[2], plain[2] + shift)
    assert not torch.equal(moved[3], plain[3])


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_step_by_step_is_the_pass_over_the_whole_text(loaded: Load, family: str) -> None:
    """Left-padded prompts longer than the window where there is one, then five tokens with a cache."""
    lm = loaded(family)
    vector = vector_for(lm)
    for scope in ("all", "last-prompt", "generated", "from:6"):
        ids, mask, places = padded(PROMPTS, "left")
        cache = DynamicCache(config=lm.model.config)
        n_steps = len(ANSWERS[0])
        options: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
        found = []
        with torch.inference_mode(), steer(lm, vector, 1.5, scope=scope):
            out = lm.model(input_ids=ids, attention_mask=mask, position_ids=places, **options).logits[:, -1]
            found.append(out)
            for step in range(n_steps):
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
                tokens = torch.tensor([[answer[step]] for answer in ANSWERS])
                place = mask.sum(1, keepdim=True) - 1
                out = lm.model(input_ids=tokens, attention_mask=mask, position_ids=place, **options).logits[:, 0]
                found.append(out)
        for i, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
            text = prompt + answer
            expected = by_hand(lm, text, vector, 1.5, places_of(scope, len(prompt), len(text)))
            torch.testing.assert_close(torch.stack(found, dim=1)[i], expected[len(prompt) - 1 :], **CLOSE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_two_byte_models_are_moved_by_the_rounded_vector(dtype: torch.dtype) -> None:
    lm = tiny_lm()
    vector = vector_for(lm, (1,))
    lm.model.to(dtype)
    before = logits(lm, [PROMPTS[2]])
    with steer(lm, vector, 0.0):
        assert torch.equal(logits(lm, [PROMPTS[2]]), before)
    plain: dict[int, torch.Tensor] = {}
    handle = lm.blocks[1].register_forward_hook(keep_output(plain, 1))
    logits(lm, [PROMPTS[2]])
    handle.remove()
    shift = (0.7 * torch.from_numpy(vector.values[0])).to(dtype)
    for scope in ("all", "prompt"):  # in one step, and through the mask
        moved: dict[int, torch.Tensor] = {}
        with steer(lm, vector, 0.7, scope=scope):
            handle = lm.blocks[1].register_forward_hook(keep_output(moved, 1))
            assert logits(lm, [PROMPTS[2]]).dtype == dtype
            handle.remove()
        assert torch.equal(moved[1], plain[1] + shift) and not torch.equal(moved[1], plain[1])
    assert torch.equal(logits(lm, [PROMPTS[2]]), before)


# A strength for each row


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_lm()


@pytest.mark.parametrize("unit", ["raw", "relative"])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_with_alphas_of_their_own(lm: LanguageModel, unit: Any, scope: str, side: str) -> None:
    alphas = [0.0, 0.5, -1.0]
    vector = vector_for(lm, unit=unit)
    texts = [prompt + answer for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
    ids, mask, places = padded(texts, side)
    with torch.inference_mode(), steer(lm, vector, alphas, scope=scope, prompt_lengths=LENGTHS):
        out = lm.model(input_ids=ids, attention_mask=mask, position_ids=places).logits
    for i, (text, alpha) in enumerate(zip(texts, alphas, strict=True)):
        expected = by_hand(lm, text, vector, alpha, places_of(scope, LENGTHS[i], len(text)))
        torch.testing.assert_close(out[i][mask[i].bool()], expected, **CLOSE)
        with steer(lm, vector, alpha, scope=scope, prompt_lengths=LENGTHS[i : i + 1]):
            torch.testing.assert_close(logits(lm, [text])[0], expected, **CLOSE)


def test_alphas_repeat_for_several_answers_to_a_prompt(lm: LanguageModel) -> None:
    """`generate` with num_return_sequences=2 makes neighbours of the answers to one prompt."""
    vector, alphas = vector_for(lm), [0.0, 1.5]
    ids, mask, _ = padded(PROMPTS[:2], "left")
    options: dict[str, Any] = {"max_new_tokens": 6, "num_return_sequences": 2, "num_beams": 2, "do_sample": False}
    options |= {"eos_token_id": None, "pad_token_id": 0}  # all rows to the full length
    with steer(lm, vector, alphas):
        together = lm.model.generate(input_ids=ids, attention_mask=mask, **options)[:, ids.shape[1] :]
    assert len(together) == 4
    for i, alpha in enumerate(alphas):
        with steer(lm, vector, alpha):
            alone = lm.model.generate(input_ids=torch.tensor([PROMPTS[i]]), **options)[:, LENGTHS[i] :]
        assert torch.equal(together[2 * i : 2 * i + 2], alone)
    with steer(lm, vector, 1.5):
        other = lm.model.generate(input_ids=torch.tensor([PROMPTS[0]]), **options)[:, LENGTHS[0] :]
    assert not torch.equal(together[:2], other)


def test_sampled_answers_with_alphas_of_their_own(lm: LanguageModel) -> None:
    vector = vector_for(lm)
    options: dict[str, Any] = {"max_new_tokens": 6, "num_return_sequences": 3, "do_sample": True, "temperature": 1.0}
    ids, mask, _ = padded(PROMPTS, "left")

    def sampled(alphas: Any) -> torch.Tensor:
        torch.manual_seed(0)
        with steer(lm, vector, alphas):
            return lm.model.generate(input_ids=ids, attention_mask=mask, eos_token_id=None, pad_token_id=0, **options)

    mixed, plain, steered = sampled([0.0, 0.0, 2.0]), sampled(0.0), sampled(2.0)
    assert torch.equal(mixed[:6], plain[:6]) and torch.equal(mixed[6:], steered[6:])
    assert not torch.equal(plain[6:], steered[6:]) and not torch.equal(plain[:6], steered[:6])


def test_alphas_that_cannot_be_meant(lm: LanguageModel) -> None:
    vector = vector_for(lm)
    with (
        steer(lm, vector, [0.5, 1.0]),
        pytest.raises(UsageError, match="2 alphas were given for 3 rows; give one each"),
    ):
        logits(lm, [[1, 5, 6]] * 3)
    for alpha in ([], [0.5, float("nan")], [float("inf")]):
        with pytest.raises(UsageError, match="alpha must be a finite number, not"):
            steer(lm, vector, alpha).__enter__()
    with steer(lm, vector, [0.0, 0.0]):
        assert n_hooks(lm.model) == 0
    assert n_hooks(lm.model) == 0


# From a place on, and prompts in pieces


@pytest.mark.parametrize("first", [0, 1, 3, 6, 12, 40])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("unit", ["raw", "relative"])
def test_from_a_place_on_with_padding(lm: LanguageModel, first: int, side: str, unit: Any) -> None:
    texts = [prompt + answer for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
    ids, mask, places = padded(texts, side)
    vector = vector_for(lm, unit=unit)
    with torch.inference_mode(), steer(lm, vector, 0.8, scope=f"from:{first}"):
        out = lm.model(input_ids=ids, attention_mask=mask, position_ids=places).logits
    for i, text in enumerate(texts):
        expected = by_hand(lm, text, vector, 0.8, list(range(first, len(text))))
        torch.testing.assert_close(out[i][mask[i].bool()], expected, **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("first", [0, 3, 6, 12])
def test_from_a_place_on_with_a_cache(lm: LanguageModel, first: int, side: str) -> None:
    vector = vector_for(lm)
    ids, mask, places = padded(PROMPTS, side)
    cache = DynamicCache(config=lm.model.config)
    later = []
    with torch.inference_mode(), steer(lm, vector, 1.5, scope=f"from:{first}"):
        lm.model(input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache)
        for step in range(5):
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            tokens, place = torch.tensor([[answer[step]] for answer in ANSWERS]), mask.sum(1, keepdim=True) - 1
            out = lm.model(input_ids=tokens, attention_mask=mask, position_ids=place, past_key_values=cache)
            later.append(out.logits[:, 0])
    for i, text in enumerate(prompt + answer for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)):
        expected = by_hand(lm, text, vector, 1.5, list(range(first, len(text))))
        torch.testing.assert_close(torch.stack(later, dim=1)[i], expected[LENGTHS[i] :], **CLOSE)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("cut", [1, 4, 9])
@pytest.mark.parametrize("rows", [[2], [0, 1, 2]])
def test_prompts_read_in_pieces(lm: LanguageModel, scope: str, cut: int, rows: list[int]) -> None:
    """Two cached passes over the prompts, then the answer in one: the last prompt token is moved once."""
    vector = vector_for(lm)
    prompts, answers = [PROMPTS[i] for i in rows], [ANSWERS[i] for i in rows]
    ids, mask, places = padded(prompts, "left")
    ids = torch.cat([ids, torch.tensor(answers)], dim=1)
    mask = torch.cat([mask, mask.new_ones(len(rows), 5)], dim=1)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    cache, found = DynamicCache(config=lm.model.config), []
    longest = max(map(len, prompts))
    with torch.inference_mode(), steer(lm, vector, 1.5, scope=scope, prompt_lengths=[len(p) for p in prompts]):
        for start, stop in ((0, cut), (cut, longest), (longest, longest + 5)):
            out = lm.model(
                input_ids=ids[:, start:stop],
                attention_mask=mask[:, :stop],
                position_ids=places[:, start:stop],
                past_key_values=cache,
            )
            found.append(out.logits)
    for i, text in enumerate(prompt + answer for prompt, answer in zip(prompts, answers, strict=True)):
        expected = by_hand(lm, text, vector, 1.5, places_of(scope, len(prompts[i]), len(text)))
        torch.testing.assert_close(torch.cat(found, dim=1)[i][mask[i].bool()], expected, **CLOSE)


# Models of transformers, and its own generate


def test_a_plain_transformers_model(lm: LanguageModel) -> None:
    vector = vector_for(lm)
    expected = by_hand(lm, PROMPTS[2], vector, 1.5, list(range(10)))
    with steer(lm.model, vector, 1.5):
        torch.testing.assert_close(logits(lm, [PROMPTS[2]])[0], expected, **CLOSE)
        assert n_hooks(lm.model) == 3
    assert n_hooks(lm.model) == 0
    other = tiny_lm(seed=1)
    with pytest.raises(
        ArtifactError,
        match=f"d0.*'tiny'.*{lm.weights_fingerprint}.*this LlamaForCausalLM.*{other.weights_fingerprint}.*make the",
    ):
        steer(other.model, vector, 1.5).__enter__()
    assert n_hooks(other.model) == 0


@pytest.mark.parametrize("family", ["falcon", "gpt2", "gemma3", "qwen3_moe"])
def test_plain_models_of_other_families(family: str) -> None:
    model = make_model(family)
    values = np.ones((1, 32), dtype=np.float32)
    identity = {"model": "plain", "weights_fingerprint": weights_fingerprint(model)}
    vector = SteeringVector("ones", (1,), values, "raw", identity)
    block = find_blocks(model)[1]
    before: dict[int, torch.Tensor] = {}
    after: dict[int, torch.Tensor] = {}
    for where in (before, after):
        with torch.inference_mode(), steer(model, vector, 0.0 if where is before else 2.0):
            handle = block.register_forward_hook(keep_output(where, 1))
            model(input_ids=torch.tensor([PROMPTS[2]]))
            handle.remove()
    assert torch.equal(after[1], before[1] + 2.0) and n_hooks(model) == 0


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral", "gpt2"])
@pytest.mark.parametrize("scope", SCOPES)
def test_generate_with_a_static_cache(loaded: Load, family: str, scope: str) -> None:
    """Its masks are prepared beforehand and four-dimensional; the tokens are those of the growing cache."""
    lm = loaded(family)
    vector = vector_for(lm)
    ids, mask, _ = padded(PROMPTS, "left")
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    tokens = {}
    for cache in ("dynamic", "static"):
        with steer(lm, vector, 2.0, scope=scope):
            out = lm.model.generate(input_ids=ids, attention_mask=mask, cache_implementation=cache, **options)
        tokens[cache] = out[:, ids.shape[1] :]
    assert torch.equal(tokens["static"], tokens["dynamic"])
    for i, answer in enumerate(tokens["dynamic"].tolist()):
        text = PROMPTS[i] + answer[:-1]
        expected = by_hand(lm, text, vector, 2.0, places_of(scope, LENGTHS[i], len(text)))
        assert expected[LENGTHS[i] - 1 :].argmax(-1).tolist() == answer
    plain = lm.model.generate(input_ids=ids, attention_mask=mask, **options)[:, ids.shape[1] :]
    assert not torch.equal(plain, tokens["dynamic"])


@pytest.mark.parametrize("scope", SCOPES)
def test_generate_with_a_static_cache_and_lengths_of_prompts(loaded: Load, scope: str) -> None:
    """Lengths that leave a prompt's end to the answer: what is said goes before what the passes look like."""
    lm = loaded("gemma2")
    ids, mask, _ = padded(PROMPTS, "left")
    lengths = [n - 1 for n in LENGTHS]
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    tokens = []
    for cache in ("dynamic", "static"):
        with steer(lm, vector_for(lm), 2.0, scope=scope, prompt_lengths=lengths):
            out = lm.model.generate(input_ids=ids, attention_mask=mask, cache_implementation=cache, **options)
        tokens.append(out[:, ids.shape[1] :])
    assert torch.equal(tokens[0], tokens[1])
    for i, answer in enumerate(tokens[0].tolist()):
        text = PROMPTS[i] + answer[:-1]
        expected = by_hand(lm, text, vector_for(lm), 2.0, places_of(scope, lengths[i], len(text)))
        assert expected[LENGTHS[i] - 1 :].argmax(-1).tolist() == answer


@pytest.mark.parametrize("family", ["gemma2", "mistral", "llama"])
def test_a_static_cache_step_by_step(loaded: Load, family: str) -> None:
    """Without `generate`: the mask is the two-dimensional one, the cache longer than the window."""
    lm = loaded(family)
    vector = vector_for(lm)
    for scope in ("all", "last-prompt", "generated", "from:12"):
        text = PROMPTS[2] + ANSWERS[2]
        cache = StaticCache(config=lm.model.config, max_cache_len=32)
        with torch.inference_mode(), steer(lm, vector, 1.5, scope=scope):
            found = [lm.model(input_ids=torch.tensor([PROMPTS[2]]), past_key_values=cache).logits[0]]
            found += [lm.model(input_ids=torch.tensor([[t]]), past_key_values=cache).logits[0] for t in ANSWERS[2]]
        expected = by_hand(lm, text, vector, 1.5, places_of(scope, LENGTHS[2], len(text)))
        torch.testing.assert_close(torch.cat(found), expected, **CLOSE)


def test_scopes_differ(lm: LanguageModel) -> None:
    """Else the tests above could not fail by taking one scope for another."""
    vector = replace(vector_for(lm), unit="raw")
    text = PROMPTS[0] + ANSWERS[0]
    last = [by_hand(lm, text, vector, 1.5, places_of(scope, 4, 9))[-1] for scope in SCOPES]
    assert min(float((a - b).abs().max()) for i, a in enumerate(last) for b in last[:i]) > 0.05
