"""What `describe_skills` found, for people: lines for a terminal, and Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .markdown import code
from .plain_table import markdown

_LABELS_SHOWN = 20  # of a column, in the terminal
_SIGNIFICANT = 0.05


def summary_lines(found: Mapping[str, Any]) -> list[str]:
    """The main figures in plain text, a line each."""
    taxonomy, marks = found["taxonomy"], _marks(found)
    lines = []
    for column in taxonomy["columns"]:
        lines.append(
            f"{_plain(column['column'])} ({column['n_rows']:,} rows): mean joint AUC "
            f"{_range(column['mean_joint_auc'])}, deviance R2 {_range(column['deviance_r2'])}; "
            f"explains {_range(column['basis_r2']['total'])} of the basis"
        )
        accuracy = column["accuracy"]
        if accuracy:
            lines.append(f"  accuracy {_range(accuracy['model'])}; most frequent label {_range(accuracy['majority'])}")
        mine = [label for label in taxonomy["labels"] if label["column"] == column["column"]]
        for label in mine[:_LABELS_SHOWN]:
            k = max(range(len(marks)), key=lambda k, areas=label["directions"]: abs(areas[k]["auc"] - 0.5))  # type: ignore[misc]
            lines.append(
                f"  {_plain(label['label'])} ({label['n_rows']:,} rows): joint {_area(label['joint'])}, "
                f"best {marks[k]} {_area(label['directions'][k])}"
            )
        if len(mine) > _LABELS_SHOWN:
            lines.append(f"  and {len(mine) - _LABELS_SHOWN} more labels")
    if taxonomy["all_columns"]:
        lines.append(f"all columns together explain {_range(taxonomy['all_columns']['total'])} of the basis")
    if taxonomy["left_out"]:
        first = taxonomy["left_out"][0]
        name = f"{_plain(first['column'])} = {_plain(first['label'])}"
        lines.append(f"labels left out: {len(taxonomy['left_out'])}, the first is {name}: {_plain(first['reason'])}")
    lines += [_composition(found["compositionality"]), _compact(found["compactness"])]
    grounding = found["grounding"]
    if grounding:
        lines.append(f"{_right(grounding)}; predicted from")
        lines += [f"  {p['name']}: AUC {_area(p['auc'])}" for p in grounding["predictors"]]
        lines += [
            f"  {c['a']} less {c['b']}: {_range(c['difference'], '+.3f')}, {_p(c['p_holm'])}"
            for c in grounding["comparisons"]
        ]
    return lines


def to_markdown(found: Mapping[str, Any]) -> str:
    """Renders all figures as Markdown in which no text from the corpus can act as Markdown or HTML."""
    taxonomy, settings, marks = found["taxonomy"], found["settings"], _marks(found)
    group = settings["group_column"]
    alike = "the same prompt" if group is None else f"the same {code(group)}"
    head = (
        f"{found['n_rows']:,} rows in {taxonomy['n_groups']:,} groups with {alike}; {settings['n_folds']} folds that "
        f"never split a group, seed {settings['seed']}. Areas under the ROC curve with 95 % intervals (DeLong's, "
        "clustered by group): .5 is chance, below it a label lies towards the negative end of a direction. Joint: from "
        "all directions together, cross-validated. Bold: p < 0.05, corrected (Holm) over "
        f"{taxonomy['n_tests']:,} pairs of label and direction, and for the joint areas over "
        f"{len(taxonomy['labels']):,} labels."
    )
    rows = [["column", "label", "rows", "joint", *marks]]
    for label in taxonomy["labels"]:
        areas = [_bold(f"{area['auc']:.3f}", p) for area, p in zip(label["directions"], label["p_holm"], strict=True)]
        joint = _bold(_area(label["joint"]), label["joint_p_holm"])
        rows.append([code(label["column"]), code(label["label"]), f"{label['n_rows']:,}", joint, *areas])
    lines = ["# Human skills and the basis", "", head, "", "## Labels by directions", "", _table(rows)]
    if any(label["shuffled"] for label in taxonomy["labels"]):
        rows = [["column", "label", "mean", "highest", "p"]]
        for label in taxonomy["labels"]:
            control = label["shuffled"] or {}
            figures = [f"{control[key]:.3f}" if control else "-" for key in ("mean", "highest", "p_value")]
            rows.append([code(label["column"]), code(label["label"]), *figures])
        lines += ["", f"Control: joint areas of {settings['n_shuffles']} shuffles of each label.", "", _table(rows)]
    if taxonomy["left_out"]:
        lines += ["", "Left out:", ""]
        lines += [
            f"* {code(entry['column'])} = {code(entry['label'])}: {code(entry['reason'])}"
            for entry in taxonomy["left_out"]
        ]
    lines += ["", *_explained(taxonomy, marks)]
    lines += ["", "## Compositionality", "", _composition(found["compositionality"])]
    lines += ["", "## Compactness", "", _compact(found["compactness"])]
    if found["grounding"]:
        lines += ["", *_grounding(found["grounding"])]
    return "\n".join(lines) + "\n"


def _explained(taxonomy: Mapping[str, Any], marks: list[str]) -> list[str]:
    rows = [["column", "labels", "mean joint AUC", "deviance R2", "accuracy", "most frequent label"]]
    for column in taxonomy["columns"]:
        accuracy = column["accuracy"]
        rates = [_range(accuracy["model"]), _range(accuracy["majority"])] if accuracy else ["", ""]
        figures = [_range(column["mean_joint_auc"]), _range(column["deviance_r2"])]
        rows.append([code(column["column"]), str(column["n_labels"]), *figures, *rates])
    shares = [["column", "whole basis", *marks]]
    named = [(code(column["column"]), column["basis_r2"]) for column in taxonomy["columns"]]
    if taxonomy["all_columns"]:
        named.append(("all columns", taxonomy["all_columns"]))
    for name, share in named:
        cells = ["-" if each["mean"] is None else f"{each['mean']:.3f}" for each in share["directions"]]
        shares.append([name, _range(share["total"]), *cells])
    return [
        "## What the basis explains of the labels",
        "",
        "From all directions together, cross-validated.",
        "",
        _table(rows),
        "",
        "## What the labels explain of the basis",
        "",
        "Cross-validated R2 of the scores by ridge regression on the labels.",
        "",
        _table(shares),
    ]


def _grounding(grounding: Mapping[str, Any]) -> list[str]:
    rows = [["predicted from", "features", "AUC", "deviance R2"]]
    rows += [
        [p["name"], str(p["n_features"]), _area(p["auc"]), _range(p["deviance_r2"])] for p in grounding["predictors"]
    ]
    differences = [["difference of AUC", "", "p (Holm)"]]
    differences += [
        [f"{c['a']} less {c['b']}", _range(c["difference"], "+.3f"), _p(c["p_holm"])] for c in grounding["comparisons"]
    ]
    names = ", ".join(code(name) for name in grounding["label_columns"])
    control = f" Labels: {names}." if names else ""
    words = f"{_right(grounding)}. Length: log of the characters of prompt and of response.{control}"
    return ["## Is it grounded?", "", words, "", _table(rows), "", _table(differences)]


def _table(rows: list[list[str]]) -> str:
    return markdown(rows, frozenset({0, 1}) if rows[0][1] == "label" else frozenset({0}))


def _right(grounding: Mapping[str, Any]) -> str:
    return (
        f"right answers: {grounding['n_correct']:,} of {grounding['n_rows']:,} rows, {grounding['n_groups']:,} problems"
    )


def _composition(found: Mapping[str, Any]) -> str:
    if found["reason"]:
        return f"compositionality: not measured, {found['reason']}"
    return (
        f"compositionality {_range(found['index'])}: of the scores of {found['n_rows']:,} rows with two labels or "
        f"more, labels one by one explain {_range(found['additive'])}, with {found['n_pairs']:,} pairs "
        f"{_range(found['interaction'])}"
    )


def _compact(found: Mapping[str, Any]) -> str:
    shares = found["cumulative"]
    most = len(shares)
    needed = ", ".join(
        f"{share} of it needs {f'more than {most}' if k is None else k}" for share, k in found["needed"].items()
    )
    bounds = ""
    if found["participation_low"] is not None:
        low, high = found["participation_low"], found["participation_high"]
        bounds = f"; participation ratio of the whole spectrum between {low:.1f} and {high:.1f}"
    on = "" if found["measured_on"] == "fit" else " of the scored rows"
    return f"compactness: {most} directions hold {shares[-1]:.1%} of the variance{on}; {needed}{bounds}"


def _marks(found: Mapping[str, Any]) -> list[str]:
    """Names of the directions; those found to be unstable say so."""
    return [f"d{k}{' (unstable)' if k in found['unstable'] else ''}" for k in range(found["n_directions"])]


def _area(area: Mapping[str, Any]) -> str:
    return _range({**area, "mean": area["auc"]})


def _range(estimate: Mapping[str, Any], form: str = ".3f") -> str:
    if estimate["mean"] is None:
        return f"undefined ({estimate['reason']})"
    if estimate["low"] is None:
        return f"{estimate['mean']:{form}} (no interval)"
    return f"{estimate['mean']:{form}} [{estimate['low']:{form}}, {estimate['high']:{form}}]"


def _p(value: float | None) -> str:
    if value is None:
        return "p undefined"
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _bold(text: str, p: float | None) -> str:
    return f"**{text}**" if p is not None and p < _SIGNIFICANT else text


def _plain(text: str) -> str:
    """A text of the corpus on one line of a terminal, without characters that could move its cursor."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))
