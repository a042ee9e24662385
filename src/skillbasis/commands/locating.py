"""Human skills in the coordinates of a basis: where a text lies, and what labels and directions tell of one another."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from .options import Basis, Dtype, Format, Model, OnBadRow, Out, Seed, check_file, read_corpus

if TYPE_CHECKING:
    from ..interpret.locate import Location

_SHOWN_CHARACTERS = 70  # of an example, in the terminal


def locate(
    file: Annotated[str, typer.Argument(help="A text file in UTF-8, or - to read standard input.")],
    basis: Basis,
    model: Model,
    scores: Annotated[
        Path | None, typer.Option("--scores", help="Scores of examples: what is usual, and percentiles.")
    ] = None,
    corpus: Annotated[
        str | None, typer.Option("--corpus", help="The corpus that was scored: shows the nearest examples.")
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Nearest examples to show.")] = 10,
    out: Annotated[Path | None, typer.Option("--out", help="JSON file for the result.")] = None,
    dtype: Dtype = "auto",
    format: Format = None,
    on_bad_row: OnBadRow = "stop",
) -> None:
    """Say where a text, such as the description of a skill, lies in a basis."""
    from ..artifact import write_json
    from ..basis import Scores, SkillBasis
    from ..interpret.locate import locate as locate_text
    from ..lm import load_model

    if corpus is not None and scores is None:
        raise UsageError("--corpus shows the nearest of the examples that --scores names; give --scores too")
    if out is not None:
        check_file(out)
    text = _read_text(file)
    loaded = SkillBasis.load(basis)
    table = None if scores is None else Scores.load(scores)
    if table is not None:
        table.check_basis(loaded)  # before the corpus and the model are loaded
    rows = None if corpus is None else read_corpus(corpus, format, None, on_bad_row, out=out)
    location = locate_text(text, loaded, load_model(model, dtype=dtype), scores=table, corpus=rows, n_nearest=n)
    if out is not None:
        write_json(out, {"file": file, "basis": loaded.fingerprint, **location.as_json()})
    for line in _lines(file, location):
        print(line)


def skills(
    basis: Basis,
    scores: Annotated[Path, typer.Option("--scores", help="Score file.")],
    corpus: Annotated[str, typer.Option("--corpus", help="The corpus that was scored.")],
    out: Out,
    label_column: Annotated[
        list[str] | None,
        typer.Option("--label-column", help="Column of human labels; repeatable. 'labels' if not given."),
    ] = None,
    group_column: Annotated[
        str | None,
        typer.Option("--group-column", help="Rows alike here are one problem; rows with the same prompt if not given."),
    ] = None,
    correct_column: Annotated[
        str | None,
        typer.Option("--correct-column", help="Whether a row's answer is right: asks if the basis is grounded."),
    ] = None,
    folds: Annotated[int, typer.Option("--folds", min=2, help="Folds of the cross-validation.")] = 5,
    min_rows: Annotated[
        int, typer.Option("--min-rows", min=2, help="Least rows with a label, and without it, to look at it.")
    ] = 10,
    shuffles: Annotated[
        int, typer.Option("--shuffles", min=0, help="Times each label is shuffled, as a control of its joint AUC.")
    ] = 0,
    seed: Seed = 0,
    format: Format = None,
    on_bad_row: OnBadRow = "stop",
) -> None:
    """Hold human labels against the directions, both ways, and ask whether the directions tell right answers."""
    from ..artifact import building
    from ..basis import Scores, SkillBasis
    from ..interpret.skills import describe_skills, write_skills
    from ..interpret.skills_text import summary_lines

    loaded, table = SkillBasis.load(basis), Scores.load(scores)
    table.check_basis(loaded)
    rows = read_corpus(corpus, format, None, on_bad_row, out=out)
    found = describe_skills(
        loaded,
        table,
        rows,
        label_columns=label_column or (),
        group_column=group_column,
        correct_column=correct_column,
        n_folds=folds,
        seed=seed,
        min_rows=min_rows,
        n_shuffles=shuffles,
    )
    inputs = {
        "basis": loaded.fingerprint,
        "corpus": rows.fingerprint,
        "correct_column": correct_column,
        **found["settings"],
    }
    with building(out, "skills", inputs, {}) as work:
        write_skills(work, found)
    for line in summary_lines(found):
        print(line)
    print(f"read {out / 'skills.md'}")


def _read_text(file: str) -> str:
    """The text of a file or of standard input. Raises: UsageError: no such file, not UTF-8, or nothing in it."""
    name = "standard input" if file == "-" else file
    if file != "-" and not Path(file).is_file():
        what = "is a directory" if Path(file).is_dir() else "does not exist"
        raise UsageError(f"{file} {what}; give a text file, or - to read standard input")
    data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    try:
        text = data.decode("utf-8-sig")  # a byte-order mark is no part of the text
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None
    if not text.strip():
        raise UsageError(f"{name} is empty; give a text to locate")
    return text


def _lines(file: str, location: Location) -> list[str]:
    from ..interpret.plain_table import aligned

    found = location.as_json()
    cut = f"; the text is longer: only its first {location.n_tokens:,} tokens were read" if location.truncated else ""
    lines = [f"{'standard input' if file == '-' else file}: {location.n_tokens:,} tokens; read {location.read_as}{cut}"]
    scored = location.n_scored > 0
    table = [["direction", "score", "z", *(["percentile"] if scored else [])]]
    for place in found["coordinates"]:
        name = f"d{place['direction']}{' (unstable)' if place['unstable'] else ''}"
        z = "-" if place["z"] is None else f"{place['z']:+.2f}"
        table.append([name, f"{place['score']:+.4g}", z, *([f"{place['percentile']:.1f}"] if scored else [])])
    lines.append(aligned(table))
    share = "undefined" if found["share_inside"] is None else f"{location.share_inside:.1%}"
    lines.append(f"inside the basis: {share} of its squared distance from the mean, {location.norm:.4g}^2")
    if scored:
        lines.append(
            f"of {location.n_scored:,} scored examples: {location.expected_share:.1%} inside on average; "
            f"{location.norm_percentile:.0f} % lie nearer to the mean than the text"
        )
    if location.nearest:
        lines.append("nearest examples, by the cosine of z:")
    for example in location.nearest:
        words = " ".join(f"{example.prompt} {example.response}".split())
        words = "".join(c if c.isprintable() else "\ufffd" for c in words)
        shown = words if len(words) <= _SHOWN_CHARACTERS else f"{words[: _SHOWN_CHARACTERS - 1]}…"
        lines.append(f"{example.cosine:+.3f} {example.id}: {shown}")
    return lines
