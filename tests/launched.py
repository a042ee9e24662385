"""`skillbasis` as launchers start it, and as tests disturb it.

`TEST_KILL_AT=N`: the process kills itself (SIGKILL) before optimizer step N.

`TEST_FSDP_ON_CPU=1`: accelerate 1.15 shards only over processes on GPUs (`AcceleratorState.__init__`; on the CPU it
leaves FSDP out without a word), though torch shards over Gloo, too. Processes on the CPU then pass for processes on
GPUs at that one place, so that what is tested is real: sharded weights, gathered checkpoints.
"""

from __future__ import annotations

import os
import signal
from typing import Any


def shard_on_cpu() -> None:
    from accelerate.state import AcceleratorState, DistributedType, PartialState

    init = AcceleratorState.__init__

    def init_as_on_gpus(self: Any, *args: Any, **kwargs: Any) -> None:
        state = PartialState(cpu=True)
        if state.distributed_type == DistributedType.MULTI_CPU:
            state.distributed_type = DistributedType.MULTI_GPU
        init(self, *args, **kwargs)

    AcceleratorState.__init__ = init_as_on_gpus  # type: ignore[method-assign]


def kill_at(step: int) -> None:
    import trl

    training_step = trl.SFTTrainer.training_step

    def step_or_die(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step + 1 == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return training_step(self, *args, **kwargs)

    trl.SFTTrainer.training_step = step_or_die  # type: ignore[method-assign]


if __name__ == "__main__":
    from skillbasis.cli import main

    if "TEST_FSDP_ON_CPU" in os.environ:
        shard_on_cpu()
    if "TEST_KILL_AT" in os.environ:
        kill_at(int(os.environ["TEST_KILL_AT"]))
    main()
