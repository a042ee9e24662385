"""Directories that are complete or absent: fingerprints, atomic writes, a lock, and a manifest written last.

An artifact is built in `NAME.partial/` beside its final place and renamed when its manifest stands. The work
directory remembers which inputs it is for, so that a killed build goes on where it stopped, and one for other inputs
is started anew. A directory that is no artifact of the same kind is never replaced.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ArtifactError

if TYPE_CHECKING:
    import numpy as np

FORMAT_VERSION = 1
MANIFEST = "manifest.json"


def fingerprint(value: Any) -> str:
    """SHA-256 (first 16 hex digits) of a JSON-able value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def array_fingerprint(values: np.ndarray) -> str:
    """SHA-256 (first 16 hex digits) of an array's shape and bytes."""
    digest = hashlib.sha256(str(values.shape).encode())
    digest.update(values.tobytes())
    return digest.hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum(path: Path) -> str:
    """XXH3 (128 bits, hex) of a file's bytes: finds damage at the speed of memory, and is no proof against malice."""
    import xxhash

    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def _sync(path: Path) -> None:
    """Has the kernel write a file or a directory's list of names to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; what was written there replaces `path` only when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically, keys in the order given; NaN is refused (an undefined number is null)."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file; a missing or damaged one is an ArtifactError naming it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist; make it first, or check the path") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); delete it and run the command again") from None


def write_tensors(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file atomically, with the permissions of any other new file.

    The library's own `save_file` writes the memory of a strided array as it lies, so a transposed one would come back
    scrambled, and leaves files that only their owner can read.
    """
    import numpy as np
    from safetensors.numpy import save

    data = save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, metadata=metadata)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def remove_tree(path: Path) -> None:
    """Removes a directory if it is there."""
    if path.exists():
        shutil.rmtree(path)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on `path`.lock for the block; the kernel drops it when the process dies, however.

    Raises: ArtifactError: when another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = (path.parent / f".{path.name}.lock").open("w")
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArtifactError(
                f"another process is working on {path}; wait for it to end, or choose another --out"
            ) from None
        yield
    finally:
        file.close()


def read_manifest(path: Path, kind: str) -> dict[str, Any]:
    """Reads the manifest of a finished artifact and checks its kind and format version.

    Raises: ArtifactError: when the directory is absent, unfinished, of another kind or of a newer format.
    """
    if not path.is_dir():
        partial = path.with_name(f"{path.name}.partial")
        hint = (
            "its making was interrupted: run the command again to finish it" if partial.exists() else "check the path"
        )
        raise ArtifactError(f"there is no {kind} directory at {path}; {hint}")
    manifest: dict[str, Any] = read_json(path / MANIFEST)
    article = "an" if kind[0] in "aeiou" else "a"
    if not isinstance(manifest, dict):
        raise ArtifactError(f"{path / MANIFEST} is no manifest of skillbasis; give {article} {kind} directory")
    if manifest.get("kind") != kind:
        raise ArtifactError(f"{path} holds {manifest.get('kind')!r}, not {kind}; give {article} {kind} directory")
    if manifest.get("format_version", 0) > FORMAT_VERSION:
        raise ArtifactError(f"{path} was written by a newer skillbasis; upgrade to read it")
    return manifest


def is_current(path: Path, kind: str, inputs: dict[str, Any]) -> bool:
    """Whether `path` holds a finished artifact of this kind made from exactly these inputs.

    One that was killed between its manifest and its rename is put in its place first.
    """
    path = path.resolve()
    finished = _partial(path) / MANIFEST
    if finished.exists() and read_json(finished)["inputs_fingerprint"] == fingerprint(inputs):
        with lock(path):
            if finished.exists():
                _refuse_foreign(path, kind)
                _publish(path)
    if not (path / MANIFEST).exists():
        return False
    _refuse_foreign(path, kind)
    manifest = read_manifest(path, kind)
    return bool(manifest["inputs_fingerprint"] == fingerprint(inputs))


@contextmanager
def building(
    path: Path, kind: str, inputs: dict[str, Any], manifest: dict[str, Any], *, overwrite: bool = True
) -> Iterator[Path]:
    """Builds an artifact: yields the work directory, and when the block succeeds writes the manifest and renames.

    Args:
        path: final directory; an older artifact there is replaced at the end, not before.
        kind: what the artifact is, checked by readers.
        inputs: all that the result depends on (JSON-able); a work directory of other inputs is emptied first.
        manifest: further fields of the manifest; the block may add to it.
        overwrite: whether an artifact or unfinished work made from other inputs gives way; else it is refused.
    Raises: ArtifactError: when another process builds the same artifact, something else lies at `path`, or what lies
        there was made from other inputs and is not to be overwritten; the message says which of them differ.
    """
    path = path.resolve()
    partial, marker = _partial(path), _marker(path)
    with lock(path):
        if _old(path).exists() and not path.exists():  # killed between the two renames of `_publish`
            os.replace(_old(path), path)
        _refuse_foreign(path, kind)
        unfinished = read_json(marker) if partial.exists() and marker.exists() else None
        if not overwrite:
            finished = read_json(path / MANIFEST)["inputs"] if (path / MANIFEST).exists() else None
            _refuse_other_inputs(path, finished, inputs)
            if partial.exists() and any(partial.iterdir()):  # else nothing is lost
                _refuse_other_inputs(partial, unfinished, inputs)
        if partial.exists() and (unfinished is None or fingerprint(unfinished) != fingerprint(inputs)):
            marker.unlink(missing_ok=True)  # first, or a kill would leave half a directory that looks resumable
            remove_tree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        write_json(marker, inputs)
        (partial / MANIFEST).unlink(missing_ok=True)
        for leftover in partial.glob(".*.tmp"):  # of `atomic_path` in a killed process
            leftover.unlink()
        yield partial
        head = {"kind": kind, "format_version": FORMAT_VERSION, "inputs_fingerprint": fingerprint(inputs)}
        for file in partial.rglob("*"):  # the manifest may reach the disk only after what it vouches for
            _sync(file)
        write_json(partial / MANIFEST, head | {"inputs": inputs} | manifest)
        _publish(path)


def reopen(path: Path) -> None:
    """Makes a finished artifact unfinished work again, so that what builds it does what is missing in it.

    Killed in between, the artifact is either still finished or already work that goes on.

    Raises: ArtifactError: there is no finished artifact, or another process builds it.
    """
    path = path.resolve()
    with lock(path):
        if not (path / MANIFEST).exists():
            raise ArtifactError(f"{path} is no finished artifact, so it cannot be opened again; check the path")
        write_json(_marker(path), read_json(path / MANIFEST)["inputs"])
        remove_tree(_partial(path))
        os.replace(path, _partial(path))
        (_partial(path) / MANIFEST).unlink()


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _marker(path: Path) -> Path:
    return path.with_name(f".{path.name}.inputs.json")


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _refuse_foreign(path: Path, kind: str) -> None:
    """Refuses a final place that holds anything but an artifact of this kind, since it would be removed."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    manifest = read_json(path / MANIFEST) if (path / MANIFEST).is_file() else None
    if not isinstance(manifest, dict) or manifest.get("kind") != kind:
        raise ArtifactError(f"{path} exists and is no {kind} directory, so it is left as it is; choose another --out")
    read_manifest(path, kind)


def _refuse_other_inputs(path: Path, before: dict[str, Any] | None, now: dict[str, Any]) -> None:
    """Refuses work made from other inputs than now, naming those that differ."""
    if before is None or fingerprint(before) == fingerprint(now):
        return
    keys = [key for key in now | before if fingerprint(before.get(key)) != fingerprint(now.get(key))]
    changes = ", ".join(f"{key.replace('_', ' ')} was {before.get(key)} and is {now.get(key)}" for key in sorted(keys))
    raise ArtifactError(
        f"{path} was made otherwise ({changes}); give the same settings to go on, another --out, or --overwrite to "
        "make it anew"
    )


def _publish(path: Path) -> None:
    """Puts a finished work directory in its place."""
    # A rename cannot replace a full directory: the old one steps aside first and is removed last.
    if path.exists():
        remove_tree(_old(path))
        os.replace(path, _old(path))
    os.replace(_partial(path), path)
    _sync(path.parent)
    _marker(path).unlink(missing_ok=True)
    remove_tree(_old(path))
