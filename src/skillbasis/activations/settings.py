"""How texts become vectors."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..errors import UsageError, nearest
from ..lm import parse_layers
from .pooling import POOLINGS, SPANS, Pooling, Span

_CPU_BATCH_TOKENS = 1024  # on a processor more only leaves its caches (measured: docs/experiments.md)
_GPU_BATCH_TOKENS = 32768


@dataclass(frozen=True)
class ExtractionSettings:
    """How texts become vectors; all of it is recorded, and a basis remembers it."""

    layers: str = "inner"
    """`inner` (all blocks but the first and the last, the paper's choice), `all`, a third of them (`early`, `middle`,
    `late`), or a list such as `2,5,8-11`."""
    pooling: Pooling = "mean"
    """How the tokens of the span become one vector: their `mean` (the paper's choice), the `last` one's, the `max` of
    each number, or `weighted`: a mean in which the t-th token of the span weighs in proportion to t (as in RDS+)."""
    span: Span = "all"
    max_length: int = 8000
    """Tokens after which a row is cut (the paper's 8,000); never more than the model's context."""
    batch_tokens: int | Literal["auto"] = "auto"
    """Rows x longest row of one forward pass. `auto` takes 1,024 on a processor and 32,768 on an accelerator. Either is
    halved when memory runs out. Vectors of other batches differ by rounding only."""

    def __post_init__(self) -> None:
        for name, value, allowed in (("pooling", self.pooling, POOLINGS), ("span", self.span, SPANS)):
            if value not in allowed:
                hint = nearest(value, list(allowed))
                raise UsageError(f"unknown {name} {value!r}{hint}; allowed are {', '.join(allowed)}")
        for name, number in (("max_length", self.max_length), ("batch_tokens", self.batch_tokens)):
            if number != "auto" and int(number) < 1:
                raise UsageError(f"{name} must be at least 1, not {number}")


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model without holding it: it may be loaded on other machines."""

    identity: dict[str, Any]
    n_blocks: int
    hidden_size: int
    context_length: int
    """Longest input in tokens."""
    dtype: str
    on_accelerator: bool


@dataclass(frozen=True)
class ReadingPlan:
    """Settings with what they come to for one model."""

    block_ids: tuple[int, ...]
    pooling: Pooling
    span: Span
    max_length: int
    batch_tokens: int

    @classmethod
    def of(cls, settings: ExtractionSettings, facts: ModelFacts) -> ReadingPlan:
        """Raises: UsageError: blocks that the model does not have."""
        automatic = _GPU_BATCH_TOKENS if facts.on_accelerator else _CPU_BATCH_TOKENS
        return cls(
            tuple(parse_layers(settings.layers, facts.n_blocks)),
            settings.pooling,
            settings.span,
            min(settings.max_length, facts.context_length),
            automatic if settings.batch_tokens == "auto" else int(settings.batch_tokens),
        )

    def inputs(self, facts: ModelFacts, corpus_fingerprint: str) -> dict[str, Any]:
        """All that the activations of a corpus depend on.

        Neither the place of the model nor the size of batches is among it: the same weights under another path give
        the same activations, and after memory ran out the work goes on with smaller batches.
        """
        own = asdict(self) | {"layers": list(self.block_ids)}
        model = {key: value for key, value in facts.identity.items() if key not in ("model", "revision")}
        return (
            model
            | {key: own[key] for key in ("layers", "pooling", "span", "max_length")}
            | {"dtype": facts.dtype, "corpus_fingerprint": corpus_fingerprint}
        )

    def record(self, facts: ModelFacts, corpus_source: str, corpus_fingerprint: str) -> dict[str, Any]:
        """What a manifest says of how activations were made; a basis copies it."""
        return facts.identity | {
            "block_ids": list(self.block_ids),
            "pooling": self.pooling,
            "span": self.span,
            "max_length": self.max_length,
            "dtype": facts.dtype,
            "corpus": corpus_source,
            "corpus_fingerprint": corpus_fingerprint,
        }
