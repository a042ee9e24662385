"""Several processes that train one model together, as `torchrun` and `accelerate launch` start them.

The launcher starts the same command once per process. Here they find each other, and the first one does alone what
must be done once: looking whether the work is done already, holding the lock, writing the result.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import UsageError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Processes:
    """The processes of one training run, seen from one of them."""

    rank: int
    """0-based number of this process."""
    count: int
    """How many there are."""

    @property
    def first(self) -> bool:
        return self.rank == 0

    def once(self, work: Callable[[], Result]) -> Result:
        """Has the first process do something, and gives every process what came of it: the result, or the error."""
        if self.count == 1:
            return work()
        import torch.distributed as dist

        told: list[Any] = [None, None]  # result and error
        if self.first:
            try:
                told[0] = work()
            except Exception as error:  # raised below, here and in the processes that wait
                told[1] = error
        dist.broadcast_object_list(told, src=0)
        if told[1] is not None:
            raise told[1]
        return told[0]  # type: ignore[no-any-return]

    def wait(self) -> None:
        """Waits until every process has come here."""
        if self.count > 1:
            import torch.distributed as dist

            dist.barrier()


def n_launched() -> int:
    """How many processes the launcher has started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def own_device() -> str | None:
    """The device of this process among those of its machine; None leaves the choice to `load_model`."""
    import torch

    if n_launched() == 1 or not torch.cuda.is_available():
        return None
    return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"


def join(on_gpu: bool) -> Processes:
    """Meets the other processes of a launcher (NCCL on GPUs, Gloo on the CPU); they stay together until `leave`.

    Raises: UsageError: `accelerate launch --cpu` was asked for several processes and has started one.
    """
    if n_launched() == 1:
        # accelerate sets an address to meet at only for several processes, and its CPU launcher then starts just one.
        alone = os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in os.environ
        if alone and "WORLD_SIZE" not in os.environ:
            raise UsageError(
                "'accelerate launch --cpu' starts a single process whatever --num_processes says; use 'torchrun "
                "--nproc_per_node N -m skillbasis ...' or 'accelerate launch --multi_gpu --num_processes N -m "
                "skillbasis ...', which both run on the CPU where there is no GPU"
            )
        return Processes(0, 1)
    from accelerate import PartialState

    state = PartialState(cpu=not on_gpu)
    return Processes(state.process_index, state.num_processes)


def leave() -> None:
    """Parts from the other processes, at the end of a command."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
