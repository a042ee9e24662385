"""The command line: parse, call, print. Errors are one sentence; `--debug` shows where they come from."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import SkillbasisError, UsageError

app = typer.Typer(
    name="skillbasis",
    help="Find a language model's own skill axes, say what they mean, and act on them.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
world_app = typer.Typer(help="Make the embedded reasoner and its candidate pool.", no_args_is_help=True)
app.add_typer(world_app, name="world")

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

_INTERRUPTED = 130  # the exit code Typer makes of Ctrl-C


def _corpus(
    source: str,
    format: str | None = None,
    label_column: str | None = None,
    on_bad_row: str = "stop",
    limit: int | None = None,
    shuffle_seed: int | None = None,
    out: Path | None = None,
) -> Any:
    from .corpus import load_corpus

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


def _check_file(out: Path) -> None:
    """Finds out before the work, not after it, that a file cannot be written there."""
    if out.is_dir():
        raise UsageError(f"--out {out} is a directory; give the name of a file")
    out.parent.mkdir(parents=True, exist_ok=True)


def _extracted(corpus: Any, lm: Any, out: Path, settings: Any) -> Any:
    from .activations import extract
    from .console import progress

    with progress("extract") as tick:
        return extract(corpus, lm, out, settings, on_progress=lambda rows, n, t: tick(rows, n, f"{t:,} tokens"))


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Run directory.")] = Path("runs/demo"),
    workers: Workers = None,
) -> None:
    """The whole path on the embedded reasoner: basis, pilots, selection, fine-tuning, steering, report."""
    from .world.assets import demo_recipe_path

    _run(demo_recipe_path(), out, workers)


@app.command()
def run(
    recipe: Path,
    out: Annotated[Path | None, typer.Option("--out", help="Run directory; runs/NAME if not given.")] = None,
    workers: Workers = None,
) -> None:
    """The whole path on your model and corpus, by a recipe; goes on where it was interrupted."""
    _run(recipe, out or Path("runs") / recipe.stem, workers)


@app.command()
def study(
    recipe: Path,
    out: Annotated[Path | None, typer.Option("--out", help="Run directory; runs/NAME if not given.")] = None,
    workers: Workers = None,
) -> None:
    """The selection study of a recipe (all stages it needs, without steering)."""
    _run(recipe, out or Path("runs") / recipe.stem, workers, leave_out={"steer": None})


def _run(path: Path, out: Path, workers: int | None, leave_out: dict[str, None] | None = None) -> None:
    from rich.console import Console

    from .console import ConsoleWatcher
    from .pipeline import run_recipe
    from .recipe import load_recipe
    from .report import terminal_table, write_report

    recipe = load_recipe(path).model_copy(update=dict(leave_out or {}))
    if workers is not None:
        recipe = recipe.model_copy(update={"workers": workers})
    run_recipe(recipe, out, ConsoleWatcher())
    report_path = write_report(out)
    if (out / "study" / "summary.json").exists():
        Console().print(terminal_table(out))
    print(f"report: {report_path}")


@app.command()
def extract(
    corpus: str,
    model: Model,
    out: Out,
    layers: Layers = "inner",
    pooling: Pooling = "mean",
    span: Span = "all",
    max_length: MaxLength = 8000,
    batch_tokens: BatchTokens = 8192,
    dtype: Dtype = "auto",
    format: Format = None,
    label_column: LabelColumn = None,
    on_bad_row: OnBadRow = "stop",
    limit: Limit = None,
    shuffle_seed: ShuffleSeed = None,
) -> None:
    """Pool the hidden states of every row of a corpus into a directory of activations."""
    from .activations import ExtractionSettings
    from .lm import load_model

    settings = ExtractionSettings(layers, pooling, span, max_length, batch_tokens)  # type: ignore[arg-type]
    rows = _corpus(corpus, format, label_column, on_bad_row, limit, shuffle_seed, out)
    store = _extracted(rows, load_model(model, dtype=dtype), out, settings)
    cut = f", {store.manifest['n_truncated']} rows cut" if store.manifest["n_truncated"] else ""
    print(
        f"{out}: {len(store)} rows x {len(store.block_ids)} blocks x {store.hidden_size}, "
        f"{store.manifest['n_tokens']:,} tokens{cut}"
    )


def _store(
    source: str, model: str | None, settings: Any, dtype: str, folder: str, basis: Any = None, **options: Any
) -> Any:
    """Opens a directory of activations, or extracts a corpus into a temporary one; a basis must be of the model."""
    from .activations import ActivationStore
    from .lm import load_model

    if (Path(source) / "manifest.json").exists() or Path(f"{source}.partial").exists():
        return ActivationStore.open(source)
    if model is None:
        raise UsageError(f"{source} is no directory of activations; give one, or a corpus together with --model")
    corpus, lm = _corpus(source, **options), load_model(model, dtype=dtype)
    if basis is not None:
        basis.check_model(lm)
    return _extracted(corpus, lm, Path(folder) / "activations", settings)


@app.command()
def discover(
    source: Annotated[str, typer.Argument(help="A directory of activations, or a corpus together with --model.")],
    out: Out,
    k: Annotated[int, typer.Option("--k", help="Number of directions.")] = 10,
    method: Annotated[str, typer.Option(help="pca.")] = "pca",
    seed: Seed = 0,
    tol: Annotated[float, typer.Option(help="Largest principal angle in degrees at which iteration stops.")] = 0.1,
    normalize_blocks: Annotated[bool, typer.Option(help="Give every block the same weight.")] = False,
    model: OptionalModel = None,
    layers: Layers = "inner",
    pooling: Pooling = "mean",
    span: Span = "all",
    max_length: MaxLength = 8000,
    dtype: Dtype = "auto",
    format: Format = None,
    on_bad_row: OnBadRow = "stop",
    limit: Limit = None,
    shuffle_seed: ShuffleSeed = None,
) -> None:
    """Find the principal directions of activations."""
    import tempfile

    from .activations import ExtractionSettings
    from .basis import PcaSettings, fit_pca

    if method != "pca":
        raise UsageError(f"unknown method {method!r}; allowed is pca")
    settings = ExtractionSettings(layers, pooling, span, max_length)  # type: ignore[arg-type]
    options = {"format": format, "on_bad_row": on_bad_row, "limit": limit, "shuffle_seed": shuffle_seed, "out": out}
    with tempfile.TemporaryDirectory() as folder:
        store = _store(source, model, settings, dtype, folder, **options)
        basis = fit_pca(store, PcaSettings(k=k, seed=seed, tol_degrees=tol, normalize_blocks=normalize_blocks))
    basis.save(out)
    share = sum(basis.config["explained_variance_ratio"])
    print(f"{out}: {k} directions hold {share:.1%} of the variance ({basis.config['solver']} solver)")


@app.command()
def score(
    source: Annotated[str, typer.Argument(help="A directory of activations, or a corpus together with --model.")],
    basis: Basis,
    out: Out,
    model: OptionalModel = None,
    dtype: Dtype = "auto",
    format: Format = None,
    on_bad_row: OnBadRow = "stop",
    limit: Limit = None,
    shuffle_seed: ShuffleSeed = None,
) -> None:
    """Score every row along the directions of a basis (Parquet)."""
    import tempfile

    from .activations import ExtractionSettings
    from .basis import SkillBasis
    from .basis import score as score_rows

    _check_file(out)
    loaded = SkillBasis.load(basis)
    settings = ExtractionSettings(
        ",".join(map(str, loaded.block_ids)),
        loaded.config["pooling"],
        loaded.config["span"],
        loaded.config["max_length"],
    )
    options = {"format": format, "on_bad_row": on_bad_row, "limit": limit, "shuffle_seed": shuffle_seed, "out": out}
    with tempfile.TemporaryDirectory() as folder:
        scores = score_rows(_store(source, model, settings, dtype, folder, loaded, **options), loaded)
    scores.save(out)
    print(f"{out}: {len(scores.ids)} rows x {loaded.n_components} directions")


@app.command()
def likelihood(
    corpus: str,
    model: Model,
    out: Out,
    max_length: MaxLength = 8000,
    batch_tokens: BatchTokens = 8192,
    dtype: Dtype = "auto",
    format: Format = None,
    on_bad_row: OnBadRow = "stop",
    limit: Limit = None,
    shuffle_seed: ShuffleSeed = None,
) -> None:
    """Measure how likely a model finds each response (Parquet: id, mean_nll, max_nll, tokens)."""
    from .console import progress
    from .evaluate.likelihood import measure_likelihood
    from .lm import load_model

    _check_file(out)
    rows = _corpus(corpus, format, None, on_bad_row, limit, shuffle_seed, out)
    with progress("likelihood") as tick:
        table = measure_likelihood(
            rows,
            load_model(model, dtype=dtype),
            max_length=max_length,
            batch_tokens=batch_tokens,
            on_progress=lambda done, n, tokens: tick(done, n, f"{tokens:,} tokens"),
        )
    table.save(out)
    print(f"{out}: {len(table.ids)} rows, mean NLL {table.mean_nll.mean():.3f} nats per token")


@app.command()
def interpret(
    basis: Basis,
    scores: Annotated[Path, typer.Option("--scores", help="Score file.")],
    corpus: Annotated[str, typer.Option("--corpus", help="The corpus that was scored.")],
    out: Out,
    by: Annotated[str, typer.Option(help="cosine, projection or raw_cosine.")] = "cosine",
    n_examples: Annotated[int, typer.Option(min=1, help="Examples at each end of a direction.")] = 10,
    seed: Seed = 0,
    format: Format = None,
    label_column: LabelColumn = None,
    on_bad_row: OnBadRow = "stop",
) -> None:
    """Say what each direction holds: exemplars, keywords, attributes."""
    from .artifact import building
    from .basis import Scores, SkillBasis
    from .interpret import describe_basis, write_description

    loaded, table = SkillBasis.load(basis), Scores.load(scores)
    table.check_basis(loaded)
    description = describe_basis(
        table,
        loaded.mean_scores,
        loaded.explained_variance,
        loaded.config["total_variance"],
        _corpus(corpus, format, label_column, on_bad_row, out=out),
        by=by,  # type: ignore[arg-type]
        n_examples=n_examples,
        seed=seed,
    )
    inputs = {"basis": loaded.fingerprint, "by": by, "n_examples": n_examples, "seed": seed}
    with building(out, "description", inputs, {}) as work:
        write_description(work, description)
    for entry in description["directions"]:
        ends = [" ".join(word["word"] for word in entry["keywords"][end][:6]) for end in ("positive", "negative")]
        print(f"d{entry['direction']}: + {ends[0]} | - {ends[1]}")
    print(f"read {out / 'directions.md'}")


@app.command()
def select(
    corpus: str,
    strategy: Annotated[str, typer.Option("--strategy", help="directions, directions+likelihood, low-nll, ...")],
    budget: Annotated[int, typer.Option("--budget", help="Rows to choose.")],
    out: Out,
    scores: Annotated[Path | None, typer.Option("--scores", help="Score file.")] = None,
    basis: Annotated[Path | None, typer.Option("--basis", help="Basis directory, checked against the scores.")] = None,
    direction: Annotated[list[str] | None, typer.Option("--direction", help="Signed direction, such as 3+.")] = None,
    seed: Seed = 0,
    rank_by: Annotated[str, typer.Option(help="cosine or projection.")] = "cosine",
    top_share: Annotated[float, typer.Option(help="Share of the corpus to draw from; 0 takes the very top.")] = 0.15,
    likelihood: Annotated[Path | None, typer.Option("--likelihood", help="Table made by 'likelihood'.")] = None,
    model: OptionalModel = None,
    dtype: Dtype = "auto",
    format: Format = None,
    label_column: LabelColumn = None,
    on_bad_row: OnBadRow = "stop",
    limit: Limit = None,
    shuffle_seed: ShuffleSeed = None,
) -> None:
    """Choose rows of a corpus within a budget, and keep how they were chosen."""
    from .basis import Scores, SkillBasis
    from .corpus import write_selection
    from .evaluate.likelihood import Likelihood, measure_likelihood
    from .lm import load_model
    from .select import Candidates, SelectionSettings, parse_direction
    from .select import select as choose
    from .select.strategy import NEEDS_LIKELIHOOD, check_strategy, describe

    check_strategy(strategy)
    if rank_by not in ("cosine", "projection"):
        raise UsageError(f"--rank-by is 'cosine' or 'projection', not {rank_by!r}")
    settings = SelectionSettings(tuple(parse_direction(d) for d in direction or ()), rank_by, top_share)  # type: ignore[arg-type]
    if out.suffix != ".jsonl":
        raise UsageError(f"--out {out} is no .jsonl file; a selection is written as one, so change the name")
    _check_file(out)
    rows = _corpus(corpus, format, label_column, on_bad_row, limit, shuffle_seed, out)
    table = Scores.load(scores) if scores else None
    if basis is not None and table is not None:
        table.check_basis(SkillBasis.load(basis))
    measured = Likelihood.load(likelihood) if likelihood else None
    if measured is None and strategy in NEEDS_LIKELIHOOD and model is not None:
        measured = measure_likelihood(rows, load_model(model, dtype=dtype))
    chosen = choose(Candidates.of(rows, table, measured, settings), strategy, budget, seed)
    write_selection(out, rows, chosen, describe(settings, strategy) | {"budget": budget, "seed": seed})
    print(
        f"{out}: {len(chosen)} of {len(rows)} rows by {strategy}; how they were chosen is in {out.with_suffix('.json')}"
    )


@app.command()
def train(
    data: str,
    model: Model,
    out: Out,
    preset: Annotated[str, typer.Option(help="reasoning, safety or embedded.")] = "reasoning",
    trainer: Annotated[str, typer.Option(help="trl, or lean (in memory, for small models).")] = "trl",
    learning_rate: Annotated[float | None, typer.Option("--lr")] = None,
    epochs: Annotated[float | None, typer.Option()] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows per optimizer step.")] = None,
    micro_batch_size: Annotated[int | None, typer.Option(help="Rows per forward pass.")] = None,
    max_length: Annotated[int | None, typer.Option()] = None,
    lora: Annotated[bool, typer.Option(help="Train low-rank adapters.")] = False,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    format: Format = None,
    on_bad_row: OnBadRow = "stop",
) -> None:
    """Fine-tune on prompts and responses; the loss is on the response."""
    from dataclasses import replace

    from .lm import load_model
    from .probe import selection_rows
    from .train import LoraSettings, fine_tune
    from .train.settings import preset as named

    changes: dict[str, Any] = {"learning_rate": learning_rate, "epochs": epochs, "batch_size": batch_size}
    changes |= {"micro_batch_size": micro_batch_size, "max_length": max_length}
    settings = replace(named(preset), seed=seed, **{k: v for k, v in changes.items() if v is not None})
    if lora:
        settings = replace(settings, lora=settings.lora or LoraSettings())
    corpus = _corpus(data, format, None, on_bad_row, out=out)
    path = fine_tune(load_model(model, dtype=dtype), selection_rows(corpus, corpus.ids), settings, out, trainer=trainer)
    print(f"{path}: fine-tuned on {len(corpus)} rows; the loss of every step is in {path / 'losses.json'}")


@app.command()
def evaluate(
    model: Model,
    task: Annotated[list[str], typer.Option("--task", help="embedded, embedded:validation, or a file.")],
    out: Out,
    rollouts: Rollouts = 8,
    temperature: Temperature = 1.0,
    max_tokens: MaxTokens = 2048,
    batch_size: Annotated[int, typer.Option(help="Sequences decoded together.")] = 256,
    instruction: Annotated[str, typer.Option(help="none, boxed, or a text put behind every problem.")] = "none",
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many problems.")] = None,
    seed: Seed = 0,
    backend: Annotated[str, typer.Option(help="hf.")] = "hf",
    steer: Annotated[str | None, typer.Option("--steer", help="BASIS:DIRECTION:ALPHA, such as basis:3+:0.5.")] = None,
    steer_scope: Annotated[str, typer.Option(help="all, prompt, last-prompt or generated.")] = "all",
    steer_unit: Annotated[str, typer.Option(help="raw, std or relative.")] = "raw",
    dtype: Dtype = "auto",
) -> None:
    """Sample answers to problems, grade them, and give pass@k with intervals."""
    from .console import progress
    from .evaluate.generate import SamplingSettings
    from .evaluate.run import evaluate as run_evaluation
    from .evaluate.tasks import load_task
    from .lm import load_model
    from .steer.hooks import steering_of

    if backend != "hf":
        raise UsageError(f"unknown backend {backend!r}; allowed is hf")
    if steer is None and (steer_scope, steer_unit) != ("all", "raw"):
        raise UsageError("--steer-scope and --steer-unit say how to steer; give --steer too, or leave them out")
    sampling = SamplingSettings(rollouts, temperature, max_tokens, seed, batch_size)
    tasks = [load_task(name, instruction=instruction, limit=limit) for name in task]
    lm = load_model(model, dtype=dtype)
    intervention, described = steering_of(lm, steer, steer_scope, steer_unit) if steer else (None, None)
    with progress("evaluate") as tick:
        results = run_evaluation(
            lm,
            tasks,
            sampling,
            out,
            intervention=intervention,
            intervention_settings=described,
            on_samples=lambda done, n, share: tick(done, n, f"pass@1 {share:.3f}"),
        )
    for name, result in results.items():
        figures = result.summary()
        shown = (f"pass@{k} {_interval(figures[f'pass@{k}'])}" for k in result.ks)
        print(f"{name}: {', '.join(shown)}; {figures['truncated_fraction']:.1%} truncated")


def _interval(estimate: dict[str, Any]) -> str:
    if estimate["low"] is None:
        return f"{estimate['mean']:.3f} (no interval: {estimate['reason']})"
    return f"{estimate['mean']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


@app.command()
def grade(
    file: Path,
    out: Out,
    workers: Workers = None,
    timeout: Annotated[float, typer.Option(help="Seconds per comparison.")] = 10.0,
) -> None:
    """Grade existing responses (columns response, answer) into Parquet: id, extracted, correct, status."""
    from .evaluate.grade import grade_file

    _check_file(out)
    counts = grade_file(file, out, workers, timeout)
    print(f"{out}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))


@app.command()
def probe(
    corpus: str,
    scores: Annotated[Path, typer.Option("--scores", help="Score file.")],
    model: Model,
    task: Annotated[str, typer.Option("--task", help="Validation problems: embedded:validation, or a file.")],
    out: Out,
    rows: Annotated[int, typer.Option(help="Rows of each pilot.")] = 1000,
    direction: Annotated[list[str] | None, typer.Option("--direction", help="Signed direction; all if none.")] = None,
    preset: Annotated[str, typer.Option(help="Training preset.")] = "reasoning",
    trainer: Annotated[str, typer.Option(help="trl or lean.")] = "trl",
    rollouts: Rollouts = 8,
    temperature: Temperature = 1.0,
    max_tokens: MaxTokens = 2048,
    instruction: Annotated[str, typer.Option(help="none, boxed, or a text put behind every problem.")] = "none",
    n_random: Annotated[int, typer.Option(help="Random pilots, the control.")] = 3,
    seed: Seed = 0,
    workers: Workers = None,
    dtype: Dtype = "auto",
    format: Format = None,
    on_bad_row: OnBadRow = "stop",
    limit: Limit = None,
    shuffle_seed: ShuffleSeed = None,
) -> None:
    """Pilot fine-tunes along every signed direction, judged on validation problems against random pilots."""
    from .basis import Scores
    from .cells import CellSettings
    from .console import progress
    from .evaluate.generate import SamplingSettings
    from .lm import load_model
    from .probe import ProbeSettings
    from .probe import probe as run_probe
    from .select import Candidates, parse_direction
    from .train.settings import preset as named

    pool = _corpus(corpus, format, None, on_bad_row, limit, shuffle_seed, out)
    sampling = SamplingSettings(rollouts, temperature, max_tokens, seed)
    cells = CellSettings(model, dtype, task, instruction, None, sampling, named(preset), trainer)
    with progress("probe") as tick:
        outcome = run_probe(
            out,
            pool,
            Candidates.of(pool, Scores.load(scores)),
            cells,
            load_model(model, dtype=dtype).weights_fingerprint,
            ProbeSettings(n_rows=rows, n_random=n_random, seed=seed),
            directions=[parse_direction(d) for d in direction] if direction else None,
            n_workers=workers,
            on_cell=lambda cell, done, n: tick(done, n, cell.name),
        )
    print(f"random: pass@1 {_interval(outcome['random']['pass@1'])}")
    by_name = {entry["name"]: entry for entry in outcome["directions"]}
    for name in outcome["ranking"]:
        print(f"{name}: pass@1 {_interval(by_name[name]['pass@1'])}, {by_name[name]['verdict']}")
    print(f"chosen: {', '.join(outcome['chosen'])}")


@app.command()
def report(run: Path) -> None:
    """Write RUN/report.html from the artifacts of a run."""
    from .report import write_report

    print(write_report(run))


@world_app.command("train")
def world_train(
    out: Out,
    seed: Seed = 0,
    variant: Annotated[str, typer.Option(help="plain, or null (no style carries a benefit).")] = "plain",
) -> None:
    """Pretrain a reasoner of another seed or world (10 minutes on two cores; goes on where it was interrupted)."""
    from .world.reasoner import pretrain

    pretrain(out, seed, _variant(variant), log=lambda line: print(line, file=sys.stderr, flush=True))
    print(f"{out / 'habit'}: the base; {out / 'skills'}: the model before its last phase")


@world_app.command("pool")
def world_pool(
    models: Annotated[Path, typer.Option("--models", help="What 'world train' made.")],
    out: Annotated[Path, typer.Option("--out", help="FILE.jsonl.gz")],
    rows: Annotated[int, typer.Option(min=1, help="Rows of the pool.")] = 20_000,
    seed: Seed = 0,
    variant: Annotated[str, typer.Option(help="plain or null.")] = "plain",
) -> None:
    """Draw the candidate pool of a reasoner: wrong rows are its own samples, graded false."""
    from .world.pool import build_pool

    build_pool(models, out, n_rows=rows, seed=seed, variant=_variant(variant))


@world_app.command("ship")
def world_ship(
    models: Annotated[Path, typer.Option("--models", help="What 'world train' made.")],
    pool: Annotated[Path, typer.Option("--pool", help="What 'world pool' made.")],
) -> None:
    """Put a reasoner and its pool into the package, and record what they measure."""
    from .world.ship import ship

    record = ship(models, pool)
    for name, figures in record["tasks"].items():
        print(f"{name}: pass@1 {_interval(figures['pass@1'])}, pass@4 {_interval(figures['pass@4'])}")


def _variant(name: str) -> Any:
    if name not in ("plain", "null"):
        raise UsageError(f"--variant is 'plain' or 'null', not {name!r}")
    return name


def main() -> None:
    """Entry point: runs a command and turns errors into one sentence and an exit code."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    if not debug:  # what libraries mean to change, and their own bars, are nothing to the user
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        warnings.simplefilter("ignore", FutureWarning)
    try:
        app(arguments)  # leaves with SystemExit: 0 when done, 2 for wrong use of the command line
    except SystemExit as leaving:
        if leaving.code == _INTERRUPTED:
            print("interrupted; run the same command again to go on", file=sys.stderr)
        raise
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            print(f"error: {_sentence(error)}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))


def _sentence(error: Exception) -> str:
    """What went wrong and what to do about it, in one line."""
    words = " ".join(str(error).split())
    if isinstance(error, SkillbasisError):
        return words
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}; check the path, its permissions and the room on the disk"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # the latter is torch's
        return f"out of memory ({words[:200]}); take a lower --batch-tokens or --batch-size, or --dtype bfloat16"
    return f"{type(error).__name__}: {words[:500]}; this is unforeseen: run again with --debug and report it"
