"""How a model is fine-tuned, with the paper's settings as presets."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import UsageError, nearest


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters on the projections of attention and MLP (`adapters.py`); the defaults are the paper's."""

    rank: int = 16
    alpha: int = 32
    """What an adapter adds is multiplied by alpha / rank."""
    dropout: float = 0.05

    def __post_init__(self) -> None:
        for name in ("rank", "alpha"):
            if getattr(self, name) <= 0:
                raise UsageError(f"the {name} of LoRA must be above 0, not {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"the dropout of LoRA must be at least 0 and below 1, not {self.dropout}")


@dataclass(frozen=True)
class TrainingSettings:
    """Supervised fine-tuning with AdamW, linear warm-up and cosine decay; the loss is on the response only."""

    learning_rate: float = 5e-5
    epochs: float = 1.0
    batch_size: int = 64
    """Rows per optimizer step, over all processes together."""
    micro_batch_size: int = 2
    """Rows per forward pass of one process."""
    warmup_fraction: float = 0.1
    max_length: int = 8000
    """Tokens after which prompt plus response is cut."""
    seed: int = 0
    """Seed of the order of rows, and of dropout."""
    bf16: bool = True
    """Mixed precision where a GPU is used; on the CPU training is in float32."""
    lora: LoraSettings | None = None

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epochs", "batch_size", "micro_batch_size", "max_length"):
            if getattr(self, name) <= 0:
                raise UsageError(f"{name} must be above 0, not {getattr(self, name)}")
        if not 0 <= self.warmup_fraction <= 1:
            raise UsageError(f"warmup_fraction must be from 0 to 1, not {self.warmup_fraction}")
        if self.batch_size % self.micro_batch_size:
            raise UsageError(
                f"batch_size {self.batch_size} is no multiple of micro_batch_size {self.micro_batch_size}; "
                "choose one that is"
            )

    def with_seed(self, seed: int) -> TrainingSettings:
        return replace(self, seed=seed)

    def accumulation_steps(self, n_processes: int) -> int:
        """Forward passes that each process adds up for one optimizer step.

        Raises: UsageError: the batch cannot be shared out evenly.
        """
        rows = self.micro_batch_size * n_processes
        if self.batch_size % rows:
            raise UsageError(
                f"batch_size {self.batch_size} counts rows over all {n_processes} processes and is no multiple of "
                f"micro_batch_size x processes = {rows}; choose one that is"
            )
        return self.batch_size // rows


PRESETS: dict[str, TrainingSettings] = {
    # arXiv 2604.17614, selection experiments
    "reasoning": TrainingSettings(),
    # arXiv 2604.17614, safety experiments: the adapters and their learning rate; it gives neither epochs nor batch
    "safety": TrainingSettings(learning_rate=1e-4, lora=LoraSettings()),
    # the embedded reasoner: 1,000 rows, 2 epochs, seconds on one core
    "embedded": TrainingSettings(learning_rate=5e-4, epochs=2, batch_size=24, micro_batch_size=24, max_length=256),
}


def preset(name: str) -> TrainingSettings:
    """Returns a preset by name. Raises: UsageError: unknown, with the nearest name."""
    if name not in PRESETS:
        raise UsageError(f"unknown preset {name!r}{nearest(name, list(PRESETS))}; allowed are {', '.join(PRESETS)}")
    return PRESETS[name]
