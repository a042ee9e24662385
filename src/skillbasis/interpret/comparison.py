"""Two bases compared in every way that their shape and scores allow, for reading and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..basis import Scores, SkillBasis
from ..basis.agreement import N_PERMUTATIONS, Correlation, ScoreComparison, compare_score_tables
from ..basis.compare import SubspaceComparison, compare_bases, same_shape
from ..errors import UsageError
from .plain_table import Rows, aligned, markdown, one_line
from .scored import Corpus
from .two_models import ScoredBasis, TwoModels, correlation_text, estimate_text, read_two_models

_LEFT = frozenset({0, 1})


@dataclass(frozen=True)
class BasisComparison:
    """What is known of two bases side by side."""

    names: tuple[str, str]
    unstable: tuple[tuple[int, ...], tuple[int, ...]]
    """Directions of A and of B that their bases call unstable."""
    spans: SubspaceComparison | None
    """None where they are not of one shape."""
    scores: ScoreComparison | None
    """None without scores."""
    two_models: TwoModels | None
    """None without a corpus."""

    def to_json(self) -> dict[str, Any]:
        """All figures, JSON-able; undefined numbers are None."""
        return {
            "a": self.names[0],
            "b": self.names[1],
            "unstable_a": list(self.unstable[0]),
            "unstable_b": list(self.unstable[1]),
            "spans": self.spans.to_json() if self.spans else None,
            "scores": self.scores.to_json() if self.scores else None,
            "two_models": self.two_models.to_json() if self.two_models else None,
        }

    def text(self) -> str:
        """For a terminal."""
        lines = [f"A: {self.names[0]}", f"B: {self.names[1]}", *self._sentences()]
        for table in self._tables():
            lines += ["", aligned(table, _LEFT)]
        lines += ["", self.two_models.text()] if self.two_models else []
        return "\n".join(lines)

    def to_markdown(self) -> str:
        """For reading."""
        lines = [
            "# Two bases",
            "",
            f"A: {one_line(self.names[0])}  ",
            f"B: {one_line(self.names[1])}",
            "",
            *[f"* {sentence}" for sentence in self._sentences()],
        ]
        for table in self._tables():
            lines += ["", markdown(table, _LEFT)]
        text = "\n".join(lines) + "\n"
        return f"{text}\n{self.two_models.to_markdown()}" if self.two_models else text

    def _sentences(self) -> list[str]:
        told = []
        if self.spans is not None:
            spans, angles = self.spans, self.spans.angles_degrees
            units = ", in units of each block's deviation" if spans.scaled else ""
            told.append(
                f"spans: principal angles {angles[0]:.1f} to {angles[-1]:.1f} degrees, overlap {spans.overlap:.3f} "
                f"(random: {spans.overlap_chance:.3f}){units}"
            )
            told.append(
                f"directions: mean matched |cosine| {spans.mean_cosine:.3f} (95 % of random ones below "
                f"{spans.mean_null_95:.3f}, their largest below {spans.cosine_null_95:.3f})"
            )
        if self.scores is not None:
            scores = self.scores
            told.append(
                f"scores of {scores.n:,} shared examples: mean matched |r| {scores.mean_correlation:.3f} (95 % of "
                f"{scores.n_permutations} permutations below {scores.mean_null_95:.3f}, p = {scores.mean_p_value:.2g})"
            )
            told.append(
                f"cross-validated R²: B explains {estimate_text(scores.a_from_b.total)} of the variance of A's scores, "
                f"A {estimate_text(scores.b_from_a.total)} of B's"
            )
        return told

    def _tables(self) -> list[Rows]:
        tables: list[Rows] = []
        if self.spans is not None:
            rows = [("A", "B", "cosine")]
            rows += [(self._name(0, p.a), self._name(1, p.b), f"{p.value:+.3f}") for p in self.spans.pairs]
            tables.append(rows)
        if self.scores is not None:
            head = ("A", "B", "r [95 %]", "chance", "p", "R² of A from B", "R² of B from A")
            of_a, of_b = self.scores.a_from_b.directions, self.scores.b_from_a.directions
            cells = [
                (
                    self._name(0, pair.a),
                    self._name(1, pair.b),
                    correlation_text(pair.correlation, pair.low, pair.high),
                    f"{pair.null_95:.2f}",
                    f"{pair.p_value:.2g}",
                    estimate_text(of_a[pair.a]),
                    estimate_text(of_b[pair.b]),
                )
                for pair in self.scores.pairs
            ]
            tables.append([head, *cells])
        return tables

    def _name(self, side: int, direction: int) -> str:
        return f"d{direction}{' (unstable)' if direction in self.unstable[side] else ''}"


def compare(
    a: SkillBasis,
    b: SkillBasis,
    scores_a: Scores | None = None,
    scores_b: Scores | None = None,
    *,
    names: tuple[str, str] = ("A", "B"),
    corpus: Corpus | None = None,
    method: Correlation = "pearson",
    n_permutations: int = N_PERMUTATIONS,
    seed: int = 0,
) -> BasisComparison:
    """Compares two bases: by angles where they are of one shape, by scores where both are given.

    Args:
        a, b: the bases.
        scores_a, scores_b: scores along each, with at least three examples in common.
        names: what to call them.
        corpus: the examples; with it the reading of two models on one corpus is added.
        method: of the correlation of scores.
        n_permutations: for the chance level of matched correlations.
        seed: of permutations, folds and random directions.
    Raises: UsageError: the scores of only one side, or a corpus without scores. ArtifactError: bases of different shape
        without scores, scores of another basis, or fewer than three shared examples.
    """
    if (scores_a is None) != (scores_b is None):
        raise UsageError("scores are compared with scores; give those of both bases, or of none")
    if corpus is not None and scores_a is None:
        raise UsageError("what differs on a corpus is seen by the scores; give those of both bases on it")
    for basis, table in ((a, scores_a), (b, scores_b)):
        if table is not None:
            table.check_basis(basis)
    spans = compare_bases(a, b, seed=seed) if scores_a is None or same_shape(a, b) else None
    agreement = reading = None
    if scores_a is not None and scores_b is not None:
        agreement = compare_score_tables(scores_a, scores_b, method=method, n_permutations=n_permutations, seed=seed)
        if corpus is not None:
            sides = ScoredBasis(names[0], a, scores_a), ScoredBasis(names[1], b, scores_b)
            reading = read_two_models(*sides, corpus=corpus, comparison=agreement, seed=seed)
    return BasisComparison(names, (a.unstable, b.unstable), spans, agreement, reading)
