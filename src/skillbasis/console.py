"""What the terminal shows: progress of long work on stderr, results on stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Tick = Callable[[int, int, str], None]
"""Called with (done, in all, a few words)."""


class ConsoleWatcher:
    """Shows each stage as a progress bar where a person watches, and as a line per stage elsewhere."""

    @contextmanager
    def stage(self, name: str) -> Iterator[Tick]:
        started = time.perf_counter()
        with progress(name) as tick:
            yield tick
        print(f"{name}: {time.perf_counter() - started:.1f} s", file=sys.stderr)


@contextmanager
def progress(name: str) -> Iterator[Tick]:
    """A progress bar with rate and time left; silent where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[words]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None, words="")

        def tick(done: int, total: int, words: str) -> None:
            bar.update(task, completed=done, total=total, words=words)

        yield tick
