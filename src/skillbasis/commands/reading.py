"""From a corpus to directions and what they hold: extract, discover, score, likelihood, interpret."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError
from .options import (
    Basis,
    BatchTokens,
    Dtype,
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
    check_file,
    extract_rows,
    read_corpus,
)


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
    from ..activations import ExtractionSettings
    from ..lm import load_model

    settings = ExtractionSettings(layers, pooling, span, max_length, batch_tokens)  # type: ignore[arg-type]
    rows = read_corpus(corpus, format, label_column, on_bad_row, limit, shuffle_seed, out)
    store = extract_rows(rows, load_model(model, dtype=dtype), out, settings)
    cut = f", {store.manifest['n_truncated']} rows cut" if store.manifest["n_truncated"] else ""
    print(
        f"{out}: {len(store)} rows x {len(store.block_ids)} blocks x {store.hidden_size}, "
        f"{store.manifest['n_tokens']:,} tokens{cut}"
    )


def _store(
    source: str, model: str | None, settings: Any, dtype: str, folder: str, basis: Any = None, **options: Any
) -> Any:
    """Opens a directory of activations, or extracts a corpus into a temporary one; a basis must be of the model."""
    from ..activations import ActivationStore
    from ..lm import load_model

    if (Path(source) / "manifest.json").exists() or Path(f"{source}.partial").exists():
        return ActivationStore.open(source)
    if model is None:
        raise UsageError(f"{source} is no directory of activations; give one, or a corpus together with --model")
    corpus, lm = read_corpus(source, **options), load_model(model, dtype=dtype)
    if basis is not None:
        basis.check_model(lm)
    return extract_rows(corpus, lm, Path(folder) / "activations", settings)


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

    from ..activations import ExtractionSettings
    from ..basis import PcaSettings, fit_pca

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

    from ..activations import ExtractionSettings
    from ..basis import SkillBasis
    from ..basis import score as score_rows

    check_file(out)
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
    from ..console import progress
    from ..evaluate.likelihood import measure_likelihood
    from ..lm import load_model

    check_file(out)
    rows = read_corpus(corpus, format, None, on_bad_row, limit, shuffle_seed, out)
    with progress("likelihood") as tick:
        table = measure_likelihood(
            rows,
            load_model(model, dtype=dtype),
            max_length=max_length,
            batch_tokens=batch_tokens,
            on_progress=lambda done, n, tokens: tick(done, n, f"{tokens:,} tokens"),
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
