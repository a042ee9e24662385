"""Make the embedded reasoner, its pool, and what is shipped of them."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError
from .options import Out, Seed, interval


def train(
    out: Out,
    seed: Seed = 0,
    variant: Annotated[str, typer.Option(help="plain, or null (no style carries a benefit).")] = "plain",
    size: Annotated[str, typer.Option(help="embedded (0.87 M parameters), or 30m or 150m for a GPU.")] = "embedded",
    examples: Annotated[
        int | None, typer.Option(min=1, help="Examples of the first phase; the size's own if not given.")
    ] = None,
) -> None:
    """Pretrain a reasoner of another seed, world or size (the embedded one in 10 minutes on two cores; resumable)."""
    from ..world.reasoner import pretrain

    kind = _variant(variant, "plain", "null")
    log = partial(print, file=sys.stderr, flush=True)
    pretrain(out, seed, kind, size, n_examples=examples, log=log)
    print(f"{out / 'habit'}: the base; {out / 'skills'}: the model before its last phase")


def pool(
    models: Annotated[Path, typer.Option("--models", help="What 'world train' made.")],
    out: Annotated[Path, typer.Option("--out", help="FILE.jsonl.gz")],
    rows: Annotated[int, typer.Option(min=1, help="Rows of the pool.")] = 20_000,
    seed: Seed = 0,
    variant: Annotated[
        str, typer.Option(help="plain, hard (right rows are samples too, and as long as wrong ones) or null.")
    ] = "plain",
    problems_per_round: Annotated[
        int, typer.Option(min=1, help="Hard pool: problems of a family to answer, per round of sampling.")
    ] = 500,
) -> None:
    """Draw the candidate pool of a reasoner: wrong rows are its own samples, graded false."""
    from ..world.pool import build_pool

    kind = _variant(variant, "plain", "hard", "null")
    build_pool(models, out, n_rows=rows, seed=seed, variant=kind, problems_per_round=problems_per_round)


def ship(
    models: Annotated[Path, typer.Option("--models", help="What 'world train' made.")],
    pool: Annotated[Path, typer.Option("--pool", help="What 'world pool' made.")],
) -> None:
    """Put a reasoner and its pool into the package, and record what they measure."""
    from ..world.ship import ship

    record = ship(models, pool)
    for name, figures in record["tasks"].items():
        print(f"{name}: pass@1 {interval(figures['pass@1'])}, pass@4 {interval(figures['pass@4'])}")


def _variant(name: str, *allowed: str) -> Any:
    if name not in allowed:
        quoted = [repr(kind) for kind in allowed]
        raise UsageError(f"--variant is {', '.join(quoted[:-1])} or {quoted[-1]}, not {name!r}")
    return name
