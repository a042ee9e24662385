"""`skillbasis explore` as it is typed: a process of its own, asked over HTTP, stopped by Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.cookiejar import CookieJar
from pathlib import Path

import pytest

COMMAND = (sys.executable, "-m", "skillbasis", "explore")
# A process that imports torch on a busy machine.
START_S = 120


@pytest.fixture
def run_path(explored_run: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(explored_run, tmp_path / "run"))


@contextmanager
def exploring(*typed: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], list[str], str]]:
    """Types the command; yields the process, the lines up to the last before it serves, and its address."""
    process = subprocess.Popen(
        [*COMMAND, *typed],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )
    try:
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if lines[-1] == "stop with Ctrl-C":
                found = re.search(r"http://127\.0\.0\.1:\d+/\?token=\S+", lines[-2])
                assert found is not None, lines
                yield process, lines, found[0]
                break
        else:
            pytest.fail(f"it printed no address: {lines} {process.communicate()[1]}")
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()


def stop(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Presses Ctrl-C; returns what it still said. The process must end in order and at once."""
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    return out, err


def browser() -> urllib.request.OpenerDirector:
    """Keeps cookies, as a browser does."""
    return urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))


def refused(*typed: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([*COMMAND, *typed], capture_output=True, text=True, timeout=START_S, env=environment)


def test_a_run_is_served_and_ctrl_c_ends_it(run_path: Path) -> None:
    with exploring(str(run_path), "--port", "0", "--no-browser") as (process, lines, address):
        assert lines[0] == f"opening {run_path} ..." and lines[1].startswith("exploring Planted <script>")
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(address.split("?")[0])
        asking = browser()
        page = asking.open(address).read().decode()
        assert "<strong>60</strong> of 60 examples" in page and "token=" not in page
        origin = address.split("/?")[0]
        request = urllib.request.Request(f"{origin}/export", b"q=zebra", {"Origin": origin})
        assert "2 examples are in" in asking.open(request).read().decode()
        # While one explores the run, another is sent away.
        second = refused(str(run_path), "--port", "0", "--no-browser")
        assert second.returncode == 1 and "is being explored by another process" in second.stderr
        assert "Traceback" not in second.stderr
        said, err = stop(process)
    assert said == err == ""
    (export,) = (run_path / "explore" / "exports").glob("*.jsonl")
    assert {json.loads(line)["id"] for line in export.read_text("utf-8").splitlines()} == {"evil", "long"}
    # Everything has been let go: the same can be typed again.
    with exploring(str(run_path), "--port", origin.rsplit(":", 1)[1], "--no-browser") as (process, _, again):
        assert again.startswith(origin)
        stop(process)


def test_ctrl_c_ends_it_while_an_answer_is_streamed(run_path: Path) -> None:
    with exploring(str(run_path), "--port", "0", "--no-browser") as (process, _, address):
        asking, origin = browser(), address.split("/?")[0]
        asking.open(address).close()
        form = b"prompt=Add+1+and+2.&temperature=9&max_tokens=2000&alpha=0.1"
        started = asking.open(urllib.request.Request(f"{origin}/steer/start", form, {"Origin": origin})).read().decode()
        stream = asking.open(origin + started.split('sse-connect="')[1].split('"')[0])
        assert stream.readline().startswith(b"event: ")
        began = time.monotonic()
        _, err = stop(process)
        stream.close()
    assert err == ""
    assert time.monotonic() - began < 20  # 1 s on an idle machine; the answer would take longer


def test_a_run_without_scores_is_served_with_what_it_has(run_path: Path) -> None:
    (run_path / "scores.parquet").unlink()
    with exploring(str(run_path), "--port", "0", "--no-browser") as (process, lines, address):
        assert any("Examples cannot be searched" in line for line in lines)
        asking = browser()
        assert "There are no examples to search" in asking.open(address).read().decode()
        assert "Place it" in asking.open(f"{address.split('?')[0]}text").read().decode()
        stop(process)


def test_a_browser_is_opened_unless_told_otherwise(run_path: Path, tmp_path: Path) -> None:
    opened, script = tmp_path / "opened", tmp_path / "browser"
    script.write_text(f'#!/bin/sh\necho "$1" > {opened}.part && mv {opened}.part {opened}\n')
    script.chmod(0o755)
    with exploring(str(run_path), "--port", "0", BROWSER=f"{script} %s") as (process, _, address):
        deadline = time.monotonic() + 30
        while not opened.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert opened.read_text().strip() == address
        stop(process)
    opened.unlink()
    with exploring(str(run_path), "--port", "0", "--no-browser", BROWSER=f"{script} %s") as (process, _, _):
        time.sleep(2)  # the other one was opened as its address was printed
        assert not opened.exists()
        stop(process)


def test_what_cannot_be_served_is_one_sentence(run_path: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        in_use = refused(str(run_path), "--port", port, "--no-browser")
    assert in_use.returncode == 2 and f"port {port} is in use; give another with --port" in in_use.stderr
    nowhere = refused(str(tmp_path / "nowhere"), "--no-browser")
    assert nowhere.returncode == 2 and "there is no run directory at" in nowhere.stderr
    (tmp_path / "empty").mkdir()
    empty = refused(str(tmp_path / "empty"), "--no-browser", "--port", "0")
    assert empty.returncode == 2 and "holds no run" in empty.stderr
    for answer in (in_use, nowhere, empty):
        assert "Traceback" not in answer.stderr and len(answer.stderr.strip().splitlines()) == 1
    assert not any((tmp_path / "empty").iterdir())
