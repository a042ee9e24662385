"""What is found, written into the run as a selection, and beside it how it was made."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from ..artifact import atomic_path, file_sha256, fingerprint, write_json
from ..corpus_formats import to_json
from ..errors import ArtifactError, UsageError
from .opened import FOLDER, SCORES, OpenedRun
from .searching import Found, Question, Search, direction_number

EXPORTS = "exports"
"""Folder of the exports within that of the explorer."""
STRATEGY = "explore"


@dataclass(frozen=True)
class Export:
    """A selection on the disk."""

    path: Path
    """FILE.jsonl: the examples in the order of the results, each with its `_selection`."""
    record: Path
    """FILE.json: how they were chosen."""
    n_rows: int


def export(run: OpenedRun, search: Search, question: Question) -> Export:
    """Writes what a question finds as `write_selection` writes the rows of other strategies.

    The file is named for the question and the rows, so the same export made again is the same file.
    Raises: UsageError: the question cannot be meant, or finds nothing. ArtifactError: the run has changed since it was
        opened, so that the record would name other scores than those that were searched.
    Cost: one read of what is found, and of the score file.
    """
    if run.changed:
        raise ArtifactError("the files of the run have changed since it was opened; start the explorer again to export")
    found = search.find(question)
    if not len(found.rows):
        raise UsageError("nothing was found, so there is nothing to export; ask for more")
    how = how_chosen(run, search, question, found)
    name = f"{STRATEGY}-{fingerprint([how, [search.scores.ids[n] for n in found.rows]])[:8]}"
    path = run.path / FOLDER / EXPORTS / f"{name}.jsonl"
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(selection_lines(search, question))
    # `reasons` is empty: rows were asked for, none was left out.
    summary = {"n_rows": len(found.rows), "reasons": {}, "sha256": file_sha256(path)}
    record = path.with_suffix(".json")
    write_json(record, how | summary | {"corpus_fingerprint": search.index.corpus_fingerprint})
    return Export(path, record, len(found.rows))


def how_chosen(run: OpenedRun, search: Search, question: Question, found: Found) -> dict[str, Any]:
    """All that the choice depends on; what was not asked for is null."""
    along = question.direction != ""
    tagged = {"name": question.tag, "n_rows": len(search.tags.ids(question.tag))} if question.tag else None
    return {
        "strategy": STRATEGY,
        "query": question.q or None,
        "match": question.match if question.q else None,
        "direction": _direction(search, question),
        "sign": question.sign if along else None,
        "by": question.by if along else None,
        "least": float(question.least) if along and question.least else None,
        "label": question.label or None,
        "filters": [asdict(wanted) for wanted in question.filters],
        "tag": tagged,
        "order": found.order,
        "address": f"/?{urlencode(question.pairs())}",
        "run": run.name,
        "scores": {"file": SCORES, "sha256": file_sha256(run.path / SCORES), "n_rows": len(search.scores.ids)},
        "basis": search.scores.basis_fingerprint,
        "versions": {"python": platform.python_version(), "skillbasis": version("skillbasis")},
    }


def selection_lines(search: Search, question: Question) -> Iterator[str]:
    """The lines of an export: as `write_selection` writes them, in the order of the results."""
    found = search.find(question)
    values = [None] * len(found.rows) if found.values is None else found.values.tolist()
    direction = _direction(search, question)
    sign = question.sign if question.direction else None
    rows = search.index.source_rows(found.rows.tolist())
    for rank, ((_, source), score) in enumerate(zip(rows, values, strict=True), 1):
        mark = {"strategy": STRATEGY, "rank": rank, "score": score, "direction": direction, "sign": sign}
        yield to_json(source | {"_selection": mark}) + "\n"


def _direction(search: Search, question: Question) -> int | None:
    return direction_number(question.direction, search.scores.values.shape[1]) if question.direction else None


def exported_file(run: OpenedRun, name: str) -> Path | None:
    """The export of this name, or None; the name is compared with those that are there and never opened itself."""
    folder = run.path / FOLDER / EXPORTS
    if not folder.is_dir():
        return None
    there = (file for file in folder.iterdir() if file.suffix in (".jsonl", ".json") and file.is_file())
    return next((file for file in there if file.name == name and not name.startswith(".")), None)
