"""What the terminal shows: progress of long work on stderr, results on stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LINE_S = 60.0  # between lines where stderr is no terminal

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
    """A progress bar with time left; where stderr is no terminal, a line a minute."""
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
    if not console.is_terminal:
        yield _log_lines(name)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[words]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(name, total=None, words="")

        def tick(done: int, total: int, words: str) -> None:
            bar.update(task, completed=done, total=total, words=words)

        yield tick


def _log_lines(name: str) -> Tick:
    """Writes at most one line a minute, with the time left at the pace so far; none for what is over sooner."""
    started = last = time.perf_counter()
    done_before: int | None = None  # what an earlier run had finished says nothing of the pace

    def tick(done: int, total: int, words: str) -> None:
        nonlocal last, done_before
        now = time.perf_counter()
        if done_before is None:
            done_before = done
        if now - last < _LINE_S:
            return
        last = now
        pace = (done - done_before) / (now - started)
        left = f", {(total - done) / pace / 60:.0f} min left" if pace > 0 else ""
        print(f"{name}: {done:,} of {total:,}{left}, {words}", file=sys.stderr, flush=True)

    return tick
