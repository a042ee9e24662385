"""What the page shows of a safety study: its words and tables (`SafetyView`) and its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..charts import COLOURS
from ..records.safety import AREA, MEASURES, Level, Measure, Safety, SafetyArm, SafetyPaired, SafetyPoint, ShownExchange
from ..shown import DASH, NBSP, Shown, number, percent
from ..wording import RANDOM
from . import wording
from .charts import arm_styles, attack_scatter, covering, efficiency, in_deviations, min_distances, type_marks
from .exchanges import CELLS, FLAG, MAX_SHOWN_CHARS

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Control = tuple[str, dict[str, dict[str, SafetyPaired]]]
# Of `DASHES` of the other charts.py, as SVG draws them.
DASHES = {"solid": "none", "dash": "7 5", "dot": "2 3", "dashdot": "7 3 2 3"}
# Of `SYMBOLS` of charts.py, as SVG draws them.
FORMS = {
    "circle": "M2 6a4 4 0 1 0 8 0a4 4 0 1 0-8 0",
    "diamond": "M6 1l5 5l-5 5l-5-5z",
    "square": "M2 2h8v8h-8z",
    "triangle-up": "M6 1l5 9h-10z",
    "cross": "M4 1h4v3h3v4h-3v3h-4v-3h-3v-4h3z",
    "x": "M3 1l3 3l3-3l2 2l-3 3l3 3l-2 2l-3-3l-3 3l-2-2l3-3l-3-3z",
}


def safety_figures(safety: Safety) -> dict[str, Figure | None]:
    """The figures by the id of their place in the page; None where there is nothing to draw."""
    found = {f"safety-{measure.name}": efficiency(safety, measure) for measure in MEASURES}
    if safety.geometry is None:
        return found
    arms = list(safety.arms)
    return found | {
        "safety-scatter": attack_scatter(safety.geometry, arms),
        "safety-order": min_distances(safety.geometry, safety.budgets),
        "safety-radius-max": covering(safety.geometry, arms, "max"),
        "safety-radius-mean": covering(safety.geometry, arms, "mean"),
    }


@dataclass(frozen=True)
class Families:
    """Levels of groups of requests or problems, each arm at the largest budget where they are known."""

    kind: str
    measures: tuple[Measure, ...]
    rows: list[tuple[str, str | None, dict[str, Level]]]
    """(name of the group, arm or None for the untuned model, measure -> estimate)."""

    @classmethod
    def of(cls, kind: str, names: Sequence[str], safety: Safety) -> Families:
        """The groups for which these measures are known."""
        points: dict[str | None, SafetyPoint] = {None: safety.base}
        for arm, found in safety.arms.items():
            known = [budget for budget, point in found.budgets.items() if any(map(point.by_group.get, names))]
            if known:
                points[arm] = found.budgets[max(known)]
        groups = dict.fromkeys(
            group for point in points.values() for name in names for group in point.by_group.get(name, {})
        )
        rows = [
            (group, arm, {name: point.by_group.get(name, {}).get(group, Level()) for name in names})
            for group in groups
            for arm, point in points.items()
            if any(group in point.by_group.get(name, {}) for name in names)
        ]
        return cls(kind, tuple(measure for measure in MEASURES if measure.name in names), rows)


class SafetyView:
    """Everything the template asks for that is not in the records as it stands."""

    measures = MEASURES
    compared = tuple(measure for measure in MEASURES if not measure.counted)
    titles: Mapping[str, str] = {measure.name: measure.title for measure in MEASURES}
    shown_chars = MAX_SHOWN_CHARS
    cells, flag = CELLS, FLAG
    why_hole = staticmethod(wording.why_hole)
    deviations = staticmethod(in_deviations)
    marks: Mapping[str | None, str] = {"better": "helps", "worse": "hurts"}
    """Verdict -> class of its cell."""

    def __init__(self, safety: Safety) -> None:
        self.safety = safety
        self.judge = wording.judge_name(safety)
        self.headline = wording.safety_headline(safety)
        self.heading_note = wording.heading_note(safety)
        self.caption_note = wording.caption_note(safety)

    @property
    def styles(self) -> dict[str, tuple[str, str]]:
        """Arm -> name of its colour and dashes of its line, as the plots have them."""
        names = {light: name for name, (light, _) in COLOURS.items()}
        return {
            arm: (names[colour], DASHES[dash]) for arm, (colour, dash) in arm_styles(list(self.safety.arms)).items()
        }

    @property
    def points(self) -> list[tuple[int, str, SafetyPoint]]:
        """Every arm at every budget, budgets ascending."""
        found = [
            (budget, name, point) for name, arm in self.safety.arms.items() for budget, point in arm.budgets.items()
        ]
        return sorted(found, key=lambda entry: entry[0])

    def holes(self, arm: SafetyArm) -> list[str]:
        """What is missing of an arm, and why."""
        return [f"{wording.budget_list(where)}: {why}" for why, where in wording.holes(arm).items()]

    @property
    def interval(self) -> str:
        """What intervals are over."""
        if len(self.safety.seeds) == 1:
            return "with the interval over prompts in brackets (one seed: the variance between seeds is unknown)"
        return "with the interval over seeds in brackets"

    @property
    def area_caption(self) -> str:
        """What the table of areas holds."""
        over = "Mean height of each curve over the budgets on a log axis (area under the curve, divided by its width)"
        targets = [found.target for found in self.safety.needed.values() if found and found.target is not None]
        needed = ""
        if targets:
            goal = f"the attack success of {RANDOM} at the largest budget ({percent(targets[0])} %)"
            needed = f" Needed: examples for {goal}, with a bootstrap interval."
        return f"{over}, in percent, {self.interval}.{needed}"

    def needed(self, arm: str) -> Shown:
        """How many examples an arm needs, with the interval, or why that is unknown."""
        found = self.safety.needed.get(arm)
        if found is None or arm == RANDOM:
            return Shown(DASH, "", "")
        if found.budget is None:
            return Shown(DASH, "", found.reason or "")
        ends = f"[{number(found.low, 0)},{NBSP}{number(found.high, 0)}]"
        return Shown(number(found.budget, 0), ends, "")

    @property
    def controls(self) -> list[Control]:
        """The differences over all budgets by control: (control, arm -> measure -> difference)."""
        found: dict[str, dict[str, dict[str, SafetyPaired]]] = {}
        for row in self.areas:
            found.setdefault(row.control, {}).setdefault(row.arm, {})[row.measure] = row
        return list(found.items())

    @property
    def areas(self) -> list[SafetyPaired]:
        """The paired differences over all budgets."""
        return [row for row in self.safety.paired if row.budget == AREA]

    @property
    def singles(self) -> list[SafetyPaired]:
        """The paired differences at one budget."""
        return [row for row in self.safety.paired if row.budget != AREA]

    @property
    def families(self) -> list[Families]:
        """Levels by attack family, by category of the safe requests and by reasoning task, where these are known."""
        kinds = {
            "attack family": ("attack_success", "score", "refused", "unscored"),
            "category of safe requests": ("over_refusal",),
            "reasoning task": ("utility",),
        }
        found = [Families.of(kind, names, self.safety) for kind, names in kinds.items()]
        return [families for families in found if families.rows]

    @property
    def scatter_caption(self) -> str:
        """How much of the pool is shown, and how to choose an arm."""
        points = self.safety.geometry.points if self.safety.geometry else None
        n_shown = len(points.ids) if points else 0
        n_rows = points.n_rows if points and points.n_rows is not None else n_shown
        some = f"The {number(n_shown)} requests of the pool"
        if n_rows > n_shown:
            some = f"{number(n_shown)} of {number(n_rows)} requests of the pool, drawn at random,"
        return (
            f"{some} on the first two components, whitened, by attack type. Rings: those of them that an arm chose at "
            "its largest budget and first seed; click on an arm above the plot to show or hide its choice."
        )

    @property
    def types(self) -> list[tuple[str, int, str, str]]:
        """(attack type, rows shown, name of its colour, path of its form in a box of 12 by 12)."""
        names = {light: name for name, (light, _) in COLOURS.items()}
        marks = type_marks(self.safety.geometry.points) if self.safety.geometry else []
        return [(mark.name, len(mark.rows), names[mark.colour], FORMS[mark.symbol]) for mark in marks]

    @staticmethod
    def judged(item: ShownExchange) -> str:
        """What was judged of an exchange, in a few words."""
        refused = "refusal not judged" if item.refused is None else "refused" if item.refused else "not refused"
        score = "unscored" if item.score is None else f"score {percent(item.score)} %"
        return f"{refused}, {score}{', attack succeeded' if item.success else ''}"
