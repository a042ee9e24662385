"""Options that several commands share, and the reading of a corpus by them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError

Out = Annotated[Path, typer.Option("--out", help="Where the result goes; complete or absent.")]
Model = Annotated[str, typer.Option("--model", help="Model directory, hub id, or 'embedded'.")]
OptionalModel = Annotated[str | None, typer.Option("--model", help="Model directory, hub id, or 'embedded'.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Basis = Annotated[Path, typer.Option("--basis", help="Basis directory.")]
Format = Annotated[str | None, typer.Option("--format", help="Row format; found by the columns if not given.")]
LabelColumn = Annotated[str | None, typer.Option(help="Column that holds the human labels.")]
OnBadRow = Annotated[str, typer.Option(help="stop at a row that cannot be read, or skip it (kept in rejected.jsonl).")]
Limit = Annotated[
    int | None, typer.Option(min=1, help="Rows to use; with --shuffle-seed a random sample, else the first.")
]
ShuffleSeed = Annotated[int | None, typer.Option(min=0, help="Seed of the random sample taken with --limit.")]
Layers = Annotated[
    str, typer.Option(help="'inner' (all blocks but first and last), 'all', or a list such as 2,5,8-11.")
]
Pooling = Annotated[str, typer.Option(help="mean, last or max over the tokens of the span.")]
Span = Annotated[str, typer.Option(help="all, prompt or response.")]
MaxLength = Annotated[int, typer.Option(help="Tokens after which a row is cut.")]
BatchTokens = Annotated[int, typer.Option(help="Tokens of one forward pass, padding included.")]
Seed = Annotated[int, typer.Option(min=0, help="Random seed.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; one per core if not given.")]
Rollouts = Annotated[int, typer.Option(help="Answers per problem.")]
Temperature = Annotated[float, typer.Option(help="Sampling temperature; 0 takes the most likely token.")]
MaxTokens = Annotated[int, typer.Option(help="New tokens after which an answer is cut.")]


def read_corpus(
    source: str,
    format: str | None = None,
    label_column: str | None = None,
    on_bad_row: str = "stop",
    limit: int | None = None,
    shuffle_seed: int | None = None,
    out: Path | None = None,
) -> Any:
    """Loads a corpus by the options of a command; rejected rows are kept beside its output."""
    from ..corpus import load_corpus

    if on_bad_row not in ("stop", "skip"):
        raise UsageError(f"--on-bad-row is 'stop' or 'skip', not {on_bad_row!r}")
    if shuffle_seed is not None and limit is None:
        raise UsageError("--shuffle-seed draws the sample that --limit asks for; give --limit too, or leave it out")
    rejected = out.parent / "rejected.jsonl" if out is not None and on_bad_row == "skip" else None
    corpus = load_corpus(
        source,
        format=format,
        label_column=label_column,
        on_bad_row=on_bad_row,  # type: ignore[arg-type]
        limit=limit,
        shuffle_seed=shuffle_seed,
        rejected_path=rejected,
    )
    if corpus.n_rejected:
        print(f"rows that could not be read: {corpus.n_rejected}, see {rejected}", file=sys.stderr)
    return corpus


def check_file(out: Path) -> None:
    """Finds out before the work, not after it, that a file cannot be written there."""
    if out.is_dir():
        raise UsageError(f"--out {out} is a directory; give the name of a file")
    out.parent.mkdir(parents=True, exist_ok=True)


def extract_rows(corpus: Any, lm: Any, out: Path, settings: Any) -> Any:
    from ..activations import extract
    from ..console import progress

    with progress("extract") as tick:
        return extract(corpus, lm, out, settings, on_progress=lambda rows, n, t: tick(rows, n, f"{t:,} tokens"))


def interval(estimate: dict[str, Any]) -> str:
    if estimate["low"] is None:
        return f"{estimate['mean']:.3f} (no interval: {estimate['reason']})"
    return f"{estimate['mean']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"
