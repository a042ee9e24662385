"""Pass over the rows until a solver is done, and keep what was gathered on disk so that a killed run goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..activations import ActivationSource
from ..artifact import write_tensors
from ..errors import SkillbasisError
from .sums import RowSums

_SAVE_EVERY_S = 30.0
_SAVE_SHARE = 0.05  # of the time: the state of wide blocks takes seconds to write

Tensors = dict[str, np.ndarray]


class Solver(Protocol):
    """What a pass gathers sums for."""

    @property
    def sums_type(self) -> type[RowSums]:
        """Kind of the sums."""

    @property
    def done(self) -> bool:
        """Whether no further pass is needed."""

    def begin(self, first: np.ndarray) -> RowSums:
        """Empty sums for the next pass. Args: first: (n, d), its first rows."""

    def take(self, sums: Any) -> None:
        """Takes in what a whole pass has gathered."""

    def tensors(self) -> Tensors:
        """What the solver is after the last whole pass."""

    def restore(self, tensors: Tensors) -> None:
        """Becomes what `tensors` were saved of."""


def run_passes(
    source: ActivationSource,
    solver: Solver,
    *,
    inputs_fingerprint: str,
    checkpoint: Path | None = None,
    on_pass: Callable[[int], None] | None = None,
) -> None:
    """Passes over the rows until the solver is done.

    Args:
        inputs_fingerprint: of all that the result depends on; a checkpoint with another one is ignored.
        checkpoint: a file that the state is saved to between shards. With it a killed call is continued by the same
            call and ends with the same bytes. The caller removes it when the result is saved.
        on_pass: called with the number of each pass, from 1, as it begins.
    Raises: SkillbasisError: the source has no rows.
    """
    n_passes, n_shards = 0, 0
    sums: RowSums | None = None
    kept = Checkpoint(checkpoint, inputs_fingerprint)
    if (saved := kept.load()) is not None:
        n_passes, n_shards = saved["passes"].item(), saved["shards"].item()
        solver.restore(strip_prefix(saved, "solver."))
        sums = solver.sums_type.from_tensors(strip_prefix(saved, "sums."))
    while not solver.done:
        if on_pass is not None:
            on_pass(n_passes + 1)
        for n_shards, part in enumerate(source.shards(start=n_shards), start=n_shards + 1):  # noqa: B020 (read once)
            if len(part) == 0:
                continue
            if sums is None:
                sums = solver.begin(part)
            sums.add(part)
            kept.save_if_due(partial(_state, n_passes, n_shards, solver, sums))
        if sums is None:
            raise SkillbasisError("there are no activations: every row was left out or the corpus is empty")
        solver.take(sums)
        n_passes, n_shards, sums = n_passes + 1, 0, None


def _state(n_passes: int, n_shards: int, solver: Solver, sums: RowSums) -> Tensors:
    counts = {"passes": np.array(n_passes), "shards": np.array(n_shards)}
    state = {f"solver.{name}": tensor for name, tensor in solver.tensors().items()}
    return counts | state | {f"sums.{name}": tensor for name, tensor in sums.tensors().items()}


class Checkpoint:
    """A file that the state of long work is saved to now and then, or nothing where there is no path.

    Args:
        inputs_fingerprint: of all that the result depends on; a file with another one is ignored, and replaced.
    """

    def __init__(self, path: Path | None, inputs_fingerprint: str) -> None:
        self._path, self._inputs = path, inputs_fingerprint
        self._next_save = time.monotonic() + _SAVE_EVERY_S

    def load(self) -> Tensors | None:
        """What was saved; None where there is none, it is damaged, or it is of something else."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        if self._path is None or not self._path.exists():
            return None
        try:
            tensors = load_file(self._path)
        except SafetensorError:
            return None  # it can be made again: the work begins anew and overwrites it
        of_this = np.array_equal(tensors.pop("fingerprint", np.empty(0)), _as_tensor(self._inputs))
        return tensors if of_this else None

    def save_if_due(self, state: Callable[[], Tensors]) -> None:
        """Saves the state if the last time is half a minute ago, and long enough for saving to take 5 % of the time."""
        if self._path is not None and time.monotonic() >= self._next_save:
            self.save(state())

    def save(self, state: Tensors) -> None:
        """Saves the state now."""
        if self._path is None:
            return
        started = time.monotonic()
        write_tensors(self._path, {"fingerprint": _as_tensor(self._inputs)} | state)
        now = time.monotonic()
        self._next_save = now + max(_SAVE_EVERY_S, (now - started) / _SAVE_SHARE)


def strip_prefix(tensors: Tensors, prefix: str) -> Tensors:
    """Those tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _as_tensor(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8)
