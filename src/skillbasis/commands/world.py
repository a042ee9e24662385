"""Make the embedded reasoner, its pool, and what is shipped of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError
from .options import Out, Seed, interval


def train(
    out: Out,
    seed: Seed = 0,
    variant: Annotated[str, typer.Option(help="plain, or null (no style carries a benefit).")] = "plain",
) -> None:
    """Pretrain a reasoner of another seed or world (10 minutes on two cores; goes on where it was interrupted)."""
    from ..world.reasoner import pretrain

    pretrain(out, seed, _variant(variant), log=lambda line: print(line, file=sys.stderr, flush=True))
    print(f"{out / 'habit'}: the base; {out / 'skills'}: the model before its last phase")


def pool(
    models: Annotated[Path, typer.Option("--models", help="What 'world train' made.")],
    out: Annotated[Path, typer.Option("--out", help="FILE.jsonl.gz")],
    rows: Annotated[int, typer.Option(min=1, help="Rows of the pool.")] = 20_000,
    seed: Seed = 0,
    variant: Annotated[str, typer.Option(help="plain or null.")] = "plain",
) -> None:
    """Draw the candidate pool of a reasoner: wrong rows are its own samples, graded false."""
    from ..world.pool import build_pool

    build_pool(models, out, n_rows=rows, seed=seed, variant=_variant(variant))


def ship(
    models: Annotated[Path, typer.Option("--models", help="What 'world train' made.")],
    pool: Annotated[Path, typer.Option("--pool", help="What 'world pool' made.")],
) -> None:
    """Put a reasoner and its pool into the package, and record what they measure."""
    from ..world.ship import ship

    record = ship(models, pool)
    for name, figures in record["tasks"].items():
        print(f"{name}: pass@1 {interval(figures['pass@1'])}, pass@4 {interval(figures['pass@4'])}")


def _variant(name: str) -> Any:
    if name not in ("plain", "null"):
        raise UsageError(f"--variant is 'plain' or 'null', not {name!r}")
    return name
