"""How bases relate to each other and to the rows they were found on: compare, stability."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from .options import Format, LabelColumn, OnBadRow, Seed, read_corpus

if TYPE_CHECKING:
    from ..basis.stability import Stability
    from ..interpret.comparison import BasisComparison

BasisArgument = Annotated[Path, typer.Argument(help="Basis directory.", metavar="BASIS")]


def compare(
    bases: Annotated[list[Path], typer.Argument(help="Two or more bases, compared in pairs.", metavar="BASIS BASIS")],
    scores: Annotated[
        list[Path] | None,
        typer.Option("--scores", help="Score files of shared examples, one for each basis, in the same order."),
    ] = None,
    corpus: Annotated[
        str | None, typer.Option("--corpus", help="The examples: say which axes differ, and show what they hold.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Directory for all figures, JSON and Markdown.")] = None,
    correlation: Annotated[str, typer.Option(help="pearson or spearman, of the scores.")] = "pearson",
    permutations: Annotated[int, typer.Option(min=1, help="Of the examples, for the level of chance.")] = 200,
    seed: Seed = 0,
    format: Format = None,
    label_column: LabelColumn = None,
    on_bad_row: OnBadRow = "stop",
) -> None:
    """Compare bases: angles where they are of one shape, scores on shared examples, and which axes only one has."""
    from itertools import combinations

    from ..artifact import array_fingerprint, building, fingerprint, write_json, write_text
    from ..basis import Scores, SkillBasis
    from ..interpret.comparison import compare as compare_two

    # `--scores F G` gives G to the bases: a basis is a directory or an address, a score file is a Parquet file.
    files = [*(scores or []), *filter(_is_file, bases)]
    paths = [path for path in bases if not _is_file(path)]
    if len(paths) < 2:
        raise UsageError(f"two bases or more are compared, not {len(paths)}; give their directories")
    if files and len(files) != len(paths):
        raise UsageError(f"there are {len(paths)} bases and {len(files)} score files; give one for each, or none")
    if corpus is not None and not files:
        raise UsageError("--corpus needs --scores of its rows along each basis; make them with skillbasis score")
    if corpus is not None and out is None:
        raise UsageError("--corpus shows what the axes hold, which fills pages; give --out DIR for them")
    loaded = [SkillBasis.load(path) for path in paths]
    tables: list[Scores | None] = [None] * len(loaded)
    tables[: len(files)] = [Scores.load(file) for file in files]
    rows = read_corpus(corpus, format, label_column, on_bad_row, out=out) if corpus is not None else None
    found: list[BasisComparison] = []
    for i, j in combinations(range(len(loaded)), 2):
        pair = compare_two(
            loaded[i],
            loaded[j],
            tables[i],
            tables[j],
            names=(str(paths[i]), str(paths[j])),
            corpus=rows,
            method=correlation,  # type: ignore[arg-type]
            n_permutations=permutations,
            seed=seed,
        )
        print(("\n" if found else "") + pair.text())
        found.append(pair)
    if out is None:
        return
    inputs = {"bases": [basis.fingerprint for basis in loaded], "seed": seed, "permutations": permutations}
    inputs |= {"correlation": correlation, "corpus": rows.fingerprint if rows is not None else None}
    inputs |= {"scores": [fingerprint([t.ids, array_fingerprint(t.values)]) for t in tables if t is not None]}
    with building(out, "comparison", inputs, {}) as work:
        write_json(work / "comparison.json", {"pairs": [pair.to_json() for pair in found]})
        write_text(work / "comparison.md", "\n".join(pair.to_markdown() for pair in found))
    print(f"\nread {out / 'comparison.md'}")


def _is_file(path: Path) -> bool:
    return path.is_file() or path.suffix == ".parquet"


def stability(
    basis: BasisArgument,
    activations: Annotated[Path, typer.Argument(help="The activations it was found on.", metavar="ACTS")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Where the basis goes with its stability; in place if not given.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Times the rows are split in two random halves.")] = 5,
    bootstrap: Annotated[int, typer.Option(min=0, help="Resamples of the rows; 0 for none.")] = 200,
    threshold: Annotated[float, typer.Option(help="Unstable is what may have a |cosine| below this.")] = 0.9,
    seed: Seed = 0,
) -> None:
    """Measure whether other rows would give the same directions, and record it in the basis."""
    from ..activations import ActivationStore
    from ..basis import SkillBasis
    from ..basis.stability import StabilitySettings, measure_stability
    from ..console import progress

    if out is None and not basis.is_dir():
        raise UsageError(f"{basis} is no directory here, so nothing can be recorded in it; give --out DIR")
    settings = StabilitySettings(repeats, bootstrap, threshold, seed)
    loaded, store = SkillBasis.load(basis), ActivationStore.open(activations)
    with progress("stability") as tick:
        measured = measure_stability(store, loaded, settings, on_step=tick)
    loaded.with_stability(measured.to_json()).save(out or basis)
    print(_stability_text(measured))
    print(f"\nrecorded in {out or basis}")


def _stability_text(measured: Stability) -> str:
    from ..interpret.plain_table import aligned

    head = ("direction", "", "|cosine| [95 %]", "in the span", "halves", "between halves", "variance [95 %]", "gap")
    rows = [head]
    for entry in measured.directions:
        cosine, eigenvalue, gap = entry.cosine, entry.eigenvalue, entry.gap
        rows.append(
            (
                f"d{entry.direction}",
                "unstable" if entry.unstable else "",
                f"{cosine.median:.3f} [{cosine.low:.3f}, {cosine.high:.3f}]" if cosine else "-",
                f"{entry.span_cosine.median:.3f}" if entry.span_cosine else f"{entry.half_span_cosine.median:.3f}",
                f"{entry.half_cosine.median:.3f}",
                f"{entry.between_halves.median:.3f}",
                f"{eigenvalue.median:.4g} [{eigenvalue.low:.4g}, {eigenvalue.high:.4g}]" if eigenvalue else "-",
                f"{gap:.1%}" if gap is not None else "-",
            )
        )
    how = (
        f"{measured.n_bootstrap} resamples in {measured.space} dimensions ({measured.space_share:.1%} of the variance)"
        if measured.space_share is not None
        else "no resamples"
    )
    names = ", ".join(f"d{k}" for k in measured.unstable)
    limit = f"{measured.threshold:g}"
    told = f"no direction is unstable: the lower end of every |cosine| is {limit} or more"
    if names:
        told = f"unstable, since the lower end of the |cosine| is below {limit}: {names}"
    return (
        f"{measured.n_rows:,} rows: {measured.n_repeats} splits in halves, {how}\n\n"
        f"{aligned(rows, frozenset({0, 1}))}\n\n{told}"
    )
