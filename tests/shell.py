"""The command line as a shell would start it, in this process."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from skillbasis import cli


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: Any
    out: str
    err: str


def skillbasis(*arguments: str | Path) -> Result:
    """Runs the command line in this process, as a shell would start it."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["skillbasis", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
    return Result(left.value.code, out.getvalue(), err.getvalue())


def done(*arguments: str | Path) -> str:
    """Runs a command that must succeed and say nothing on stderr; returns what it printed."""
    result = skillbasis(*arguments)
    assert (result.code, result.err) == (0, "")
    return result.out
