"""What is said of pools by their hidden columns: AUCs by hand, a planted pool, and the committed figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from skillbasis.artifact import read_json
from skillbasis.corpus import load_corpus

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import pool_facts  # noqa: E402


def test_auc_by_hand() -> None:
    # Pairs (member, other): 3 > 1, 3 > 2, 2 > 1, and 2 = 2 counts half.
    assert pool_facts.auc(np.array([3, 2, 1, 2]), np.array([True, True, False, False])) == 3.5 / 4
    assert pool_facts.auc(np.array([1.0, 2.0]), np.array([True, True])) is None


def test_facts_of_a_planted_pool(tmp_path: Path) -> None:
    rows = [
        {"id": f"r{i}", "problem": "1+1=?", "solution": "x" * (i + 1), "answer": "2", "labels": ["addition"]}
        | {"hidden_style": "terse" if i < 6 else "story", "hidden_origin": "sampled", "hidden_correct": i in (0, 1, 2)}
        for i in range(9)
    ]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    # The right rows are the shortest and the most likely ones, but for the wrong row 3, likelier than all.
    nll = np.array([0.1, 0.2, 0.3, 0.0, 0.5, 0.6, 0.7, 0.8, 0.9])
    facts = pool_facts.pool_facts(load_corpus(tmp_path / "pool.jsonl"), nll, np.arange(1, 10))
    assert facts["all"]["wrong"] == pytest.approx(6 / 9)
    assert facts["styles"]["terse"]["auc_low_nll"] == pytest.approx(6 / 9)
    assert facts["styles"]["terse"]["by_family"]["addition"]["auc_tokens"] == 0.0
    assert facts["styles"]["story"]["auc_low_nll"] is None
    assert facts["wrong_by_third_of_length"] == [0.0, 1.0, 1.0]
    assert facts["most_rows_of_a_question"] == 9
    assert set(facts["styles"]) == {"terse", "story"}


def test_committed_hard_pools_are_as_the_documentation_says() -> None:
    pools = read_json(ROOT / "docs/results/pool-facts.json")["pools"]
    assert pools.keys() == {"plain", "plain-1", "plain-2", "hard-1", "hard-2"}
    for name in ("hard-1", "hard-2"):
        facts = pools[name]
        assert abs(facts["all"]["auc_tokens"] - 0.5) < 0.02
        assert max(facts["wrong_by_third_of_length"]) - min(facts["wrong_by_third_of_length"]) < 0.06
        for style in ("terse", "worked", "verified"):
            told = facts["styles"][style]
            assert abs(told["wrong"] - 0.35) < 0.005 and abs(told["auc_tokens"] - 0.5) < 0.01
            for cell in told["by_family"].values():
                assert abs(cell["wrong"] - 0.35) * cell["n"] < 1
    world = (ROOT / "docs/world.md").read_text(encoding="utf-8")
    for name, facts in pools.items():
        told = [facts["all"], *(facts["styles"][style] for style in ("terse", "worked", "verified"))]
        cells = [f"{facts['all']['wrong']:.2f}", *(f"{t['auc_low_nll']:.2f}" for t in told)]
        cells += [f"{facts['all']['auc_tokens']:.2f}"]
        cells += [f"{share:.2f}" for share in facts["wrong_by_third_of_length"]]
        assert f"| {name} | {' | '.join(cells)} |".replace(" 0.", " .") in world
