"""Answers of a judge on disk, a line each: a run that is killed or repeated pays none of them twice."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ...errors import ArtifactError

_HEADER = b'{"kind": "answers of a judge", "format_version": 1}\n'


@dataclass(frozen=True)
class Reply:
    """An answer as it came, before it was read."""

    text: str
    end: str
    """The endpoint's `finish_reason`."""
    prompt_tokens: int | None
    """None where the endpoint counts none; the same for `completion_tokens`."""
    completion_tokens: int | None


def key_of(asked: Any) -> str:
    """SHA-256 of all that an answer depends on (JSON-able). Whole, since whoever writes a text could search for two
    with the same beginning of it."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


class ReplyCache:
    """Replies by key, in memory and, with a path, in a file to which lines are only ever added.

    Threads and processes may use one file together: each line is written under a lock of the kernel's, and lines of
    others are read when a key is looked for in vain. What a killed process left half-written is passed over.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Reads the file; makes it, with its directory, where it is missing.

        Raises: ArtifactError: the file holds something else, which is left as it is.
        """
        self.path = path
        self._replies: dict[str, Reply] = {}
        self._read_to = 0
        self._lock = threading.Lock()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                self._check(file)
            self._read_on()

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, key: str) -> Reply | None:
        """The reply that was kept last under a key, by whichever process; None where there is none."""
        with self._lock:
            if key not in self._replies:
                self._read_on()
            return self._replies.get(key)

    def put(self, key: str, reply: Reply) -> None:
        """Keeps a reply, and returns when it is on the disk; a later one takes the place of an earlier."""
        line = json.dumps({"key": key} | asdict(reply)).encode() + b"\n"
        with self._lock:
            self._replies[key] = reply
            if self.path is None:
                return
            with self.path.open("a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                self._check(file)  # somebody may have deleted it
                if not _ends_a_line(file):
                    line = b"\n" + line  # so that what was torn spoils no more than itself
                file.write(line)
                file.flush()
                os.fsync(file.fileno())

    def _check(self, file: BinaryIO) -> None:
        """Begins a new file with the header, and refuses one that begins otherwise. The file is locked."""
        file.seek(0)
        found = file.read(len(_HEADER))
        if found == _HEADER:
            return
        if not _HEADER.startswith(found):
            raise ArtifactError(f"{self.path} holds no answers of a judge, so it is left as it is; name another file")
        file.truncate(0)  # new, or its maker was killed at once
        file.write(_HEADER)
        file.flush()
        os.fsync(file.fileno())
        self._read_to = 0

    def _read_on(self) -> None:
        """Reads the whole lines that were added since."""
        if self.path is None or not self.path.exists():
            return
        with self.path.open("rb") as file:
            if self._read_to > file.seek(0, os.SEEK_END):
                self._read_to = 0  # made anew
            file.seek(self._read_to)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # being written, or torn: looked at again with what follows it
                self._read_to += len(line)
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            record = json.loads(line)
            key = record.pop("key")
            reply = Reply(**record)
        except (ValueError, KeyError, TypeError, AttributeError):
            return  # the header, or a line that was torn
        if isinstance(key, str) and isinstance(reply.text, str):
            self._replies[key] = reply


def _ends_a_line(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"
