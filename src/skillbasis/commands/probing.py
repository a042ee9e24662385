"""Which directions matter: pilots and steering along each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from .options import (
    Dtype,
    First,
    Format,
    Instruction,
    Limit,
    MaxTokens,
    Model,
    OnBadRow,
    Out,
    Rollouts,
    Seed,
    ShuffleSeed,
    System,
    TaskData,
    Temperature,
    Workers,
    interval,
    read_corpus,
    warn_unstable,
)


def probe(
    model: Model,
    task: Annotated[str, typer.Option("--task", help="Validation problems: embedded:validation, or a file.")],
    out: Out,
    corpus: Annotated[str | None, typer.Argument(help="Rows to train pilots on; none for --kind steer.")] = None,
    kind: Annotated[str, typer.Option(help="pilot (fine-tune along each direction), or steer (along it).")] = "pilot",
    scores: Annotated[Path | None, typer.Option("--scores", help="Score file; for pilots.")] = None,
    basis: Annotated[
        Path | None, typer.Option("--basis", help="Basis directory: steered along, or what the scores are of.")
    ] = None,
    strategy: Annotated[str, typer.Option(help="halving (spends where it is undecided), or full.")] = "halving",
    seeds: Annotated[int, typer.Option(min=1, help="Most cells of a direction before the finalists' own.")] = 3,
    rows: Annotated[int, typer.Option(help="Rows of each pilot.")] = 1000,
    along: Annotated[
        str, typer.Option(help="Strategy that draws them: directions, directions+likelihood.")
    ] = "directions",
    likelihood: Annotated[Path | None, typer.Option("--likelihood", help="Table, for directions+likelihood.")] = None,
    alpha: Annotated[float, typer.Option(help="Strength, for --kind steer.")] = 0.3,
    unit: Annotated[str, typer.Option(help="raw, std or relative, for --kind steer.")] = "relative",
    scope: Annotated[
        str, typer.Option(help="all, prompt, last-prompt or generated, for --kind steer.")
    ] = "last-prompt",
    direction: Annotated[list[str] | None, typer.Option("--direction", help="Signed direction; all if none.")] = None,
    preset: Annotated[str, typer.Option(help="Training preset.")] = "reasoning",
    trainer: Annotated[str, typer.Option(help="trl or lean.")] = "trl",
    rollouts: Rollouts = 8,
    temperature: Temperature = 1.0,
    max_tokens: MaxTokens = 2048,
    task_data: TaskData = None,
    instruction: Instruction = None,
    system: System = None,
    problems: Annotated[int | None, typer.Option(min=1, help="The first so many problems of the task.")] = None,
    n_random: Annotated[int, typer.Option(help="Random pilots or vectors, the control.")] = 3,
    seed: Seed = 0,
    workers: Workers = None,
    dtype: Dtype = "auto",
    format: Format = None,
    on_bad_row: OnBadRow = "stop",
    limit: Limit = None,
    shuffle_seed: ShuffleSeed = None,
    first: First = False,
) -> None:
    """Find which directions matter: pilot fine-tunes or steering, judged on validation problems against random ones."""
    from ..basis import Scores, SkillBasis
    from ..cells import CellSettings
    from ..console import progress
    from ..evaluate.likelihood import Likelihood
    from ..evaluate.sampler import SamplingSettings
    from ..evaluate.tasks import Asking
    from ..lm import load_model
    from ..probe import ProbeSettings
    from ..probe import probe as run_probe
    from ..select import Candidates, parse_direction
    from ..train.settings import preset as named

    settings = ProbeSettings(
        kind=kind,  # type: ignore[arg-type]
        strategy=strategy,  # type: ignore[arg-type]
        n_seeds=seeds,
        n_rows=rows,
        along=along,
        n_random=n_random,
        alpha=alpha,
        unit=unit,  # type: ignore[arg-type]
        scope=scope,
        seed=seed,
    )
    pool, candidates = None, None
    known_basis = SkillBasis.load(basis) if basis is not None else None
    if kind == "pilot":
        if corpus is None or scores is None:
            raise UsageError("pilots are trained on rows along a direction; give a corpus and its --scores")
        pool = read_corpus(corpus, format, None, on_bad_row, limit, shuffle_seed, out, first)
        table = Scores.load(scores)
        if known_basis is not None:
            table.check_basis(known_basis)
        candidates = Candidates.of(pool, table, Likelihood.load(likelihood) if likelihood else None)
    elif corpus is not None or known_basis is None:
        raise UsageError("--kind steer needs --basis and no corpus: nothing is trained")
    sampling = SamplingSettings(rollouts, temperature, max_tokens, seed)
    asking = Asking(instruction, system, str(task_data) if task_data else None)
    cells = CellSettings(model, dtype, (task,), asking, problems, sampling, named(preset), trainer)
    with progress("probe") as tick:
        outcome = run_probe(
            out,
            pool,
            candidates,
            cells,
            load_model(model, dtype=dtype).weights_fingerprint,
            settings,
            basis=known_basis if kind == "steer" else None,
            directions=[parse_direction(d) for d in direction] if direction else None,
            n_workers=workers,
            on_cell=lambda cell, done, n: tick(done, n, cell.name),
        )
    print(f"random: pass@1 {interval(outcome['random']['pass@1'])}")
    by_name = {entry["name"]: entry for entry in outcome["directions"]}
    for name in outcome["ranking"]:
        entry = by_name[name]
        if entry["status"] == "failed":
            print(f"{name}: failed: {entry['reason']}")
        else:
            print(f"{name}: pass@1 {interval(entry['pass@1'])}, {entry['verdict']}")
    print(f"chosen: {', '.join(outcome['chosen'])}")
    if known_basis is not None:
        warn_unstable(known_basis, (parse_direction(name)[0] for name in outcome["chosen"]))
    if strategy == "halving":
        saved = outcome["saved"]
        print(f"{saved['cells']} cells, where trying all directions as often takes {saved['cells_of_full']}")
