"""From a corpus to directions and what they hold: extract, discover, score, likelihood, interpret."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError
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
    """Find the principal directions of activations; those of a corpus with --model are stored nowhere."""
    from ..activations import ExtractionSettings
    from ..artifact import lock
    from ..basis import PcaSettings, fit_pca

    if method != "pca":
        raise UsageError(f"unknown method {method!r}; allowed is pca")
    pca = PcaSettings(k=k, seed=seed, tol_degrees=tol, normalize_blocks=normalize_blocks)
    settings = ExtractionSettings(layers, pooling, span, max_length, batch_size(batch_tokens))  # type: ignore[arg-type]
    reading = {"dtype": dtype, "engine": engine, "workers": workers, "on_bad_row": on_bad_row}
    options = {"format": format, "limit": limit, "shuffle_seed": shuffle_seed, "first": first, "out": out}
    checkpoint = out.with_name(f".{out.name}.progress.safetensors")
    with lock(checkpoint), _source(source, model, settings, **reading, **options) as rows:  # type: ignore[arg-type]
        basis = fit_pca(rows, pca, checkpoint=checkpoint if rows.live else None)
    basis.save(out)
    checkpoint.unlink(missing_ok=True)
    share = sum(basis.config["explained_variance_ratio"])
    print(
        f"{out}: {k} directions hold {share:.1%} of the variance "
        f"({basis.config['solver']} solver, passes over the rows: {basis.config['passes']})"
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
    from ..artifact import building
    from ..basis import Scores, SkillBasis
    from ..interpret import describe_basis, write_description

    loaded, table = SkillBasis.load(basis), Scores.load(scores)
    table.check_basis(loaded)
    description = describe_basis(
        table,
        loaded.mean_scores,
        loaded.explained_variance,
        loaded.config["total_variance"],
        read_corpus(corpus, format, label_column, on_bad_row, out=out),
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
