"""Extract pooled activations of a corpus, shard by shard, so that a killed run goes on where it stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..artifact import MANIFEST, atomic_path, building, checksum, is_current, lock, read_json, write_json, write_tensors
from ..corpus import Corpus
from ..errors import ArtifactError, SkillbasisError
from ..lm import LanguageModel
from .pooling import tokenize_rows
from .reader import LocalReader, OnBadRow, RayReader, Shard, shard_jobs
from .settings import ExtractionSettings, ReadingPlan
from .store import KIND, ROWS, SKIPPED, ActivationStore

_SHARD_BYTES = 1 << 27  # 128 MiB: seconds to redo after a kill, and few files at ten million rows
_MAX_SHARD_ROWS = 8192

OnProgress = Callable[[int, int, int], None]
"""Called with (rows done, rows in all, tokens done in this process)."""
Reader = LocalReader | RayReader


def extract(
    corpus: Corpus,
    model: LanguageModel | RayReader,
    out: str | Path,
    settings: ExtractionSettings | None = None,
    *,
    on_bad_row: OnBadRow = "stop",
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> ActivationStore:
    """Extracts one pooled vector per row and block into a directory (format: docs/architecture.md).

    Args:
        corpus: rows in a fixed order; the output keeps it.
        model: the model that reads them, or workers on a Ray cluster that do.
        out: the directory; complete or absent. A killed call is continued by the same call, shard by shard, and ends
            with the same bytes.
        settings: blocks, pooling, span, lengths.
        on_bad_row: `stop` at rows without a token in the span or with activations that are NaN or infinite, or `skip`
            them: they are counted in the manifest and listed in skipped.jsonl.
        overwrite: whether activations at `out` that were made otherwise give way; else they are refused, saying how.
    Returns: the opened store.
    Raises: SkillbasisError: bad rows. ArtifactError: what lies at `out` was made otherwise, or there is no room for it.
    Cost: one forward pass up to the last block read; memory of one shard (at most 128 MiB) plus one batch.
    """
    out = Path(out)
    reader = model if isinstance(model, RayReader) else LocalReader(model)
    plan = ReadingPlan.of(settings or ExtractionSettings(), reader.facts)
    inputs = plan.inputs(reader.facts, corpus.fingerprint)
    if is_current(out, KIND, inputs):
        return _opened(out)
    manifest: dict[str, Any] = {}
    with building(out, KIND, inputs, manifest, overwrite=overwrite) as work:
        row_bytes = len(plan.block_ids) * reader.facts.hidden_size * 4
        ranges = shard_ranges(len(corpus), row_bytes)
        _check_room(work, row_bytes * len(corpus))
        shards = list(_make_shards(corpus, reader, plan, work, ranges, on_bad_row, on_progress))
        _write_tables(work, shards)
        manifest |= plan.record(reader.facts, corpus.source, corpus.fingerprint) | {
            "rows": sum(shard["rows"] for shard in shards),
            "n_tokens": sum(sum(shard["tokens"]) for shard in shards),
            "n_truncated": sum(sum(shard["truncated"]) for shard in shards),
            "n_skipped": sum(len(shard["skipped"]) for shard in shards),
            "batch_tokens": reader.batch_tokens or plan.batch_tokens,
            "rows_checksum": checksum(work / ROWS),
            "shards": [
                {key: shard[key] for key in ("file", "corpus_rows", "rows", "bytes", "checksum")} for shard in shards
            ],
        }
    return _opened(out)


def shard_ranges(n_rows: int, row_bytes: int) -> list[tuple[int, int]]:
    """First row and end of every shard: by rows alone, so that the same corpus is always cut alike."""
    size = max(1, min(_MAX_SHARD_ROWS, _SHARD_BYTES // row_bytes))
    return [(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]


def _opened(out: Path) -> ActivationStore:
    """Opens what is finished and removes the records of progress; earlier, a kill would have cost the whole run."""
    for record in out.glob("shard-*.json"):
        record.unlink()
    return ActivationStore.open(out)


def _check_room(work: Path, n_bytes: int) -> None:
    """Finds a disk that is too small before the work, not hours into it; what is there of an earlier run counts."""
    there = sum(file.stat().st_size for file in work.iterdir())
    free = shutil.disk_usage(work).free
    if n_bytes - there > free:
        raise ArtifactError(
            f"the activations take {_size(n_bytes)}, but the disk of {work.parent} has {_size(free)} free; "
            "choose another --out or fewer --layers, or have discover and score read the corpus with --model, "
            "which stores nothing"
        )


def _size(n_bytes: int) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if n_bytes >= unit:
            return f"{n_bytes / unit:,.1f} {name}"
    return f"{n_bytes / 1e3:,.1f} kB"


def _make_shards(
    corpus: Corpus,
    reader: Reader,
    plan: ReadingPlan,
    work: Path,
    ranges: list[tuple[int, int]],
    on_bad_row: OnBadRow,
    on_progress: OnProgress | None,
) -> Iterator[dict[str, Any]]:
    """Makes the shards that are not there yet; yields the record of each, in order."""
    advance = counter(len(corpus), on_progress)
    finished = {i: record for i, rows in enumerate(ranges) if (record := _finished(work, i, corpus, rows))}
    advance(sum(stop - start for start, stop in (ranges[i] for i in finished)), 0)
    todo = [rows for i, rows in enumerate(ranges) if i not in finished]
    shards = reader.read(shard_jobs(corpus, todo, plan, on_bad_row), advance)
    for index, rows in enumerate(ranges):
        if index in finished:
            yield finished[index]
            continue
        shard = next(shards)
        advance(len(shard.skipped), 0)
        yield _write_shard(work, index, rows, shard)


def counter(n_rows: int, on_progress: OnProgress | None) -> Callable[[int, int], None]:
    """Adds up what is read, and tells the sums."""
    done, read = 0, 0

    def advance(rows: int, tokens: int) -> None:
        nonlocal done, read
        done, read = done + rows, read + tokens
        if on_progress and (rows or tokens):
            on_progress(done, n_rows, read)

    return advance


def _shard_file(work: Path, index: int) -> Path:
    return work / f"shard-{index:05d}.safetensors"


def _finished(work: Path, index: int, corpus: Corpus, rows: tuple[int, int]) -> dict[str, Any] | None:
    """The record of a shard that an earlier run finished, if it is whole."""
    file = _shard_file(work, index)
    record = work / f"{file.name}.json"  # written after its shard: a shard without one is made again
    done: dict[str, Any] | None = read_json(record) if record.exists() and file.exists() else None
    # The ids are compared too: another version may cut shards elsewhere.
    if done is None or done["corpus_rows"] != list(rows) or done["checksum"] != checksum(file):
        return None
    skipped = {row["id"] for row in done["skipped"]}
    return done if done["ids"] == [i for i in corpus.ids[slice(*rows)] if i not in skipped] else None


def _write_shard(work: Path, index: int, rows: tuple[int, int], shard: Shard) -> dict[str, Any]:
    file = _shard_file(work, index)
    write_tensors(file, {"activations": shard.values})
    record = {
        "file": file.name,
        "corpus_rows": list(rows),
        "rows": len(shard.values),
        "bytes": file.stat().st_size,
        "checksum": checksum(file),
        "ids": shard.ids,
        "tokens": shard.tokens,
        "truncated": shard.truncated,
        "skipped": shard.skipped,
    }
    write_json(work / f"{file.name}.json", record)
    return record


def _write_tables(work: Path, shards: list[dict[str, Any]]) -> None:
    """Writes rows.parquet (id, shard, offset within it, tokens read, whether the row was cut) and skipped.jsonl."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    skipped = [row for shard in shards for row in shard["skipped"]]
    if not any(shard["rows"] for shard in shards):
        reason = "the corpus has no rows"
        if skipped:
            reason = f"all rows were skipped, the first for {skipped[0]['reason']}"
        raise SkillbasisError(f"nothing was extracted: {reason}")
    table = pa.table(
        {
            "id": pa.array([i for shard in shards for i in shard["ids"]], pa.string()),
            "shard": pa.array([n for n, shard in enumerate(shards) for _ in shard["ids"]], pa.int32()),
            "offset": pa.array([n for shard in shards for n in range(shard["rows"])], pa.int32()),
            "tokens": pa.array([n for shard in shards for n in shard["tokens"]], pa.int32()),
            "truncated": pa.array([t for shard in shards for t in shard["truncated"]], pa.bool_()),
        }
    )
    with atomic_path(work / ROWS) as temporary:
        pq.write_table(table, temporary)
    if skipped:
        with atomic_path(work / SKIPPED) as temporary:
            temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in skipped), "utf-8")


def repair(
    corpus: Corpus,
    model: LanguageModel,
    path: str | Path,
    *,
    on_progress: OnProgress | None = None,
) -> list[str]:
    """Makes again what is missing or damaged in finished activations, and nothing else.

    Args:
        corpus: the corpus they were made of.
        model: the model they were made with.
        path: the directory; its settings are taken from its manifest.
    Returns: names of the files that were made again; empty when all were whole.
    Raises: ArtifactError: not finished, or made of another corpus or with another model.
    Cost: one reading of all shards; a forward pass over the rows of the damaged ones.
    """
    path, reader = Path(path).resolve(), LocalReader(model)
    store = ActivationStore.read(path)
    manifest = store.manifest
    plan = ReadingPlan.of(store.settings, reader.facts)
    now = plan.inputs(reader.facts, corpus.fingerprint)
    if now != manifest["inputs"]:
        keys = ", ".join(sorted(key for key in now if now[key] != manifest["inputs"].get(key))).replace("_", " ")
        raise ArtifactError(f"{path} was made otherwise ({keys} differ); give the model and corpus it was made from")
    with lock(path):
        damaged = store.damaged()
        if not damaged:
            return []
        indices = [i for i, shard in enumerate(manifest["shards"]) if shard["file"] in damaged]
        ranges: list[tuple[int, int]] = [tuple(manifest["shards"][i]["corpus_rows"]) for i in indices]
        advance = counter(sum(stop - start for start, stop in ranges), on_progress)
        shards = reader.read(shard_jobs(corpus, ranges, plan, "skip"), advance)
        for i, rows, shard in zip(indices, ranges, shards, strict=True):
            entry = manifest["shards"][i]
            if len(shard.ids) != entry["rows"]:
                raise ArtifactError(
                    f"{path / entry['file']} held {entry['rows']} rows, now {len(shard.ids)}; extract anew"
                )
            record = _write_shard(path, i, rows, shard)
            (path / f"{entry['file']}.json").unlink()
            # On another processor the last bits may differ, and with them the checksum.
            entry |= {"bytes": record["bytes"], "checksum": record["checksum"]}
        if ROWS in damaged:
            _write_tables(path, _records_without_values(corpus, model, plan, store))
            manifest["rows_checksum"] = checksum(path / ROWS)
        write_json(path / MANIFEST, manifest)
    return sorted(damaged)


def _records_without_values(
    corpus: Corpus, lm: LanguageModel, plan: ReadingPlan, store: ActivationStore
) -> list[dict[str, Any]]:
    """What rows.parquet is made from, by tokenising the corpus again."""
    skipped = {row["id"]: row for row in store.skipped()}
    records = []
    ranges = [tuple(shard["corpus_rows"]) for shard in store.manifest["shards"]]
    for job in shard_jobs(corpus, ranges, plan, "skip"):
        rows = tokenize_rows(job.rows, lm, plan.span, plan.max_length)
        kept = [row for row in rows if row.id not in skipped]
        records.append(
            {
                "rows": len(kept),
                "ids": [row.id for row in kept],
                "tokens": [row.n_tokens for row in kept],
                "truncated": [row.truncated for row in kept],
                "skipped": [skipped[row.id] for row in rows if row.id in skipped],
            }
        )
    return records
