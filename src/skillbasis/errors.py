"""The errors users meet: one sentence that names the cause and the next step, and the exit code that goes with it."""

from __future__ import annotations


class SkillbasisError(Exception):
    """The work failed: bad data, a damaged file, a diverged run. Exit code 1."""

    exit_code = 1


class UsageError(SkillbasisError, ValueError):
    """The request cannot be meant: a missing file, an unknown name, a budget above the pool. Exit code 2."""

    exit_code = 2


class CorpusError(SkillbasisError):
    """A row or file of a corpus cannot be read; the message names file, line and reason. Exit code 1."""


class ArtifactError(SkillbasisError):
    """A saved directory is incomplete, damaged, locked or was made from something else. Exit code 1."""


def nearest(name: str, allowed: list[str]) -> str:
    """Returns ` (did you mean 'x'?)` for the nearest allowed name, or an empty string where none is near."""
    import difflib

    close = difflib.get_close_matches(name, allowed, n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
