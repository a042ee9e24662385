"""Workers on a Ray cluster: the same bytes as here, killed workers, clear refusals."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import files
from skillbasis.activations import ExtractionSettings, LiveActivations, RayReader, extract
from skillbasis.cluster import RayPool
from skillbasis.corpus import Corpus
from skillbasis.errors import SkillbasisError, UsageError
from skillbasis.lm import LanguageModel
from test_activations import ROWS

pytest.importorskip("ray", reason="Ray is not installed")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One small cluster for the tests of this file, gone after them."""
    import tempfile

    import ray

    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:  # short: sockets live there
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100_000_000,
            logging_level="ERROR",
            log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}},  # where workers find `make_worker`
            _temp_dir=folder,
        )
        yield
        ray.shutdown()


def make_worker(base: int, folder: str) -> Callable[[Any], Any]:
    """A function that adds, fails in words, or ends its process once."""

    def work(job: Any) -> Any:
        if job == "pid":
            return os.getpid()
        if job == "fail":
            raise UsageError("these words must survive")
        if job == "die" or (job == "die once" and not (Path(folder) / "died").exists()):
            (Path(folder) / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return base + job if isinstance(job, int) else "alive"

    return work


def make_nothing() -> Callable[[Any], Any]:
    raise UsageError("no worker can be made")


def test_results_come_in_the_order_of_the_jobs_which_are_taken_as_needed(cluster: None, tmp_path: Path) -> None:
    taken: list[int] = []

    def jobs() -> Iterator[int]:
        for i in range(30):
            taken.append(i)
            yield i

    with RayPool(make_worker, (100, str(tmp_path)), 2) as pool:
        assert len(set(pool.everywhere("pid"))) == len(pool) == 2
        results = pool.map(jobs())
        assert next(results) == 100
        assert len(taken) < 15
        assert list(results) == list(range(101, 130))
        assert list(pool.map([])) == []


def test_errors_keep_their_type_and_words(cluster: None, tmp_path: Path) -> None:
    with RayPool(make_worker, (0, str(tmp_path)), 1) as pool:
        with pytest.raises(UsageError, match="^these words must survive$"):
            list(pool.map([1, "fail", 2]))
    with pytest.raises(UsageError, match="^no worker can be made$"), RayPool(make_nothing, (), 1) as pool:
        pool.everywhere(1)
    with pytest.raises(UsageError, match="9 workers are too many for the cluster's 2 cores; ask for fewer"):
        RayPool(make_worker, (0, ""), 9).__enter__()


def test_a_killed_worker_is_started_again_and_repeats_its_job(cluster: None, tmp_path: Path) -> None:
    with RayPool(make_worker, (0, str(tmp_path)), 1) as pool:
        assert list(pool.map([1, "die once", 2])) == [1, "alive", 2]
        with pytest.raises(SkillbasisError, match="a worker on the cluster was killed more than 3 times"):
            list(pool.map(["die"]))


def test_extraction_on_workers_gives_the_same_bytes_also_when_one_is_killed(
    cluster: None,
    model_path: Callable[..., Path],
    loaded: Callable[..., LanguageModel],
    make_corpus: Callable[..., Corpus],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import numpy as np
    import psutil

    from conftest import HIDDEN

    extraction = importlib.import_module("skillbasis.activations.extract")  # the package's name is the function
    monkeypatch.setattr(extraction, "_SHARD_BYTES", 2 * 2 * HIDDEN * 4)
    corpus, settings = make_corpus(ROWS * 4), ExtractionSettings(span="response")
    here = extract(corpus, loaded("llama"), tmp_path / "here", settings)
    with RayReader(str(model_path("llama")), n_workers=2) as reader:
        assert reader.facts.identity == {**loaded("llama").identity, "model": str(model_path("llama"))}
        workers = [p for p in psutil.process_iter(["cmdline"]) if "ray::_Actor" in " ".join(p.info["cmdline"] or [])]
        assert len(workers) >= 2
        killed: list[int] = []

        def kill_one(done: int, _n: int, _tokens: int) -> None:
            if not killed and done >= 4:
                killed.append(workers[0].pid)
                workers[0].kill()

        there = extract(corpus, reader, tmp_path / "there", settings, on_progress=kill_one)
        assert killed
        live = LiveActivations(corpus, reader, settings)
        for stored, read in zip(here.shards(), live.shards(), strict=True):
            np.testing.assert_array_equal(stored, read)
    mine, theirs = files(here.path), files(there.path)
    del mine["manifest.json"], theirs["manifest.json"]
    assert mine == theirs
    assert here.manifest | {"model": ""} == there.manifest | {"model": ""}


def test_the_command_line_reads_on_a_cluster(cluster: None, tmp_path: Path) -> None:
    from skillbasis.cli import app

    def extract_by(*engine: str) -> dict[str, bytes]:
        out = tmp_path / engine[1]
        command = ["extract", "embedded", "--model", "embedded", "--out", str(out), "--limit", "50", *engine]
        app(command, standalone_mode=False)
        return files(out)

    assert extract_by("--engine", "ray", "--workers", "1") == extract_by("--engine", "local")


def test_without_ray_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"--engine ray needs Ray; install it with: pip install 'skillbasis\[ray\]'"):
        RayPool(make_nothing, ()).__enter__()
