"""Run independent jobs side by side: in this process, or in worker processes with a fixed number of threads each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import SkillbasisError

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue

Job = TypeVar("Job")
Result = TypeVar("Result")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")

_worker: Any = None  # the per-process callable that `_start_worker` made


class WorkerKilledError(SkillbasisError):
    """A worker process ended without a result: killed, as a rule for want of memory. Exit code 1."""


def n_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Processor, cores this process may use, memory in GiB, system."""
    import platform
    from pathlib import Path

    import psutil

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": named[0] if named else platform.processor() or platform.machine(),
        "cores": n_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def cuda_devices() -> list[str]:
    """The CUDA devices this process may use, as CUDA_VISIBLE_DEVICES names them; does not start CUDA."""
    import torch

    return device_names(torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES"))


def device_names(n_devices: int, visible: str | None) -> list[str]:
    """What CUDA_VISIBLE_DEVICES must hold to name each of the devices alone.

    Args:
        n_devices: how many there are to this process.
        visible: its own CUDA_VISIBLE_DEVICES (numbers, or ids of devices and their parts); None or blank shows all.
    """
    if visible is None or not visible.strip():
        return [str(number) for number in range(n_devices)]
    return [name.strip() for name in visible.split(",")][:n_devices]


def worker_environment(number: int, devices: Sequence[str]) -> dict[str, str]:
    """The environment that pins a worker process to its device: workers take the devices in turn, and see one each."""
    return {"CUDA_VISIBLE_DEVICES": devices[number % len(devices)]} if devices else {}


def map_jobs(
    make_worker: Callable[..., Callable[[Job], Result]],
    arguments: tuple[Any, ...],
    jobs: Sequence[Job],
    *,
    n_workers: int | None = None,
    devices: Sequence[str] = (),
    apart: bool = False,
) -> Iterator[tuple[int, Result | Exception]]:
    """Runs a function over jobs; each worker process makes the function once (loads the model, say) and keeps it.

    Args:
        make_worker: called once per process with `arguments`; returns the function of one job. Must be importable.
        jobs: independent of each other.
        n_workers: processes; None takes one per device, or one per core where there is none; one runs in this process.
            Threads are shared out evenly, since several threads fighting for one core are far slower than one.
        devices: CUDA devices (`cuda_devices`) that worker processes are pinned to in turn; work in this process is not.
        apart: whether a single worker has a process of its own too, which may be killed without this one.
    Yields: (index of the job, its result or the exception it raised), as they finish.
    Raises: WorkerKilledError: a worker process was killed (out of memory, say). What `make_worker` raises.
    """
    n_workers = min(len(jobs), n_workers or len(devices) or n_cores())
    if n_workers < 1 or (n_workers == 1 and not apart):
        work = make_worker(*arguments) if jobs else None
        for index, job in enumerate(jobs):
            assert work is not None
            yield index, attempt(work, job)
        return
    import multiprocessing

    n_threads = max(1, n_cores() // n_workers)
    context = multiprocessing.get_context("spawn")  # forking a process with threads can hang
    places = context.SimpleQueue()  # each worker takes one as it starts: processes of a pool have no number
    for number in range(n_workers):
        places.put(worker_environment(number, devices))
    executor = ProcessPoolExecutor(
        n_workers, mp_context=context, initializer=_start_worker, initargs=(make_worker, arguments, places)
    )
    try:
        with _environment(dict.fromkeys(THREAD_VARIABLES, str(n_threads))):  # read by NumPy and torch when imported
            futures = {executor.submit(_run_job, job): index for index, job in enumerate(jobs)}
        for future in as_completed(list(futures)):
            yield futures.pop(future), future.result()  # popped, so that a result lives no longer than its use
    except BrokenProcessPool as error:
        raise WorkerKilledError(
            "a worker process ended without a result, probably for want of memory; run the command again to go on, "
            "with fewer --workers"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)  # also when the caller takes no more: jobs not begun are dropped


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Sets environment variables for the block; processes started in it keep them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _start_worker(make_worker: Callable[..., Any], arguments: tuple[Any, ...], places: SimpleQueue[Any]) -> None:
    global _worker
    import threading

    os.environ.update(places.get())  # before anything starts CUDA, which reads it once
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _worker = make_worker(*arguments)
    except Exception as error:  # raised here it would only say that the pool is broken
        _worker = Unusable(portable(error))


def _end_with_parent() -> None:
    """Ends this worker when the process that started it was killed; it would wait for jobs for ever."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@dataclass(frozen=True)
class Unusable:
    """Stands for a function that could not be made."""

    error: Exception


def _run_job(job: Any) -> Any:
    if isinstance(_worker, Unusable):
        raise _worker.error
    result = attempt(_worker, job)
    return portable(result) if isinstance(result, Exception) else result


def portable(error: Exception) -> Exception:
    """The same error, or one of the same words where it would not survive the way to the parent process.

    An exception whose constructor wants more than its message fails there, and takes the pool with it.
    """
    from multiprocessing.reduction import ForkingPickler

    try:
        ForkingPickler.loads(ForkingPickler.dumps(error))
    except Exception:
        return SkillbasisError(f"{type(error).__name__}: {error}")
    return error


def attempt(work: Callable[[Job], Result], job: Job) -> Result | Exception:
    """Runs one job; its failure is a result, so that the others go on."""
    try:
        return work(job)
    except Exception as error:
        return error
