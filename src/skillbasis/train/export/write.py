"""An export: chosen rows in the format of a trainer, with the record of how they were chosen and a card."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...artifact import building, file_sha256, is_current, read_json, write_json, write_text
from ...corpus import Corpus
from ...corpus_formats import RowError, normalise, to_json
from ...errors import ArtifactError, CorpusError, UsageError, nearest
from .alpaca import ALPACA
from .card import card, count_licenses
from .form import ExportFormat
from .llamafactory import LLAMAFACTORY, LlamaFactoryRun, write_description
from .messages import MESSAGES
from .sharegpt import SHAREGPT
from .trl import TRL

KIND = "export"
FORMATS = {form.name: form for form in (LLAMAFACTORY, TRL, SHAREGPT, ALPACA, MESSAGES)}
ROWS_FILE = "train.jsonl"


def export_format(name: str) -> ExportFormat:
    """The format of this name. Raises: UsageError: unknown, with the nearest name."""
    if name not in FORMATS:
        raise UsageError(
            f"unknown export format {name!r}{nearest(name, list(FORMATS))}; allowed are {', '.join(FORMATS)}"
        )
    return FORMATS[name]


def export(corpus: Corpus, to: str, out: str | Path, *, run: LlamaFactoryRun | None = None) -> Path:
    """Writes rows in the format of a trainer, into a folder that is complete or absent.

    Args:
        corpus: the rows, usually of a selection; they keep their order.
        to: `llamafactory`, `trl`, `sharegpt`, `alpaca` or `messages`.
        out: folder of `train.jsonl`, `README.md` (the card of a Hub data set), `selection.json` (how the rows were
            chosen, where that stands beside the source), and for LLaMA-Factory its description and two YAML files.
        run: model and settings of the YAML, for `llamafactory`.
    Returns: the folder.
    Raises: CorpusError: a row has no response, or the format cannot hold it; the message names the row and the reason.
        ArtifactError: the record beside the source is of other rows. UsageError: unknown format.
    """
    form = export_format(to)
    if run is not None and form is not LLAMAFACTORY:
        raise UsageError(f"a model and settings are for the YAML of llamafactory, and {to} has none; leave them out")
    out = Path(out)
    run = run or LlamaFactoryRun()
    selection = selection_record(corpus.source)
    inputs = {
        "corpus_fingerprint": corpus.fingerprint,
        "format": to,
        "name": out.name,
        "selection": selection,
        "run": asdict(run) if form is LLAMAFACTORY else None,
    }
    if is_current(out, KIND, inputs):
        return out
    with building(out, KIND, inputs, {"rows": len(corpus), "source": Path(corpus.source).name}) as work:
        licenses = _write_rows(corpus, form, work / ROWS_FILE)
        if selection is not None:
            write_json(work / "selection.json", selection)
        if form is LLAMAFACTORY:
            write_description(work, ROWS_FILE, run, out.name)
        source = Path(corpus.source).name if Path(corpus.source).exists() else corpus.source
        write_text(work / "README.md", card(form, ROWS_FILE, out.name, len(corpus), source, licenses, selection))
    return out


def selection_record(source: str) -> dict[str, Any] | None:
    """How the rows of a selection were chosen: the JSON that `select` writes beside it; None where there is none.

    Raises: ArtifactError: it is the record of another file, or of this one before it was changed.
    """
    path = Path(source)
    beside = path.with_suffix(".json")
    if path.suffix != ".jsonl" or not path.is_file() or not beside.is_file():
        return None
    record = read_json(beside)
    if not isinstance(record, dict) or "strategy" not in record or "sha256" not in record:
        return None
    if record["sha256"] != file_sha256(path):
        raise ArtifactError(
            f"{beside} says how {path.name} was chosen, but its rows have been changed since; select again, or remove "
            "that file to export without a record"
        )
    return record


def _write_rows(corpus: Corpus, form: ExportFormat, path: Path) -> Counter[str | None]:
    """Writes every row, each read back first; returns the count of rows by license."""
    licenses: Counter[str | None] = Counter()
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for batch in corpus.rows.select_columns(["id", "prompt", "response", "extra"]).iter(batch_size=1000):
            licenses += count_licenses(batch["extra"])
            for row_id, prompt, response, extra in zip(*batch.values(), strict=True):
                try:
                    line = _line(form, row_id, prompt, response, extra)
                except RowError as error:
                    raise CorpusError(
                        f"row '{row_id}' of {corpus.source} cannot be exported to {form.name}: {error}; leave the row "
                        "out, or choose another format"
                    ) from None
                file.write(line + "\n")
    return licenses


def _line(form: ExportFormat, row_id: str, prompt: list[dict[str, str]], response: str, extra: str) -> str:
    """One exported row as JSON. Raises: RowError: the format cannot hold it."""
    if not response.strip():
        raise RowError("it has no response to learn")
    row = {"id": row_id} | form.columns(prompt, response)
    back = normalise(json.loads(to_json(row)), form.read_as)
    if (back.id, back.prompt, back.response) != (row_id, prompt, response):
        raise RowError("what is read back is not what was written")
    mark = json.loads(extra).get("_selection")
    return to_json(row | ({"_selection": mark} if isinstance(mark, dict) else {}))
