"""Extraction into a directory: shards, kills, locks, repair, bad rows, memory and disks that run out."""

from __future__ import annotations

import importlib
import os
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import CONTEXT, HIDDEN, files, kill_this_process, make_model, make_tokenizer
from skillbasis.activations import ActivationStore, ExtractionSettings, extract, repair
from skillbasis.activations.pooling import tokenize_rows
from skillbasis.artifact import write_json
from skillbasis.corpus import Corpus
from skillbasis.errors import ArtifactError, SkillbasisError, UsageError
from skillbasis.lm import LanguageModel, wrap
from test_activations import ROWS, as_rows, reference

Loaded = Callable[..., LanguageModel]
MakeCorpus = Callable[..., Corpus]
InChild = Callable[[Callable[[], object]], int]

extraction = importlib.import_module("skillbasis.activations.extract")  # the package's name `extract` is the function


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


def test_the_weighted_mean_of_the_last_block_weighs_what_is_left_of_a_cut_row(
    loaded: Loaded, make_corpus: MakeCorpus, tmp_path: Path
) -> None:
    """The vectors of RDS+; a cut row is weighed as if it ended where it is cut."""
    lm, rows = loaded("llama"), [("So", "the answer is " * 200), ROWS[0]]
    settings = ExtractionSettings(layers=str(len(lm.blocks) - 1), pooling="weighted", max_length=20)
    store = extract(make_corpus(rows), lm, tmp_path / "acts", settings)
    assert (store.block_ids, store.manifest["pooling"]) == ([len(lm.blocks) - 1], "weighted")
    truth = []
    for prompt, response in rows:
        ids = lm.tokenizer(f"{prompt}\n{response}", add_special_tokens=False)["input_ids"][:19]  # and BOS
        whole = lm.tokenizer.decode(ids)[len(prompt) + 1 :]
        states = reference(lm, prompt, whole, chat=False)["all"][-1]
        assert len(states) == 19
        truth.append(sum((t + 1) * states[t] for t in range(19)) / (19 * 20 / 2))
    np.testing.assert_allclose(store.to_numpy()[:, 0], truth, rtol=0, atol=1e-5 * np.abs(truth).max())


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
@pytest.mark.parametrize("pooling", ["mean", "last", "max", "weighted"])
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
    with pytest.raises(
        SkillbasisError, match="row 'row-2' has NaN or infinite activations in block 2 and 1 more; try --dtype"
    ):
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
        ({"pooling": "men"}, r"unknown pooling 'men' \(did you mean 'mean'\?\); allowed are mean, last, max, weighted"),
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
    assert told[0] == (4, 6, 0)
    assert told[-1] == (6, 6, sum(row.n_tokens for row in last_rows))


def test_no_work_is_lost_when_only_the_end_was_cut_off(
    loaded: Loaded, make_corpus: MakeCorpus, tmp_path: Path, in_child: InChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, corpus = loaded("llama"), make_corpus(ROWS)
    monkeypatch.setattr(extraction, "_write_tables", lambda *_: kill_this_process())
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
        store = extract(
            corpus, lm, out, ExtractionSettings(**settings), overwrite=True, on_progress=lambda *n: told.append(n)
        )
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


def test_work_for_something_else_is_refused_saying_what_differs(
    loaded: Loaded, make_corpus: MakeCorpus, tmp_path: Path, in_child: InChild, small_shards: None
) -> None:
    lm, corpus, out = loaded("llama"), make_corpus(ROWS), tmp_path / "acts"
    other_weights = wrap(make_model("llama", seed=1), make_tokenizer(), "llama of another seed")
    templated = loaded("llama", chat=True)
    changed = make_corpus([*ROWS[:-1], ("Hi", "No")])
    cases: list[tuple[Corpus, LanguageModel, dict[str, Any], str]] = [
        (corpus, lm, {"layers": "1"}, r"layers was \[1, 2\] and is \[1\]"),
        (corpus, lm, {"pooling": "last", "span": "prompt"}, "pooling was mean and is last, span was all and is prompt"),
        (corpus, other_weights, {}, "weights fingerprint was .* and is "),
        (corpus, templated, {}, "template fingerprint was None and is .*, tokenizer fingerprint was"),
        (changed, lm, {}, "corpus fingerprint was .* and is "),
    ]

    def expect_refusals(path: str) -> None:
        for rows, model, settings, words in cases:
            message = f"{path} was made otherwise \\(({words})[^;]*\\); give the same settings .* or --overwrite"
            with pytest.raises(ArtifactError, match=message):
                extract(rows, model, out, ExtractionSettings(**settings))

    with pytest.MonkeyPatch.context() as patch:
        assert in_child(lambda: extract(corpus, lm, out, **_kill_between_shards(patch, 2))) == -9
    expect_refusals(r"acts\.partial")
    told: list[Any] = []
    extract(corpus, lm, out, ExtractionSettings(batch_tokens=77), on_progress=lambda *n: told.append(n))
    assert told[0] == (4, 6, 0)  # the refusals left the work as it was, and smaller batches go on with it
    before = files(out)
    expect_refusals("acts")
    assert files(out) == before


def test_killed_at_twenty_random_moments_the_bytes_are_the_same(
    loaded: Loaded, make_corpus: MakeCorpus, tmp_path: Path, in_child: InChild, small_shards: None
) -> None:
    lm, corpus = loaded("llama"), make_corpus(ROWS * 3)
    extract(corpus, lm, tmp_path / "whole")
    started = time.perf_counter()
    extract(corpus, lm, tmp_path / "again")
    seconds = time.perf_counter() - started
    rng = np.random.default_rng(20)
    n_killed = 0
    for i in range(20):
        out = tmp_path / f"acts-{i}"
        for moment in rng.uniform(0, seconds, 2):

            def run(out: Path = out, moment: float = moment) -> None:
                threading.Timer(moment, kill_this_process).start()
                extract(corpus, lm, out)
                os._exit(0)

            n_killed += in_child(run) == -9
        extract(corpus, lm, out)
        assert files(out) == files(tmp_path / "whole")
        assert not out.with_name(f"{out.name}.partial").exists()
    assert n_killed >= 10


# --- bad rows ---


def _marked_model(value: float) -> LanguageModel:
    """A model whose block 1 gives `value` at every Z."""
    import torch

    model = make_model("llama")
    lm = wrap(model, make_tokenizer(), "broken")
    (marked,) = lm.tokenizer("Z", add_special_tokens=False)["input_ids"]
    tokens: list[Any] = []
    model.model.register_forward_pre_hook(lambda _m, _a, kw: tokens.append(kw["input_ids"]), with_kwargs=True)
    model.model.layers[1].register_forward_hook(
        lambda _m, _a, out: out + torch.where(tokens[-1] == marked, value, 0.0)[..., None]
    )
    return lm


def test_bad_rows_can_be_skipped_and_are_counted(make_corpus: MakeCorpus, tmp_path: Path, small_shards: None) -> None:
    lm = _marked_model(float("nan"))
    rows = [ROWS[0], ("Z", "Z"), ("Z Z", "Z"), ("a prompt of its own " * 20, "cut off"), ROWS[1], ("So", "aZ")]
    settings = ExtractionSettings(span="response", max_length=60)
    with pytest.raises(SkillbasisError, match="row 'row-1' has NaN .*block 1 and 1 more; try --dtype float32, or drop"):
        extract(make_corpus(rows), lm, tmp_path / "acts", settings)
    store = extract(make_corpus(rows), lm, tmp_path / "acts", settings, on_bad_row="skip")
    assert store.ids == ["row-0", "row-4"]
    assert [len(part) for part in store.shards()] == [1, 0, 1]
    assert [store.shard_ids(i) for i in range(3)] == [["row-0"], [], ["row-4"]]
    good = extract(make_corpus([ROWS[0], ROWS[1]]), lm, tmp_path / "good", settings)
    np.testing.assert_allclose(store.to_numpy(), good.to_numpy(), rtol=0, atol=1e-5)
    assert (store.manifest["rows"], store.manifest["n_skipped"]) == (2, 4)
    assert {row["id"]: row["reason"] for row in store.skipped()} == {
        "row-1": "NaN or infinite activations in block 1 and 1 more",
        "row-2": "NaN or infinite activations in block 1 and 1 more",
        "row-3": "no token to pool within 60 tokens in the span 'response'",
        "row-5": "NaN or infinite activations in block 1 and 1 more",
    }
    (store.path / "shard-00000.safetensors").unlink()
    (store.path / "rows.parquet").unlink()
    before = store.manifest
    assert repair(make_corpus(rows), lm, store.path) == ["rows.parquet", "shard-00000.safetensors"]
    assert ActivationStore.open(store.path).manifest == before


def test_when_every_row_is_bad_nothing_is_made(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    lm = _marked_model(float("inf"))
    with pytest.raises(SkillbasisError, match="nothing was extracted: all rows were skipped, the first for NaN or inf"):
        extract(make_corpus([("Z", "a"), ("b", "Z")]), lm, tmp_path / "acts", on_bad_row="skip")
    assert not (tmp_path / "acts").exists()


def test_many_bad_rows_are_named_in_part(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    lm = _marked_model(float("inf"))
    with pytest.raises(SkillbasisError, match="row 'row-0' .*; row 'row-4' .*; and 3 more rows of this shard; try"):
        extract(make_corpus([("Z", f"{i}") for i in range(8)]), lm, tmp_path / "acts")
    with pytest.raises(UsageError, match="on_bad_row is 'drop'; give stop or skip"):
        extract(make_corpus(ROWS), lm, tmp_path / "acts", on_bad_row="drop")  # type: ignore[arg-type]


# --- memory and disk that run out ---


def _short_of_memory(limit: int, error: Callable[[], BaseException]) -> tuple[LanguageModel, list[tuple[int, int]]]:
    """A model that fails on more than `limit` tokens at once; the shapes it was asked for."""
    model = make_model("llama")
    lm = wrap(model, make_tokenizer(), "small device")
    asked: list[tuple[int, int]] = []

    def check(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        asked.append(tuple(kwargs["input_ids"].shape))
        if kwargs["input_ids"].numel() > limit:
            raise error()

    model.model.register_forward_pre_hook(check, with_kwargs=True)
    return lm, asked


def _cuda_error() -> BaseException:
    import torch

    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize(
    "error",
    [
        _cuda_error,
        lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory"),
        MemoryError,
    ],
)
def test_batches_are_halved_when_memory_runs_out(
    error: Callable[[], BaseException], loaded: Loaded, make_corpus: MakeCorpus, tmp_path: Path, small_shards: None
) -> None:
    corpus, told = make_corpus([(p[:40], r[:40]) for p, r in ROWS * 2]), []
    whole = extract(corpus, loaded("llama"), tmp_path / "whole")
    lm, asked = _short_of_memory(60, error)
    store = extract(corpus, lm, tmp_path / "acts", on_progress=lambda *n: told.append(n))
    np.testing.assert_allclose(store.to_numpy(), whole.to_numpy(), rtol=0, atol=1e-5)
    assert sum(rows * tokens > 60 for rows, tokens in asked) == 1
    assert max(rows * tokens for rows, tokens in asked[len(asked) // 2 :]) <= 60  # it is not tried again and again
    assert store.manifest["batch_tokens"] <= 60
    assert told[-1] == (12, 12, store.manifest["n_tokens"])  # what was begun again counts once


def test_a_row_too_large_for_memory_is_named_by_its_length(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    lm, _ = _short_of_memory(50, _cuda_error)
    with pytest.raises(SkillbasisError, match=r"row 'row-4' of \d+ tokens does not fit into memory by itself; lower"):
        extract(make_corpus(ROWS), lm, tmp_path / "acts")


def test_other_errors_of_the_model_come_out(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    lm, asked = _short_of_memory(50, lambda: RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        extract(make_corpus(ROWS), lm, tmp_path / "acts")
    assert len(asked) == 1


def test_a_disk_too_small_is_found_before_the_work(
    loaded: Loaded, make_corpus: MakeCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    told: list[Any] = []
    with pytest.raises(ArtifactError, match=r"the activations take [1-9][0-9.]* kB, but .* has 1\.0 kB free; choose"):
        extract(make_corpus(ROWS), loaded("llama"), tmp_path / "acts", on_progress=lambda *n: told.append(n))
    assert told == []


def test_a_disk_that_fills_up_leaves_no_half_written_shard(
    loaded: Loaded, make_corpus: MakeCorpus, tmp_path: Path, in_child: InChild, small_shards: None
) -> None:
    lm, corpus = loaded("llama"), make_corpus(ROWS)
    extract(corpus, lm, tmp_path / "whole")
    room = (tmp_path / "whole" / "shard-00000.safetensors").stat().st_size - 10

    def run_out() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit then fails, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        with pytest.raises(OSError, match="File too large"):
            extract(corpus, lm, tmp_path / "acts")

    assert in_child(run_out) == 0
    assert not (tmp_path / "acts").exists()
    assert [file.name for file in (tmp_path / "acts.partial").iterdir()] == []
    extract(corpus, lm, tmp_path / "acts")
    assert files(tmp_path / "acts") == files(tmp_path / "whole")


# --- repair ---


def test_repair_makes_again_what_is_damaged_and_nothing_else(
    loaded: Loaded, make_corpus: MakeCorpus, tmp_path: Path, small_shards: None
) -> None:
    lm, corpus = loaded("llama"), make_corpus(ROWS)
    out = extract(corpus, lm, tmp_path / "acts").path
    before, n_tokens = files(out), ActivationStore.open(out).manifest["n_tokens"]
    told: list[Any] = []
    assert repair(corpus, lm, out, on_progress=lambda *n: told.append(n)) == []
    assert told == []
    shard = out / "shard-00001.safetensors"
    data = bytearray(before[shard.name])
    data[-3] ^= 4
    shard.write_bytes(data)
    assert repair(corpus, lm, out, on_progress=lambda *n: told.append(n)) == [shard.name]
    assert told[-1][:2] == (2, 2)
    assert told[-1][2] < n_tokens
    assert files(out) == before
    shard.unlink()
    (out / "rows.parquet").write_bytes(b"damaged")
    assert repair(corpus, lm, out) == ["rows.parquet", shard.name]
    assert files(out) == before


def test_repair_needs_the_same_model_and_corpus(loaded: Loaded, make_corpus: MakeCorpus, tmp_path: Path) -> None:
    lm, corpus = loaded("llama"), make_corpus(ROWS)
    out = extract(corpus, lm, tmp_path / "acts").path
    other = wrap(make_model("llama", seed=1), make_tokenizer(), "llama of another seed")
    with pytest.raises(ArtifactError, match="acts was made otherwise .weights fingerprint differ.; give the model and"):
        repair(corpus, other, out)
    with pytest.raises(ArtifactError, match="acts was made otherwise .corpus fingerprint differ.; give the model and"):
        repair(make_corpus(ROWS[:2]), lm, out)
    with pytest.raises(ArtifactError, match="there is no activations directory"):
        repair(corpus, lm, tmp_path / "absent")


# --- reading a store ---


def test_a_damaged_store_is_found(make_store: Callable[..., ActivationStore]) -> None:
    store = make_store(np.ones((5, 2, 4)), shard_rows=2)
    store.verify()
    shard = store.path / "shard-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    message = r"shard-00001\.safetensors is missing or damaged; make it again by the same extract command with --repair"
    again = ActivationStore.open(store.path)  # opening compares sizes only
    assert again.damaged() == [shard.name]
    with pytest.raises(ArtifactError, match=message):
        again.verify()
    with pytest.raises(ArtifactError, match=message):
        list(again.shards())
    assert len(list(again.shards(start=2))) == 1  # the others can be read
    shard.write_bytes(data[:-1])
    with pytest.raises(ArtifactError, match=message):
        ActivationStore.open(store.path)
    shard.unlink()
    with pytest.raises(ArtifactError, match=message):
        ActivationStore.open(store.path)


def test_a_store_without_its_rows_is_found(make_store: Callable[..., ActivationStore]) -> None:
    store = make_store(np.ones((5, 2, 4)))
    rows = store.path / "rows.parquet"
    rows.write_bytes(rows.read_bytes().replace(b"row-0", b"row-9"))
    with pytest.raises(ArtifactError, match=r"rows\.parquet is missing or damaged"):
        _ = ActivationStore.open(store.path).ids
    rows.unlink()
    with pytest.raises(ArtifactError, match=r"rows\.parquet is missing"):
        ActivationStore.open(store.path)
