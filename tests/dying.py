"""A worker of cells that does nothing, and is killed in one of them as the system does for want of memory.

In a module of its own: worker processes import it, and nothing heavy with it.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any


class DyingWorker:
    """Begins a cell as its artifact would, and dies in the cell `greedy`."""

    def __init__(self, _settings: Any) -> None:
        pass

    def __call__(self, job: tuple[Any, Path, dict[str, Any]]) -> None:
        cell, path, _ = job
        if cell.name == "greedy":
            path.with_name(f"{path.name}.partial").mkdir(exist_ok=True)
            os.kill(os.getpid(), signal.SIGKILL)


class StillbornWorker:
    """Dies before it has begun any cell."""

    def __init__(self, _settings: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
