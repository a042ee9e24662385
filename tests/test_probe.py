"""How pilots are judged: variance between pilots enters the interval, and the luck of the first pilot does not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from skillbasis import statistics
from skillbasis.cells import CellResult
from skillbasis.errors import SkillbasisError, UsageError
from skillbasis.evaluate.run import TaskResult
from skillbasis.probe import ProbeSettings, _judge, between_pilots, with_pilot_variance
from skillbasis.select import SignedDirection

SIGNED: list[SignedDirection] = [(0, "+"), (0, "-"), (1, "+")]


def cell(name: str, share: float, rng: np.random.Generator, n_problems: int = 200) -> CellResult:
    correct = rng.random((n_problems, 4)) < share
    zeros = np.zeros_like(correct)
    ids = [str(i) for i in range(n_problems)]
    result = TaskResult("t", ids, [None] * n_problems, correct, zeros.astype(int), zeros, {})
    return CellResult(f"pilots/{name}", result, None, 1.0)


def pilots(shares: dict[str, float]) -> dict[str, CellResult]:
    rng = np.random.default_rng(0)
    return {f"pilots/{name}": cell(name, share, rng) for name, share in shares.items()}


def test_variance_between_pilots_is_pooled_by_hand() -> None:
    # Squares about the means: (0.01^2 + 0.01^2) + (0.02^2 + 0 + 0.02^2) = 0.001; degrees of freedom 1 + 2.
    variance, n_free = between_pilots([[0.30, 0.32], [0.40, 0.42, 0.44], [0.9]])
    assert (variance, n_free) == (pytest.approx(0.001 / 3), 3)
    assert between_pilots([[0.3], []]) == (0.0, 0)


def test_the_interval_holds_both_variances_by_hand() -> None:
    over_problems = statistics.Difference(0.05, 0.03, 0.07, 0.01, 0.001, 201, 0.03)
    wide = with_pilot_variance(over_problems, (0.0004, 4), 1.0)
    total = 0.0001 + 0.0004
    n = total**2 / (0.0001**2 / 200 + 0.0004**2 / 4)  # Satterthwaite: 6.24
    assert wide.se == pytest.approx(math.sqrt(total))
    assert n == pytest.approx(6.242, abs=0.001)
    assert wide.high - wide.mean == pytest.approx(2.4245 * wide.se, rel=1e-3)  # t quantile at 6.24
    assert wide.p_value > over_problems.p_value
    assert with_pilot_variance(over_problems, (0.0, 0), 1.0) == over_problems


def test_pilots_that_differ_only_by_luck_are_undecided() -> None:
    """Simulates pilots whose true quality varies; claims at 5 % must stay rare, as they do not over problems alone."""
    rng = np.random.default_rng(1)
    false_claims, naive_claims, n_runs = 0, 0, 150
    for _ in range(n_runs):
        luck = rng.normal(0.4, 0.03, 4)  # one pilot and three controls: a spread of 3 points between equals
        a, *controls = [rng.binomial(4, share, 200) / 4 for share in luck]
        over_problems = statistics.paired_difference(a, np.mean(controls, axis=0))
        spread = between_pilots([list(luck[1:])])
        false_claims += with_pilot_variance(over_problems, spread, 1 + 1 / 3).p_value < 0.05
        naive_claims += over_problems.p_value < 0.05
    assert false_claims <= 0.08 * n_runs
    assert naive_claims > 0.2 * n_runs


def test_the_first_pilot_of_a_finalist_does_not_count() -> None:
    shares = {"base": 0.3, "random/0": 0.3, "random/1": 0.31, "0+/0": 0.9, "0+/1": 0.5, "0+/2": 0.5, "0-/0": 0.2}
    shares |= {"1+/0": 0.6, "1+/1": 0.62, "1+/2": 0.6}
    settings = ProbeSettings(n_rows=10, n_random=2, n_finalists=2, n_repeats=2)
    outcome = _judge(pilots(shares), SIGNED, [(0, "+"), (1, "+")], settings)
    assert outcome["chosen"] == ["1+"]
    entries = {entry["name"]: entry for entry in outcome["directions"]}
    assert entries["0+"]["pass@1"]["mean"] == pytest.approx(0.5, abs=0.06)
    assert entries["1+"]["verdict"] == "helps"
    assert [entry["n_pilots"] for entry in outcome["directions"]] == [3, 1, 3]


def test_failed_pilots_are_reported_not_dropped() -> None:
    results = pilots({"base": 0.3, "random/0": 0.3, "0+/0": 0.5, "1+/0": 0.4})
    results["pilots/0-/0"] = CellResult("pilots/0-/0", None, "training diverged", 0.0)
    settings = ProbeSettings(n_rows=10, n_random=1, n_finalists=1, n_repeats=0)
    outcome = _judge(results, SIGNED, [(0, "+")], settings)
    failed = next(entry for entry in outcome["directions"] if entry["name"] == "0-")
    assert (failed["status"], failed["reason"]) == ("failed", "training diverged")
    assert any("no pilot was repeated" in note for note in outcome["notes"])
    results["pilots/random/0"] = CellResult("pilots/random/0", None, "out of memory", 0.0)
    with pytest.raises(SkillbasisError, match="no pilot can be compared"):
        _judge(results, SIGNED, [(0, "+")], settings)


def test_settings_that_cannot_be_meant() -> None:
    with pytest.raises(UsageError, match="1 finalists cannot give 2 chosen"):
        ProbeSettings(n_finalists=1, n_chosen=2)
    with pytest.raises(UsageError, match="at least one row"):
        ProbeSettings(n_rows=0)
