"""Choose rows of a corpus to train on, and find those that hold evaluation problems."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError
from .completing import strategy_names
from .options import (
    Dtype,
    EvaluationTasks,
    First,
    Format,
    LabelColumn,
    Limit,
    OnBadRow,
    OptionalModel,
    Out,
    Seed,
    ShuffleSeed,
    TaskData,
    check_file,
    read_corpus,
    warn_unstable,
)

_N_NAMED = 5
"""Rows that a message names."""


def select(
    corpus: str,
    strategy: Annotated[
        str,
        typer.Option(
            "--strategy", help="directions, low-nll, ...; a wrong name lists all.", autocompletion=strategy_names
        ),
    ],
    budget: Annotated[int, typer.Option("--budget", help="Rows to choose, or tokens with --unit tokens.")],
    out: Out,
    unit: Annotated[str, typer.Option(help="What the budget counts: rows, or tokens of prompt and response.")] = "rows",
    scores: Annotated[Path | None, typer.Option("--scores", help="Score file.")] = None,
    basis: Annotated[Path | None, typer.Option("--basis", help="Basis directory, checked against the scores.")] = None,
    direction: Annotated[list[str] | None, typer.Option("--direction", help="Signed direction, such as 3+.")] = None,
    weight: Annotated[
        list[float] | None, typer.Option("--weight", help="Share of each --direction; equal ones if not given.")
    ] = None,
    seed: Seed = 0,
    rank_by: Annotated[str, typer.Option(help="cosine, projection or centred-rank.")] = "cosine",
    top_share: Annotated[float, typer.Option(help="Share of the corpus to draw from; 0 takes the very top.")] = 0.15,
    temperature: Annotated[
        float | None, typer.Option("--spread", help="Draw from all rows by exp(z / spread) instead of a top share.")
    ] = None,
    likelihood_share: Annotated[
        float, typer.Option(help="directions+likelihood: share along a direction that the likeliest are taken of.")
    ] = 0.25,
    cells: Annotated[int, typer.Option(help="directions+likelihood: the likeliest of so many cells of the space.")] = 1,
    quality_share: Annotated[float, typer.Option(help="coverage+quality: best share, which is covered.")] = 0.5,
    quality_column: Annotated[
        str | None, typer.Option("--quality-column", help="Column with a quality of each row; for deita.")
    ] = None,
    max_similarity: Annotated[float, typer.Option(help="deita: most cosine to a chosen row.")] = 0.9,
    band: Annotated[str, typer.Option(help="perplexity: low, middle or high third.")] = "middle",
    aggregate: Annotated[str, typer.Option(help="rds+ and crds: round-robin, or max.")] = "round-robin",
    query: Annotated[
        str | None,
        typer.Option("--query", help="rds+, crds: corpus looked for; the right validation answers if not given."),
    ] = None,
    text_encoder: Annotated[
        str | None, typer.Option(help="Sentence encoder of text strategies; TF-IDF if not given.")
    ] = None,
    match: Annotated[
        Path | None, typer.Option("--match", help="random-length-matched: selection whose lengths are matched.")
    ] = None,
    likelihood: Annotated[Path | None, typer.Option("--likelihood", help="Table made by 'likelihood'.")] = None,
    model: OptionalModel = None,
    validation: Annotated[
        str | None, typer.Option("--validation", help="Task whose problems the model answers, to see where it is weak.")
    ] = None,
    rollouts: Annotated[int, typer.Option(help="Own answers to each validation problem.")] = 8,
    own_rollouts: Annotated[int, typer.Option(help="Own answers to each row's problem, for rft and s1-like.")] = 2,
    own_rows: Annotated[int | None, typer.Option(min=1, help="So many rows drawn at random are answered.")] = None,
    max_tokens: Annotated[int, typer.Option(help="New tokens after which an own answer is cut.")] = 2048,
    max_length: Annotated[int, typer.Option(help="Tokens after which a row is cut.")] = 8000,
    preset: Annotated[str, typer.Option(help="Training of the first selection, for '+reread'.")] = "reasoning",
    trainer: Annotated[str, typer.Option(help="trl or lean, for '+reread'.")] = "trl",
    near_duplicates: Annotated[
        float, typer.Option(help="Leave out rows so similar (Jaccard) to an earlier one.")
    ] = 0.8,
    keep_near_duplicates: Annotated[
        bool, typer.Option("--keep-near-duplicates", help="Choose from near-duplicates, too.")
    ] = False,
    task: EvaluationTasks = None,
    task_data: TaskData = None,
    keep_overlap: Annotated[
        bool, typer.Option("--keep-overlap", help="Choose from rows that hold evaluation problems, too.")
    ] = False,
    dtype: Dtype = "auto",
    format: Format = None,
    label_column: LabelColumn = None,
    on_bad_row: OnBadRow = "stop",
    limit: Limit = None,
    shuffle_seed: ShuffleSeed = None,
    first: First = False,
) -> None:
    """Choose rows of a corpus within a budget, none of them twice or from an evaluation, and keep how."""
    from dataclasses import asdict

    from ..activations import ExtractionSettings, settings_of
    from ..basis import Scores, SkillBasis
    from ..console import progress
    from ..corpus import load_corpus, write_selection
    from ..evaluate.likelihood import Likelihood
    from ..evaluate.sampler import SamplingSettings
    from ..evidence import EvidenceSettings
    from ..select import Candidates, SelectionSettings, parse_direction
    from ..select.labelled import BY_LABEL, without_label
    from ..select.near_duplicates import kept_near_duplicates
    from ..select.strategy import check_budget, check_strategy, describe
    from ..select.strategy import select as choose

    check_strategy(strategy)
    check_budget(budget, unit)  # type: ignore[arg-type]
    settings = SelectionSettings(
        directions=tuple(parse_direction(d) for d in direction or ()),
        weights=tuple(weight or ()),
        rank_by=rank_by,  # type: ignore[arg-type]
        top_share=top_share,
        temperature=temperature,
        likelihood_share=likelihood_share,
        cells=cells,
        quality_share=quality_share,
        max_similarity=max_similarity,
        band=band,  # type: ignore[arg-type]
        aggregate=aggregate,  # type: ignore[arg-type]
        text_encoder=text_encoder,
    )
    if out.suffix != ".jsonl":
        raise UsageError(f"--out {out} is no .jsonl file; a selection is written as one, so change the name")
    check_file(out)
    rows = read_corpus(corpus, format, label_column, on_bad_row, limit, shuffle_seed, out, first)
    table = Scores.load(scores) if scores else None
    known_basis = SkillBasis.load(basis) if basis else None
    if known_basis is not None and table is not None:
        table.check_basis(known_basis)
        warn_unstable(known_basis, [d for d, _ in settings.directions] or range(known_basis.n_components))
    if table is not None and on_bad_row == "skip":  # rows that gave no activations have no score
        unscored = set(rows.ids) - set(table.ids)
        rows = rows.without(unscored)
        if unscored:
            print(f"rows without a score, left out: {len(unscored)}", file=sys.stderr)
    found = _overlap(rows, corpus, task, task_data)
    if found is not None and not keep_overlap:
        rows = rows.without(found.ids)
    aside, twins = out.with_suffix(".evidence"), None
    if not keep_near_duplicates:
        with progress("near-duplicates") as tick:
            twins = kept_near_duplicates(
                aside / "near-duplicates", rows, near_duplicates, on_progress=lambda done, n: tick(done, n, "")
            )
        rows = rows.without(set(twins.removed))
    _check(Candidates.of(rows, table, settings=settings), strategy, budget, unit, preset, trainer)
    evidence = _measure(
        rows,
        strategy,
        unit,
        aside,
        model,
        dtype,
        EvidenceSettings(
            max_length=max_length,
            extraction=settings_of(known_basis.config) if known_basis else ExtractionSettings(max_length=max_length),
            sampling=SamplingSettings(rollouts, 1.0, max_tokens, seed),
            own_sampling=SamplingSettings(own_rollouts, 1.0, max_tokens, seed),
            own_rows=own_rows,
            quality=quality_column,
            query=query,
            seed=seed,
        ),
        validation,
        task_data,
        known_basis,
        given={"likelihood": Likelihood.load(likelihood)} if likelihood else {},
    )
    if match is not None:
        evidence["reference"] = load_corpus(str(match)).ids
    candidates = Candidates.of(rows, table, settings=settings, **evidence)
    candidates = _reread(
        candidates, rows, strategy, budget, unit, seed, model, dtype, preset, trainer, max_length, aside
    )
    chosen = choose(candidates, strategy, budget, seed, unit=unit)  # type: ignore[arg-type]
    how = describe(settings, strategy) | {"budget": budget, "unit": unit, "seed": seed}
    how |= {"overlap": None if found is None else found.summary | {"kept": keep_overlap}}
    how |= {"near_duplicates": None if twins is None else twins.summary}
    unlabelled = without_label(candidates) if strategy in BY_LABEL else []
    if unlabelled:
        how |= {"without_label": len(unlabelled)}
    if "validation" in evidence and table is not None:
        from ..select.weakness import weaknesses

        if evidence["validation"].scores is not None:
            how |= {"weaknesses": [asdict(w) for w in weaknesses(evidence["validation"], rank_by=settings.rank_by)]}
    write_selection(out, rows, chosen, how)
    if found is None:
        print("the rows were not searched for evaluation problems: name those you will report on by --task")
    else:
        print(f"{found}{'' if not found.ids else ', kept' if keep_overlap else ', left out'}")
    if twins is not None:
        print(f"{twins.sentence}{', left out' if twins.removed else ''}")
    if unlabelled:
        named = ", ".join(map(repr, unlabelled[:_N_NAMED])) + (", ..." if len(unlabelled) > _N_NAMED else "")
        print(f"{len(unlabelled)} of {len(rows)} rows have no label, so {strategy} cannot choose them: {named}")
    print(
        f"{out}: {len(chosen)} of {len(rows)} rows by {strategy}; how they were chosen is in {out.with_suffix('.json')}"
    )


def _check(candidates: Any, strategy: str, budget: int, unit: Any, preset: str, trainer: str) -> None:
    """Finds what would fail after hours of measuring: budgets, directions, and the training of a first selection."""
    from ..select.reread import ALONG_DIRECTIONS, FIRST
    from ..select.strategy import STRATEGIES, check_budget
    from ..train.settings import preset as named
    from ..train.sft import check_trainer

    if unit == "rows":
        check_budget(budget, unit, len(candidates))
    first = [FIRST[need] for need in STRATEGIES[strategy].needs if need in FIRST]
    if first:
        named(preset)
        check_trainer(trainer)
    if "directions" in STRATEGIES[strategy].needs or ALONG_DIRECTIONS in first:
        for direction, sign in candidates.signed_directions:
            candidates.ranking(direction, sign)


def _measure(
    rows: Any,
    strategy: str,
    unit: str,
    out: Path,
    model: str | None,
    dtype: str,
    settings: Any,
    validation: str | None,
    task_data: Path | None,
    basis: Any,
    given: dict[str, Any],
) -> dict[str, Any]:
    """What the strategy needs to know and was not given, measured into a folder beside the selection."""
    from ..console import progress
    from ..evaluate.tasks import Asking
    from ..evidence import gather, qualities
    from ..lm import load_model
    from ..select.strategy import needs_of
    from ..selection_stages import ROUNDS

    needs = needs_of({strategy})
    if unit == "tokens":
        needs |= {"tokens"}
    if settings.quality is not None and strategy == "coverage+quality":
        needs |= {"quality"}
    if "reread along directions" in needs:
        needs |= {"scores", "directions", "likelihood"}
    if "reread by likelihood" in needs:
        needs |= {"likelihood"}
    if "likelihood" in given and ("likelihood alone" not in needs or given["likelihood"].alone_nll is not None):
        needs -= {"likelihood", "likelihood alone"}
    measured = needs - {"scores", "directions", "quality", "reread along directions", "reread by likelihood"}
    if not measured or model is None or strategy == ROUNDS:  # the strategy says itself what it lacks
        return given | ({"quality": qualities(rows, settings.quality)} if "quality" in needs else {})

    def do(name: str, work: Callable[[Any], Any], _artifact: Path | None) -> Any:
        with progress(name) as tick:
            return work(tick)

    task = None
    if validation is not None:
        task = Asking(None, None, str(task_data) if task_data else None).load(validation)
    elif needs & {"validation"} or ("query" in needs and settings.query is None):
        raise UsageError(f"{strategy} looks at the model's answers to validation problems; give --validation TASK")
    return given | gather(out, needs, rows, load_model(model, dtype=dtype), settings, do, validation=task, basis=basis)


def _reread(
    candidates: Any,
    rows: Any,
    strategy: str,
    budget: int,
    unit: Any,
    seed: int,
    model: str | None,
    dtype: str,
    preset: str,
    trainer: str,
    max_length: int,
    aside: Path,
) -> Any:
    """With the pool read again by what a first selection makes of the model, where the strategy needs that."""
    from dataclasses import replace

    from ..console import progress
    from ..evidence import kept_reread
    from ..lm import load_model
    from ..select.reread import FIRST
    from ..select.strategy import STRATEGIES
    from ..select.strategy import select as choose
    from ..train.settings import preset as named

    tables = {}
    for need, first in FIRST.items():
        if need not in STRATEGIES[strategy].needs:
            continue
        if model is None:
            raise UsageError(
                f"{strategy} reads the pool again by the model fine-tuned on a first selection; give --model"
            )
        picked = choose(candidates, first, budget, seed, unit=unit)
        with progress("reading again") as tick:
            tables[first] = kept_reread(
                aside / "reread",
                rows,
                load_model(model, dtype=dtype),
                picked,
                named(preset).with_seed(seed),
                max_length,
                tick,
                trainer=trainer,
            ).aligned(candidates.ids)
    return replace(candidates, reread=tables)


def overlap(
    corpus: str,
    task: EvaluationTasks = None,
    task_data: TaskData = None,
    out: Annotated[Path | None, typer.Option("--out", help="JSON of every overlap.")] = None,
    n: Annotated[int, typer.Option(help="Words in a row that make an overlap.")] = 13,
    format: Format = None,
    on_bad_row: OnBadRow = "stop",
) -> None:
    """Find rows of a corpus or selection that hold problems of evaluation tasks."""
    from ..artifact import write_json

    if out is not None:
        check_file(out)
    found = _overlap(read_corpus(corpus, format, None, on_bad_row, out=out), corpus, task, task_data, n)
    if found is None:
        raise UsageError("name the tasks to look for: --task, or --task-data with a folder of benchmarks")
    for held in found.overlaps[:20]:
        print(f"{held.id}: {held.task} {held.problem_id} ({held.kind}, {held.share:.0%} of its words): {held.excerpt}")
    if len(found.overlaps) > 20:
        print(f"... and {len(found.overlaps) - 20} more{'' if out is None else f' in {out}'}")
    print(found)
    if out is not None:
        write_json(out, found.to_json())


def _overlap(rows: Any, source: str, names: list[str] | None, task_data: Path | None, n: int = 13) -> Any:
    """Looks for the problems of tasks in rows; None where no task is named and none can be guessed.

    Unnamed are all benchmarks of a folder, and for the embedded corpus the embedded problems.
    """
    from ..console import progress
    from ..evaluate.problems.catalogue import BENCHMARKS
    from ..evaluate.tasks import Asking
    from ..select.overlap import find_overlaps
    from ..select.overlap_index import OverlapIndex

    asking = Asking("none", None, str(task_data) if task_data else None)
    if not names and task_data is not None:
        names = [name for name, benchmark in BENCHMARKS.items() if (task_data / benchmark.file).exists()]
        if not names:
            raise UsageError(f"{task_data} holds none of the benchmarks ({', '.join(BENCHMARKS)}); check the path")
    if not names and source == "embedded":
        names = ["embedded:test", "embedded:validation"]
    if not names:
        return None
    index = OverlapIndex([asking.load(name) for name in dict.fromkeys(names)], n)
    with progress("overlap") as tick:
        return find_overlaps(rows, index, on_progress=lambda done, n_rows: tick(done, n_rows, ""))
