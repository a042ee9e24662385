"""Two models, one corpus: which axes both organise it by, and which only one has."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ..basis import Scores, SkillBasis
from ..basis.agreement import N_PERMUTATIONS, Explained, ScoreComparison, ScorePair, compare_score_tables, shared_rows
from ..errors import UsageError
from ..statistics import Estimate, as_json
from .describe import describe_basis
from .markdown import to_markdown
from .plain_table import Rows, aligned, markdown, one_line
from .scored import Corpus

SAME = 0.5
"""Share of its scores' variance from which on two axes count as the same: half (a correlation of 0.71)."""
N_EXAMPLES = 5

Status = Literal["shared", "spread", "only here", "undecided"]
_LEFT = frozenset({0, 1, 2})


@dataclass(frozen=True)
class ScoredBasis:
    """A basis, what to call it, and the scores of examples along it."""

    name: str
    basis: SkillBasis
    scores: Scores


@dataclass(frozen=True)
class Axis:
    """One direction of a model, seen from the other model."""

    direction: int
    status: Status
    """`shared`: its match has `same` of its variance, with an interval beyond chance. Else `spread`: all directions of
    the other together explain `same` of it or more (the whole interval), so it is there, turned among several. Else
    `only here`: they explain less (the whole interval). Else `undecided`: the interval holds `same` or does not exist.
    """
    partner: int | None
    """The direction of the other that it is matched with; None where the other has fewer."""
    correlation: float | None
    """Of the scores of the two; negative where the positive end of one is the negative end of the other."""
    low: float | None
    high: float | None
    r_squared: Estimate
    """Cross-validated share of its scores' variance that all directions of the other explain linearly."""
    variance_share: float
    """Share of its own model's variance that lies along it."""
    unstable: bool
    """Whether its basis calls it unstable; what is unstable may be missing in the other by chance."""


@dataclass(frozen=True)
class TwoModels:
    """The same examples as two models organise them."""

    names: tuple[str, str]
    same: float
    comparison: ScoreComparison
    axes: tuple[tuple[Axis, ...], tuple[Axis, ...]]
    """Of A and of B, by direction."""
    descriptions: tuple[dict[str, Any] | None, dict[str, Any] | None]
    """Of the axes of A and of B that are not shared, as of `describe_basis`; None without a corpus or such axes."""

    def to_json(self) -> dict[str, Any]:
        """All of it, JSON-able; undefined numbers are None."""
        sides = zip("ab", self.names, self.axes, self.descriptions, strict=True)
        return {
            "n": self.comparison.n,
            "same": self.same,
            **{
                side: {"name": name, "axes": [as_json(axis) for axis in axes], "not_shared": description}
                for side, name, axes, description in sides
            },
        }

    def sentences(self) -> list[str]:
        """What there is of each kind, in words."""
        told = []
        totals = (self.comparison.a_from_b.total, self.comparison.b_from_a.total)
        for side, other, axes, total in zip("AB", "BA", self.axes, totals, strict=True):
            counts = {s: [f"d{axis.direction}" for axis in axes if axis.status == s] for s in _ORDER}
            kinds = "; ".join(f"{s}: {', '.join(names)}" for s, names in counts.items() if names)
            told.append(f"{side}: {kinds}. All of {other} explains {estimate_text(total)} of its scores' variance.")
        return told

    def table(self, side: int) -> Rows:
        """The axes of A (0) or B (1), a row each."""
        own, other = "AB"[side], "BA"[side]
        explained = f"R² from all of {other} [95 %]"
        head = (f"axis of {own}", "status", f"match in {other}", "r [95 %]", explained, "variance")
        rows = [
            (
                f"d{axis.direction}{' (unstable)' if axis.unstable else ''}",
                axis.status,
                "-" if axis.partner is None else f"d{axis.partner}",
                correlation_text(axis.correlation, axis.low, axis.high),
                estimate_text(axis.r_squared),
                f"{axis.variance_share:.1%}",
            )
            for axis in self.axes[side]
        ]
        return [head, *rows]

    def text(self) -> str:
        """For a terminal."""
        return "\n".join([*self.sentences(), "", aligned(self.table(0), _LEFT), "", aligned(self.table(1), _LEFT)])

    def to_markdown(self) -> str:
        """For reading, with the examples of the axes that are not shared."""
        limit = self.comparison.pairs[0].null_95
        lines = [
            "# Two models, one corpus",
            "",
            f"A: {one_line(self.names[0])}  ",
            f"B: {one_line(self.names[1])}",
            "",
            f"{self.comparison.n:,} shared examples. Axes are matched one to one by the correlation of their scores. "
            f"An axis is shared where the match has at least {self.same:.0%} of its variance (r²) and the interval of "
            f"r lies beyond {limit:.3f}, the 95th percentile of the best match of permuted examples; spread where all "
            f"axes of the other together explain at least {self.same:.0%} of it (interval of the cross-validated R²); "
            "only here where they explain less; undecided where the interval does not tell. An axis that is only here "
            "may still be a weaker direction of the other, beyond those of its basis, or be there in another form than "
            "a linear one.",
            "",
            *[f"* {sentence}" for sentence in self.sentences()],
        ]
        for side in (0, 1):
            lines += ["", markdown(self.table(side), _LEFT)]
        for side, description in enumerate(self.descriptions):
            if description is not None:
                _, _, body = to_markdown(description).partition("\n\n")  # without its own title
                lines += ["", f"# Axes of {'AB'[side]} that are not shared", "", body.rstrip()]
        return "\n".join(lines) + "\n"


_ORDER: tuple[Status, ...] = ("shared", "spread", "only here", "undecided")


def read_two_models(
    a: ScoredBasis,
    b: ScoredBasis,
    *,
    corpus: Corpus | None = None,
    comparison: ScoreComparison | None = None,
    same: float = SAME,
    n_permutations: int = N_PERMUTATIONS,
    n_examples: int = N_EXAMPLES,
    seed: int = 0,
) -> TwoModels:
    """Says which axes of the same examples two bases share and which only one has.

    Args:
        a, b: bases of any models, layers or poolings, with scores of at least three shared examples.
        corpus: the examples, for what the axes that are not shared hold.
        comparison: of the scores, where it is known already.
        same: share of variance from which on two axes count as the same, between 0 and 1.
        n_permutations: for the chance level of matches.
        n_examples: examples shown at each end.
        seed: of permutations, folds and keywords.
    Raises: ArtifactError: scores of another basis, fewer than three shared examples, a corpus without them.
        UsageError: `same` is no share.
    Cost: that of `compare_scores`; with a corpus that of `describe_basis` for either side.
    """
    if not 0 < same < 1:
        raise UsageError(f"the share from which on axes count as the same is between 0 and 1, not {same}")
    for side in (a, b):
        side.scores.check_basis(side.basis)
    comparison = comparison or compare_score_tables(a.scores, b.scores, n_permutations=n_permutations, seed=seed)
    limit = comparison.pairs[0].null_95
    matches_of_a = {pair.a: (pair.b, pair) for pair in comparison.pairs}
    matches_of_b = {pair.b: (pair.a, pair) for pair in comparison.pairs}
    axes_a = _axes(a.basis, matches_of_a, comparison.a_from_b, limit, same)
    axes_b = _axes(b.basis, matches_of_b, comparison.b_from_a, limit, same)
    descriptions: tuple[dict[str, Any] | None, dict[str, Any] | None] = (None, None)
    if corpus is not None:
        rows, _ = shared_rows(a.scores.ids, b.scores.ids)
        ids = [a.scores.ids[row] for row in rows]
        descriptions = (
            _describe(a, ids, axes_a, corpus, n_examples, seed),
            _describe(b, ids, axes_b, corpus, n_examples, seed),
        )
    return TwoModels((a.name, b.name), same, comparison, (axes_a, axes_b), descriptions)


def _axes(
    basis: SkillBasis, matches: dict[int, tuple[int, ScorePair]], explained: Explained, limit: float, same: float
) -> tuple[Axis, ...]:
    axes, unstable = [], basis.unstable
    for k, r_squared in enumerate(explained.directions):
        partner, pair = matches.get(k, (None, None))
        if pair is not None and pair.correlation**2 >= same and _beyond(pair, limit):
            status: Status = "shared"
        elif r_squared.low >= same:
            status = "spread"
        else:
            status = "only here" if r_squared.high < same else "undecided"
        share = float(basis.config["explained_variance_ratio"][k])
        r, low, high = (None, None, None) if pair is None else (pair.correlation, pair.low, pair.high)
        axes.append(Axis(k, status, partner, r, low, high, r_squared, share, k in unstable))
    return tuple(axes)


def _beyond(pair: ScorePair, limit: float) -> bool:
    """Whether the whole interval of a correlation is farther from 0 than a limit; not where it is undefined."""
    return pair.low > limit or pair.high < -limit


def _describe(
    side: ScoredBasis, ids: list[str], axes: tuple[Axis, ...], corpus: Corpus, n_examples: int, seed: int
) -> dict[str, Any] | None:
    """What the corpus says of the axes that are not shared, under their own numbers."""
    chosen = [axis.direction for axis in axes if axis.status != "shared"]
    if not chosen:
        return None
    scores = side.scores.aligned(ids)
    description = describe_basis(
        replace(scores, values=scores.values[:, chosen]),
        side.basis.mean_scores[chosen],
        side.basis.explained_variance[chosen],
        side.basis.config.get("total_variance"),
        corpus,
        n_examples=n_examples,
        seed=seed,
    )
    for entry, direction in zip(description["directions"], chosen, strict=True):
        entry["direction"] = direction
    return description


def correlation_text(r: float | None, low: float | None, high: float | None) -> str:
    """A correlation with its interval, or a dash."""
    if r is None or low is None or high is None:
        return "-"
    return f"{r:+.2f}" if np.isnan(low) else f"{r:+.2f} [{low:+.2f}, {high:+.2f}]"


def estimate_text(estimate: Estimate) -> str:
    """A share with its interval; a dash where it is undefined."""
    if np.isnan(estimate.mean):
        return "-"
    ends = "" if np.isnan(estimate.low) else f" [{estimate.low:.2f}, {estimate.high:.2f}]"
    return f"{estimate.mean:.2f}{ends}"
