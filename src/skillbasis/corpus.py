"""Reading examples into one form, the text a model sees for each, and writing selections back in their own format.

The rows live in a memory-mapped Arrow file, so a corpus of millions of rows costs memory for its ids, not its texts.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .artifact import atomic_path, file_sha256, fingerprint, write_json
from .corpus_formats import Message, NormalRow, Row, RowError, check_format, find_format, normalise, to_json
from .corpus_sources import Place, RawRow, read_source
from .errors import CorpusError, UsageError, nearest

if TYPE_CHECKING:
    import datasets
    import pyarrow

CHUNK_ROWS = 1000
CHUNK_CHARS = 32_000_000
REJECTED_CHARS = 1000


@dataclass(frozen=True)
class Corpus:
    """Examples in the order of their source.

    Attributes:
        rows: columns `id, prompt (list of {role, content}), response, answer (text or null), labels (list of text),
            extra (JSON object of all other columns)`, and `source_row`, the whole row as read, as JSON, from which
            selections are written. Memory-mapped; its file has no name any more and ends with the mapping.
        fingerprint: first 16 hex digits of a SHA-256 over the normalised rows in order; the same for the same content
            whatever the file form (plain, gzip, Parquet).
        source: the path, hub id or `embedded` it was read from.
        format: name of the row format.
        n_rejected: rows left out with `on_bad_row="skip"`.
    """

    rows: datasets.Dataset = field(repr=False)
    fingerprint: str
    source: str
    format: str
    n_rejected: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def ids(self) -> list[str]:
        """The ids in corpus order."""
        ids: list[str] = self.rows.with_format("arrow")["id"][:].to_pylist()  # a hundred times as fast as plain rows
        return ids

    @cached_property
    def positions(self) -> dict[str, int]:
        """Position of each id in corpus order."""
        return {row_id: position for position, row_id in enumerate(self.ids)}

    def without(self, ids: Collection[str]) -> Corpus:
        """The same corpus without some rows."""
        left_out = set(ids) & self.positions.keys()
        if not left_out:
            return self
        kept = [i for i, row_id in enumerate(self.ids) if row_id not in left_out]
        name = fingerprint([self.fingerprint, sorted(left_out)])
        return replace(self, rows=self.rows.select(kept), fingerprint=name)

    def source_row(self, row_id: str) -> Row:
        """The row as it was read, columns in their order.

        Raises: CorpusError: when no row has this id.
        """
        if row_id not in self.positions:
            raise CorpusError(f"{self.source} has no row with id '{row_id}'; use scores made from this corpus")
        row: Row = json.loads(self.rows[self.positions[row_id]]["source_row"])
        return row

    def answered_row(self, row_id: str, response: str) -> Row:
        """The row with another response: id, prompt messages, response, answer and labels; other columns are left out.

        Raises: CorpusError: when no row has this id.
        """
        if row_id not in self.positions:
            raise CorpusError(f"{self.source} has no row with id '{row_id}'; use scores made from this corpus")
        row = self.rows[self.positions[row_id]]
        return {"id": row_id, "prompt": row["prompt"], "response": response, "answer": row["answer"]} | {
            "labels": list(row["labels"])
        }


@dataclass(frozen=True)
class RowText:
    """The text of one row as a model sees it.

    Attributes:
        text: prompt and response.
        response_start: character offset in `text` where the response span begins.
        prompt_text: the prompt with its generation prompt, `text[:response_start]`.
        add_special_tokens: whether the tokenizer is to add its own; a chat template has written them already.
    """

    text: str
    response_start: int
    prompt_text: str
    add_special_tokens: bool


@dataclass(frozen=True)
class SelectedRow:
    """One chosen row.

    Attributes:
        id: id in the corpus.
        rank: 1-based place in the order of choice.
        score: what it was chosen by; None where the strategy has no score.
        direction: 0-based basis direction it was chosen for; None for strategies without one.
        sign: side of the direction.
        reason: a few words; the summary beside the selection counts them.
        response: an answer of the model's own that stands in place of the row's; None keeps the row's.
    """

    id: str
    rank: int
    score: float | None = None
    direction: int | None = None
    sign: Literal["+", "-"] | None = None
    reason: str = ""
    response: str | None = None


@contextmanager
def _rejects(path: Path | None) -> Iterator[Callable[[RawRow, str], None]]:
    """Yields the function that writes one rejected row; the file stands, complete, when the block succeeds."""
    if path is None:
        yield lambda raw, reason: None
        return
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:

        def write(raw: RawRow, reason: str) -> None:
            text = raw.text or json.dumps(raw.value, default=str, ensure_ascii=False)
            record = {"file": raw.place.file, "line": raw.place.number, "reason": reason, "row": text[:REJECTED_CHARS]}
            file.write(json.dumps(record) + "\n")

        yield write


class _ArrowFile:
    """Writes normalised rows to an Arrow file in chunks bounded by rows and characters."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        turn = pa.struct([("role", pa.string()), ("content", pa.string())])
        self.schema = pa.schema(
            [
                ("id", pa.string()),
                ("prompt", pa.list_(turn)),
                ("response", pa.string()),
                ("answer", pa.string()),
                ("labels", pa.list_(pa.string())),
                ("extra", pa.string()),
                ("source_row", pa.string()),
            ]
        )
        self.path = path
        self.writer = pa.ipc.new_file(str(path), self.schema)
        self.chunk: list[dict[str, Any]] = []
        self.n_chars = 0

    def add(self, row: NormalRow) -> None:
        self.chunk.append(vars(row))
        self.n_chars += 2 * len(row.source_row)
        if len(self.chunk) >= CHUNK_ROWS or self.n_chars >= CHUNK_CHARS:
            self.flush()

    def flush(self) -> None:
        import pyarrow as pa

        try:
            self.writer.write_table(pa.Table.from_pylist(self.chunk, schema=self.schema))
        except OSError as error:
            raise CorpusError(
                f"no room for the working copy in {self.path.parent} ({error}); set TMPDIR to another disk"
            ) from None
        self.chunk, self.n_chars = [], 0

    def finish(self) -> pyarrow.Table:
        """The table, memory-mapped: it stays readable after the file's name is gone."""
        import pyarrow as pa

        self.flush()
        self.writer.close()
        return pa.ipc.open_file(pa.memory_map(str(self.path))).read_all()


def load_corpus(
    source: str | Path,
    *,
    format: str | None = None,
    label_column: str | None = None,
    on_bad_row: Literal["stop", "skip"] = "stop",
    limit: int | None = None,
    shuffle_seed: int | None = None,
    split: str = "train",
    rejected_path: Path | None = None,
) -> Corpus:
    """Reads examples of any known format into one form.

    Args:
        source: a .jsonl, .jsonl.gz or .parquet file, a folder of them (read in order of file name), a folder saved by
            `datasets`, a hub id `owner/name` (tried only where no such path exists; read through the user's Hugging
            Face cache), or `embedded`.
        format: name of the row format; None finds it by the columns of the first row.
        label_column: column of human skill labels (text, number or list) instead of `labels`; one of the first 1000
            rows has to have it.
        on_bad_row: "stop" at a row that cannot be used, or "skip" it. A file that cannot be read on always stops.
        limit: at most this many rows: the first, or with `shuffle_seed` a random sample in corpus order.
            Without a seed nothing after them is read.
        shuffle_seed: seed of the sample (NumPy's default_rng); nothing is sampled without `limit`.
        split: which split of a hub data set or of a saved DatasetDict.
        rejected_path: JSONL of skipped rows (file, line, reason, row cut at 1000 characters), written with "skip".
    Returns: the corpus; its working copy lies under TMPDIR without a name, about twice the size of the source's text.
    Raises:
        UsageError: when there is no such source, format, split or label column.
        CorpusError: at a bad row (with "stop"), a damaged file, or when no row is left.
    Cost: one pass over the source; memory for the ids and 32 bytes per row, plus one chunk of rows.
    """
    import datasets
    import numpy as np

    if on_bad_row not in ("stop", "skip"):
        raise UsageError(f"on_bad_row is '{on_bad_row}'; give stop or skip")
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}; give 1 or more")
    if shuffle_seed is not None and shuffle_seed < 0:
        raise UsageError(f"shuffle_seed is {shuffle_seed}; give 0 or more")
    if format is not None:
        check_format(format)
    source = str(source)
    places: dict[str, Place] = {}
    columns: dict[str, None] = {}  # seen so far, in order, until the label column is among them
    digests: list[bytes] = []
    n_rejected = 0
    n_wanted = limit if shuffle_seed is None else None

    def check_labels() -> None:
        if label_column is not None and label_column not in columns:
            names = list(columns)
            hint = nearest(label_column, names)
            raise UsageError(f"{source} has no column '{label_column}'{hint}; its columns are {', '.join(names)}")

    with (
        tempfile.TemporaryDirectory(prefix="skillbasis-", ignore_cleanup_errors=True) as directory,
        _rejects(rejected_path if on_bad_row == "skip" else None) as reject,
    ):
        file = _ArrowFile(Path(directory) / "corpus.arrow")
        for raw in read_source(source, split):
            try:
                if raw.value is None:
                    raise RowError(str(raw.reason))
                format = format or find_format(list(raw.value), raw.place)
                if label_column not in columns:
                    columns.update(dict.fromkeys(raw.value))
                row = normalise(raw.value, format, label_column)
                if row.id in places:
                    alike = (
                        f"the id '{row.id}' is" if raw.value.get("id") is not None else "without an id, its content is"
                    )
                    raise RowError(f"{alike} already that of {places[row.id]}")
            except RowError as error:
                if on_bad_row == "stop":
                    raise CorpusError(f"{raw.place}: {error}; fix the row or pass --on-bad-row skip") from None
                reject(raw, str(error))
                n_rejected += 1
                continue
            places[row.id] = raw.place
            file.add(row)
            digests.append(row.digest)
            if len(digests) == CHUNK_ROWS:
                check_labels()
            if len(digests) == n_wanted:
                break
        table = file.finish()
    if not digests:
        raise CorpusError(f"{source} holds no usable row ({n_rejected} rejected); give a corpus of at least one row")
    check_labels()
    chosen = np.arange(len(digests))
    if limit is not None and limit < len(digests):
        chosen = np.sort(np.random.default_rng(shuffle_seed).choice(len(digests), limit, replace=False))
    fingerprint = hashlib.sha256(b"".join(digests[position] for position in chosen)).hexdigest()[:16]
    # The fingerprint is given, or the library would hash all rows for one of its own.
    rows = datasets.Dataset(table, fingerprint=fingerprint)
    if len(chosen) < len(digests):
        rows = rows.select(chosen)
    return Corpus(rows, fingerprint, source, str(format), n_rejected)


def _templated(messages: list[Message], tokenizer: Any, add_generation_prompt: bool) -> str:
    import jinja2

    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except jinja2.TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise CorpusError(
            f"the chat template cannot write turns of the roles {roles} ({error}); "
            "remove such rows, or use a tokenizer without a chat template"
        ) from error
    return str(text)


def row_text(prompt: list[Message], response: str, tokenizer: Any) -> RowText:
    """The text of a row as the model sees it, and where its response begins.

    Args:
        prompt: messages {role, content} before the response.
        response: text of the response; with an empty one the text is the prompt, ready for generation.
        tokenizer: a Hugging Face tokenizer; its chat template is used where it has one.
    Returns: with a template, the templated prompt with its generation prompt, and the response as the template writes
        it (with its end of turn). A template that writes the prompt otherwise once it is answered, or that changes the
        response (some drop the reasoning between think tags), would lose text: then the response follows the templated
        prompt as it is. Without a template: the contents of the prompt joined by newlines, a newline, the response.
    Raises: CorpusError: when the template refuses the turns.
    """
    if not tokenizer.chat_template:
        prompt_text = "\n".join(message["content"] for message in prompt) + "\n"
        return RowText(prompt_text + response, len(prompt_text), prompt_text, add_special_tokens=True)
    prompt_text = _templated(prompt, tokenizer, add_generation_prompt=True)
    text = prompt_text + response
    if response:
        answered = _templated(
            [*prompt, {"role": "assistant", "content": response}], tokenizer, add_generation_prompt=False
        )
        if answered.startswith(prompt_text) and response.strip() in answered[len(prompt_text) :]:
            text = answered
    return RowText(text, len(prompt_text), prompt_text, add_special_tokens=False)


def training_rows(corpus: Corpus, chosen: Sequence[SelectedRow]) -> list[tuple[list[Message], str]]:
    """The (prompt, response) pairs of chosen rows, in the order given. Raises: CorpusError: an id is not there."""
    unknown = [row.id for row in chosen if row.id not in corpus.positions]
    if unknown:
        raise CorpusError(f"{corpus.source} has no row with id '{unknown[0]}'; use a selection made from this corpus")
    columns = corpus.rows.select([corpus.positions[row.id] for row in chosen])
    responses = (
        text if row.response is None else row.response for row, text in zip(chosen, columns["response"], strict=True)
    )
    return list(zip(columns["prompt"], responses, strict=True))


def write_selection(path: Path, corpus: Corpus, chosen: Sequence[SelectedRow], how: dict[str, Any]) -> None:
    """Writes the chosen rows in the corpus' own format, and beside them how they were chosen.

    Args:
        path: FILE.jsonl, one source row (or, with a response of the model's own, one `answered_row`) per line plus
            `_selection` {strategy, rank, score, direction, sign}; FILE.json holds `how`, the number of rows, the count
            of each reason, the SHA-256 of the JSONL and the corpus fingerprint.
        corpus: what the ids name.
        chosen: rows in the order they are written; an undefined score (NaN) is written as null.
        how: all that the choice depends on (JSON-able), with the key `strategy`.
    Raises:
        UsageError: when the path does not end in .jsonl or `how` names no strategy.
        CorpusError: when an id is not in the corpus or comes twice.
    """
    if path.suffix != ".jsonl":
        raise UsageError(f"a selection is written to a .jsonl file, not {path.name}; change the name")
    if "strategy" not in how:
        raise UsageError("the selection names no strategy; add 'strategy' to how it was made")
    repeated = [row_id for row_id, count in Counter(row.id for row in chosen).items() if count > 1]
    if repeated:
        raise CorpusError(f"the selection holds the id '{repeated[0]}' more than once; choose each row once")
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for row in chosen:
            score = None if row.score is None or not math.isfinite(row.score) else float(row.score)
            direction = None if row.direction is None else int(row.direction)
            mark = {"strategy": how["strategy"], "rank": int(row.rank), "score": score, "direction": direction}
            source = corpus.source_row(row.id) if row.response is None else corpus.answered_row(row.id, row.response)
            file.write(to_json(source | {"_selection": mark | {"sign": row.sign}}) + "\n")
    summary = {
        "n_rows": len(chosen),
        "reasons": dict(sorted(Counter(row.reason for row in chosen if row.reason).items())),
        "sha256": file_sha256(path),
        "corpus_fingerprint": corpus.fingerprint,
    }
    write_json(path.with_suffix(".json"), how | summary)
