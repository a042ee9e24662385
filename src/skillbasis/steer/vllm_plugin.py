"""Steering inside vLLM, without a fork: a general plugin that vLLM finds by its entry point in every process.

`additional_config={"skillbasis_steering": {"vector": FILE, "alpha": A, "scope": S}}` steers all requests of an engine,
as `steer(model, vector, alpha, scope=)` does in transformers. Decoder blocks give back `(hidden, residual)`, whose sum
is the residual stream, or the stream itself; alpha times the vector is added to the first tensor. It is a buffer of
the block, added behind its all-reduce, so compilation, CUDA graphs and tensor parallelism stay possible. For a scope
other than `all` a second buffer holds 1 or 0 per token of the batch; the model runner fills it before every pass.
Source: vLLM 0.32, `vllm.plugins`, `v1/worker/gpu_model_runner.py` and `v1/worker/gpu/model_runner.py`.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ArtifactError, UsageError, nearest
from .hooks import check_scope
from .vectors import SteeringVector

if TYPE_CHECKING:
    import torch
    from torch import nn

KEY = "skillbasis_steering"
_NEEDED, _ALLOWED = ("vector", "alpha"), ("vector", "alpha", "scope", "fingerprint")
_ARGUMENTS, _WORKER = "vllm.engine.arg_utils", "vllm.v1.worker.worker_base"
_SHIFT, _MASK = "skillbasis_shift", "skillbasis_mask"
_logger = logging.getLogger("vllm.skillbasis")  # under vLLM's own logger, so that its handlers print it


def register() -> None:
    """Called by vLLM once in each of its processes: engines are checked when configured, steered when loaded.

    Where no engine asks for steering it changes nothing. Calling it again does nothing.
    """
    if _ARGUMENTS not in sys.modules and _WORKER not in sys.modules:
        return  # a process that only inspects a model class: nothing is configured or loaded in it
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    if not hasattr(EngineArgs.create_engine_config, KEY):
        EngineArgs.create_engine_config = _checking(EngineArgs.create_engine_config)
    if "load_model" not in vars(WorkerWrapperBase):  # calls of it otherwise go on to the worker by __getattr__
        WorkerWrapperBase.load_model = _load_and_steer


@dataclass(frozen=True)
class SteeringRequest:
    """What an engine was asked to add, and where."""

    path: Path
    """Absolute, since workers may run in another directory."""
    vector: SteeringVector
    alpha: float
    scope: str

    @classmethod
    def read(cls, settings: Any) -> SteeringRequest:
        """Reads the value of `skillbasis_steering`. Raises: UsageError, ArtifactError: it cannot be meant, or read."""
        if not isinstance(settings, Mapping):
            raise UsageError(f'{KEY} is {settings!r}; write {{"vector": FILE, "alpha": NUMBER, "scope": SCOPE}}')
        for key in settings:
            if key not in _ALLOWED:
                hint = nearest(str(key), list(_ALLOWED))
                raise UsageError(f"{KEY} has no key {key!r}{hint}; allowed are vector, alpha and scope")
        for key in _NEEDED:
            if key not in settings:
                raise UsageError(f"{KEY} needs the key {key!r}; give the file of a vector, and alpha as a number")
        alpha, scope = settings["alpha"], settings.get("scope", "all")
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise UsageError(f"alpha in {KEY} must be a finite number, not {alpha!r}")
        check_scope(str(scope))
        path = Path(settings["vector"]).resolve()
        vector = SteeringVector.load(path)
        if vector.unit == "relative":
            raise UsageError(
                f"{vector.name} in {path} is in the unit relative, which needs the norm of every token, and vLLM adds "
                "a constant; calibrate it to typical norms first (SteeringVector.calibrated) and give that file"
            )
        if settings.get("fingerprint", vector.fingerprint) != vector.fingerprint:
            raise ArtifactError(
                f"the steering vector in {path} is {vector.fingerprint}, not {settings['fingerprint']} as the engine "
                "was configured with; keep the file unchanged, the same on every machine, and start again"
            )
        return cls(path, vector, float(alpha), str(scope))

    def settings(self) -> dict[str, Any]:
        """The request as the engine passes it on. The fingerprint makes the compile cache tell vectors apart."""
        return {
            "vector": str(self.path),
            "alpha": self.alpha,
            "scope": self.scope,
            "fingerprint": self.vector.fingerprint,
        }

    def check_model(self, name: str, config: Any) -> None:
        """Refuses a model of another type or shape; weights cannot be told apart here, their fingerprint needs the
        checkpoint as transformers loads it.

        Raises: ArtifactError: naming what differs, or the blocks that the model has not.
        """
        text = config.get_text_config()
        found = {"model_type": config.model_type, "hidden_size": text.hidden_size, "n_blocks": text.num_hidden_layers}
        made_for = self.vector.model
        for key, value in found.items():
            if made_for[key] != value:
                raise ArtifactError(
                    f"the steering vector {self.vector.name} was made for model {made_for['model']!r} "
                    f"({key} {made_for[key]}), not for {name!r} ({key} {value}); give that model, or make the vector "
                    "anew on this one"
                )
        if beyond := [block for block in self.vector.block_ids if not 0 <= block < found["n_blocks"]]:
            raise ArtifactError(
                f"the steering vector {self.vector.name} names block {beyond[0]}, and {name!r} has blocks 0 to "
                f"{found['n_blocks'] - 1}; make the vector anew on this model"
            )

    def check_engine(self, config: Any) -> None:
        """Refuses what would leave tokens unsteered, or move others than the scope names. Raises: UsageError."""
        parallel, cache = config.parallel_config, config.cache_config
        if getattr(parallel, "enable_elastic_ep", False):
            raise UsageError("vLLM cannot be steered with elastic expert parallelism; leave out --enable-elastic-ep")
        if self.scope == "all":
            return
        if cache.enable_prefix_caching and check_scope(self.scope) is None:
            raise UsageError(
                f"the scope {self.scope} does not hold with prefix caching, where a request takes over the states of "
                "another's tokens; give enable_prefix_caching=False (server: --no-enable-prefix-caching)"
            )
        features = {
            "speculative decoding": config.speculative_config is not None,
            "a key-value connector": config.kv_transfer_config is not None,
            "micro-batches": getattr(parallel, "use_ubatching", False),
            "prefill context parallelism": getattr(parallel, "prefill_context_parallel_size", 1) > 1,
            "key-value sharing fast prefill": getattr(cache, "kv_sharing_fast_prefill", False),
        }
        for feature, is_on in features.items():
            if is_on:
                raise UsageError(f"the scope {self.scope} is not kept with {feature}; turn that off, or use all")


def _checking(create: Callable[..., Any]) -> Callable[..., Any]:
    """`EngineArgs.create_engine_config` that checks the request, so that a fault is raised in the caller's process."""

    @wraps(create)
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        config = create(self, *args, **kwargs)
        if (asked := _asked(config)) is not None:
            request = SteeringRequest.read(asked)
            request.check_model(config.model_config.model, config.model_config.hf_config)
            request.check_engine(config)
            config.additional_config = {**config.additional_config, KEY: request.settings()}
        return config

    setattr(create_engine_config, KEY, True)
    return create_engine_config


def _asked(config: Any) -> Any:
    """The request in a `VllmConfig`, None where there is none."""
    extra = config.additional_config
    return extra.get(KEY) if isinstance(extra, Mapping) else None


def _load_and_steer(wrapper: Any, *args: Any, **kwargs: Any) -> Any:
    """`WorkerWrapperBase.load_model`: loads the worker's share of the model, and steers it if asked to."""
    loaded = wrapper.worker.load_model(*args, **kwargs)
    config = wrapper.vllm_config
    if (asked := _asked(config)) is not None:
        request = SteeringRequest.read(asked)
        request.check_model(config.model_config.model, config.model_config.hf_config)
        request.check_engine(config)
        steer_runner(wrapper.worker.model_runner, request)
    return loaded


def steer_runner(runner: Any, request: SteeringRequest) -> None:
    """Steers the model of a vLLM model runner, before its first pass.

    Raises: UsageError: its decoder blocks or its way of making batches are not understood.
    """
    import torch

    if not request.alpha:
        return
    model, config = runner.get_model(), runner.vllm_config
    blocks = _blocks(model, int(config.model_config.hf_config.get_text_config().num_hidden_layers))
    dtype, device = config.model_config.dtype, runner.device
    mask = None
    if request.scope != "all":
        mask = torch.zeros((config.scheduler_config.max_num_batched_tokens, 1), dtype=dtype, device=device)
        _fill_before_passes(runner, mask, request.scope)
    steered = []
    for block, values in zip(request.vector.block_ids, request.vector.values, strict=True):
        if (module := blocks.get(block)) is not None:
            shift = (request.alpha * torch.from_numpy(values)).to(device, dtype)
            _add_to_output(module, shift, mask)
            steered.append(block)
    _logger.info("Steering %s x %g, scope %s, at blocks %s", request.vector.name, request.alpha, request.scope, steered)


def _blocks(model: Any, n_blocks: int) -> dict[int, nn.Module]:
    """The decoder blocks that this process holds, by number: those of other pipeline stages are left out.

    Raises: UsageError: not one module list of that length, or blocks that vLLM compiles one by one, past all hooks.
    """
    from torch import nn
    from vllm.compilation.wrapper import TorchCompileWithNoGuardsWrapper
    from vllm.model_executor.models.utils import PPMissingLayer

    name = type(model).__name__
    if hasattr(model, "get_language_model"):
        model = model.get_language_model()
    lists = {path: module for path, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    fitting = [
        module
        for path, module in lists.items()
        if len(module) == n_blocks and not any(path.startswith(f"{other}.") for other in lists if other != path)
    ]
    if len(fitting) != 1:
        seen = ", ".join(f"{path} ({len(module)})" for path, module in lists.items()) or "none"
        raise UsageError(
            f"the decoder blocks of {name} in vLLM were not found: looked for one module list of {n_blocks} entries, "
            f"saw {seen}; steer this model in transformers"
        )
    blocks = {i: block for i, block in enumerate(fitting[0]) if not isinstance(block, PPMissingLayer)}
    if any(isinstance(block, TorchCompileWithNoGuardsWrapper) for block in blocks.values()):
        raise UsageError(f"vLLM compiles the decoder blocks of {name} one by one; steer this model in transformers")
    return blocks


def _add_to_output(block: nn.Module, shift: torch.Tensor, mask: torch.Tensor | None) -> None:
    """Adds `shift` (hidden,) to what a block gives back, times `mask` (tokens, 1) where there is one."""
    block.register_buffer(_SHIFT, shift, persistent=False)
    if mask is not None:
        block.register_buffer(_MASK, mask, persistent=False)

    def add(module: nn.Module, _args: Any, output: Any) -> Any:  # traced when vLLM compiles
        hidden = output[0] if isinstance(output, tuple) else output
        amount = getattr(module, _SHIFT)
        # (tokens, hidden), or (1, tokens, hidden) in vLLM's transformers backend
        if hidden.shape[-1] != amount.shape[0] or (hidden.ndim != 2 and (hidden.ndim != 3 or hidden.shape[0] != 1)):
            raise UsageError(
                f"a {type(module).__name__} of vLLM gives back hidden states of shape {tuple(hidden.shape)}, which is "
                "not understood; steer this model in transformers"
            )
        if mask is not None:
            amount = getattr(module, _MASK)[: hidden.shape[-2]] * amount
        moved = hidden + amount
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    block.register_forward_hook(add)


def _fill_before_passes(runner: Any, mask: torch.Tensor, scope: str) -> None:
    """Has a model runner write into `mask`, before every pass, which of its tokens the scope names.

    Places are taken from the runner's positions on the device. So a prompt in pieces, a request that is computed again
    after preemption, and steps prepared ahead come out alike; tokens that pad a batch are never marked.
    """
    if hasattr(runner, "_prepare_inputs"):  # the runner of gpu_model_runner.py, and the CPU's
        prepare_first = runner._prepare_inputs

        def prepare(scheduler_output: Any, counts: np.ndarray, *args: Any, **kwargs: Any) -> Any:
            prepared = prepare_first(scheduler_output, counts, *args, **kwargs)
            lengths = runner.input_batch.num_prompt_tokens[: len(counts)]
            mark_tokens(mask, scope, runner.positions, lengths, counts)
            return prepared

        runner._prepare_inputs = prepare
    elif hasattr(runner, "prepare_inputs") and hasattr(runner, "req_states"):  # the second one, gpu/model_runner.py
        prepare_second = runner.prepare_inputs

        def prepare_batch(*args: Any, **kwargs: Any) -> Any:
            batch = prepare_second(*args, **kwargs)
            lengths = runner.req_states.prompt_len.np[batch.idx_mapping_np]
            mark_tokens(mask, scope, batch.positions, lengths, batch.num_scheduled_tokens)
            return batch

        runner.prepare_inputs = prepare_batch
    else:
        raise UsageError(f"the scope {scope} is not known how to keep in a {type(runner).__name__} of vLLM; use all")


def mark_tokens(
    mask: torch.Tensor, scope: str, positions: torch.Tensor, prompt_lengths: np.ndarray, counts: np.ndarray
) -> None:
    """Sets the mask of a batch: 1 for each token that the scope names, 0 for the others and for all behind the batch.

    Args:
        mask: (max tokens, 1), written to.
        positions: (at least tokens,) 0-based place of each token in its request, request by request.
        prompt_lengths, counts: (requests,) tokens of the prompt, and of the request in this batch.
    """
    import torch

    n_tokens = int(counts.sum())
    place = positions[:n_tokens]
    if (first := check_scope(scope)) is not None:
        chosen = place >= first
    else:
        lengths = torch.from_numpy(np.repeat(prompt_lengths, counts).astype(np.int64))
        if mask.is_cuda:  # pinned, a copy does not wait for the passes before
            lengths = lengths.pin_memory()
        lengths = lengths.to(mask.device, non_blocking=True)
        if scope == "prompt":
            chosen = place < lengths
        elif scope == "last-prompt":
            chosen = place == lengths - 1
        else:
            chosen = place >= lengths
    mask[:n_tokens, 0] = chosen.to(mask.dtype)
    mask[n_tokens:] = 0
