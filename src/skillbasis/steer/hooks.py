"""Steering by hooks on the outputs of decoder blocks, exact under padding and with a KV cache.

Where in a sequence the vector is added is the scope: `all` tokens, the `prompt`, the `last-prompt` token (once, just
before the answer starts), or the `generated` tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from ..basis import SkillBasis
from ..blocks import block_output
from ..errors import ArtifactError, UsageError, nearest
from ..lm import LanguageModel
from .vectors import SteeringVector, direction_vector

if TYPE_CHECKING:
    import torch

Scope = Literal["all", "prompt", "last-prompt", "generated"]
SCOPES: tuple[str, ...] = get_args(Scope)


@contextmanager
def steer(
    lm: LanguageModel,
    vector: SteeringVector,
    alpha: float,
    *,
    scope: Scope = "all",
    prompt_lengths: Sequence[int] | None = None,
) -> Iterator[None]:
    """Adds alpha times a vector to the outputs of its blocks while the block runs, and always undoes it.

    A forward pass without a cached past is taken as the prompt (as in generation); later passes as generated tokens.
    For full sequences of prompt and answer give `prompt_lengths`.

    Args:
        alpha: strength in the vector's unit; at 0 nothing is hooked, so the logits are the same bits.
        scope: which tokens are moved; padding (by the attention mask) never is.
        prompt_lengths: real tokens of the prompt of each row, for passes that hold prompt and answer.
    Raises: ArtifactError: the vector belongs to another model. UsageError: unknown scope, or alpha not finite.
    """
    import math

    import torch

    if scope not in SCOPES:
        raise UsageError(f"unknown scope {scope!r}{nearest(scope, list(SCOPES))}; allowed are {', '.join(SCOPES)}")
    if not math.isfinite(alpha):
        raise UsageError(f"alpha must be a finite number, not {alpha}")
    if vector.model_fingerprint != lm.weights_fingerprint:
        raise ArtifactError(
            f"the steering vector {vector.name} was made for other weights ({vector.model_fingerprint}) than "
            f"{lm.name!r} has ({lm.weights_fingerprint}); discover a basis of this model"
        )
    if alpha == 0:
        yield
        return
    where = _Where(scope, prompt_lengths)
    shifts = alpha * torch.from_numpy(vector.values).to(lm.device)
    handles = [lm.decoder.register_forward_pre_hook(where.note, with_kwargs=True)]
    try:
        for block, shift in zip(vector.block_ids, shifts, strict=True):
            handles.append(lm.blocks[block].register_forward_hook(_adder(where, shift, vector.unit == "relative")))
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Where:
    """Works out, at the start of every forward pass, which tokens the scope names."""

    def __init__(self, scope: Scope, prompt_lengths: Sequence[int] | None) -> None:
        self.scope = scope
        self.prompt_lengths = prompt_lengths
        self.mask: torch.Tensor | None = None  # (rows, tokens) bool; None means none of them

    def note(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        import torch

        ids = kwargs.get("input_ids", args[0] if args else None)
        inputs = ids if ids is not None else kwargs["inputs_embeds"]
        n_rows, n_tokens = inputs.shape[:2]
        cache = kwargs.get("past_key_values")
        n_past = int(cache.get_seq_length()) if cache is not None else 0
        attention = kwargs.get("attention_mask")
        if isinstance(attention, torch.Tensor) and attention.ndim == 2:
            real = attention[:, -n_tokens:].bool()
        else:
            real = torch.ones((n_rows, n_tokens), dtype=torch.bool, device=inputs.device)
        self.mask = self._select(real, n_past)

    def _select(self, real: torch.Tensor, n_past: int) -> torch.Tensor | None:
        import torch

        if self.scope == "all":
            return real
        if n_past > 0:  # the prompt has been read before
            return real if self.scope == "generated" else None
        place = real.cumsum(dim=1)  # 1-based place among the real tokens of a row
        if self.prompt_lengths is None:
            length = real.sum(dim=1, keepdim=True)
        else:
            if len(self.prompt_lengths) != len(real):
                raise UsageError(
                    f"{len(self.prompt_lengths)} prompt_lengths were given for {len(real)} rows; give one each"
                )
            length = torch.tensor(list(self.prompt_lengths), device=real.device)[:, None]
        if self.scope == "prompt":
            return real & (place <= length)
        if self.scope == "last-prompt":
            return real & (place == length)
        return real & (place > length)


def _adder(where: _Where, shift: torch.Tensor, relative: bool) -> Any:
    """A forward hook that adds `shift` (hidden,) to the marked tokens; `relative` scales it by each token's norm."""

    def add(_module: Any, _args: Any, output: Any) -> Any:
        if where.mask is None:
            return None
        hidden = block_output(output)  # (rows, tokens, hidden)
        amount = where.mask[..., None] * shift
        if relative:
            amount = amount * hidden.float().norm(dim=-1, keepdim=True)
        moved = hidden + amount.to(hidden.dtype)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    return add


def steering_of(
    lm: LanguageModel, text: str, scope: str, unit: str
) -> tuple[Callable[[LanguageModel], AbstractContextManager[None]], dict[str, Any]]:
    """Reads `BASIS:DIRECTION:ALPHA` into an intervention for generation and what describes it in a record.

    Raises: UsageError: not of that form. ArtifactError: the basis belongs to another model.
    """
    parts = text.rsplit(":", 2)
    if len(parts) != 3:
        raise UsageError(f"--steer {text!r} is not of the form BASIS:DIRECTION:ALPHA, such as basis:3+:0.5")
    path, name, strength = parts
    try:
        alpha = float(strength)
    except ValueError:
        raise UsageError(f"alpha in --steer must be a number, not {strength!r}") from None
    sign: Literal["+", "-"] = "-" if name.endswith("-") else "+"
    if not name.rstrip("+-").isdigit():
        raise UsageError(f"{name!r} in --steer is no direction; write a number and a sign, such as 3+")
    if scope not in SCOPES:
        raise UsageError(f"unknown scope {scope!r}{nearest(scope, list(SCOPES))}; allowed are {', '.join(SCOPES)}")
    basis = SkillBasis.load(path)
    basis.check_model(lm)
    vector = direction_vector(basis, int(name.rstrip("+-")), sign, unit=unit)  # type: ignore[arg-type]
    settings = {"basis": basis.fingerprint, "direction": vector.name, "alpha": alpha, "scope": scope, "unit": unit}
    return partial(steer, vector=vector, alpha=alpha, scope=cast(Scope, scope)), settings
