"""The way of the data: every stage of a run with what came out of it, and what it cost, from the files it left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..artifact import read_json
from ..errors import ArtifactError
from .records.report import Report, Stage, Step
from .shown import number, percent

MANIFESTS = {
    "activations": "activations/manifest.json",
    "basis": "basis/config.json",
    "interpret": "interpret/directions.json",
    "labels": "labels/directions.json",
    "overlap": "overlap/overlap.json",
    "near-duplicates": "near-duplicates/near_duplicates.json",
    "likelihood": "likelihood/likelihood.parquet",
    "probe": "probe/probe.json",
    "contest": "contest/contest.json",
    "study": "study/summary.json",
    "steer": "steer/sweep.json",
    "safety": "safety/summary.json",
}
"""The file of a stage that tells what came of it; stages without one have their time and memory only."""
REJECTED = "rejected.jsonl"
"""What reading the corpus left out, with the reasons."""
CORPUS = "corpus"
SECTIONS = {
    "interpret": "directions",
    "labels": "directions",
    "contest": "study",
    "steer": "steering",
    **{name: name for name in ("activations", "basis", "probe", "study", "safety")},
}


def way(run: Path, report: Report) -> tuple[Step, ...]:
    """Collects the stages in the order in which they ran; those whose artifact stands without a record come last.

    Args:
        run: the run directory.
        report: what was read of it so far.
    Raises: ArtifactError: a file is damaged.
    """
    stages = {stage.name: stage for stage in report.run.stages}
    if report.n_rejected and CORPUS not in stages:
        stages = {CORPUS: Stage(name=CORPUS)} | stages
    for name in MANIFESTS:
        if (run / name).is_dir():
            stages.setdefault(name, Stage(name=name))
    return tuple(_step(run, report, stage) for stage in stages.values())


def _step(run: Path, report: Report, stage: Stage) -> Step:
    name, file = stage.name, MANIFESTS.get(stage.name)
    if name == CORPUS and report.n_rejected:
        file = REJECTED
    told = run / file if file else None
    what, rows, tokens = _outcome(report, name, told if told is not None and told.is_file() else None)
    folder = run / name
    bytes_on_disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
    if name == "basis" and (run / "scores.parquet").is_file():
        bytes_on_disk += (run / "scores.parquet").stat().st_size
    section = SECTIONS.get(name)
    return Step(
        name=name,
        what=what,
        rows=rows,
        tokens=tokens,
        seconds=stage.seconds,
        peak_memory_mb=stage.peak_memory_mb,
        disk_bytes=bytes_on_disk or None,
        reused=stage.reused,
        note=stage.note or None,
        file=file if told is not None and told.is_file() else None,
        section=section if _shown(report, section) else None,
    )


def _shown(report: Report, section: str | None) -> bool:
    parts = {
        "activations": report.activations,
        "basis": report.basis,
        "directions": report.interpretation,
        "probe": report.probe,
        "study": report.study,
        "steering": report.sweep,
        "safety": report.safety,
    }
    return section is not None and parts.get(section) is not None


def _outcome(report: Report, name: str, file: Path | None) -> tuple[str, int | None, int | None]:
    """(what came out in words, rows, tokens) of one stage."""
    facts, basis, study = report.activations, report.basis, report.study
    if name == CORPUS and facts is not None:
        usable = facts.rows + (facts.n_skipped or 0)
        if not report.n_rejected:
            return "read", usable, None
        what = f"{number(usable)} usable; {number(report.n_rejected)} rejected: they could not be read"
        return what, usable + report.n_rejected, None
    if name == "activations" and facts is not None:
        left_out = f"; {number(facts.n_skipped)} left out, which gave none" if facts.n_skipped else ""
        cut = f"; {number(facts.n_truncated)} truncated" if facts.n_truncated else ""
        blocks = (
            f"{len(facts.block_ids)} block{'' if len(facts.block_ids) == 1 else 's'} of {number(facts.hidden_size)}"
        )
        return f"one vector per row, {blocks}{left_out}{cut}", facts.rows, facts.n_tokens
    if name == "basis" and basis is not None:
        share = f", {percent(basis.cumulative[-1])} % of the variance" if basis.cumulative else ""
        unstable = f", {len(basis.unstable)} unstable" if basis.stability else ""
        return f"{basis.n_components} directions{share}{unstable}", None, None
    if name in ("interpret", "labels") and report.interpretation is not None:
        found = report.interpretation
        labelled = sum(1 for entry in found.directions if entry.label) if name == "labels" else 0
        what = f"{labelled} labels tested" if labelled else f"{len(found.directions)} directions described"
        return what, found.n_examples, None
    if name == "probe" and report.probe is not None:
        chosen = ", ".join(report.probe.chosen) or "none"
        size = f" with {number(report.probe.n_rows)} rows each" if report.probe.n_rows is not None else ""
        return f"{len(report.probe.directions)} ends tried{size}, chosen: {chosen}", None, None
    if name == "contest" and report.contests:
        return f"{len(report.contests[0].arms)} ways of selecting tried", None, None
    if name == "study" and study is not None:
        arms = sum(1 for arm in study.arms if arm != "base")
        size = f", {number(study.budget)} {study.budget_unit} each" if study.budget is not None else ""
        return f"{arms} arms, {len(study.seeds)} seeds{size}", None, None
    if name == "steer" and report.sweep is not None:
        return f"{len(report.sweep.points)} settings", None, None
    if name == "safety" and report.safety is not None:
        return f"{len(report.safety.arms)} arms, {len(report.safety.budgets)} budgets", None, None
    return _from_file(name, file)


def _from_file(name: str, file: Path | None) -> tuple[str, int | None, int | None]:
    """The same from files that the rest of the page does not read."""
    if file is None:
        return "", None, None
    if name == "likelihood":
        return "likelihood of every row under the model", _parquet_rows(file), None
    record = read_json(file)
    if not isinstance(record, dict):
        raise ArtifactError(f"{file} is no JSON object; run the stage that writes it again")
    n_rows = _count(record.get("n_rows"))
    if name == "overlap":
        return _left_out(_count(record.get("n_overlapping_rows")), "hold a problem of the tasks"), n_rows, None
    if name == "near-duplicates":
        return _left_out(_count(record.get("n_removed")), "nearly repeat an earlier one"), n_rows, None
    return "", n_rows, None


def _left_out(n: int | None, why: str) -> str:
    return "" if n is None else f"{number(n)} left out that {why}"


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _parquet_rows(file: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(file).num_rows)
    except pa.ArrowInvalid as error:
        raise ArtifactError(f"{file} is damaged ({error}); run the stage that writes it again") from None
