"""Whole runs: the demo, a recipe, its study, and the report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Workers

RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Try cells again that failed in a study that is finished.")
]


def demo(
    out: Annotated[Path, typer.Option("--out", help="Run directory.")] = Path("runs/demo"),
    workers: Workers = None,
) -> None:
    """The whole path on the embedded reasoner: basis, pilots, selection, fine-tuning, steering, report."""
    from ..world.assets import demo_recipe_path

    _run(demo_recipe_path(), out, workers)


def run(
    recipe: Path,
    out: Annotated[Path | None, typer.Option("--out", help="Run directory; runs/NAME if not given.")] = None,
    workers: Workers = None,
    retry_failed: RetryFailed = False,
) -> None:
    """The whole path on your model and corpus, by a recipe; goes on where it was interrupted."""
    _run(recipe, out or Path("runs") / recipe.stem, workers, retry_failed=retry_failed)


def study(
    recipe: Path,
    out: Annotated[Path | None, typer.Option("--out", help="Run directory; runs/NAME if not given.")] = None,
    workers: Workers = None,
    retry_failed: RetryFailed = False,
) -> None:
    """The selection study of a recipe (all stages it needs, without steering)."""
    _run(recipe, out or Path("runs") / recipe.stem, workers, retry_failed=retry_failed, leave_out={"steer": None})


def _run(
    path: Path,
    out: Path,
    workers: int | None,
    *,
    retry_failed: bool = False,
    leave_out: dict[str, None] | None = None,
) -> None:
    from rich.console import Console

    from ..console import ConsoleWatcher
    from ..pipeline import run_recipe, studies_with_failures
    from ..recipe import load_recipe
    from ..report import terminal_safety, terminal_table, write_report

    recipe = load_recipe(path).model_copy(update=dict(leave_out or {}))
    if workers is not None:
        recipe = recipe.model_copy(update={"workers": workers})
    run_recipe(recipe, out, ConsoleWatcher(), retry_failed=retry_failed)
    report_path = write_report(out)
    if (out / "study" / "summary.json").exists():
        Console().print(terminal_table(out))
    if (out / "safety" / "summary.json").exists():
        Console().print(terminal_safety(out))
    for failed in studies_with_failures(out):
        print(f"{failed}: some of its cells failed; the same command with --retry-failed tries those again")
    print(f"report: {report_path}")


def report(
    run: Path,
    show_responses: Annotated[
        bool,
        typer.Option(
            "--show-responses",
            help="Put a few requests of attack lists, and what the models answered, into the page, folded.",
        ),
    ] = False,
) -> None:
    """Write RUN/report.html from the artifacts of a run."""
    from ..report import write_report

    print(write_report(run, show_responses=show_responses))
