"""The answers of a judge on disk: torn lines, kills, two processes, and files that are something else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from skillbasis.errors import ArtifactError
from skillbasis.evaluate.judge.cache import Reply, ReplyCache, key_of

REPLY = Reply("text \ud800 \u2028 \n {}", "stop", 10, None)


def test_replies_come_back_and_the_last_counts(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "cache.jsonl"
    cache = ReplyCache(path)
    assert cache.get("a") is None and len(cache) == 0
    cache.put("a", REPLY)
    cache.put("b", Reply("b", "length", 1, 2))
    assert ReplyCache(path).get("a") == REPLY
    cache.put("a", Reply("new", "stop", 1, 1))
    assert [ReplyCache(path).get(key) for key in "ab"] == [Reply("new", "stop", 1, 1), Reply("b", "length", 1, 2)]
    assert len(path.read_bytes().splitlines()) == 4, "lines are only added"


def test_without_a_file_it_is_in_memory() -> None:
    cache = ReplyCache()
    cache.put("a", REPLY)
    assert cache.get("a") == REPLY and ReplyCache().get("a") is None


def test_keys_are_of_all_that_was_asked() -> None:
    assert key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1})
    assert len({key_of(x) for x in ({"a": 1}, {"a": 2}, {"a": "1"}, {"b": 1})}) == 4
    assert len(key_of({})) == 64


def test_a_torn_line_is_passed_over_and_spoils_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    ReplyCache(path).put("a", REPLY)
    whole = path.read_bytes()
    for torn in (b'{"key": "b", "te', b"\x00" * 20, b'{"key": "b"}', b'["key"]', b'{"key": 5, "text": "x"}'):
        path.write_bytes(whole + torn)
        cache = ReplyCache(path)
        assert cache.get("a") == REPLY and cache.get("b") is None
        cache.put("c", REPLY)
        again = ReplyCache(path)
        assert again.get("a") == again.get("c") == REPLY and len(again) == 2
    line = whole.splitlines(keepends=True)[1]
    path.write_bytes(whole + line.replace(b'"a"', b'"d"').removesuffix(b"\n"))  # only its end is missing
    assert ReplyCache(path).get("d") is None
    ReplyCache(path).put("e", REPLY)
    assert ReplyCache(path).get("d") == REPLY


def test_every_cut_of_a_file_can_be_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    cache = ReplyCache(path)
    for key in "abc":
        cache.put(key, Reply(key, "stop", 1, 1))
    whole = path.read_bytes()
    for n in range(len(whole) + 1):
        path.write_bytes(whole[:n])
        ReplyCache(path).put("new", REPLY)
        found = ReplyCache(path)
        n_whole = max(whole[:n].count(b"\n") - 1, 0)
        assert found.get("new") == REPLY and n_whole <= len(found) - 1 <= n_whole + 1
        assert all(found.get(key) == Reply(key, "stop", 1, 1) for key in "abc"[:n_whole])


@pytest.mark.parametrize("content", ["my notes\n", '{"problem": "1+1"}\n', "\n", '{"kind": "answers of a jury"}'])
def test_a_file_that_is_something_else_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(content)
    with pytest.raises(ArtifactError, match=r"mine.jsonl holds no answers of a judge, so it is left as it is; name"):
        ReplyCache(path)
    assert path.read_text() == content


def test_a_file_that_is_deleted_meanwhile_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    cache = ReplyCache(path)
    cache.put("a", REPLY)
    path.unlink()
    assert cache.get("x") is None
    cache.put("b", REPLY)
    assert ReplyCache(path).get("b") == REPLY and cache.get("a") == REPLY
    other = ReplyCache(path)
    other.put("c", REPLY)
    assert cache.get("c") == REPLY


WRITER = """
import sys
from pathlib import Path
from skillbasis.evaluate.judge.cache import Reply, ReplyCache
cache, name = ReplyCache(Path(sys.argv[1])), sys.argv[2]
for number in range(int(sys.argv[3])):
    cache.put(f"{name}{number}", Reply(name * 3000, "stop", number, number))
"""


def test_processes_and_threads_write_together_and_may_be_killed(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    start = [sys.executable, "-c", WRITER, str(path)]
    killed = subprocess.Popen([*start, "k", "1000000"])
    other = subprocess.Popen([*start, "o", "60"])
    cache = ReplyCache(path)
    threads = [
        threading.Thread(target=lambda n=n: [cache.put(f"t{n}-{i}", REPLY) for i in range(20)])  # type: ignore[misc]
        for n in range(3)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 60
    while cache.get("k20") is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert other.wait(60) == 0
    for thread in threads:
        thread.join()
    ReplyCache(path).put("after", REPLY)
    found = ReplyCache(path)
    assert all(found.get(f"o{i}") == Reply("o" * 3000, "stop", i, i) for i in range(60))
    assert all(found.get(f"k{i}") == Reply("k" * 3000, "stop", i, i) for i in range(21))
    assert all(found.get(f"t{n}-{i}") == REPLY for n in range(3) for i in range(20))
    assert cache.get("after") == REPLY, "what others add is seen"
    broken = [line for line in path.read_bytes().splitlines() if not _is_json(line)]
    assert len(broken) <= 1, "the line that was being written when its process was killed"


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
