"""A description of a basis as Markdown, in which no text of a corpus or a judge can act as Markdown or HTML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def to_markdown(description: Mapping[str, Any]) -> str:
    """Renders a description as Markdown in which no text from the corpus can act as Markdown or HTML."""
    head = (
        f"{description['n_examples']:,} examples, ordered by {description['by']}. Near-duplicates are left out. "
        "Keywords: z of the log-odds ratio between the two ends, uncorrected. Attributes: Spearman correlation with "
        f"95 % interval; p corrected (Holm) over {description['n_attributes_tested']:,} tests."
    )
    lines = ["# Directions", "", head]
    if "judge" in description:
        lines += ["", _of_judge(description["judge"])]
    for direction in description["directions"]:
        fraction = direction["variance_fraction"]
        share = "" if fraction is None else f" ({100 * fraction:.3g} % of the variance)"
        marked = " (unstable)" if direction.get("unstable") else ""
        lines += ["", f"## Direction {direction['direction']}{marked}", ""]
        lines += [f"Explained variance {direction['explained_variance']:.4g}{share}.", ""]
        if "label" in direction:
            lines += [*_label_lines(direction), ""]
        for end in ("positive", "negative"):
            words = ", ".join(f"{code(word['word'])} ({word['z']:.1f})" for word in direction["keywords"][end])
            lines.append(f"* Keywords, {end} end: {words or 'none'}")
        lines += ["", "Attributes:" if direction["attributes"] else "Attributes: none that varies.", ""]
        lines += [_attribute_line(attribute) for attribute in direction["attributes"]]
        for end in ("positive", "negative"):
            lines += ["", f"### Direction {direction['direction']}, {end} end"]
            for rank, example in enumerate(direction[end], start=1):
                cosine = "undefined" if example["cosine"] is None else f"{example['cosine']:+.3f}"
                lines += ["", f"{rank}. {code(example['id'])}, cosine {cosine}, score {example['score']:+.4g}"]
                for part in ("prompt", "response"):
                    if example[part]:
                        lines += ["", f"{part.capitalize()}:", "", fenced(example[part])]
            if not direction[end]:
                lines += ["", "None: all examples score the same."]
    return "\n".join(lines) + "\n"


def sorted_by(figures: Mapping[str, Any]) -> str:
    """How well held-out examples were sorted by a label: the accuracy with its interval, and of how many."""
    lost = "" if figures["n"] == figures["n_planned"] else f" ({figures['n_planned']} were to be)"
    if figures["accuracy"] is None:
        return f"none ({figures['reason']})"
    return f"{_rate(figures)} of {figures['n']}{lost}"


def _rate(figures: Mapping[str, Any], mean: str = "accuracy") -> str:
    interval = "" if figures["low"] is None else f" [{figures['low']:.2f}, {figures['high']:.2f}]"
    return "undefined" if figures[mean] is None else f"{figures[mean]:.2f}{interval}"


def _difference(figures: Mapping[str, Any]) -> str:
    if figures["mean"] is None:
        return "undefined"
    interval = "" if figures["low"] is None else f" [{figures['low']:+.2f}, {figures['high']:+.2f}]"
    return f"{figures['mean']:+.2f}{interval}"


def _of_judge(judge: Mapping[str, Any]) -> str:
    """Who made the labels, what they are worth together, and why some may be missing."""
    test = judge["label_test"]
    told = (
        f"Labels by {code(judge['model'])} at {code(judge['base_url'])}. A label is tested: shown it alone, the judge "
        "sorts held-out examples into the two ends; the share that it puts rightly (95 % Wilson interval, 0.5 is "
        "chance) is the label's score. Over all directions (intervals by directions): "
        f"{_rate(test['accuracy'], 'mean')}; with the label of another direction, the control: "
        f"{_rate(test['shuffled'], 'mean')}; "
        f"difference {_difference(test['difference'])}."
    )
    return told if judge["stopped"] is None else f"{told} Not finished: {code(judge['stopped'])}."


def _label_lines(direction: Mapping[str, Any]) -> list[str]:
    label = direction["label"]
    if label is None:
        return [f"Label: none, since {code(direction['label_reason'])}."]
    positive, negative = (", ".join(map(code, label[end])) for end in ("positive", "negative"))
    shuffled, difference = label["shuffled"], label["difference"]
    by_other = f"by the label of direction {shuffled['direction']}: {sorted_by(shuffled)}"
    if shuffled["direction"] is None:
        by_other = f"no control: {shuffled['reason']}"
    p_text = "" if difference["p_value"] is None else f", p = {difference['p_value']:.2g}"
    compared = "" if difference["mean"] is None else f"; difference {_difference(difference)}{p_text}"
    return [
        f"Label: {positive} (positive end) against {negative} (negative end).",
        "",
        f"* Contrast: {code(label['contrast'])}",
        f"* Axes: {', '.join(map(code, label['axes']))}",
        f"* Held-out examples sorted rightly by it: {sorted_by(label)}; {by_other}{compared}.",
    ]


def _attribute_line(attribute: Mapping[str, Any]) -> str:
    low, high, p = attribute["low"], attribute["high"], attribute["p_holm"]
    interval = "no interval" if low is None else f"[{low:+.2f}, {high:+.2f}]"
    p_text = "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
    return f"* {code(attribute['name'])} {attribute['correlation']:+.2f} {interval}, {p_text}"


def _backticks(text: str, at_least: int) -> str:
    """A run of backticks longer than any in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    return "`" * max(longest + 1, at_least)


def visible(text: str) -> str:
    """Shows control characters (but not tab and newline), which can end a line or hide text, as a replacement mark."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", "\ufffd", text)


def code(text: str) -> str:
    """An inline code span on one line; the inner spaces keep a backtick at its edge apart from the marks."""
    line = visible(" ".join(text.split()))
    marks = _backticks(line, 1)
    return f"{marks} {line} {marks}" if "`" in line else f"{marks}{line}{marks}"


def fenced(text: str) -> str:
    text = visible(text.replace("\r\n", "\n").replace("\r", "\n"))
    marks = _backticks(text, 3)
    return f"{marks}text\n{text}\n{marks}"
