"""The record of a run: what each stage took, and whether it had to be done at all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from .artifact import MANIFEST, read_json, write_json
from .engine import machine
from .recipe import Recipe

Result = TypeVar("Result")


class Watcher(Protocol):
    """What shows a run's progress."""

    def stage(self, name: str) -> AbstractContextManager[Callable[[int, int, str], None]]:
        """Opens a stage; the value is called with (done, in all, a few words)."""


class MemoryMeter:
    """Samples the resident memory of this process and its children in a thread."""

    def __init__(self, interval_s: float = 0.5) -> None:
        import psutil

        self._process = psutil.Process()
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_bytes = 0

    def __enter__(self) -> MemoryMeter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        import psutil

        while True:
            total = self._process.memory_info().rss
            for child in self._process.children(recursive=True):
                try:
                    total += child.memory_info().rss
                except psutil.NoSuchProcess:
                    continue  # it ended between the listing and the look
            self.peak_bytes = max(self.peak_bytes, total)
            if self._stop.wait(self._interval_s):
                return


class Run:
    """A run directory and the record of its stages."""

    def __init__(self, out: Path, recipe: Recipe, watcher: Watcher) -> None:
        self.out = out
        self.recipe = recipe
        self.watcher = watcher
        self.warnings: list[str] = []
        self.stages: list[dict[str, Any]] = []
        previous = read_json(out / "run.json")["stages"] if (out / "run.json").exists() else []
        self._earlier = {stage["name"]: stage for stage in previous}

    def do(
        self, name: str, work: Callable[[Callable[[int, int, str], None]], Result], artifact: Path | None = None
    ) -> Result:
        """Runs one stage under the clock; one that found its artifact current keeps the figures of its making."""
        before = _stamp(artifact)
        started = time.perf_counter()
        with MemoryMeter() as meter, self.watcher.stage(name) as tick:
            result = work(tick)
        record = {
            "name": name,
            "seconds": round(time.perf_counter() - started, 2),
            "peak_memory_mb": round(meter.peak_bytes / 1e6),
            "reused": False,
            "note": "",
        }
        if before is not None and before == _stamp(artifact) and name in self._earlier:
            record = self._earlier[name] | {"reused": True}
        self.stages.append(record)
        self.save()
        return result

    def seconds(self, *names: str) -> float:
        """What the named stages took, when they were made."""
        return float(sum(stage["seconds"] for stage in self.stages if stage["name"] in names))

    def save(self) -> None:
        recipe = self.recipe
        record = {
            "title": recipe.title,
            "model": recipe.model,
            "corpus": recipe.corpus.source,
            "seed": recipe.seed,
            "versions": _versions(),
            "machine": machine(),
            "stages": self.stages,
            "warnings": self.warnings,
            "settings": recipe.model_dump(mode="json"),
        }
        write_json(self.out / "run.json", record)


def _stamp(artifact: Path | None) -> str | None:
    """What a finished artifact was made from; None where there is none."""
    if artifact is None or not (artifact / MANIFEST).exists():
        return None
    return str(read_json(artifact / MANIFEST)["inputs_fingerprint"])


def _versions() -> dict[str, str]:
    import platform
    from importlib.metadata import version

    names = ("skillbasis", "torch", "transformers", "tokenizers", "trl", "numpy", "math-verify")
    return {"python": platform.python_version()} | {name: version(name) for name in names}
