"""How a sparse autoencoder is trained, and what is told of a step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import UsageError


@dataclass(frozen=True)
class SaeSettings:
    """How a sparse autoencoder is trained, and how many of its directions are kept."""

    k: int | None = 10
    """Directions kept in the basis, the most important latents; None keeps every latent that is ever active."""
    dictionary_size: int = 128
    """Latents m. Twice as many as there are directions, or more: with fewer to spare, training is caught halfway. Each
    needs rows to be learnt from: there must be as many training rows, and better a hundred times as many."""
    active: int = 4
    """Latents that make up one row, at most: the k of TopK. More explain more of the rows; fewer give directions that
    differ less between seeds."""
    seed: int = 0
    """Of the first dictionary, the rows held out and the order of the others."""
    steps: int = 4000
    """Batches trained on. One epoch is n / batch_size of them; live activations need a pass of the model for each epoch
    that does not fit the buffer."""
    batch_size: int = 256
    """Rows of a batch."""
    learning_rate: float = 0.03
    """About the angle in radians by which a step turns a direction: Adam's rate per coordinate times sqrt(d), so that
    one value suits all sizes."""
    normalize_blocks: bool = False
    """Divide each block by its root-mean-square deviation for the training, so that late blocks, whose activations are
    larger, do not outweigh the others. The directions are in the units of the activations all the same."""
    held_out_share: float = 0.1
    """Of the rows, kept out of training to measure the reconstruction."""
    revival_weight: float = 1 / 32
    """Of the loss that revives dead latents (AuxK, the paper's alpha); 0 leaves them dead."""
    revived: int | None = None
    """Dead latents that may model the error of one row (the paper's k_aux); by default the power of two below d / 2."""
    dead_after: int | None = None
    """Training rows without an activation after which a latent counts as dead; by default an epoch, or a tenth of all
    rows trained on where that is less."""
    buffer_bytes: int = 1 << 29
    """Memory of the rows that are shuffled together. Training rows that fit are read once."""
    device: str = "auto"
    """`auto` takes CUDA where there is one, else the CPU. On one CPU the same seed gives the same bytes."""

    def __post_init__(self) -> None:
        least = {"dictionary_size": 2, "active": 1, "steps": 1, "batch_size": 1, "buffer_bytes": 1, "seed": 0}
        least |= {name: 1 for name in ("k", "revived", "dead_after") if getattr(self, name) is not None}
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise UsageError(f"{name} must be at least {minimum}, not {getattr(self, name)}")
        for name in ("active", "k"):
            if (getattr(self, name) or 0) > self.dictionary_size:
                raise UsageError(
                    f"{name} = {getattr(self, name)} is more than the {self.dictionary_size} latents of the "
                    f"dictionary; choose a smaller {name} or a larger dictionary_size"
                )
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise UsageError(f"learning_rate must be above 0, not {self.learning_rate}")
        if not 0 < self.held_out_share < 1:
            raise UsageError(f"held_out_share must be between 0 and 1, not {self.held_out_share}")
        if not (math.isfinite(self.revival_weight) and self.revival_weight >= 0):
            raise UsageError(f"revival_weight must not be negative, not {self.revival_weight}")


@dataclass(frozen=True)
class TrainingStep:
    """What is known after a step of training."""

    done: int
    """Steps done."""
    total: int
    unexplained: float
    """Fraction of the batch's variance that was not reconstructed."""
    n_dead: int
    """Latents that have not been active for the last `dead_after` rows."""
