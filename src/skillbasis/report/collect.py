"""Reads the artifacts of a run directory into one tree of frozen dataclasses (records.py).

Every artifact is optional: an absent one is None in the tree. A present one that lacks what it must hold is an
ArtifactError naming the file and the field. A number that JSON gives as null is None: undefined, never 0.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ..artifact import read_json
from ..errors import ArtifactError, UsageError
from .records.basis import BasisFacts, ComparisonFile
from .records.directions import Direction, Exemplar, Interpretation, LabelAreas
from .records.report import ActivationFacts, Probe, Report, RunFacts
from .records.safety import Geometry, Safety
from .records.skills import Skills
from .records.study import Contest, Study
from .records.sweep import Sweep
from .safety.exchanges import read_shown
from .sampling import sample_scores, token_counts
from .way import REJECTED, way

RUN = "run.json"
ACTIVATIONS = "activations/manifest.json"
ROWS = "activations/rows.parquet"
SKIPPED = "activations/skipped.jsonl"
BASIS = "basis/config.json"
SCORES = "scores.parquet"
DIRECTIONS = "interpret/directions.json"
LABELLED = "labels/directions.json"
PROBE = "probe/probe.json"
STUDY = "study/summary.json"
SWEEP = "steer/sweep.json"
SAFETY = "safety/summary.json"
GEOMETRY = "safety/geometry.json"
ARTIFACTS = (RUN, ACTIVATIONS, BASIS, SCORES, DIRECTIONS, PROBE, STUDY, SAFETY, GEOMETRY, SWEEP)

Record = TypeVar("Record")


def collect(run: Path, *, show_responses: bool = False) -> Report:
    """Reads whatever artifacts `run` holds.

    Args:
        show_responses: whether to read requests and answers of the safety study too.
    Raises:
        UsageError: `run` is no directory, or holds no artifact at all.
        ArtifactError: an artifact is damaged or lacks a field; the message names both.
    Cost: one pass over three columns of the scores; memory of one batch of it.
    """
    if not run.is_dir():
        raise UsageError(f"there is no run directory at {run}; check the path, or make one with 'skillbasis demo'")
    files = tuple(name for name in ARTIFACTS if (run / name).is_file())
    if not files:
        raise UsageError(
            f"{run} holds nothing to report (none of {', '.join(ARTIFACTS)}); give the output directory of "
            "'skillbasis run' or 'skillbasis demo'"
        )
    facts = _read(run, RUN, RunFacts) or RunFacts()
    interpretation = _read(run, LABELLED, Interpretation) or _read(run, DIRECTIONS, Interpretation)
    sample = interpretation.sample if interpretation else None
    areas, areas_file = _label_areas(run, interpretation)
    report = Report(
        name=run.resolve().name,
        run=facts,
        activations=_read(run, ACTIVATIONS, ActivationFacts),
        basis=_read(run, BASIS, BasisFacts),
        scores=sample_scores(run / SCORES, facts.seed or 0, sample) if SCORES in files else None,
        comparisons=_comparisons(run),
        label_areas=areas,
        label_areas_file=areas_file,
        interpretation=_with_tokens(interpretation, run / ROWS),
        probe=_read(run, PROBE, Probe),
        study=collect_study(run),
        safety=collect_safety(run, show_responses=show_responses),
        contests=tuple(
            contest
            for path in sorted(run.glob("contest*/contest.json"), key=lambda path: (len(path.parent.name), path))
            if (contest := _read(run, str(path.relative_to(run)), Contest)) is not None
        ),
        sweep=_read(run, SWEEP, Sweep),
        files=files,
        unfinished=tuple(sorted(path.stem for path in run.glob("*.partial") if path.is_dir())),
        n_rejected=_rejected(run, facts),
    )
    report = replace(report, way=way(run, report))
    return replace(report, files=_files(run, report))


def collect_study(run: Path) -> Study | None:
    """Reads the study with its other budgets; None where the run has none. Raises: ArtifactError: as `collect`."""
    study = _read(run, STUDY, Study)
    if study is None:
        return None
    paths = sorted(run.glob("study-*/summary.json"), key=lambda path: (len(path.parent.name), path.parent.name))
    others = [_read(run, str(path.relative_to(run)), Study) for path in paths]
    return replace(study, others=tuple(other for other in others if other is not None))


def collect_safety(run: Path, *, show_responses: bool = False) -> Safety | None:
    """Reads the safety study with its geometry, and requests and answers only where asked; None where there is none.

    Raises: ArtifactError: as `collect`.
    """
    safety = _read(run, SAFETY, Safety, has_metrics=False)
    if safety is None:
        return None
    safety = replace(safety, geometry=_read(run, GEOMETRY, Geometry, has_metrics=False))
    return replace(safety, shown=read_shown(run, safety)) if show_responses else safety


def collect_sweep(folder: Path) -> Report:
    """Reads a sweep that stands alone, `folder/sweep.json`. Raises: as `collect`."""
    sweep = _read(folder, Path(SWEEP).name, Sweep)
    if sweep is None:
        raise UsageError(f"{folder} holds no {Path(SWEEP).name}; give the output directory of 'skillbasis steer sweep'")
    title = f"Steering on {sweep.task}" if sweep.task else "Steering"
    return Report(name=folder.resolve().name, run=RunFacts(title=title), sweep=sweep, files=(Path(SWEEP).name,))


def _rejected(run: Path, facts: RunFacts) -> int | None:
    """Rows that `--on-bad-row skip` left out on reading; a file that an earlier run left behind does not count."""
    corpus = facts.settings.get("corpus")
    stops = isinstance(corpus, dict) and corpus.get("on_bad_row") == "stop"
    if stops or not (run / REJECTED).is_file():
        return None
    with (run / REJECTED).open("rb") as lines:
        return sum(1 for line in lines if line.strip())


def _comparisons(run: Path) -> tuple[ComparisonFile, ...]:
    """Other bases beside this one: what `skillbasis compare --out RUN/compare...` left."""
    names = sorted(str(path.relative_to(run)) for path in run.glob("compare*/comparison.json"))
    found = [(name, _read(run, name, ComparisonFile)) for name in names]
    return tuple(replace(record, file=name) for name, record in found if record is not None)


def _files(run: Path, report: Report) -> tuple[str, ...]:
    """Every file that the page was made from, each once."""
    also = [LABELLED, ROWS] if report.interpretation else []
    also += [
        str(path.relative_to(run))
        for name in ("contest*/contest.json", "study-*/summary.json")
        for path in sorted(run.glob(name))
    ]
    also += [step.file for step in report.way if step.file] + [SKIPPED]
    also += [file.file for file in report.comparisons] + [report.label_areas_file or ""]
    return tuple(dict.fromkeys([*report.files, *(name for name in also if name and (run / name).is_file())]))


def _label_areas(run: Path, interpretation: Interpretation | None) -> tuple[tuple[LabelAreas, ...], str | None]:
    """Human labels against directions, and the file that says so: `skills*/skills.json`, else the interpretation."""
    for path in sorted(run.glob("skills*/skills.json")):
        name = str(path.relative_to(run))
        skills = _read(run, name, Skills)
        if skills is not None and skills.taxonomy.labels:
            return tuple(label.areas_of_all for label in skills.taxonomy.labels), name
    labels = interpretation.labels if interpretation else ()
    return labels, (LABELLED if (run / LABELLED).is_file() else DIRECTIONS) if labels else None


def _with_tokens(interpretation: Interpretation | None, rows: Path) -> Interpretation | None:
    """The same with the number of tokens of every example, where the activations say it."""
    if interpretation is None:
        return None
    directions = interpretation.directions
    ids = {example.id for entry in directions for example in (*entry.positive, *entry.negative)}
    tokens = token_counts(rows, ids)

    def counted(examples: tuple[Exemplar, ...]) -> tuple[Exemplar, ...]:
        return tuple(replace(example, tokens=tokens.get(example.id)) for example in examples)

    def of(entry: Direction) -> Direction:
        return replace(entry, positive=counted(entry.positive), negative=counted(entry.negative))

    return replace(interpretation, directions=tuple(of(entry) for entry in directions))


def _read(run: Path, name: str, kind: type[Record], *, has_metrics: bool = True) -> Record | None:
    """Reads one JSON artifact as a dataclass; keys the report does not use are passed over.

    `has_metrics`: whether keys `pass@k` are metrics; else they may be names, such as that of an attack type.
    """
    from pydantic import TypeAdapter, ValidationError

    path = run / name
    if not path.is_file():
        return None
    try:
        return TypeAdapter(kind).validate_python(_normalise(read_json(path), has_metrics))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise ArtifactError(
            f"{path} cannot be reported: {place}: {first['msg'].lower()}; run the stage that writes it again"
        ) from None


def _normalise(value: Any, has_metrics: bool = True) -> Any:
    """Moves the keys `pass@k` of every record under `metrics`, where a field can hold them; NaN becomes None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [_normalise(item, has_metrics) for item in value]
    if not isinstance(value, dict):
        return value
    values = {key: item if key == "settings" else _normalise(item, has_metrics) for key, item in value.items()}
    metrics = {key: item for key, item in values.items() if has_metrics and key.startswith("pass@")}
    rest = {key: item for key, item in values.items() if key not in metrics}
    return rest | {"metrics": metrics} if metrics else rest
