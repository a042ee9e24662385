"""Jobs side by side: results, failures, killed workers and killed parents."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from skillbasis.engine import WorkerKilledError, device_names, map_jobs, n_cores, worker_environment
from skillbasis.errors import SkillbasisError, UsageError


class AwkwardError(Exception):
    """Cannot be rebuilt from its message, as many libraries' errors cannot."""

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code


def make_divider(numerator: int) -> Callable[[int], tuple[float, int, str | None]]:
    """A worker that divides, and fails in three ways."""

    def work(job: int) -> tuple[float, int, str | None]:
        if job == 7:
            raise AwkwardError("seven", code=7)
        if job == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return numerator / job, os.getpid(), os.environ.get("OMP_NUM_THREADS")

    return work


def make_nothing(reason: str) -> Callable[[int], int]:
    raise UsageError(reason)


def make_sleeper(folder: str) -> Callable[[int], None]:
    def work(_job: int) -> None:
        (Path(folder) / str(os.getpid())).touch()
        time.sleep(60)

    return work


def test_one_worker_runs_here_and_in_order() -> None:
    results = dict(map_jobs(make_divider, (12,), [1, 0, 4, 7], n_workers=1))
    assert [results[i][:2] for i in (0, 2)] == [(12.0, os.getpid()), (3.0, os.getpid())]  # type: ignore[index]
    assert isinstance(results[1], ZeroDivisionError)
    assert isinstance(results[3], AwkwardError)


def test_no_jobs_make_no_worker() -> None:
    assert list(map_jobs(make_nothing, ("never called",), [])) == []


def test_here_the_error_of_the_maker_is_raised() -> None:
    with pytest.raises(UsageError, match="no such model"):
        list(map_jobs(make_nothing, ("no such model",), [1], n_workers=1))


def test_workers_give_results_with_indices_and_failures_as_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "13")
    jobs = [1, 0, 4, 7, 6]
    seen = []
    for index, result in map_jobs(make_divider, (12,), jobs, n_workers=2):
        assert os.environ["OMP_NUM_THREADS"] == "13"
        seen.append((index, result))
    results = dict(seen)
    assert sorted(results) == [0, 1, 2, 3, 4]
    for index in (0, 2, 4):
        value, pid, threads = results[index]  # type: ignore[misc]
        assert value == 12 / jobs[index]
        assert pid != os.getpid()
        assert threads == str(max(1, n_cores() // 2))
    assert isinstance(results[1], ZeroDivisionError)
    assert type(results[3]) is SkillbasisError
    assert str(results[3]) == "AwkwardError: seven"


def test_the_error_of_the_maker_comes_out_of_the_workers() -> None:
    with pytest.raises(UsageError, match="no such model"):
        list(map_jobs(make_nothing, ("no such model",), [1, 2], n_workers=2))


def make_seer(_: str) -> Callable[[int], tuple[int, str | None]]:
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")  # as it is when the worker is made

    def work(_job: int) -> tuple[int, str | None]:
        time.sleep(0.3)  # long enough for the other worker to take a job
        return os.getpid(), seen

    return work


def test_each_worker_is_pinned_to_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7")
    results = [result for _, result in map_jobs(make_seer, ("",), list(range(12)), devices=["3", "5"])]
    seen = dict(results)  # type: ignore[arg-type]
    assert len(seen) == 2 and sorted(map(str, seen.values())) == ["3", "5"]
    assert all(seen[pid] == device for pid, device in results)  # type: ignore[misc]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,5,7"


def test_without_devices_workers_see_what_this_process_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7")
    results = [result for _, result in map_jobs(make_seer, ("",), [0, 1], n_workers=2)]
    assert {device for _, device in results} == {"3,5,7"}  # type: ignore[misc]


def test_workers_take_devices_in_turn() -> None:
    assert [worker_environment(i, ["3", "GPU-a"]) for i in range(3)] == [
        {"CUDA_VISIBLE_DEVICES": device} for device in ("3", "GPU-a", "3")
    ]
    assert worker_environment(4, []) == {}


@pytest.mark.parametrize(
    ("n_devices", "visible", "names"),
    [
        (0, None, []),
        (2, None, ["0", "1"]),
        (2, " ", ["0", "1"]),
        (2, "3, 5", ["3", "5"]),
        (1, "GPU-8a,9", ["GPU-8a"]),  # what follows an entry that does not exist is not seen
        (0, "-1", []),
    ],
)
def test_devices_are_named_as_this_process_names_them(n_devices: int, visible: str | None, names: list[str]) -> None:
    assert device_names(n_devices, visible) == names


def test_a_single_worker_apart_has_a_process_of_its_own() -> None:
    ((_, (pid, _)),) = map_jobs(make_seer, ("",), [0], n_workers=1, apart=True)  # type: ignore[misc]
    assert pid != os.getpid()
    assert list(map_jobs(make_seer, ("",), [], apart=True)) == []


def test_a_killed_worker_is_one_clear_error() -> None:
    with pytest.raises(WorkerKilledError, match="a worker process ended without a result.*fewer --workers"):
        list(map_jobs(make_divider, (12,), [9, 1], n_workers=2))


def test_jobs_not_begun_are_dropped_when_the_caller_stops() -> None:
    jobs = map_jobs(make_waiter, (), [0] * 200, n_workers=2)
    next(jobs)
    start = time.monotonic()
    jobs.close()  # type: ignore[attr-defined]
    assert time.monotonic() - start < 10  # all 200 would take 30 s


def make_waiter() -> Callable[[int], None]:
    return lambda _job: time.sleep(0.3)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    driver = tmp_path / "driver.py"
    driver.write_text(
        "from test_engine import make_sleeper\n"
        "from skillbasis.engine import map_jobs\n"
        "if __name__ == '__main__':\n"
        f"    list(map_jobs(make_sleeper, ({str(tmp_path / 'pids')!r},), [1, 2], n_workers=2))\n"
    )
    (tmp_path / "pids").mkdir()
    places = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))}
    with subprocess.Popen([sys.executable, driver], env=environment) as parent:
        deadline = time.monotonic() + 60
        while len(list((tmp_path / "pids").iterdir())) < 2:
            assert time.monotonic() < deadline, "the workers did not start"
            time.sleep(0.05)
        parent.kill()
    pids = [int(file.name) for file in (tmp_path / "pids").iterdir()]
    while any(_runs(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker outlives its parent"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    """Whether a process is alive; one that nobody has waited for is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
