"""Is a label true? By it alone a judge sorts held-out examples; and the same examples by another direction's label.

The accuracy is that of the label and the judge together: a judge that cannot read the texts fails a good label. Chance
is 1/2, since both ends give equally many examples. The control, the same examples sorted by another direction's label,
says what comes of words alone: the sign of a direction is arbitrary, so it is 1/2 in the mean over directions, and one
that is far from 1/2, to either side, says that the two directions' ends overlap.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from ..evaluate.judge import Judge, Question
from ..statistics import as_json, mcnemar_exact, paired_difference, rate_estimate, wilson
from .labels import Label, coin

_INSTRUCTIONS = """You sort one example into group A or group B. All that is known of the groups is their label: three \
words and three words, and a sentence that tells them apart. Take the group whose description fits the example better; \
where neither fits well, the one that fits less badly.

Give
* side: "A" or "B"."""
_REQUEST = "To which group does the example belong, going by the label?"


class Side(BaseModel):
    """Where a judge puts an example."""

    model_config = ConfigDict(extra="forbid", strict=True)

    side: Literal["A", "B"]


@dataclass(frozen=True)
class HeldOut:
    """An example that had no part in its direction's label."""

    id: str
    text: str
    """As it is shown; see `labels.shown_text`."""
    positive: bool
    """Whether it is of the + end."""


@dataclass(frozen=True)
class Trial:
    """An example that is sorted by a label."""

    direction: int
    """The example's."""
    example: HeldOut
    label: Label
    """The direction's own; or, as the control, another's."""

    @property
    def is_control(self) -> bool:
        return self.label.direction != self.direction


@dataclass(frozen=True)
class Outcome:
    """What came of a trial."""

    trial: Trial
    correct: bool | None
    """None where no answer could be used."""
    reason: str | None
    """Why none could be used."""


def derangement(n: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """A permutation of n things that leaves none in its place, each such with the same probability; empty for n < 2.

    Cost: about e = 2.7 permutations: their share without a fixed point tends to 1/e.
    """
    if n < 2:
        return np.empty(0, dtype=np.intp)
    while True:
        order = rng.permutation(n)
        if not np.any(order == np.arange(n)):
            return order


def plan_trials(labels: Sequence[Label], held_out: Mapping[int, Sequence[HeldOut]], seed: int = 0) -> list[Trial]:
    """Every held-out example with its direction's label and with that of another; all in a random order.

    Args:
        labels: of the directions that have one.
        held_out: examples of each direction.
        seed: of the order and of the derangement that gives each direction the label of another.
    """
    rng = np.random.default_rng([seed, len(labels)])
    trials = [Trial(own.direction, example, own) for own in labels for example in held_out[own.direction]]
    for own, other in zip(labels, derangement(len(labels), rng), strict=False):  # none for a single label
        trials += [Trial(own.direction, example, labels[other]) for example in held_out[own.direction]]
    return [trials[number] for number in rng.permutation(len(trials))]


def ask_trials(judge: Judge, trials: Sequence[Trial], seed: int = 0) -> Generator[Outcome]:
    """Has the judge sort the examples, one a request; yields what comes of each.

    A coin per example, the same for both of its labels, says which end is called group A.

    Raises: SkillbasisError: see `Judge.ask`; what was answered is yielded first.
    """
    positive_is_a = [coin(seed, "sort", trial.direction, trial.example.id) for trial in trials]
    questions = [
        Question(
            _INSTRUCTIONS,
            [("label", trial.label.of_groups(positive_is_a=a)), ("example", trial.example.text)],
            _REQUEST,
            Side,
        )
        for trial, a in zip(trials, positive_is_a, strict=True)
    ]
    for number, verdict in judge.ask(questions):
        correct = None
        if verdict.value is not None:
            put_positive = (verdict.value.side == "A") == positive_is_a[number]
            correct = put_positive == trials[number].example.positive
        yield Outcome(trials[number], correct, verdict.reason)


def score_label(direction: int, trials: Sequence[Trial], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """How well a direction's label sorts its held-out examples.

    Args:
        trials: all that were planned.
        outcomes: what came of those that were asked, of any directions.
    Returns: JSON-able: `accuracy` with 95 % Wilson interval `low` and `high` over `n` answers that could be used, of
        `n_asked` trials that were asked and `n_planned`; `shuffled`, the same for the control, with `direction`, whose
        label it was; and `difference`, accuracy - shuffled over the examples with both: `mean`, t-interval, exact
        `p_value` (McNemar), `n`. `unusable`: id, which label, and reason; `held_out`: ids of the examples by end. What
        is undefined is null, with `reason`.
    Source: Wilson 1927; McNemar 1947 with the exact binomial of Edwards 1948.
    """
    planned = [trial for trial in trials if trial.direction == direction]
    mine = [outcome for outcome in outcomes if outcome.trial.direction == direction]
    controls = [trial for trial in planned if trial.is_control]
    own = _accuracy([t for t in planned if not t.is_control], [o for o in mine if not o.trial.is_control])
    shuffled = _accuracy(controls, [o for o in mine if o.trial.is_control])
    if not controls and planned:
        shuffled["reason"] = "no other direction has a label"
    by_own, by_other = _by_label(mine)
    pairs = [(by_own[key], by_other[key]) for key in by_own if key in by_other]
    difference = as_json(paired_difference([a for a, _ in pairs], [b for _, b in pairs]))
    better, worse = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
    difference["p_value"] = mcnemar_exact(worse, better) if pairs else None
    del difference["minimum_detectable"]
    unusable = [
        {"id": o.trial.example.id, "label_of": o.trial.label.direction, "reason": o.reason}
        for o in mine
        if o.correct is None
    ]
    examples = [trial.example for trial in planned if not trial.is_control]
    held_out = {
        end: sorted(example.id for example in examples if example.positive == positive)
        for end, positive in (("positive", True), ("negative", False))
    }
    shuffled = {"direction": controls[0].label.direction if controls else None} | shuffled
    return own | {"shuffled": shuffled, "difference": difference, "unusable": unusable, "held_out": held_out}


def score_labels(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """All labels together, directions as clusters of examples.

    Returns: JSON-able `accuracy`, `shuffled` (see `statistics.rate_estimate`) and `difference` (see
        `statistics.paired_difference`).
    """
    own, control = _by_label(outcomes)
    both = [key for key in own if key in control]
    direction = [key[0] for key in both]
    difference = paired_difference([own[key] for key in both], [control[key] for key in both], direction)
    return {
        "accuracy": as_json(rate_estimate(list(own.values()), [key[0] for key in own])),
        "shuffled": as_json(rate_estimate(list(control.values()), [key[0] for key in control])),
        "difference": as_json(difference),
    }


_Places = dict[tuple[int, str], float]


def _by_label(outcomes: Sequence[Outcome]) -> tuple[_Places, _Places]:
    """1 or 0 of each example (direction, id) with an answer that could be used: by its own label, and by another's."""
    found: tuple[_Places, _Places] = {}, {}
    for outcome in outcomes:
        if outcome.correct is not None:
            trial = outcome.trial
            found[trial.is_control][trial.direction, trial.example.id] = float(outcome.correct)
    return found


def _accuracy(planned: Sequence[Trial], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    usable = [outcome.correct for outcome in outcomes if outcome.correct is not None]
    estimate = wilson(sum(usable), len(usable))
    reason = None
    if not usable:
        reason = "no answer could be used" if outcomes else "not asked" if planned else "no held-out examples"
    figures = {"accuracy": estimate.mean, "low": estimate.low, "high": estimate.high}
    counts = {"n": len(usable), "n_asked": len(outcomes), "n_planned": len(planned), "reason": reason}
    return {name: None if math.isnan(value) else value for name, value in figures.items()} | counts
