"""What a model is made of, found by structure: its decoder blocks, their MLPs, and whether padding can disturb them.

No class or attribute name of an architecture stands here. The blocks are the one module list as long as
`num_hidden_layers`; everything else is seen in one short forward pass, which also holds the blocks against
`hidden_states`. A model that shows anything else is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

_READ, _FOLLOWING = 5, 3  # tokens of the short pass: the same in both its rows, then others in each
# Largest relative error that is still rounding: float32 differs in the last bits only, two bytes keep 2-3 digits.
_FLOAT32_ERROR, _HALF_ERROR = 1e-4, 0.05


@dataclass(frozen=True)
class Structure:
    """What one short forward pass has shown of a model."""

    mlps: list[nn.Module] | None
    """Per block, the module whose output is the MLP's contribution (the experts' too), before any norm behind it; None
    where some block has no such module or several."""
    mlp_candidates: str
    """What fitted in the first block where not exactly one did; empty where the MLPs were found."""
    causal: bool
    """Whether a token's hidden states, without an attention mask, are the same whatever follows it."""


@dataclass(frozen=True)
class _Call:
    """One call of a module."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    """What it returned, or the first of a tuple."""

    def was_given(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor was among the arguments."""
        return any(_same(value, tensor) for value in (*self.args, *self.kwargs.values()))


def find_blocks(model: Any) -> list[nn.Module]:
    """Finds the decoder blocks: the one ModuleList of the text decoder with `num_hidden_layers` entries.

    Raises: UsageError: none or several fit; the message names the lists that were seen.
    """
    from torch import nn

    n_blocks = int(model.config.get_text_config().num_hidden_layers)
    lists = {name: module for name, module in model.get_decoder().named_modules() if isinstance(module, nn.ModuleList)}
    # A list inside a block (experts, say) may have the same length: only outermost lists count.
    fitting = {
        name: module
        for name, module in lists.items()
        if len(module) == n_blocks and not any(name.startswith(f"{other}.") for other in lists if other != name)
    }
    if len(fitting) != 1:
        seen = ", ".join(f"{name} ({len(module)})" for name, module in lists.items()) or "none"
        raise UsageError(
            f"the decoder blocks of model type {model.config.model_type!r} were not found: looked for one module list "
            f"of {n_blocks} entries (num_hidden_layers), saw {seen}"
        )
    return list(next(iter(fitting.values())))


def block_output(output: Any) -> torch.Tensor:
    """The hidden states (batch, tokens, hidden) in what a decoder block or an MLP returned."""
    return output[0] if isinstance(output, tuple) else output  # type: ignore[no-any-return]


def inspect_blocks(model: Any, blocks: list[nn.Module]) -> Structure:
    """Runs two rows of eight tokens, checks that the blocks are what they seem, and finds their MLPs.

    What a hook on block i sees must be `hidden_states[i + 1]`, bit for bit, and what block i + 1 is given. The last
    block's output must be what the final norm (any one module outside the blocks) turns into `hidden_states[-1]`, or
    that itself. A NaN equals a NaN here: broken weights are reported where activations are read, by row and block.

    Raises: UsageError: the model cannot be run, its blocks are not understood, or what follows a token reaches it
        even through an attention mask. The message says what was looked for and what was seen.
    Cost: one forward pass of 16 tokens (a second one for a model that is not causal without a mask).
    """
    inside = {module for block in blocks for module in block.modules()}
    outside = {
        name: module
        for name, module in model.get_decoder().named_modules()
        if module not in inside and not any(True for _ in module.children())
    }
    children = [child for block in blocks for child in block.children()]
    states, calls = _run(model, [*blocks, *outside.values(), *children])
    _check(model, blocks, outside, states, calls)
    last = calls[blocks[-1]][0].output
    causal = _leak(last) <= _tolerance(last)
    if not causal:
        _, masked = _run(model, blocks, masked=True)
        if _leak(masked[blocks[-1]][0].output) > _tolerance(last):
            raise _not_understood(
                model,
                "looked for hidden states that what follows a token does not change, at least where the attention mask "
                "leaves it out, saw them change",
            )
    mlps: list[nn.Module] = []
    for i, block in enumerate(blocks):
        fitting = _mlps(block, calls, last.shape)
        if len(fitting) != 1:
            return Structure(None, f"{', '.join(fitting) or 'none'} in block {i}", causal)
        mlps += fitting.values()
    return Structure(mlps, "", causal)


def adds_mlp_unscaled(model: Any, blocks: list[nn.Module], mlps: list[nn.Module]) -> bool:
    """Measures whether adding a vector to every MLP's output moves the output of its block by exactly that vector.

    Each block is run again on what it was given in a short forward pass, with a random vector as large as its output
    added to its MLP's. So it is where the MLP's output joins the residual stream unscaled and without a norm.

    Returns: whether it holds for all blocks, within the rounding of the model's dtype.
    Cost: two forward passes of 16 tokens.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    _, calls = _run(model, blocks)
    for block, mlp in zip(blocks, mlps, strict=True):
        call = calls[block][0]
        size = call.output.float().square().mean().sqrt().item() or 1.0
        vector = size * torch.randn(call.output.shape[-1], generator=generator)
        vector = vector.to(call.output.device, call.output.dtype)
        handle = mlp.register_forward_hook(_adder(vector))
        try:
            with torch.inference_mode():
                moved = block_output(block(*call.args, **call.kwargs)).float() - call.output.float()
        finally:
            handle.remove()
        error = (moved - vector.float()).norm() / vector.float().expand_as(moved).norm()
        if not error.item() <= _tolerance(call.output):
            return False
    return True


def _adder(vector: torch.Tensor) -> Any:
    def add(_module: Any, _args: Any, output: Any) -> Any:
        moved = block_output(output) + vector
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    return add


def _run(
    model: Any, modules: list[nn.Module], *, masked: bool = False
) -> tuple[tuple[torch.Tensor, ...], dict[nn.Module, list[_Call]]]:
    """Runs the short pass; returns its `hidden_states` and the calls of the modules, in order."""
    import torch

    calls: dict[nn.Module, list[_Call]] = {module: [] for module in modules}

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls[module].append(_Call(args, kwargs, block_output(output)))

    device = next(model.parameters()).device
    places = torch.arange(_READ + _FOLLOWING, device=device)
    other = torch.where(places < _READ, places, places + _FOLLOWING)
    ids = (1 + torch.stack([places, other])) % int(model.config.get_text_config().vocab_size)  # (2, 8)
    arguments: dict[str, Any] = {"attention_mask": (places < _READ).long().expand(2, -1)} if masked else {}
    handles = [module.register_forward_hook(keep, with_kwargs=True) for module in calls]
    try:
        with torch.inference_mode():
            output = model.get_decoder()(input_ids=ids, output_hidden_states=True, use_cache=False, **arguments)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise _not_understood(
            model,
            f"looked for a forward pass over {ids.numel()} tokens, saw {type(error).__name__}: "
            f"{str(error).strip().partition(chr(10))[0]}",
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return getattr(output, "hidden_states", None) or (), calls


def _check(
    model: Any,
    blocks: list[nn.Module],
    outside: dict[str, nn.Module],
    states: tuple[torch.Tensor, ...],
    calls: dict[nn.Module, list[_Call]],
) -> None:
    """Holds the block outputs against the hidden states, the next block's input and the final norm."""
    import torch

    if len(states) != len(blocks) + 1:
        raise _not_understood(
            model, f"looked for {len(blocks) + 1} hidden_states of its {len(blocks)} decoder blocks, saw {len(states)}"
        )
    shape = (2, _READ + _FOLLOWING, int(model.config.get_text_config().hidden_size))
    for i, block in enumerate(blocks):
        if len(calls[block]) != 1:
            raise _not_understood(
                model, f"looked for one run of decoder block {i} in a forward pass, saw {len(calls[block])}"
            )
        output = calls[block][0].output
        if not isinstance(output, torch.Tensor) or output.shape != shape:
            seen = f"{tuple(output.shape)}" if isinstance(output, torch.Tensor) else f"a {type(output).__name__}"
            raise _not_understood(model, f"looked for an output of shape {shape} of decoder block {i}, saw {seen}")
        if block is blocks[-1]:
            break
        if not _same(output, states[i + 1]):
            found = [f"hidden_states[{k}]" for k, state in enumerate(states) if _same(output, state)]
            raise _not_understood(
                model,
                f"the output of decoder block {i} is not hidden_states[{i + 1}], as was looked for, but "
                f"{found[0] if found else 'none of them'}",
            )
        if not any(call.was_given(output) for call in calls[blocks[i + 1]]):
            raise _not_understood(
                model, f"looked for decoder block {i + 1} being given the output of block {i}, saw other input"
            )
    if not _same(output, states[-1]) and not any(
        call.was_given(output) and _same(call.output, states[-1])
        for module in outside.values()
        for call in calls[module]
    ):
        ran = [name for name, module in outside.items() if calls[module]]
        raise _not_understood(
            model,
            f"the output of decoder block {len(blocks) - 1} is not hidden_states[{len(blocks)}], nor what a final norm "
            f"turns into that: looked for a module with this input and output, saw {', '.join(ran) or 'none'} run",
        )


def _mlps(block: nn.Module, calls: dict[nn.Module, list[_Call]], shape: torch.Size) -> dict[str, nn.Module]:
    """Direct children of a block that may be its MLP, by name.

    They own matrices (norms do not), are given one tensor and nothing else (attention is given masks and positions),
    and return hidden states. Quantised weights may be buffers, so these count too.
    """
    import torch

    fitting: dict[str, nn.Module] = {}
    for name, child in block.named_children():
        if len(calls[child]) != 1 or not any(t.ndim >= 2 for t in (*child.parameters(), *child.buffers())):
            continue
        call = calls[child][0]
        given = (*call.args, *call.kwargs.values())
        if len(given) != 1 or not all(isinstance(value, torch.Tensor) for value in (*given, call.output)):
            continue
        if call.output.shape == shape:
            fitting[name] = child
    return fitting


def _leak(output: torch.Tensor) -> float:
    """How far the two rows (2, tokens, hidden) differ where they read the same, as a mean relative error over tokens.

    Both rows go through the same kernels in the same shapes, so rounding is all but out of it. The mean is over tokens
    because a first token can be a thousand times longer than the others.
    """
    one, two = output[:, :_READ].float()
    return float(((one - two).norm(dim=-1) / one.norm(dim=-1).clamp(min=1e-30)).nan_to_num().mean())


def _tolerance(output: torch.Tensor) -> float:
    return _HALF_ERROR if output.element_size() < 4 else _FLOAT32_ERROR


def _same(value: Any, tensor: torch.Tensor) -> bool:
    """Whether a value is a tensor with the same numbers, wherever the two lie."""
    import torch

    if not isinstance(value, torch.Tensor) or value.shape != tensor.shape:
        return False
    return value is tensor or torch.allclose(value.to(tensor.device), tensor, rtol=0, atol=0, equal_nan=True)


def _not_understood(model: Any, reason: str) -> UsageError:
    return UsageError(
        f"model type {model.config.model_type!r} is not understood: {reason}; this model cannot be read safely"
    )
