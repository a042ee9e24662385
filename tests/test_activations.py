"""Pooled activations against plain `output_hidden_states`, one row at a time, for every family of models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from conftest import CONTEXT, FAMILIES, HIDDEN, N_BLOCKS, make_config, make_tokenizer
from skillbasis.activations.pooling import PooledReader, pad_batch, pool_tokens, token_batches, tokenize_rows
from skillbasis.activations.reader import LocalReader, ShardJob
from skillbasis.activations.settings import ReadingPlan
from skillbasis.lm import LanguageModel, wrap

Loaded = Callable[..., LanguageModel]

ROWS = [
    ("What is 2+3?", "The sum of two and three is five, so the answer is 5."),
    ("Hi", "Yes"),
    ("So what is the sum of two and three and two and three and two and three? Show it.", "It is 15."),
    ("Größe 🙂?", "Zwölf — the answer."),
    ("Why?", "So the answer is the sum of two and three, and the sum of the answer and the sum is the answer. " * 2),
    ("the sum\nof two\n\nand three", "Let us see:\n\n  2 + 3\n= 5"),
]
BLOCKS = list(range(N_BLOCKS))
POOLINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda states: states.mean(axis=1),
    "last": lambda states: states[:, -1],
    "max": lambda states: states.max(axis=1),
    "weighted": lambda states: np.average(states, axis=1, weights=np.arange(1, states.shape[1] + 1)),
}


def as_rows(rows: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [
        {"id": f"row-{i}", "prompt": [{"role": "user", "content": p}], "response": r} for i, (p, r) in enumerate(rows)
    ]


def reference(lm: LanguageModel, prompt: str, response: str, *, chat: bool) -> dict[str, np.ndarray]:
    """Hidden states (blocks, tokens, hidden) in float64 of the tokens of each span, from one unpadded row."""
    import torch

    if chat:
        start, texts = [], (f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n", f"{response}<|im_end|>\n")
    else:
        start, texts = [lm.tokenizer.bos_token_id], (f"{prompt}\n", response)
    first, second = (lm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    seen = []
    norm = next(m for name, m in lm.decoder.named_children() if name in ("norm", "ln_f", "final_layer_norm"))
    handle = norm.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    with torch.inference_mode():
        states = lm.model(torch.tensor([start + first + second]), output_hidden_states=True).hidden_states
    handle.remove()
    # The last entry of hidden_states is behind the final norm; what went into it is the last block's output.
    stack = torch.cat([*states[1:-1], seen[0]]).double().numpy()[:, len(start) :]
    return {"all": stack, "prompt": stack[:, : len(first)], "response": stack[:, len(first) :]}


def read(lm: LanguageModel, rows: list[dict[str, Any]], pooling: str, span: str, batch_tokens: int) -> np.ndarray:
    plan = ReadingPlan(tuple(BLOCKS), pooling, span, CONTEXT, batch_tokens)  # type: ignore[arg-type]
    (shard,) = LocalReader(lm).read([ShardJob(plan, "stop", rows)], lambda _rows, _tokens: None)
    assert shard.ids == [row["id"] for row in rows]
    return shard.values


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_padded_batches_are_what_single_rows_give(family: str, chat: bool, loaded: Loaded) -> None:
    lm = loaded(family, chat=chat)
    expected = [reference(lm, *row, chat=chat) for row in ROWS]
    for pooling, pool in POOLINGS.items():
        for span in ("all", "prompt", "response"):
            truth = np.stack([pool(states[span]) for states in expected])  # (rows, blocks, hidden)
            for batch_tokens in (150, 1, 100_000) if pooling in ("mean", "weighted") and span == "all" else (150,):
                values = read(lm, as_rows(ROWS), pooling, span, batch_tokens)
                assert values.shape == (len(ROWS), N_BLOCKS, HIDDEN)
                assert values.dtype == np.float32
                # float32 sums in another order: measured 1e-6 at most
                error = np.abs(values - truth).max() / np.abs(truth).max()
                assert error < 1e-5, (pooling, span, batch_tokens)


def test_rows_beyond_the_switch_of_long_rotary_frequencies_share_no_batch_with_shorter_ones() -> None:
    import torch
    import transformers as hf

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = make_config("phi3").to_dict() | {"original_max_position_embeddings": 24}
    factors = {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    config["rope_parameters"] = {"rope_type": "longrope", "rope_theta": 10000.0, **factors}
    config["rope_parameters"]["original_max_position_embeddings"] = 24
    model = hf.Phi3ForCausalLM(hf.Phi3Config(**config)).eval()
    lm = wrap(model, make_tokenizer(), "long")
    assert lm.length_switch == 24
    lengths = [row.n_tokens for row in tokenize_rows(as_rows(ROWS), lm, "all", CONTEXT)]
    assert min(lengths) <= 24 < max(lengths)
    alone, together = (read(lm, as_rows(ROWS), "mean", "all", size) for size in (1, 100_000))
    assert np.abs(alone - together).max() < 1e-5 * np.abs(alone).max()
    expected = np.stack([reference(lm, *row, chat=False)["all"].mean(axis=1) for row in ROWS])
    assert np.abs(together - expected).max() < 1e-5 * np.abs(expected).max()


def test_block_ids_choose_blocks_in_any_order_and_stop_the_pass_after_the_last(loaded: Loaded) -> None:
    lm = loaded("llama")
    rows = tokenize_rows(as_rows(ROWS), lm, "all", CONTEXT)
    n_ran = [0] * N_BLOCKS
    n_hooks = [len(block._forward_hooks) for block in lm.blocks]
    handles = [
        block.register_forward_pre_hook(lambda _m, _a, i=i: n_ran.__setitem__(i, n_ran[i] + 1))
        for i, block in enumerate(lm.blocks)
    ]
    with PooledReader(lm, BLOCKS, "mean") as reader:
        everything = reader.read(rows)
    with PooledReader(lm, [2, 0], "mean") as reader:
        some = reader.read(rows)
    for handle in handles:
        handle.remove()
    np.testing.assert_array_equal(some, everything[:, [2, 0]])
    assert n_ran == [2, 2, 2, 1]
    assert [len(block._forward_hooks) for block in lm.blocks] == n_hooks


def test_start_tokens_and_added_end_tokens_never_enter(loaded: Loaded) -> None:
    plain, chat = loaded("llama"), loaded("llama", chat=True)
    for span in ("all", "prompt", "response"):
        for row in tokenize_rows(as_rows(ROWS), plain, span, CONTEXT):  # type: ignore[arg-type]
            assert row.input_ids[0] == plain.tokenizer.bos_token_id
            assert not row.pooled[0]
            assert row.pooled.sum() > 0
    assert all(row.pooled.all() for row in tokenize_rows(as_rows(ROWS), chat, "all", CONTEXT))
    ends = wrap(plain.model, make_tokenizer(adds="<s> $A </s>"), "adds an end token")
    twice = wrap(plain.model, make_tokenizer(adds="<s> <pad> $A"), "adds two in front")
    assert all(
        list(row.pooled[:3]) == [False, False, True] for row in tokenize_rows(as_rows(ROWS), twice, "all", CONTEXT)
    )
    without = wrap(plain.model, make_tokenizer(adds="$A"), "adds nothing")
    for span in ("all", "prompt", "response"):
        rows = [tokenize_rows(as_rows(ROWS), lm, span, CONTEXT) for lm in (plain, ends, without)]  # type: ignore[arg-type]
        for expected, with_end, bare in zip(*rows, strict=True):
            np.testing.assert_array_equal(with_end.input_ids, expected.input_ids)
            np.testing.assert_array_equal(with_end.pooled, expected.pooled)
            np.testing.assert_array_equal(bare.input_ids, expected.input_ids[1:])
            np.testing.assert_array_equal(bare.pooled, expected.pooled[1:])


def test_a_start_token_written_by_the_template_never_enters(loaded: Loaded) -> None:
    tokenizer = make_tokenizer(chat=True)
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    lm = wrap(loaded("llama").model, tokenizer, "start token in the template")
    for row in tokenize_rows(as_rows(ROWS), lm, "prompt", CONTEXT):
        assert list(row.input_ids).count(tokenizer.bos_token_id) == 1
        assert row.input_ids[0] == tokenizer.bos_token_id
        assert list(row.pooled[:2]) == [False, True]


def test_spans_share_no_token_and_leave_none_out(loaded: Loaded) -> None:
    for chat in (False, True):
        lm = loaded("llama", chat=chat)
        spans = {s: tokenize_rows(as_rows(ROWS), lm, s, CONTEXT) for s in ("all", "prompt", "response")}  # type: ignore[arg-type]
        for whole, prompt, response in zip(*spans.values(), strict=True):
            np.testing.assert_array_equal(prompt.pooled ^ response.pooled, whole.pooled)


def test_the_last_space_of_a_prompt_is_not_response(loaded: Loaded) -> None:
    from tokenizers import processors

    tokenizer = make_tokenizer()
    tokenizer.chat_template = "Q: {{ messages[0]['content'] }} A: {{ messages[1]['content'] if messages[1:] }}"
    # As GPT-2's: a token's leading space is trimmed off its offsets, so the space alone is an empty stretch.
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    lm = wrap(loaded("llama").model, tokenizer, "trims")
    (row,) = tokenize_rows(as_rows([("why", "\n\n7")]), lm, "response", CONTEXT)
    assert tokenizer.decode(row.input_ids[row.pooled]) == "\n\n7"


def test_long_chunks_of_rows_keep_their_order(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = loaded("llama")
    whole = tokenize_rows(as_rows(ROWS), lm, "response", CONTEXT)
    monkeypatch.setattr("skillbasis.activations.pooling._TOKENIZED_ROWS", 2)
    for a, b in zip(whole, tokenize_rows(as_rows(ROWS), lm, "response", CONTEXT), strict=True):
        assert (a.id, list(a.input_ids), list(a.pooled)) == (b.id, list(b.input_ids), list(b.pooled))
    assert tokenize_rows([], lm, "all", CONTEXT) == []


def test_batches_hold_every_row_once_within_the_budget() -> None:
    lengths = [5, 90, 1, 30, 30, 200, 7, 0]
    batches = list(token_batches(lengths, 100))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert batches[0] == [5]  # longest first, alone though above the budget
    assert all(len(batch) * max(lengths[i] for i in batch) <= 100 for batch in batches[1:])
    assert batches == [[5], [1], [3, 4, 6], [0, 2, 7]]
    assert list(token_batches(lengths, 100, switch=29)) == [[5], [1], [3, 4], [6, 0, 2, 7]]
    assert list(token_batches(lengths, 1000, switch=200)) == [[5, 1, 3, 4, 6], [0, 2, 7]]
    assert list(token_batches([4, 3, 2], 1000, switch=1)) == [[0, 1, 2]]


def test_padding_that_is_nan_or_infinite_never_enters() -> None:
    import torch

    hidden = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 1, 0]], dtype=torch.bool)
    dirty = hidden.clone()
    dirty[~mask] = torch.tensor([float("inf"), float("nan"), -float("inf"), 1e30])
    rows = [hidden[i, mask[i]] for i in range(3)]
    expected = {
        "mean": torch.stack([row.mean(dim=0) for row in rows]),
        "last": torch.stack([row[-1] for row in rows]),
        "max": torch.stack([row.amax(dim=0) for row in rows]),
        "weighted": torch.stack(
            [sum((t + 1) * row[t] for t in range(len(row))) / sum(range(1, len(row) + 1)) for row in rows]
        ),
    }
    for pooling, truth in expected.items():
        torch.testing.assert_close(pool_tokens(dirty, mask, pooling), truth)  # type: ignore[arg-type]


def test_means_of_bfloat16_are_summed_in_float32() -> None:
    import torch

    hidden = torch.full((1, 1000, 2), 1.0078125, dtype=torch.bfloat16)
    mask = torch.ones(1, 1000, dtype=torch.bool)
    # bfloat16 has 8 bits: a sum in it would stop growing at 256.
    torch.testing.assert_close(pool_tokens(hidden, mask, "mean"), torch.full((1, 2), 1.0078125), rtol=1e-5, atol=0)


def test_weighted_means_by_hand() -> None:
    import torch

    hidden = torch.tensor([[[9.0], [1.0], [5.0], [2.0], [9.0]], [[9.0], [9.0], [9.0], [9.0], [4.0]]])
    mask = torch.tensor([[0, 1, 0, 1, 0], [0, 0, 0, 0, 1]], dtype=torch.bool)
    # Places count marked tokens only: (1 * 1 + 2 * 2) / 3, and one token is its own mean.
    torch.testing.assert_close(pool_tokens(hidden, mask, "weighted"), torch.tensor([[5 / 3], [4.0]]))


def test_weighted_means_of_long_rows_are_summed_in_float32() -> None:
    import torch

    n = 8000
    states = torch.linspace(-1, 3, n, dtype=torch.float64).to(torch.bfloat16)[None, :, None]
    weights = torch.arange(1, n + 1, dtype=torch.float64)
    truth = (weights @ states[0].double() / weights.sum())[None]  # 8000 * 8001 / 2 is above 2^24: not whole in float32
    result = pool_tokens(states, torch.ones(1, n, dtype=torch.bool), "weighted")
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), truth, rtol=1e-5, atol=0)


def test_a_padding_token_outside_the_model_does_no_harm(loaded: Loaded) -> None:
    lm = loaded("llama")
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<extra-{i}>" for i in range(100)])
    tokenizer.add_special_tokens({"pad_token": "<beyond>"})
    assert tokenizer.pad_token_id >= lm.model.config.vocab_size
    beyond = wrap(lm.model, tokenizer, "beyond")
    np.testing.assert_array_equal(
        read(beyond, as_rows(ROWS), "mean", "all", 10_000), read(lm, as_rows(ROWS), "mean", "all", 10_000)
    )


def test_padding_is_on_the_right() -> None:
    rows = tokenize_rows(as_rows([("Hi", "Yes"), ("a", "b")]), _just_tokens(), "all", CONTEXT)
    ids, attention, pooled = pad_batch(rows, 9)
    assert ids.shape == (2, max(row.n_tokens for row in rows))
    for i, row in enumerate(rows):
        assert list(attention[i]) == [1] * row.n_tokens + [0] * (ids.shape[1] - row.n_tokens)
        assert all(ids[i, row.n_tokens :] == 9)
        assert not pooled[i, row.n_tokens :].any()


def _just_tokens() -> Any:
    from types import SimpleNamespace

    return SimpleNamespace(tokenizer=make_tokenizer())
