"""Steering by hooks on the outputs of decoder blocks, exact under padding and with a KV cache.

Where in a sequence the vector is added is the scope: `all` tokens, the `prompt`, the `last-prompt` token (once, just
before the answer starts), the `generated` tokens, or `from:N`, every token from the 0-based place N of its row on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..blocks import block_output, find_blocks
from ..errors import ArtifactError, UsageError, nearest
from ..lm import LanguageModel, weights_fingerprint
from .vectors import SteeringVector

if TYPE_CHECKING:
    import torch

Scope = str
SCOPES: tuple[str, ...] = ("all", "prompt", "last-prompt", "generated")
_FROM = "from:"


def check_scope(scope: str) -> int | None:
    """Returns N of a scope `from:N`, else None. Raises: UsageError: no scope."""
    if scope in SCOPES:
        return None
    if scope.startswith(_FROM) and scope.removeprefix(_FROM).isdecimal():
        return int(scope.removeprefix(_FROM))
    raise UsageError(f"unknown scope {scope!r}{nearest(scope, list(SCOPES))}; allowed are {', '.join(SCOPES)}, from:N")


@contextmanager
def steer(
    model: LanguageModel | Any,
    vector: SteeringVector,
    alpha: float | Sequence[float],
    *,
    scope: Scope = "all",
    prompt_lengths: Sequence[int] | None = None,
) -> Iterator[None]:
    """Adds alpha times a vector to the outputs of its blocks while the block runs, and always undoes it.

    A forward pass without a cached past is taken as the prompt (as in generation); later passes as generated tokens.
    Where a pass holds prompt and answer, or a prompt is read in pieces, give `prompt_lengths`.

    Args:
        model: a LanguageModel, or a `transformers` causal language model (its weights are hashed to check the vector).
        alpha: strength in the vector's unit; at 0 nothing is hooked, so the logits are the same bits. A sequence gives
            each row of a batch its own; a batch of n times as many rows gives each n neighbours (`generate` with
            `num_return_sequences=n`). Not within `evaluate.generate`, which orders prompts and drops finished rows.
        scope: which tokens are moved; padding (by the attention mask) never is.
        prompt_lengths: real tokens of the prompt of each row.
    Raises: ArtifactError: the vector belongs to another model. UsageError: unknown scope, or alpha not finite.
    """
    import torch

    first = check_scope(scope)
    alphas = list(alpha) if isinstance(alpha, Sequence) else [float(alpha)]
    if not alphas or not all(math.isfinite(value) for value in alphas):
        raise UsageError(f"alpha must be a finite number, not {alpha}")
    blocks = _blocks_of(model, vector)
    decoder = model.decoder if isinstance(model, LanguageModel) else model.get_decoder()
    if not any(alphas):
        yield
        return
    where = _Where(scope, first, prompt_lengths)
    strength = torch.tensor(alphas, dtype=torch.float32) if isinstance(alpha, Sequence) else None
    scale = 1.0 if isinstance(alpha, Sequence) else alphas[0]
    handles = [decoder.register_forward_pre_hook(where.note, with_kwargs=True)]
    try:
        for block, values in zip(vector.block_ids, vector.values, strict=True):
            adder = _Adder(where, scale * torch.from_numpy(values), strength, vector.unit == "relative")
            # In front of the hooks with which transformers keeps hidden states, so that these are the moved ones.
            handles.append(blocks[block].register_forward_hook(adder, prepend=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _blocks_of(model: LanguageModel | Any, vector: SteeringVector) -> Any:
    """The decoder blocks of a model that the vector belongs to."""
    if isinstance(model, LanguageModel):
        vector.check_model(model)
        return model.blocks
    found = weights_fingerprint(model)
    if found != vector.model_fingerprint:
        raise ArtifactError(
            f"the steering vector {vector.name} was made for model {vector.model['model']!r} (weights_fingerprint "
            f"{vector.model_fingerprint}), not for this {type(model).__name__} ({found}); give that model, or make the "
            "vector anew on this one"
        )
    return find_blocks(model)


class _Where:
    """Works out, at the start of every forward pass, which tokens the scope names."""

    def __init__(self, scope: Scope, first: int | None, prompt_lengths: Sequence[int] | None) -> None:
        self.scope = scope
        self.first = first
        self.prompt_lengths = prompt_lengths
        self.mask: torch.Tensor | bool = False  # (rows, tokens) bool; or all of them, or none
        self._read: tuple[int, torch.Tensor] | None = None  # places filled by now; (rows, 1) real tokens among them

    @property
    def _counts(self) -> bool:
        """Whether the place of a token in its row says if it is moved, not the pass that it is read in."""
        return self.prompt_lengths is not None or self.first is not None

    def note(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        import torch

        ids = kwargs.get("input_ids", args[0] if args else None)
        inputs = ids if ids is not None else kwargs["inputs_embeds"]
        n_rows, n_tokens = inputs.shape[:2]
        cache = kwargs.get("past_key_values")
        n_past = int(cache.get_seq_length()) if cache is not None else 0
        attention = kwargs.get("attention_mask")
        if n_past > 0 and not self._counts:  # the prompt has been read before
            if self.scope in ("prompt", "last-prompt"):
                self.mask = False
                return
            if n_tokens == 1 or attention is None:  # a token that is being generated is no padding
                self.mask = True
                return
        if attention is None and self.scope == "all":
            self.mask = True
            return
        real = _real_tokens(attention, n_rows, n_tokens, n_past)
        if real is None:
            real = torch.ones((n_rows, n_tokens), dtype=torch.bool, device=inputs.device)
        if isinstance(attention, torch.Tensor) and attention.ndim == 2 and attention.shape[1] > n_tokens:
            before = attention[:, :-n_tokens].bool().sum(dim=1, keepdim=True)
        elif self._read is not None and self._read[0] == n_past > 0 and len(self._read[1]) == n_rows:
            before = self._read[1]
        elif n_past == 0 or attention is None or self.scope == "all" or not self._counts:
            before = torch.full((n_rows, 1), n_past, device=inputs.device)
        else:
            raise UsageError(
                f"the scope {self.scope} cannot be told from an attention mask of this form with a cache that was "
                "filled before; give the two-dimensional mask of all tokens"
            )
        self._read = (n_past + n_tokens, before + real.sum(dim=1, keepdim=True))
        self.mask = self._select(real, before, n_past)

    def _select(self, real: torch.Tensor, before: torch.Tensor, n_past: int) -> torch.Tensor:
        """Args: real: (rows, tokens) of this pass; before: (rows, 1) real tokens of earlier passes."""
        import torch

        if self.scope == "all":
            return real
        place = before + real.cumsum(dim=1)  # 1-based among the real tokens of a row
        if self.first is not None:
            return real & (place > self.first)
        if self.prompt_lengths is None:
            if n_past > 0:
                return real  # generated: the others were settled before
            length = real.sum(dim=1, keepdim=True)
        elif len(real) % len(self.prompt_lengths):
            raise UsageError(
                f"{len(self.prompt_lengths)} prompt_lengths were given for {len(real)} rows; give one each"
            )
        else:
            length = torch.tensor(list(self.prompt_lengths), device=real.device)[:, None]
            length = length.repeat_interleave(len(real) // len(length), dim=0)
        if self.scope == "prompt":
            return real & (place <= length)
        if self.scope == "last-prompt":
            return real & (place == length)
        return real & (place > length)


def _real_tokens(attention: Any, n_rows: int, n_tokens: int, n_past: int) -> torch.Tensor | None:
    """(rows, tokens) bool: the tokens of this pass that are no padding; None where all are real.

    Caches of fixed size come with a prepared (rows, 1, tokens, keys) mask, or several by kind of block; a token is
    padding where it may not look at itself.
    """
    import torch

    if isinstance(attention, dict):
        masks = [mask for mask in attention.values() if mask is not None]
        attention = max(masks, key=lambda mask: mask.shape[-1], default=None)
    if attention is None:
        return None
    mask: torch.Tensor = attention
    if mask.ndim == 2:
        return mask[:, -n_tokens:].bool()
    if n_past > 0 and n_tokens == 1:  # a token that is being generated is no padding
        return None
    if mask.shape[-1] < n_past + n_tokens:
        raise UsageError(
            "padding cannot be told from the attention mask of a window that has moved on; read the prompt in one "
            "pass, or use a cache that grows"
        )
    places = torch.arange(n_tokens, device=mask.device)
    seen = mask[:, 0, places, n_past + places]
    return (seen if seen.dtype == torch.bool else seen == 0).expand(n_rows, n_tokens)


class _Adder:
    """A forward hook that adds `shift` (hidden,) to the marked tokens; `relative` scales it by each token's norm."""

    def __init__(self, where: _Where, shift: torch.Tensor, strength: torch.Tensor | None, relative: bool) -> None:
        self.where = where
        self.shift = shift
        self.strength = strength  # (rows,) a factor of each row
        self.relative = relative
        self._ready: torch.Tensor | None = None  # the shift on the device and in the dtype of the stream

    def __call__(self, _module: Any, _args: Any, output: Any) -> Any:
        mask = self.where.mask
        if mask is False:
            return None
        hidden = block_output(output)  # (rows, tokens, hidden)
        if mask is True and self.strength is None and not self.relative:
            if self._ready is None or self._ready.device != hidden.device or self._ready.dtype != hidden.dtype:
                self._ready = self.shift.to(hidden.device, hidden.dtype)
            moved = hidden + self._ready
        else:
            moved = hidden + self._amount(hidden, mask).to(hidden.dtype)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    def _amount(self, hidden: torch.Tensor, mask: torch.Tensor | bool) -> torch.Tensor:
        """What is added, float32, of the stream's shape or one that spreads to it."""
        amount = self.shift.to(hidden.device).expand(1, 1, -1)
        if self.strength is not None:
            if len(hidden) % len(self.strength):
                raise UsageError(f"{len(self.strength)} alphas were given for {len(hidden)} rows; give one each")
            factor = self.strength.to(hidden.device).repeat_interleave(len(hidden) // len(self.strength))
            amount = amount * factor[:, None, None]
        if self.relative:
            amount = amount * hidden.float().norm(dim=-1, keepdim=True)
        return amount if mask is True else mask.to(hidden.device)[..., None] * amount  # type: ignore[union-attr]
