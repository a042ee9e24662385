"""Run jobs on a Ray cluster: actors that each make their worker once, results in the order of the jobs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any, Self

from .engine import THREAD_VARIABLES, Unusable, attempt, portable
from .errors import SkillbasisError, UsageError

_JOBS_PER_WORKER = 2  # one at work and one waiting, so that no worker idles between jobs
_AHEAD = 2  # results kept per worker while an earlier job is still at work
_RETRIES = 3  # per worker: how often it is started again after it was killed, with the job it was at


class RayPool:
    """Worker processes on a Ray cluster, one per GPU, or one per machine where there is none.

    Joins the cluster that RAY_ADDRESS names or that runs on this machine; else starts one here for its own lifetime.
    A worker that is killed is started again and repeats its job. Use as a context manager.

    Args:
        make_worker: called once in each worker process with `arguments`; returns the function of one job.
        n_workers: processes; None takes one per GPU, or one per machine where the cluster has none.
    Raises: UsageError: Ray is not installed, or the cluster has too few cores or GPUs.
    """

    def __init__(
        self, make_worker: Callable[..., Callable[..., Any]], arguments: tuple[Any, ...], n_workers: int | None = None
    ) -> None:
        self._make, self._arguments, self._wanted = make_worker, arguments, n_workers
        self._actors: list[Any] = []
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        ray = _import_ray()
        self._ray = ray
        if not ray.is_initialized():
            self._closing.callback(ray.shutdown)
            _join_or_start(ray, self._closing)
        try:
            self._start_actors()
        except BaseException:
            self._closing.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors.clear()
        self._closing.close()

    def __len__(self) -> int:
        return len(self._actors)

    def _start_actors(self) -> None:
        total = self._ray.cluster_resources()
        n_gpus, n_cpus = int(total.get("GPU", 0)), int(total.get("CPU", 0))
        machines = [node["Resources"].get("CPU", 0) for node in self._ray.nodes() if node["Alive"]]
        n_workers = self._wanted or n_gpus or len(machines)
        if n_workers > (n_gpus or n_cpus):
            has = f"{n_gpus} GPUs" if n_gpus else f"{n_cpus} cores"
            raise UsageError(f"{n_workers} workers are too many for the cluster's {has}; ask for fewer with --workers")
        n_threads = max(1, int(min(n_cpus // n_workers, *machines)))
        remote = self._ray.remote(_Actor).options(
            num_cpus=n_threads,
            num_gpus=n_gpus // n_workers if n_gpus else 0,
            max_restarts=_RETRIES,
            max_task_retries=_RETRIES,
            runtime_env={"env_vars": dict.fromkeys(THREAD_VARIABLES, str(n_threads))},
        )
        self._actors = [remote.remote(self._make, self._arguments) for _ in range(n_workers)]

    def everywhere(self, job: Any) -> list[Any]:
        """Runs one job on every worker; the results, one per worker. Raises: what the job raised."""
        return [self._get(actor.run.remote(job)) for actor in self._actors]

    def map(self, jobs: Iterable[Any]) -> Iterator[Any]:
        """Runs jobs, taken one by one as workers come free. Yields: results in the order of the jobs.

        Raises: what a job raised. SkillbasisError: a worker was killed more often than it is started again.
        """
        coming = iter(jobs)
        pending: dict[Any, tuple[int, int]] = {}  # reference of a result: number of the job, of the worker
        load = [0] * len(self._actors)
        done: dict[int, Any] = {}  # number of the job: reference of its result, at hand
        n_sent = n_given = 0
        exhausted = False
        while True:
            while not exhausted and n_sent - n_given < (_JOBS_PER_WORKER + _AHEAD) * len(load):
                worker = min(range(len(load)), key=lambda i: load[i])
                if load[worker] >= _JOBS_PER_WORKER:
                    break
                try:
                    job = next(coming)
                except StopIteration:
                    exhausted = True
                    break
                pending[self._actors[worker].run.remote(job)] = (n_sent, worker)
                load[worker] += 1
                n_sent += 1
            if n_given in done:
                yield self._get(done.pop(n_given))
                n_given += 1
                continue
            if not pending:
                return
            (ready, *_), _ = self._ray.wait(list(pending), num_returns=1)
            number, worker = pending.pop(ready)
            load[worker] -= 1
            done[number] = ready

    def _get(self, reference: Any) -> Any:
        from ray.exceptions import RayError

        try:
            result = self._ray.get(reference)
        except RayError as error:
            if "creation task" in str(error):
                lines = [line for line in str(error).splitlines() if line.strip()]
                raise SkillbasisError(
                    f"a worker could not be started on the cluster ({lines[-1].strip()}); is the same skillbasis "
                    "installed on every machine?"
                ) from error
            raise SkillbasisError(
                f"a worker on the cluster was killed more than {_RETRIES} times, probably for want of memory; run the "
                "command again to go on, with fewer --workers or a lower --batch-tokens"
            ) from error
        if isinstance(result, Exception):
            raise result
        return result


class _Actor:
    """One worker process; a failure travels as a value, so that its type and words survive."""

    def __init__(self, make_worker: Callable[..., Callable[..., Any]], arguments: tuple[Any, ...]) -> None:
        made = attempt(lambda values: make_worker(*values), arguments)
        self._work: Any = Unusable(portable(made)) if isinstance(made, Exception) else made

    def run(self, job: Any) -> Any:
        if isinstance(self._work, Unusable):
            return self._work.error
        result = attempt(self._work, job)
        return portable(result) if isinstance(result, Exception) else result


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else a warning about its default
    try:
        import ray
    except ImportError:
        raise UsageError("--engine ray needs Ray; install it with: pip install 'skillbasis[ray]'") from None
    return ray


def _join_or_start(ray: Any, closing: ExitStack) -> None:
    """Joins a running cluster, or starts one on this machine that leaves nothing behind."""
    quiet = {"logging_level": "ERROR", "log_to_driver": False, "configure_logging": False}
    try:
        ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), **quiet)
    except ConnectionError as error:
        if "RAY_ADDRESS" in os.environ:
            raise UsageError(f"no Ray cluster answers at RAY_ADDRESS {os.environ['RAY_ADDRESS']}; start it") from error
        folder = closing.enter_context(tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))
        closing.callback(ray.shutdown)  # before its folder goes
        ray.init(address="local", include_dashboard=False, _temp_dir=folder, **quiet)
