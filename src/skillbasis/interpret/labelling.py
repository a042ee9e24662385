"""A description with labels: asked for, tested on held-out examples, and kept as far as a judge that fails has come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import SkillbasisError, UsageError
from ..evaluate.judge import Judge
from ..statistics import nan_to_none
from .attributes import prompt_text
from .held_out import held_out_examples
from .label_test import HeldOut, Outcome, Trial, ask_trials, plan_trials, score_label, score_labels
from .labels import CHARACTERS, Ends, Label, ask_labels, shown_text
from .scored import Corpus, ScoredRows, ScoreTable, scored_rows

T = TypeVar("T")

N_HELD_OUT = 10
"""Held-out examples of each end, by which a label is tested."""
_REMEDY = (
    "take another judge, or put this one right and give the same command with --judge-again, which asks anew what "
    "could not be used"
)
Progress = Callable[[str, int, int], None]
"""Called with what is being asked, answers so far, and answers in all."""


@dataclass(frozen=True)
class LabelSettings:
    """How labels are made and tested."""

    n_held_out: int = N_HELD_OUT
    """Held-out examples of each end; 0 makes labels without a test."""
    characters: int = CHARACTERS
    """Of each text so many are shown to the judge: its beginning and its end."""
    seed: int = 0
    """Of the order of groups, the held-out examples, and the label that is the control."""

    def __post_init__(self) -> None:
        if self.n_held_out < 0:
            raise UsageError(f"the number of held-out examples must be 0 or more, not {self.n_held_out}")
        if self.characters < 100:
            raise UsageError(f"a judge needs at least 100 characters of each text, not {self.characters}")


@dataclass(frozen=True)
class Labelling:
    """What a judge made of a description."""

    description: dict[str, Any]
    """The description with a `judge` of its own and in each direction a `label`; see `label_basis`."""
    failure: SkillbasisError | None
    """What stopped the judge before its end; what it had done is in the description. To be raised by the caller."""


def label_basis(
    judge: Judge,
    scores_table: ScoreTable,
    mean_scores: NDArray[np.floating],
    corpus: Corpus,
    description: Mapping[str, Any],
    settings: LabelSettings | None = None,
    on_progress: Progress | None = None,
) -> Labelling:
    """Labels the directions of a description by its exemplars, and tests each label on examples held out from it.

    Args:
        scores_table, mean_scores, corpus: what the description was made from; see `describe_basis`.
        description: of `describe_basis`; left as it is.
        on_progress: called after each answer.
    Returns: the description with, in each direction, `label`: `positive` and `negative` (three words each),
        `contrast`, `axes`, and the figures of `score_label` (`accuracy`, `low`, `high`, `n`, `shuffled`, `difference`,
        ...); or null, and `label_reason`; and with `judge`: who it was, settings, usage, `n_labelled`, `label_test`
        over all directions (see `score_labels`), and `stopped`, why it did not come to its end, or null. All JSON-able.
    Raises: ArtifactError: scores and corpus do not belong together.
    """
    settings = settings or LabelSettings()
    scored = scored_rows(scores_table, mean_scores, corpus)
    values = scored.values(description["by"])
    directions = description["directions"]
    ends = [_ends(scored, entry, settings.characters) for entry in directions]
    askable = [end for end in ends if end.positive and end.negative]
    labels: dict[int, Label] = {}
    reasons = {end.direction: "its ends have no examples" for end in ends if end not in askable}
    outcomes: list[Outcome] = []

    def take_label(answer: tuple[int, Label | str]) -> None:
        direction, label = answer
        if isinstance(label, Label):
            labels[direction] = label
        else:
            reasons[direction] = label
        if on_progress is not None:
            on_progress("labels", len(labels) + len(reasons), len(directions))

    def take_outcome(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if on_progress is not None:
            on_progress("label test", len(outcomes), len(trials))

    failure = _take_all(ask_labels(judge, askable, settings.seed), take_label)
    trials = _trials(scored, values, directions, labels, settings)
    failure = failure or _no_label(askable, labels, reasons)
    failure = failure or _take_all(ask_trials(judge, trials, settings.seed), take_outcome)
    failure = failure or _no_outcome(outcomes)
    entries = []
    for entry in directions:
        label_or_none = labels.get(entry["direction"])
        reason = None if label_or_none else reasons.get(entry["direction"], "the judge was stopped before")
        figures = _figures(label_or_none, trials, outcomes) if label_or_none else None
        entries.append(entry | {"label": figures, "label_reason": reason})
    of_judge = judge.identity | judge.description | {"settings": asdict(settings)}
    of_judge |= {"n_labelled": len(labels), "label_test": score_labels(outcomes)}
    of_judge |= {"stopped": None if failure is None else str(failure)}
    return Labelling(nan_to_none({**description, "directions": entries, "judge": of_judge}), failure)


def _take_all(answers: Iterable[T], take: Callable[[T], None]) -> SkillbasisError | None:
    """Takes answers as they come; returns what ended them early."""
    try:
        for answer in answers:
            take(answer)
    except SkillbasisError as error:
        return error
    return None


def _no_label(asked: Sequence[Ends], labels: Mapping[int, Label], reasons: Mapping[int, str]) -> SkillbasisError | None:
    """What to tell where no answer could be used as a label."""
    if labels or not asked:
        return None
    return SkillbasisError(
        f"the judge gave no usable label for any of {len(asked)} directions ({reasons[asked[0].direction]}); {_REMEDY}"
    )


def _no_outcome(outcomes: Sequence[Outcome]) -> SkillbasisError | None:
    """What to tell where no answer of the test could be used."""
    if not outcomes or any(outcome.correct is not None for outcome in outcomes):
        return None
    return SkillbasisError(
        f"none of the judge's answers to {len(outcomes)} held-out examples could be used ({outcomes[0].reason}); "
        f"{_REMEDY}"
    )


def _ends(scored: ScoredRows, entry: Mapping[str, Any], characters: int) -> Ends:
    """The exemplars of a direction, with their texts as the judge sees them."""

    def texts(examples: Sequence[Mapping[str, Any]]) -> list[str]:
        rows = [scored.rows[scored.position[example["id"]]] for example in examples]
        return [shown_text(prompt_text(row["prompt"]), row["response"] or "", characters) for row in rows]

    return Ends(entry["direction"], texts(entry["positive"]), texts(entry["negative"]))


def _trials(
    scored: ScoredRows,
    values: NDArray[np.floating],
    directions: Sequence[Mapping[str, Any]],
    labels: Mapping[int, Label],
    settings: LabelSettings,
) -> list[Trial]:
    held_out: dict[int, list[HeldOut]] = {}
    for entry in directions:
        direction = entry["direction"]
        if direction in labels:
            exemplars = [example["id"] for end in ("positive", "negative") for example in entry[end]]
            held_out[direction] = held_out_examples(
                scored,
                values[:, direction],
                direction,
                exemplars,
                settings.n_held_out,
                seed=settings.seed,
                characters=settings.characters,
            )
    return plan_trials([labels[direction] for direction in sorted(labels)], held_out, settings.seed)


def _figures(label: Label, trials: Sequence[Trial], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    words = {"positive": list(label.positive), "negative": list(label.negative)}
    said = words | {"contrast": label.contrast, "axes": list(label.axes)}
    return said | score_label(label.direction, trials, outcomes)
