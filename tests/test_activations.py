"""Pooled activations against plain `output_hidden_states`, one row at a time; shards, kills, locks and damage."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import CONTEXT, FAMILIES, HIDDEN, N_BLOCKS, files, kill_this_process, make_model, make_tokenizer
from skillbasis.activations import ActivationStore, ExtractionSettings, extract
from skillbasis.activations.pooling import PooledReader, pad_batch, pool_tokens, token_batches, tokenize_rows
from skillbasis.artifact import write_json
from skillbasis.corpus import Corpus
from skillbasis.errors import ArtifactError, SkillbasisError, UsageError
from skillbasis.lm import LanguageModel, wrap

Loaded = Callable[..., LanguageModel]
MakeCorpus = Callable[..., Corpus]
InChild = Callable[[Callable[[], object]], int]

extraction = importlib.import_module("skillbasis.activations.extract")  # the package's name `extract` is the function
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
    tokenized = tokenize_rows(rows, lm, span, CONTEXT)  # type: ignore[arg-type]
    with PooledReader(lm, BLOCKS, pooling) as reader:  # type: ignore[arg-type]
        result: np.ndarray = extraction.read_activations(tokenized, reader, batch_tokens, lambda _rows, _tokens: None)
    return result


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_padded_batches_are_what_single_rows_give(family: str, chat: bool, loaded: Loaded) -> None:
    lm = loaded(family, chat=chat)
    expected = [reference(lm, *row, chat=chat) for row in ROWS]
    for pooling, pool in POOLINGS.items():
        for span in ("all", "prompt", "response"):
            truth = np.stack([pool(states[span]) for states in expected])  # (rows, blocks, hidden)
            for batch_tokens in (150, 1, 100_000) if pooling == "mean" and span == "all" else (150,):
                values = read(lm, as_rows(ROWS), pooling, span, batch_tokens)
                assert values.shape == (len(ROWS), N_BLOCKS, HIDDEN)
                assert values.dtype == np.float32
                # float32 sums in another order: measured 1e-6 at most
                error = np.abs(values - truth).max() / np.abs(truth).max()
                assert error < 1e-5, (pooling, span, batch_tokens)


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
    }
    for pooling, truth in expected.items():
        torch.testing.assert_close(pool_tokens(dirty, mask, pooling), truth)  # type: ignore[arg-type]


def test_means_of_bfloat16_are_summed_in_float32() -> None:
    import torch

    hidden = torch.full((1, 1000, 2), 1.0078125, dtype=torch.bfloat16)
    mask = torch.ones(1, 1000, dtype=torch.bool)
    # bfloat16 has 8 bits: a sum in it would stop growing at 256.
    torch.testing.assert_close(pool_tokens(hidden, mask, "mean"), torch.full((1, 2), 1.0078125), rtol=1e-5, atol=0)


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


# --- extraction into a directory ---


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows a shard, for the two inner blocks."""
    monkeypatch.setattr(extraction, "_SHARD_BYTES", 2 * 2 * HIDDEN * 4)


def test_the_store_holds_the_rows_in_order(
    loaded: Loaded, make_corpus: MakeCorpus, tmp_path: Path, small_shards: None
) -> None:
    import pyarrow.parquet as pq

    lm, corpus = loaded("llama"), make_corpus(ROWS[:5])
    told = []
    store = extract(corpus, lm, tmp_path / "acts", on_progress=lambda *numbers: told.append(numbers))
    assert (len(store), store.block_ids, store.hidden_size, store.n_features) == (5, [1, 2], HIDDEN, 2 * HIDDEN)
    assert store.ids == corpus.ids
    assert [len(part) for part in store.shards()] == [2, 2, 1]
    truth = np.stack([reference(lm, *row, chat=False)["all"].mean(axis=1)[1:3] for row in ROWS[:5]])
    np.testing.assert_allclose(store.to_numpy(), truth, rtol=0, atol=1e-5 * np.abs(truth).max())
    np.testing.assert_array_equal(np.concatenate(list(store.shards())), store.to_numpy().reshape(5, -1))
    table = pq.read_table(store.path / "rows.parquet").to_pydict()
    n_tokens = [1 + len(lm.tokenizer(f"{p}\n{r}", add_special_tokens=False)["input_ids"]) for p, r in ROWS[:5]]
    assert table == {
        "id": corpus.ids,
        "shard": [0, 0, 1, 1, 2],
        "offset": [0, 1, 0, 1, 0],
        "tokens": n_tokens,
        "truncated": [False] * 5,
    }
    assert told[-1] == (5, 5, sum(n_tokens))
    shards = [f"shard-0000{i}.safetensors" for i in range(3)]
    assert sorted(files(store.path)) == ["manifest.json", "rows.parquet", *shards]
    store.verify()
    manifest = store.manifest
    assert [shard["rows"] for shard in manifest["shards"]] == [2, 2, 1]
    assert (manifest["rows"], manifest["n_tokens"], manifest["n_truncated"]) == (5, sum(n_tokens), 0)
    assert manifest["corpus_fingerprint"] == corpus.fingerprint
    assert manifest["weights_fingerprint"] == lm.weights_fingerprint


def test_a_long_row_is_cut_and_recorded(loaded: Loaded, make_corpus: MakeCorpus, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    lm, rows = loaded("llama"), [("Hi", "Yes"), ("So", "the answer is " * 200)]
    store = extract(make_corpus(rows), lm, tmp_path / "acts", ExtractionSettings(max_length=20))
    table = pq.read_table(store.path / "rows.parquet").to_pydict()
    assert table["truncated"] == [False, True]
    assert table["tokens"][1] == 20
    assert store.manifest["n_truncated"] == 1
    ids = [1, *lm.tokenizer("So\n" + rows[1][1], add_special_tokens=False)["input_ids"]][:20]
    import torch

    with torch.inference_mode():
        states = lm.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    truth = np.stack([states[i + 1][0, 1:].mean(dim=0).numpy() for i in (1, 2)])
    np.testing.assert_allclose(store.to_numpy()[1], truth, rtol=0, atol=1e-5 * np.abs(truth).max())
    whole = extract(make_corpus(rows), lm, tmp_path / "whole")
    assert whole.manifest["max_length"] == CONTEXT  # never more than the model can read
    assert pq.read_table(whole.path / "rows.parquet")["tokens"].to_pylist()[1] == CONTEXT


def test_a_row_of_exactly_the_length_is_not_cut(loaded: Loaded, make_corpus: MakeCorpus, tmp_path: Path) -> None:
    lm = loaded("llama")
    (row,) = tokenize_rows(as_rows(ROWS[:1]), lm, "all", CONTEXT)
    for length, n_truncated in ((row.n_tokens, 0), (row.n_tokens - 1, 1)):
        settings = ExtractionSettings(max_length=length)
        store = extract(make_corpus(ROWS[:1]), lm, tmp_path / str(length), settings)
        assert store.manifest["n_truncated"] == n_truncated


def test_an_empty_span_names_the_row(loaded: Loaded, make_corpus: MakeCorpus, tmp_path: Path) -> None:
    corpus = make_corpus([("Hi", "Yes"), ("the sum of " * 20, "Yes")])
    with pytest.raises(SkillbasisError, match="row 'row-1' has no token to pool .*raise --max-length"):
        extract(corpus, loaded("llama"), tmp_path / "acts", ExtractionSettings(span="response", max_length=30))
    assert not (tmp_path / "acts").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("pooling", ["mean", "last", "max"])
def test_activations_that_are_not_finite_name_row_and_block(
    make_corpus: MakeCorpus, tmp_path: Path, value: float, pooling: Any
) -> None:
    import torch

    model = make_model("llama")
    lm = wrap(model, make_tokenizer(), "broken")
    marked = lm.tokenizer("Z", add_special_tokens=False)["input_ids"]
    assert len(marked) == 1
    tokens: list[Any] = []
    model.model.register_forward_pre_hook(lambda _m, _a, kw: tokens.append(kw["input_ids"]), with_kwargs=True)
    model.model.layers[2].register_forward_hook(
        lambda _m, _a, out: out + torch.where(tokens[-1] == marked[0], value, 0.0)[..., None]
    )
    corpus = make_corpus([*ROWS[:2], ("So", "Z Z Z Z"), ("Hi", "Yes, indeed, but it is much longer than that")])
    # Row 2 ends in the marked token, so that "last" sees it, too.
    with pytest.raises(SkillbasisError, match="row 'row-2' has NaN or infinite activations in block 2; try --dtype"):
        extract(corpus, lm, tmp_path / "acts", ExtractionSettings(layers="all", pooling=pooling))
    assert not (tmp_path / "acts").exists()
    assert len(extract(make_corpus(ROWS[:2]), lm, tmp_path / "acts")) == 2


def test_weights_of_nan_are_reported_at_the_first_block(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    import torch

    model = make_model("llama")
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[0, 0] = float("nan")
    lm = wrap(model, make_tokenizer(), "broken")
    with pytest.raises(SkillbasisError, match="row 'row-[01]' has NaN or infinite activations in block 2"):
        extract(make_corpus(ROWS[:2]), lm, tmp_path / "acts")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pooling": "men"}, r"unknown pooling 'men' \(did you mean 'mean'\?\); allowed are mean, last, max"),
        ({"span": "answer"}, "unknown span 'answer'; allowed are all, prompt, response"),
        ({"max_length": 0}, "max_length must be at least 1, not 0"),
        ({"batch_tokens": -1}, "batch_tokens must be at least 1, not -1"),
    ],
)
def test_settings_that_mean_nothing(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ExtractionSettings(**change)


# --- going on, starting anew ---


def _kill_in_a_shard(patch: pytest.MonkeyPatch, n_rows: int) -> dict[str, Any]:
    return {"on_progress": lambda done, _n, _tokens: kill_this_process() if done >= n_rows else None}


def _kill_between_shards(patch: pytest.MonkeyPatch, n_records: int) -> dict[str, Any]:
    written = []

    def write_and_count(path: Path, value: Any) -> None:
        write_json(path, value)
        written.append(path)
        if len(written) == n_records:
            kill_this_process()

    patch.setattr(extraction, "write_json", write_and_count)
    return {}


def _kill_in_a_write(patch: pytest.MonkeyPatch, n_renames: int) -> dict[str, Any]:
    replace, n_done = os.replace, [0]

    def replace_few(source: Any, target: Any) -> None:
        if n_done[0] == n_renames:
            kill_this_process()
        n_done[0] += 1
        replace(source, target)

    patch.setattr(os, "replace", replace_few)
    return {}


@pytest.mark.parametrize(
    "kills",
    [
        [(_kill_in_a_shard, 1), (_kill_in_a_shard, 4)],
        [(_kill_between_shards, 1), (_kill_between_shards, 1)],
        [(_kill_in_a_write, n) for n in (0, 1, 2)],  # marker, shard, record: what is renamed first, second, third
        [(_kill_in_a_write, n) for n in (7, 2, 3)],  # rows.parquet, then the manifest and the directory itself
    ],
    ids=["in-shard", "between-shards", "in-write", "at-the-end"],
)
def test_killed_and_continued_is_the_same_bytes(
    kills: list[Any],
    loaded: Loaded,
    make_corpus: MakeCorpus,
    tmp_path: Path,
    in_child: InChild,
    small_shards: None,
) -> None:
    lm, corpus = loaded("llama"), make_corpus(ROWS)
    extract(corpus, lm, tmp_path / "whole")
    out = tmp_path / "acts"
    for kill, when in kills:
        with pytest.MonkeyPatch.context() as patch:
            options = kill(patch, when)
            assert in_child(lambda options=options: extract(corpus, lm, out, **options)) == -9
        assert not out.exists()
        with pytest.raises(ArtifactError, match="interrupted: run the command again to finish it"):
            ActivationStore.open(out)
    extract(corpus, lm, out)
    assert files(out) == files(tmp_path / "whole")


def test_finished_shards_are_not_made_again(
    loaded: Loaded, make_corpus: MakeCorpus, tmp_path: Path, in_child: InChild, small_shards: None
) -> None:
    lm, corpus = loaded("llama"), make_corpus(ROWS)
    with pytest.MonkeyPatch.context() as patch:
        assert in_child(lambda: extract(corpus, lm, tmp_path / "acts", **_kill_between_shards(patch, 2))) == -9
    told = []
    extract(corpus, lm, tmp_path / "acts", on_progress=lambda *numbers: told.append(numbers))
    last_rows = tokenize_rows(as_rows(ROWS), lm, "all", CONTEXT)[4:]
    assert told[:2] == [(2, 6, 0), (4, 6, 0)]
    assert told[-1] == (6, 6, sum(row.n_tokens for row in last_rows))


def test_no_work_is_lost_when_only_the_end_was_cut_off(
    loaded: Loaded, make_corpus: MakeCorpus, tmp_path: Path, in_child: InChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, corpus = loaded("llama"), make_corpus(ROWS)
    monkeypatch.setattr(extraction, "_write_rows", lambda *_: kill_this_process())
    assert in_child(lambda: extract(corpus, lm, tmp_path / "acts")) == -9
    monkeypatch.undo()
    told = []
    extract(corpus, lm, tmp_path / "acts", on_progress=lambda *numbers: told.append(numbers))
    assert told == [(6, 6, 0)]


@pytest.mark.parametrize("damage", ["flip", "remove", "other-rows"])
def test_a_damaged_or_foreign_shard_is_made_again(
    damage: str, loaded: Loaded, make_corpus: MakeCorpus, tmp_path: Path, in_child: InChild, small_shards: None
) -> None:
    lm, corpus = loaded("llama"), make_corpus(ROWS)
    extract(corpus, lm, tmp_path / "whole")
    work = tmp_path / "acts.partial"
    with pytest.MonkeyPatch.context() as patch:
        if damage == "other-rows":  # as an earlier version with smaller shards would have left them
            patch.setattr(extraction, "_SHARD_BYTES", 2 * HIDDEN * 4)
        assert in_child(lambda: extract(corpus, lm, tmp_path / "acts", **_kill_between_shards(patch, 2))) == -9
    shard = work / "shard-00000.safetensors"
    if damage == "flip":
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
    elif damage == "remove":
        shard.unlink()
    extract(corpus, lm, tmp_path / "acts")
    assert files(tmp_path / "acts") == files(tmp_path / "whole")


def test_the_same_call_does_nothing_and_a_changed_one_starts_anew(
    loaded: Loaded, make_corpus: MakeCorpus, tmp_path: Path
) -> None:
    lm, corpus, out = loaded("llama"), make_corpus(ROWS), tmp_path / "acts"
    told: list[Any] = []

    def run(corpus: Corpus = corpus, lm: LanguageModel = lm, **settings: Any) -> tuple[int, np.ndarray]:
        told.clear()
        store = extract(corpus, lm, out, ExtractionSettings(**settings), on_progress=lambda *n: told.append(n))
        return len(told), store.to_numpy()

    n_told, first = run()
    assert n_told > 0
    assert run()[0] == 0
    for settings in ({"layers": "1"}, {"pooling": "last"}, {"span": "prompt"}, {"max_length": 10}):
        n_told, values = run(**settings)
        assert n_told > 0
        assert values.shape != first.shape or not np.allclose(values, first)
    assert run(max_length=10, layers="1-2")[0] == 0 or told  # spelled otherwise, the same blocks
    run()
    assert run(layers="1,2")[0] == 0
    assert run(max_length=CONTEXT + 1)[0] == 0  # the model reads no more than its context either way
    other = wrap(make_model("llama", seed=1), make_tokenizer(), "llama of another seed")
    assert not np.allclose(run(lm=other)[1], first)
    np.testing.assert_array_equal(run()[1], first)
    changed = make_corpus([*ROWS[:-1], ("Hi", "No")])
    n_told, values = run(corpus=changed)
    np.testing.assert_allclose(values[:-1], first[:-1], rtol=0, atol=1e-5)
    assert not np.allclose(values[-1], first[-1])


def test_a_model_at_another_place_is_the_same_model(
    model_path: Callable[..., Path], loaded: Loaded, make_corpus: MakeCorpus, tmp_path: Path
) -> None:
    from dataclasses import replace

    corpus = make_corpus(ROWS[:2])
    extract(corpus, loaded("llama"), tmp_path / "acts")
    told: list[Any] = []
    moved = replace(loaded("llama"), name="moved")
    extract(corpus, moved, tmp_path / "acts", on_progress=lambda *n: told.append(n))
    assert told == []


def test_a_second_process_on_the_same_output_is_refused(
    loaded: Loaded, make_corpus: MakeCorpus, tmp_path: Path, in_child: InChild
) -> None:
    lm, corpus = loaded("llama"), make_corpus(ROWS)
    refused = []

    def try_too(_done: int, _n: int, _tokens: int) -> None:
        def expect_refusal() -> None:
            with pytest.raises(ArtifactError, match="another process is working on .*acts; wait for it to end"):
                extract(corpus, lm, tmp_path / "acts")

        refused.append(in_child(expect_refusal))

    extract(corpus, lm, tmp_path / "acts", ExtractionSettings(batch_tokens=50), on_progress=try_too)
    assert set(refused) == {0}


def test_other_files_at_the_output_are_left_alone(loaded: Loaded, make_corpus: MakeCorpus, tmp_path: Path) -> None:
    (tmp_path / "acts").mkdir()
    (tmp_path / "acts" / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="is no activations directory, so it is left as it is"):
        extract(make_corpus(ROWS), loaded("llama"), tmp_path / "acts")
    assert files(tmp_path / "acts") == {"notes.txt": b"mine"}


# --- reading a store ---


def test_a_damaged_store_is_found(make_store: Callable[..., ActivationStore]) -> None:
    store = make_store(np.ones((5, 2, 4)), shard_rows=2)
    store.verify()
    shard = store.path / "shard-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    ActivationStore.open(store.path)  # opening compares sizes only
    with pytest.raises(ArtifactError, match=r"shard-00001\.safetensors does not match its checksum; delete .*store"):
        store.verify()
    shard.write_bytes(data[:-1])
    with pytest.raises(ArtifactError, match=r"shard-00001\.safetensors is missing or damaged; delete"):
        ActivationStore.open(store.path)
    shard.unlink()
    with pytest.raises(ArtifactError, match=r"shard-00001\.safetensors is missing or damaged; delete"):
        ActivationStore.open(store.path)


def test_a_store_without_its_rows_is_found(make_store: Callable[..., ActivationStore]) -> None:
    store = make_store(np.ones((5, 2, 4)))
    (store.path / "rows.parquet").unlink()
    with pytest.raises(ArtifactError, match=r"rows\.parquet is missing"):
        ActivationStore.open(store.path)
