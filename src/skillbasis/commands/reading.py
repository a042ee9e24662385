"""From a corpus to directions and scores: extract, discover, score, likelihood."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError, nearest
from .options import (
    AutoBatchTokens,
    Basis,
    BatchTokens,
    Dtype,
    Engine,
    First,
    Format,
    LabelColumn,
    Layers,
    Limit,
    MaxLength,
    Model,
    OnBadRow,
    OptionalModel,
    Out,
    Pooling,
    Seed,
    ShuffleSeed,
    Span,
    Workers,
    batch_size,
    check_file,
    open_model,
    read_corpus,
    reading_progress,
)


def extract(
    corpus: str,
    model: Model,
    out: Out,
    layers: Layers = "inner",
    pooling: Pooling = "mean",
    span: Span = "all",
    max_length: MaxLength = 8000,
    batch_tokens: AutoBatchTokens = "auto",
    dtype: Dtype = "auto",
    engine: Engine = "local",
    workers: Workers = None,
    format: Format = None,
    label_column: LabelColumn = None,
    on_bad_row: OnBadRow = "stop",
    limit: Limit = None,
    shuffle_seed: ShuffleSeed = None,
    first: First = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace activations that were made otherwise.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Make damaged or missing shards again, nothing else.")
    ] = False,
) -> None:
    """Pool the hidden states of every row of a corpus into a directory of activations."""
    from .. import activations

    settings = activations.ExtractionSettings(layers, pooling, span, max_length, batch_size(batch_tokens))  # type: ignore[arg-type]
    if repair:
        if engine != "local":
            raise UsageError("--repair reads the damaged shards in this process; leave out --engine")
        activations.ActivationStore.read(out)  # before the corpus and the model are loaded
    rows = read_corpus(corpus, format, label_column, on_bad_row, limit, shuffle_seed, out, first)
    with open_model(model, dtype, engine, workers) as opened, reading_progress("extract") as on_progress:
        if repair:
            made = activations.repair(rows, opened, out, on_progress=on_progress)
            print(f"{out}: made again {', '.join(made)}" if made else f"{out}: every shard is whole")
            return
        store = activations.extract(
            rows,
            opened,
            out,
            settings,
            on_bad_row=on_bad_row,  # type: ignore[arg-type]
            overwrite=overwrite,
            on_progress=on_progress,
        )
    cut = f", {store.manifest['n_truncated']} rows cut" if store.manifest["n_truncated"] else ""
    skipped = store.manifest["n_skipped"]
    left_out = f", {skipped} rows skipped (skipped.jsonl)" if skipped else ""
    print(
        f"{out}: {len(store)} rows x {len(store.block_ids)} blocks x {store.hidden_size}, "
        f"{store.manifest['n_tokens']:,} tokens{cut}{left_out}"
    )


@contextmanager
def _source(
    name: str,
    model: str | None,
    settings: Any,
    *,
    dtype: str,
    engine: str,
    workers: int | None,
    on_bad_row: str,
    fits: Callable[[dict[str, Any]], None] | None = None,
    **options: Any,
) -> Iterator[Any]:
    """Opens a directory of activations, or a corpus with a model that reads it in every pass."""
    from ..activations import ActivationStore, LiveActivations

    if (Path(name) / "manifest.json").exists() or Path(f"{name}.partial").exists():
        yield ActivationStore.open(name)
        return
    if model is None:
        raise UsageError(f"{name} is no directory of activations; give one, or a corpus together with --model")
    corpus = read_corpus(name, on_bad_row=on_bad_row, **options)
    with open_model(model, dtype, engine, workers) as opened, reading_progress("read") as on_progress:
        source = LiveActivations(corpus, opened, settings, on_bad_row=on_bad_row, on_progress=on_progress)  # type: ignore[arg-type]
        if fits is not None:
            fits(source.manifest)
        yield source
    if source.skipped:
        print(f"rows skipped: {len(source.skipped)}, the first is {next(iter(source.skipped))!r}", file=sys.stderr)


def discover(
    source: Annotated[str, typer.Argument(help="A directory of activations, or a corpus together with --model.")],
    out: Out,
    k: Annotated[int, typer.Option("--k", help="Directions in the basis; of sae, the most important latents.")] = 10,
    method: Annotated[
        str, typer.Option(help="pca: principal directions; sae: those of a TopK sparse autoencoder.")
    ] = "pca",
    seed: Seed = 0,
    tol: Annotated[
        float | None,
        typer.Option(help="pca: largest principal angle in degrees at which iteration stops; 0.1 if not given."),
    ] = None,
    normalize_blocks: Annotated[bool, typer.Option(help="Give every block the same weight.")] = False,
    dictionary_size: Annotated[
        int | None, typer.Option(help="sae: latents that are learnt, of which --k are kept; 128 if not given.")
    ] = None,
    active: Annotated[
        int | None, typer.Option(help="sae: latents that make up one row, at most; 4 if not given.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="sae: batches trained on; 4000 if not given.")] = None,
    batch_rows: Annotated[
        int | None, typer.Option("--batch-size", help="sae: rows of a batch; 256 if not given.")
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="sae: about the angle in radians a step turns a direction by; 0.03 if not given."),
    ] = None,
    model: OptionalModel = None,
    layers: Layers = "inner",
    pooling: Pooling = "mean",
    span: Span = "all",
    max_length: MaxLength = 8000,
    batch_tokens: AutoBatchTokens = "auto",
    dtype: Dtype = "auto",
    engine: Engine = "local",
    workers: Workers = None,
    format: Format = None,
    on_bad_row: OnBadRow = "stop",
    limit: Limit = None,
    shuffle_seed: ShuffleSeed = None,
    first: First = False,
) -> None:
    """Find directions of activations, by PCA or a sparse autoencoder; with --model, a corpus is read and not stored."""
    from ..activations import ExtractionSettings
    from ..artifact import lock
    from ..basis import PcaSettings, SaeSettings, fit_pca

    if method not in ("pca", "sae"):
        raise UsageError(f"unknown method {method!r}{nearest(method, ['pca', 'sae'])}; allowed are pca, sae")
    of_pca: dict[str, Any] = {"tol_degrees": tol}
    of_sae: dict[str, Any] = {"dictionary_size": dictionary_size, "active": active, "steps": steps}
    of_sae |= {"batch_size": batch_rows, "learning_rate": learning_rate}
    own, other = (of_sae, of_pca) if method == "sae" else (of_pca, of_sae)
    for name, value in other.items():
        if value is not None:
            option = "--" + name.replace("_", "-").removesuffix("-degrees")
            raise UsageError(f"{option} says nothing to --method {method}; leave it out")
    given: dict[str, Any] = {name: value for name, value in own.items() if value is not None}
    given |= {"k": k, "seed": seed, "normalize_blocks": normalize_blocks}
    how = SaeSettings(**given) if method == "sae" else PcaSettings(**given)
    settings = ExtractionSettings(layers, pooling, span, max_length, batch_size(batch_tokens))  # type: ignore[arg-type]
    reading = {"dtype": dtype, "engine": engine, "workers": workers, "on_bad_row": on_bad_row}
    options = {"format": format, "limit": limit, "shuffle_seed": shuffle_seed, "first": first, "out": out}
    checkpoint = out.with_name(f".{out.name}.progress.safetensors")
    with lock(checkpoint), _source(source, model, settings, **reading, **options) as rows:  # type: ignore[arg-type]
        if isinstance(how, SaeSettings):
            basis = _train_autoencoder(rows, how, checkpoint)
        else:
            basis = fit_pca(rows, how, checkpoint=checkpoint if rows.live else None)
    basis.save(out)
    checkpoint.unlink(missing_ok=True)
    print(f"{out}: {_found(basis)}")


def _train_autoencoder(rows: Any, settings: Any, checkpoint: Path) -> Any:
    """Trains with a progress bar, but where the reading of a live source shows one already."""
    from ..basis import TrainingStep, fit_sae
    from ..console import progress

    if rows.live:
        return fit_sae(rows, settings, checkpoint=checkpoint)
    with progress("train") as tick:

        def on_step(step: TrainingStep) -> None:
            words = f"{step.unexplained:.1%} of the variance unexplained, {step.n_dead} dead latents"
            tick(step.done, step.total, words)

        return fit_sae(rows, settings, checkpoint=checkpoint, on_step=on_step)


def _found(basis: Any) -> str:
    """A sentence on what a basis explains."""
    config = basis.config
    if config["method"] == "sae":
        held, dictionary, training = config["held_out"], config["dictionary"], config["training"]
        return (
            f"{basis.n_components} of {dictionary['alive']} live latents, spanning "
            f"{config['span_variance_ratio']:.1%} of the variance ({dictionary['dead']} of {dictionary['size']} are "
            f"dead); the autoencoder explains {held['explained_variance']:.1%} "
            f"[{held['low']:.1%}, {held['high']:.1%}] of the variance of {held['rows']} held-out rows with "
            f"{held['active_per_row']:.1f} latents a row, after {training['epochs']:.1f} epochs"
        )
    shares = config["explained_variance_ratio"]
    hold = f"hold {sum(shares):.1%} of the variance"
    if not config["orthogonal"]:
        hold = f"hold {min(shares):.1%} to {max(shares):.1%} of the variance each and are not orthogonal"
    return (
        f"{basis.n_components} directions {hold} ({config['solver']} solver, passes over the rows: {config['passes']})"
    )


def score(
    source: Annotated[str, typer.Argument(help="A directory of activations, or a corpus together with --model.")],
    basis: Basis,
    out: Out,
    model: OptionalModel = None,
    batch_tokens: AutoBatchTokens = "auto",
    dtype: Dtype = "auto",
    engine: Engine = "local",
    workers: Workers = None,
    format: Format = None,
    on_bad_row: OnBadRow = "stop",
    limit: Limit = None,
    shuffle_seed: ShuffleSeed = None,
    first: First = False,
) -> None:
    """Score every row along the directions of a basis (Parquet)."""
    from dataclasses import replace

    from ..activations import settings_of
    from ..artifact import lock, remove_tree
    from ..basis import SkillBasis
    from ..basis import score as score_rows

    check_file(out)
    loaded = SkillBasis.load(basis)
    settings = replace(settings_of(loaded.config), batch_tokens=batch_size(batch_tokens))
    reading = {"dtype": dtype, "engine": engine, "workers": workers, "on_bad_row": on_bad_row}
    options = {"format": format, "limit": limit, "shuffle_seed": shuffle_seed, "first": first, "out": out}
    parts = out.with_name(f".{out.name}.parts")
    with (
        lock(parts),
        _source(source, model, settings, fits=loaded.check_activations, **reading, **options) as rows,  # type: ignore[arg-type]
    ):
        scores = score_rows(rows, loaded, parts=parts if rows.live else None)
    scores.save(out)
    remove_tree(parts)
    print(f"{out}: {len(scores.ids)} rows x {loaded.n_components} directions")


def likelihood(
    corpus: str,
    model: Model,
    out: Out,
    max_length: MaxLength = 8000,
    batch_tokens: BatchTokens = 8192,
    alone: Annotated[
        bool, typer.Option("--alone", help="Also without its prompt (column alone_nll), for strategy ifd.")
    ] = False,
    dtype: Dtype = "auto",
    format: Format = None,
    on_bad_row: OnBadRow = "stop",
    limit: Limit = None,
    shuffle_seed: ShuffleSeed = None,
    first: First = False,
) -> None:
    """Measure how likely a model finds each response (Parquet: id, mean_nll, max_nll, tokens)."""
    from ..evaluate.likelihood import measure_likelihood
    from ..lm import load_model

    check_file(out)
    rows = read_corpus(corpus, format, None, on_bad_row, limit, shuffle_seed, out, first)
    with reading_progress("likelihood") as on_progress:
        table = measure_likelihood(
            rows,
            load_model(model, dtype=dtype),
            max_length=max_length,
            batch_tokens=batch_tokens,
            alone=alone,
            on_progress=on_progress,
        )
    table.save(out)
    measured = table.mean_nll[table.n_tokens > 0]
    cut = (
        f", {len(table.ids) - len(measured)} rows without a response in reach" if len(measured) < len(table.ids) else ""
    )
    print(f"{out}: {len(table.ids)} rows{cut}, mean NLL {measured.mean():.3f} nats per token")
