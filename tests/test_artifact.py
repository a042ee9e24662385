"""Directories that are complete or absent, through kills, locks and other people's files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import files, kill_this_process
from skillbasis import artifact
from skillbasis.artifact import (
    atomic_path,
    building,
    fingerprint,
    is_current,
    lock,
    read_json,
    read_manifest,
    reopen,
    write_json,
    write_tensors,
    write_text,
)
from skillbasis.errors import ArtifactError

InChild = Callable[[Callable[[], object]], int]


def build(path: Path, inputs: dict[str, Any], text: str = "new") -> None:
    with building(path, "thing", inputs, {"size": 3}) as work:
        write_text(work / "a.txt", text)


def fail(path: Path, inputs: dict[str, Any], *parts: str) -> None:
    """Writes some parts and then fails."""
    with building(path, "thing", inputs, {}) as work:
        for part in parts:
            write_text(work / part, "done")
        raise RuntimeError("no room")


def litter(folder: Path) -> list[str]:
    """What lies in a directory but for the lock files."""
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


def test_fingerprint_ignores_the_order_of_keys_and_sees_every_value() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert len({fingerprint(v) for v in ({"a": 1}, {"a": "1"}, {"a": [1]}, {"a": 1.5}, {"b": 1})}) == 5


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    write_text(path, "old")

    def half() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        half()
    assert path.read_text() == "old"
    assert litter(tmp_path) == ["x.txt"]


def test_json_refuses_nan_and_names_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert litter(tmp_path) == []
    with pytest.raises(ArtifactError, match=r"x\.json does not exist; make it first"):
        read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_text('{"a": ')
    with pytest.raises(ArtifactError, match=r"x\.json is damaged .*delete it and run the command again"):
        read_json(tmp_path / "x.json")


def test_tensors_come_back_in_any_memory_order_and_others_may_read_them(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    tensors = {"transposed": base.T, "strided": base[:, ::2], "fortran": np.asfortranarray(base)}
    mask = os.umask(0o022)
    try:
        write_tensors(tmp_path / "x.safetensors", tensors)
    finally:
        os.umask(mask)
    read = load_file(tmp_path / "x.safetensors")
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(read[name], tensor)
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o644


def test_building_publishes_all_at_once_and_cleans_up(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with building(path, "thing", {"a": 1}, {"size": 3}) as work:
        assert not path.exists()
        assert not is_current(path, "thing", {"a": 1})
        write_text(work / "a.txt", "text")
    assert litter(tmp_path) == ["out"]
    assert sorted(files(path)) == ["a.txt", "manifest.json"]
    manifest = read_manifest(path, "thing")
    assert (manifest["kind"], manifest["inputs"], manifest["size"]) == ("thing", {"a": 1}, 3)
    assert is_current(path, "thing", {"a": 1})
    assert not is_current(path, "thing", {"a": 2})


def test_the_block_may_add_to_the_manifest(tmp_path: Path) -> None:
    manifest: dict[str, Any] = {}
    with building(tmp_path / "out", "thing", {}, manifest):
        manifest["rows"] = 7
    assert read_manifest(tmp_path / "out", "thing")["rows"] == 7


def test_a_failed_build_keeps_the_old_artifact_and_resumes_for_the_same_inputs(tmp_path: Path) -> None:
    path = tmp_path / "out"
    build(path, {"a": 1}, "old")
    with pytest.raises(RuntimeError, match="no room"):
        fail(path, {"a": 2}, "part-0")
    assert (path / "a.txt").read_text() == "old"
    with building(path, "thing", {"a": 2}, {}) as work:
        assert sorted(files(work)) == ["part-0"]
    assert sorted(files(path)) == ["manifest.json", "part-0"]


def test_work_for_other_inputs_is_emptied(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with pytest.raises(RuntimeError, match="no room"):
        fail(path, {"a": 1}, "part-0")
    with building(path, "thing", {"a": 2}, {}) as work:
        assert files(work) == {}
    assert sorted(files(path)) == ["manifest.json"]


def test_a_kill_while_other_work_is_emptied_leaves_nothing_that_looks_resumable(
    tmp_path: Path, in_child: InChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    with pytest.raises(RuntimeError, match="no room"):
        fail(path, {"a": 1}, "part-0", "part-1")

    def half(tree: Path) -> None:
        (tree / "part-0").unlink()
        kill_this_process()

    monkeypatch.setattr(artifact, "remove_tree", half)
    assert in_child(lambda: build(path, {"a": 2})) == -9
    monkeypatch.undo()
    assert (tmp_path / "out.partial" / "part-1").exists()
    with building(path, "thing", {"a": 1}, {}) as work:
        assert files(work) == {}


def test_a_kill_while_writing_leaves_no_litter_in_the_artifact(tmp_path: Path, in_child: InChild) -> None:
    path = tmp_path / "out"

    def killed() -> None:
        with building(path, "thing", {"a": 1}, {}) as work, atomic_path(work / "part-0") as temporary:
            temporary.write_text("half")
            kill_this_process()

    assert in_child(killed) == -9
    assert len(list((tmp_path / "out.partial").glob(".part-0.*.tmp"))) == 1
    build(path, {"a": 1})
    assert sorted(files(path)) == ["a.txt", "manifest.json"]


@pytest.mark.parametrize("n_renames", [0, 1])
@pytest.mark.parametrize("same_inputs", [True, False])
def test_a_kill_between_the_manifest_and_the_renames_recovers(
    tmp_path: Path, in_child: InChild, monkeypatch: pytest.MonkeyPatch, n_renames: int, same_inputs: bool
) -> None:
    path = tmp_path / "out"
    build(path, {"a": 1}, "old")
    replace = os.replace
    n_done = 0

    def replace_few(source: Any, target: Any) -> None:
        nonlocal n_done
        if Path(source).is_dir():  # files are renamed too, by `atomic_path`
            if n_done == n_renames:
                kill_this_process()
            n_done += 1
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_few)
    assert in_child(lambda: build(path, {"a": 2})) == -9
    monkeypatch.undo()
    assert path.exists() == (n_renames == 0)
    if same_inputs:  # all the work had been done, so it is only put in its place
        assert is_current(path, "thing", {"a": 2})
        assert (path / "a.txt").read_text() == "new"
    else:
        assert not is_current(path, "thing", {"a": 3})
        with pytest.raises(RuntimeError, match="no room"):
            fail(path, {"a": 3}, "part-0")
        assert (path / "a.txt").read_text() == "old"
        assert sorted(files(tmp_path / "out.partial")) == ["part-0"]
        build(path, {"a": 3}, "third")
        assert (path / "a.txt").read_text() == "third"
    assert litter(tmp_path) == ["out"]


def test_a_manifest_of_an_unfinished_rebuild_is_not_taken_for_finished(tmp_path: Path, in_child: InChild) -> None:
    path = tmp_path / "out"

    def killed() -> None:
        with building(path, "thing", {"a": 1}, {}) as work:
            write_json(work / "manifest.json", {"inputs_fingerprint": fingerprint({"a": 1})})
            kill_this_process()

    def killed_again() -> None:
        with building(path, "thing", {"a": 1}, {}):
            kill_this_process()

    assert in_child(killed) == -9
    assert in_child(killed_again) == -9
    assert not is_current(path, "thing", {"a": 1})


def test_a_second_process_is_refused_and_a_killed_one_holds_no_lock(tmp_path: Path, in_child: InChild) -> None:
    path = tmp_path / "out"
    with lock(path):
        assert in_child(lambda: lock(path).__enter__()) == 1
        with pytest.raises(ArtifactError, match="another process is working on .*out; wait for it"):
            build(path, {"a": 1})
    assert not path.exists()

    def killed() -> None:
        with lock(path):
            kill_this_process()

    assert in_child(killed) == -9
    build(path, {"a": 1})
    assert path.exists()


def test_what_is_no_such_artifact_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "results"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtifactError, match="results exists and is no thing directory, so it is left as it is"):
        build(mine, {"a": 1})
    monkeypatch.chdir(mine)
    with pytest.raises(ArtifactError, match="left as it is"):
        build(Path("."), {"a": 1})
    with pytest.raises(ArtifactError, match="left as it is"):
        build(mine / "thesis.tex", {"a": 1})
    assert files(mine)["thesis.tex"] == b"years of work"
    with building(tmp_path / "other", "basis", {}, {}):
        pass
    with pytest.raises(ArtifactError, match="other exists and is no thing directory, so it is left as it is"):
        build(tmp_path / "other", {"a": 1})
    (tmp_path / "empty").mkdir()
    build(tmp_path / "empty", {"a": 1})
    assert is_current(tmp_path / "empty", "thing", {"a": 1})


def test_a_link_to_a_directory_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "big", target_is_directory=True)
    for a in (1, 2):
        build(tmp_path / "out", {"a": a})
        assert is_current(tmp_path / "out", "thing", {"a": a})
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "big" / "a.txt").exists()


def test_read_manifest_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no thing directory at .*out; check the path"):
        read_manifest(tmp_path / "out", "thing")
    (tmp_path / "out.partial").mkdir()
    with pytest.raises(ArtifactError, match="its making was interrupted: run the command again to finish it"):
        read_manifest(tmp_path / "out", "thing")
    build(tmp_path / "out", {})
    with pytest.raises(ArtifactError, match="holds 'thing', not basis; give a basis directory"):
        read_manifest(tmp_path / "out", "basis")
    manifest = read_json(tmp_path / "out" / "manifest.json")
    write_json(tmp_path / "out" / "manifest.json", manifest | {"format_version": 99})
    with pytest.raises(ArtifactError, match="newer skillbasis; upgrade"):
        read_manifest(tmp_path / "out", "thing")
    (tmp_path / "out" / "manifest.json").write_text(json.dumps([1]))
    with pytest.raises(ArtifactError, match="is no manifest of skillbasis"):
        read_manifest(tmp_path / "out", "thing")
    (tmp_path / "out" / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match=r"manifest\.json does not exist"):
        read_manifest(tmp_path / "out", "thing")


def test_a_finished_artifact_is_opened_again(tmp_path: Path) -> None:
    """What lies in it is kept for whoever builds it again from the same inputs."""
    path = tmp_path / "thing"
    build(path, {"a": 1})
    reopen(path)
    assert not path.exists() and not is_current(path, "thing", {"a": 1})
    with building(path, "thing", {"a": 1}, {}) as work:
        assert (work / "a.txt").read_text() == "new"
        write_text(work / "b.txt", "more")
    assert is_current(path, "thing", {"a": 1}) and {"a.txt", "b.txt"} <= set(litter(path))
    with pytest.raises(ArtifactError, match="other is no finished artifact, so it cannot be opened again"):
        reopen(tmp_path / "other")


def test_killed_while_it_is_opened_again_it_is_still_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "thing"
    build(path, {"a": 1})

    def stop(self: Path, missing_ok: bool = False) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", stop)
        with pytest.raises(KeyboardInterrupt):
            reopen(path)
    assert is_current(path, "thing", {"a": 1}) and (path / "a.txt").read_text() == "new"
