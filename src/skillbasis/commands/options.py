"""Options that several commands share, and the reading of a corpus by them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from .completing import model_names

if TYPE_CHECKING:
    from ..basis import SkillBasis

Out = Annotated[Path, typer.Option("--out", help="Where the result goes; complete or absent.")]
Model = Annotated[
    str, typer.Option("--model", help="Model directory, hub id, or 'embedded'.", autocompletion=model_names)
]
OptionalModel = Annotated[
    str | None, typer.Option("--model", help="Model directory, hub id, or 'embedded'.", autocompletion=model_names)
]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Basis = Annotated[Path, typer.Option("--basis", help="Basis directory.")]
Format = Annotated[str | None, typer.Option("--format", help="Row format; found by the columns if not given.")]
LabelColumn = Annotated[str | None, typer.Option(help="Column that holds the human labels.")]
OnBadRow = Annotated[str, typer.Option(help="stop at a row that cannot be read, or skip it (kept in rejected.jsonl).")]
Limit = Annotated[int | None, typer.Option(min=1, help="Rows to use: a random sample, or the first with --first.")]
ShuffleSeed = Annotated[
    int | None, typer.Option(min=0, help="Seed of the random sample taken with --limit; 0 if not given.")
]
First = Annotated[bool, typer.Option("--first", help="Take the first --limit rows instead of a random sample.")]
Layers = Annotated[
    str, typer.Option(help="'inner' (all blocks but first and last), 'all', 'early', 'middle', 'late', or 2,5,8-11.")
]
Pooling = Annotated[str, typer.Option(help="mean, last, max, or weighted (later tokens weigh more), over the span.")]
Span = Annotated[str, typer.Option(help="all, prompt or response.")]
MaxLength = Annotated[int, typer.Option(help="Tokens after which a row is cut.")]
BatchTokens = Annotated[int, typer.Option(help="Tokens of one forward pass, padding included.")]
AutoBatchTokens = Annotated[
    str, typer.Option("--batch-tokens", help="Tokens of one forward pass, padding included; or 'auto'.")
]
Engine = Annotated[str, typer.Option(help="local, or ray: workers on a Ray cluster, one per GPU.")]
Seed = Annotated[int, typer.Option(min=0, help="Random seed.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; one per core if not given.")]
Rollouts = Annotated[int, typer.Option(help="Answers per problem.")]
Temperature = Annotated[float, typer.Option(help="Sampling temperature; 0 takes the most likely token.")]
MaxTokens = Annotated[int, typer.Option(help="New tokens after which an answer is cut.")]

TaskData = Annotated[
    Path | None, typer.Option("--task-data", help="Folder with the benchmarks as files; from the hub if not given.")
]
EvaluationTasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task", help="Evaluation task whose problems no row may hold; repeatable. All of --task-data if none."
    ),
]
Instruction = Annotated[
    str | None,
    typer.Option(help="none, boxed, or a text put behind every problem; boxed for named benchmarks if not given."),
]
System = Annotated[str | None, typer.Option(help="System message before every problem; none if not given.")]


def read_corpus(
    source: str,
    format: str | None = None,
    label_column: str | None = None,
    on_bad_row: str = "stop",
    limit: int | None = None,
    shuffle_seed: int | None = None,
    out: Path | None = None,
    first: bool = False,
) -> Any:
    """Loads a corpus by the options of a command; rejected rows are kept beside its output.

    A limit draws a random sample unless the first rows are asked for: the head of a file is seldom like the rest.
    """
    from ..corpus import load_corpus

    if on_bad_row not in ("stop", "skip"):
        raise UsageError(f"--on-bad-row is 'stop' or 'skip', not {on_bad_row!r}")
    if (shuffle_seed is not None or first) and limit is None:
        name, means = ("--first", "takes the rows") if first else ("--shuffle-seed", "draws the sample")
        raise UsageError(f"{name} {means} that --limit asks for; give --limit too, or leave it out")
    if shuffle_seed is not None and first:
        raise UsageError("--first and --shuffle-seed exclude each other; give one of them")
    if limit is not None and not first:
        shuffle_seed = shuffle_seed or 0
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
        where = "" if rejected is None else f", see {rejected}"
        print(f"rows that could not be read: {corpus.n_rejected}{where}", file=sys.stderr)
    return corpus


def check_file(out: Path) -> None:
    """Finds out before the work, not after it, that a file cannot be written there."""
    if out.is_dir():
        raise UsageError(f"--out {out} is a directory; give the name of a file")
    out.parent.mkdir(parents=True, exist_ok=True)


@contextmanager
def reading_progress(name: str) -> Iterator[Callable[[int, int, int], None]]:
    """Progress of reading rows: rows and time left by the bar, tokens a second, memory of this process."""
    import time

    import psutil

    from ..console import progress

    started, process = time.perf_counter(), psutil.Process()
    with progress(name) as tick:

        def on_progress(rows: int, n_rows: int, tokens: int) -> None:
            rate = tokens / max(time.perf_counter() - started, 1e-9)
            tick(rows, n_rows, f"{rate:,.0f} tokens/s, {process.memory_info().rss / 1e9:.1f} GB")

        yield on_progress


@contextmanager
def open_model(model: str, dtype: str, engine: str = "local", workers: int | None = None) -> Iterator[Any]:
    """Loads a model here, or in the workers of a Ray cluster for as long as the block lasts."""
    from ..activations import RayReader
    from ..lm import load_model

    if engine not in ("local", "ray"):
        raise UsageError(f"--engine {engine!r} is neither 'local' nor 'ray'")
    if engine == "local":
        if workers not in (None, 1):
            raise UsageError("--workers is for --engine ray; one process reads here")
        yield load_model(model, dtype=dtype)
        return
    with RayReader(model, n_workers=workers, dtype=dtype) as reader:
        yield reader


def batch_size(words: str) -> Any:
    """Reads --batch-tokens: a number, or 'auto'."""
    if words != "auto" and not words.isdecimal():
        raise UsageError(f"--batch-tokens {words!r} is neither a number of tokens nor 'auto'")
    return words if words == "auto" else int(words)


def interval(estimate: dict[str, Any]) -> str:
    if estimate["low"] is None:
        return f"{estimate['mean']:.3f} (no interval: {estimate['reason']})"
    return f"{estimate['mean']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def warn_unstable(basis: SkillBasis, directions: Iterable[int]) -> None:
    """Says on stderr which of the directions that are acted on other rows might not give again."""
    caution = basis.caution(directions)
    if caution is not None:
        print(f"warning: {caution}", file=sys.stderr)
