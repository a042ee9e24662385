"""Cells with planted answers, in the place of training and answering."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from fake_scorer import Repeatable
from skillbasis.cells import Cell, CellResult
from skillbasis.evaluate.results import TaskResult


def fake_cells(monkeypatch: pytest.MonkeyPatch, module: Any, effects: dict[str, float], **options: Any) -> list[Cell]:
    """Puts planted effects in the place of a module's `run_cells`; returns the cells that were asked for.

    Args:
        effects: on pass@1, by name of the cell (its second part, the number being the third).
        options: of `Repeatable`.
    """
    scorer, ran = Repeatable(effects, 0, pilot_sd=0.01, **options), []

    def run_cells(
        _out: Any, cells: Sequence[Cell], _settings: Any, _fingerprint: str, *, n_workers: Any, on_cell: Any
    ) -> dict[str, CellResult]:
        ran.extend(cells)
        results = {}
        for done, cell in enumerate(cells, 1):
            _, name, *number = cell.name.split("/")
            key = name, int(number[0]) if number else 0
            shares = scorer([key])[key]
            if shares is None:
                results[cell.name] = CellResult(cell.name, {}, "training diverged", 1.0)
            else:
                correct = np.arange(4)[None, :] < np.rint(4 * shares)[:, None]
                zeros, ids = np.zeros_like(correct), [str(i) for i in range(len(shares))]
                result = TaskResult("t", ids, [None] * len(ids), correct, zeros.astype(int), zeros, {})
                results[cell.name] = CellResult(cell.name, {"t": result}, None, 2.0)
            on_cell(results[cell.name], done, len(cells))
        return results

    monkeypatch.setattr(module, "run_cells", run_cells)
    return ran
