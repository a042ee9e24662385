"""Train a sparse autoencoder on activations: moments of the rows, training, measuring, and what is kept on disk.

Dimension names: n rows, d = blocks x hidden features, m latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..activations import ActivationSource
from ..artifact import fingerprint
from ..errors import SkillbasisError, UsageError
from .autoencoder import Autoencoder, Trainer
from .batches import TrainingBatches, check_shard, held_out
from .latent_sums import Measures
from .moments import Moments, near_mean
from .passes import Checkpoint, Tensors, strip_prefix
from .sae_settings import SaeSettings, TrainingStep
from .sums import PassSums

if TYPE_CHECKING:
    import torch

_CHUNK_ROWS, _CHUNK_BYTES = 1024, 1 << 26  # of rows that are measured together


class _Kept(Protocol):
    def tensors(self) -> Tensors: ...


class SaeFit:
    """Three phases: `find_moments`, `train`, `measure`; each goes on where a killed call stopped."""

    def __init__(self, source: ActivationSource, settings: SaeSettings, checkpoint: Path | None) -> None:
        import torch

        self._source, self._settings = source, settings
        if settings.active >= source.n_features:
            raise UsageError(
                f"active = {settings.active} is not below the {source.n_features} features of the activations, so any "
                "row could be written exactly; choose a smaller active"
            )
        held = held_out(settings.seed, settings.held_out_share, 0, len(source))
        _check_rows(settings, int((~held).sum()), int(held.sum()))
        cuda = settings.device == "auto" and torch.cuda.is_available()
        try:
            self.device = torch.device("cuda" if cuda else settings.device.replace("auto", "cpu"))
            torch.empty(1, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise UsageError(f"device {settings.device!r} cannot be used: {str(error).splitlines()[0]}") from error
        trained = asdict(replace(settings, k=None, device="auto"))  # the others do not change the training
        inputs = {"sae": trained, "activations": source.manifest}
        self._checkpoint = Checkpoint(checkpoint, fingerprint(inputs))
        self._saved = self._checkpoint.load() or {}
        self._shard_rows: list[int] = self._saved.get("shard_rows", np.empty(0, dtype=np.int64)).tolist()
        self.moments: Moments
        self.batches: TrainingBatches
        self.trainer: Trainer

    def find_moments(self) -> None:
        """Mean and scale of the rows, and how many each shard has."""
        if moments := strip_prefix(self._saved, "moments."):
            self.moments = Moments.from_tensors(moments)
            return
        source, counts = self._source, self._shard_rows
        begun = strip_prefix(self._saved, "sums.")
        sums = PassSums.from_tensors(begun) if begun else None
        for part in source.shards(start=len(counts)):
            counts.append(len(part))
            if len(part) and sums is None:
                sums = PassSums.empty(near_mean(part), np.empty((0, source.n_features)), squares=True)
            if sums is not None:
                sums.add(part)
                self._checkpoint.save_if_due(partial(self._state, sums=sums))
        if sums is None:
            raise SkillbasisError("there are no activations: every row was left out or the corpus is empty")
        self.moments = Moments.of(sums, source, normalize_blocks=self._settings.normalize_blocks)

    def train(self, on_step: Callable[[TrainingStep], None] | None) -> None:
        settings, d = self._settings, self._source.n_features
        self.batches = TrainingBatches(
            self._source,
            self._shard_rows,
            seed=settings.seed,
            held_out_share=settings.held_out_share,
            batch_rows=settings.batch_size,
            buffer_rows=settings.buffer_bytes // (4 * d),
        )
        _check_rows(settings, self.batches.n_rows, self.batches.n_held_out)
        rows_seen = settings.steps * self.batches.batch_rows
        self.trainer = Trainer(
            Autoencoder.initial(settings.dictionary_size, d, settings.active, settings.seed, str(self.device)),
            rate=settings.learning_rate / math.sqrt(d),
            n_steps=settings.steps,
            dead_after=settings.dead_after or max(1, min(self.batches.n_rows, rows_seen // 10)),
            revival_weight=settings.revival_weight,
            n_revived=settings.revived or 2 ** max(0, math.floor(math.log2(d / 2))),
        )
        if begun := strip_prefix(self._saved, "trainer."):
            self.trainer.restore(begun)
        if self.trainer.step == settings.steps:
            return
        mean, scale = self._tensor(self.moments.mean), self._tensor(self.scale)
        state = partial(self._state, moments=self.moments, trainer=self.trainer)
        for rows in self.batches.batches(self.trainer.step, settings.steps):
            error = self.trainer.take((self._tensor(rows) - mean) / scale)
            self._checkpoint.save_if_due(state)
            if on_step is not None:
                on_step(TrainingStep(self.trainer.step, settings.steps, error, self.trainer.n_dead))
        self._checkpoint.save(state())

    def measure(self) -> Measures:
        """What a pass over all rows says of the trained autoencoder."""
        settings, m, d = self._settings, self._settings.dictionary_size, self._source.n_features
        measures, n_shards = Measures.empty(m), 0
        if begun := strip_prefix(self._saved, "measures."):
            measures.restore(begun)
            n_shards = self._saved["measured_shards"].item()
        mean, scale = self._tensor(self.moments.mean), self._tensor(self.scale)
        directions = self.trainer.model.decoder * scale
        directions /= directions.norm(dim=1, keepdim=True)
        chunk = max(1, min(_CHUNK_ROWS, _CHUNK_BYTES // (4 * d)))
        for number, shard in enumerate(self._source.shards(start=n_shards), start=n_shards):
            check_shard(number, len(shard), self._shard_rows[number])
            first = sum(self._shard_rows[:number])
            held = held_out(settings.seed, settings.held_out_share, first, len(shard))
            for i in range(0, len(shard), chunk):
                rows = self._tensor(shard[i : i + chunk]) - mean
                measures.add(self.trainer.model, rows, directions, scale, held[i : i + chunk])
            n_shards = number + 1
            state = partial(self._state, moments=self.moments, trainer=self.trainer, measures=measures)
            self._checkpoint.save_if_due(partial(state, n_shards))
        return measures

    @property
    def scale(self) -> np.ndarray:
        """(d,) that rows are divided by, after which their mean squared norm is 1."""
        per_block = self.moments.scale.reshape(len(self.moments.block_rms), -1)[:, 0]
        hidden = len(self.moments.scale) // len(per_block)
        norm = math.sqrt(hidden * float(((self.moments.block_rms / per_block) ** 2).sum()))
        return self.moments.scale * norm

    def _state(self, n_measured: int = 0, **parts: _Kept) -> Tensors:
        """All that a later call goes on from."""
        counts = {"shard_rows": np.array(self._shard_rows, dtype=np.int64), "measured_shards": np.array(n_measured)}
        tensors = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.tensors().items()}
        return counts | tensors

    def _tensor(self, rows: np.ndarray) -> torch.Tensor:
        """A float32 copy on the device."""
        import torch

        return torch.from_numpy(np.array(rows, dtype=np.float32)).to(self.device)


def _check_rows(settings: SaeSettings, n_training: int, n_held_out: int) -> None:
    if n_training < settings.dictionary_size:
        raise UsageError(
            f"a dictionary of {settings.dictionary_size} latents needs at least as many rows to train on, but there "
            f"are {n_training} ({n_held_out} more are held out); choose a smaller dictionary_size or more rows"
        )
    if n_held_out < 2:
        raise UsageError(
            f"{n_held_out} rows are held out, but the reconstruction can be measured on 2 or more only; "
            "choose a larger held_out_share or more rows"
        )
