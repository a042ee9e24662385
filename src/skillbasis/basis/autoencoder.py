"""A TopK sparse autoencoder and one step of its training, in PyTorch.

Dimension names: n rows, d features, m latents, k active ones. Rows are centred and scaled to a mean squared norm of 1.
Source: Gao et al. 2024, Scaling and evaluating sparse autoencoders (arXiv 2406.04093), section 2 and appendix A.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import SkillbasisError

if TYPE_CHECKING:
    import torch

Tensors = dict[str, np.ndarray]

_BETAS, _EPSILON = (0.9, 0.999), 6.25e-10  # the paper's
_DECAY_SHARE = 0.2  # of the steps, the last: the rate falls to 0 there
_PARAMETERS = ("encoder", "decoder", "offset")


@dataclass
class Autoencoder:
    """z = ReLU(TopK(W_enc (y - b))), reconstruction b + z W_dec."""

    encoder: torch.Tensor
    """(m, d) W_enc."""
    decoder: torch.Tensor
    """(m, d) W_dec, unit rows."""
    offset: torch.Tensor
    """(d,) b: codes are not negative, so the row that has no latent active is not the mean."""
    n_active: int

    @classmethod
    def initial(cls, size: int, n_features: int, n_active: int, seed: int, device: str) -> Autoencoder:
        """Random unit decoder rows, the encoder their copy, no offset; the same for a seed on every device."""
        import torch

        rows = np.random.default_rng([seed, size]).standard_normal((size, n_features), dtype=np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        decoder = torch.from_numpy(rows).to(device)
        return cls(decoder.clone(), decoder, torch.zeros(n_features, device=device), n_active)

    @property
    def parameters(self) -> list[torch.Tensor]:
        return [getattr(self, name) for name in _PARAMETERS]

    def pre_activations(self, rows: torch.Tensor) -> torch.Tensor:
        """(n, m) of rows (n, d)."""
        return (rows - self.offset) @ self.encoder.T

    def top(self, pre_activations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Activations (n, k), not negative, and their latents (n, k)."""
        values, latents = pre_activations.topk(self.n_active)
        return values.relu(), latents

    def decode(self, values: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """(n, d): the offset plus the active decoder rows."""
        from torch.nn.functional import embedding_bag

        return self.offset + embedding_bag(latents, self.decoder, per_sample_weights=values, mode="sum")


@dataclass(frozen=True)
class Losses:
    """Of one batch, each a mean over its rows."""

    error: torch.Tensor
    """Squared length of what the reconstruction misses; 1 would be missed by the mean."""
    revival: torch.Tensor
    """AuxK: squared length of what the dead latents that fit best leave of that; 0 where no latent is dead."""
    fired: torch.Tensor
    """(m,) bool: latents that were active in a row."""


def losses(model: Autoencoder, rows: torch.Tensor, dead: torch.Tensor, n_revived: int) -> Losses:
    """Errors of a batch.

    Args:
        rows: (n, d), centred and scaled.
        dead: (m,) bool, latents to be revived.
        n_revived: how many of them at most model the error of a row (the paper's k_aux).
    Cost: O(n d m) for the encoder, O(n d k) for the decoder, and O(n d) for each dead latent.
    """
    import torch

    pre_activations = model.pre_activations(rows)
    values, latents = model.top(pre_activations)
    missed = rows - model.decode(values, latents)
    fired = torch.zeros_like(dead)
    fired[latents[values > 0]] = True
    return Losses(
        missed.square().sum(dim=1).mean(), _revival(model, pre_activations, missed.detach(), dead, n_revived), fired
    )


def _revival(
    model: Autoencoder, pre_activations: torch.Tensor, missed: torch.Tensor, dead: torch.Tensor, n_revived: int
) -> torch.Tensor:
    import torch

    n_dead = int(dead.sum())
    if n_dead == 0:
        return missed.new_zeros(())
    values = pre_activations[:, dead].relu()  # (n, dead)
    if n_revived < n_dead:
        top, places = values.topk(n_revived)
        values = torch.zeros_like(values).scatter(1, places, top)
    return (missed - values @ model.decoder[dead]).square().sum(dim=1).mean()


class Trainer:
    """Adam on the losses, with unit decoder rows, and how long each latent has been silent.

    Args:
        rate: of Adam, per coordinate.
        n_steps: steps in all; over the last fifth the rate falls to 0 in a line.
        dead_after: rows without an activation after which a latent counts as dead.
        revival_weight: of the AuxK loss (the paper's alpha); 0 leaves dead latents dead.
        n_revived: dead latents that may model the error of a row.
    """

    def __init__(
        self,
        model: Autoencoder,
        *,
        rate: float,
        n_steps: int,
        dead_after: int,
        revival_weight: float,
        n_revived: int,
    ) -> None:
        import torch

        self.model, self._rate, self._n_steps = model, rate, n_steps
        self._dead_after, self._revival_weight, self._n_revived = dead_after, revival_weight, n_revived
        for parameter in model.parameters:
            parameter.requires_grad_(True)
        self._adam = torch.optim.Adam(model.parameters, lr=rate, betas=_BETAS, eps=_EPSILON)
        self._silent = torch.zeros(len(model.decoder), dtype=torch.int64, device=model.decoder.device)
        """(m,) rows since each latent was last active."""
        self.step = 0
        """Steps done."""

    @property
    def n_dead(self) -> int:
        return int(self._dead.sum())

    @property
    def _dead(self) -> torch.Tensor:
        return self._silent >= self._dead_after

    def take(self, rows: torch.Tensor) -> float:
        """One step on a batch (n, d). Returns: its reconstruction error before the step.

        Raises: SkillbasisError: the error is not finite.
        """
        import torch

        revived = self._dead if self._revival_weight else torch.zeros_like(self._dead)
        found = losses(self.model, rows, revived, self._n_revived)
        error = float(found.error.detach())
        if not math.isfinite(error):
            raise SkillbasisError(
                f"training diverged at step {self.step + 1} (reconstruction error {error}); "
                "choose a smaller learning_rate"
            )
        self._adam.zero_grad()
        (found.error + self._revival_weight * found.revival).backward()
        decoder = self.model.decoder
        with torch.no_grad():
            assert decoder.grad is not None
            # What would change a row's length alone is taken out, so that Adam's moments do not gather it.
            decoder.grad -= (decoder.grad * decoder).sum(dim=1, keepdim=True) * decoder
            left = (self._n_steps - self.step) / (_DECAY_SHARE * self._n_steps)
            self._adam.param_groups[0]["lr"] = self._rate * min(1.0, left)
            self._adam.step()
            decoder /= decoder.norm(dim=1, keepdim=True)
            self._silent += len(rows)
            self._silent[found.fired] = 0
        self.step += 1
        return error

    def tensors(self) -> Tensors:
        """All that the training is continued from."""
        state = {"step": np.array(self.step), "silent": self._silent.cpu().numpy()}
        for name, parameter in zip(_PARAMETERS, self.model.parameters, strict=True):
            state[name] = parameter.detach().cpu().numpy()
            for moment in ("exp_avg", "exp_avg_sq"):
                if self.step:
                    state[f"{moment}.{name}"] = self._adam.state[parameter][moment].cpu().numpy()
        return state

    def restore(self, tensors: Tensors) -> None:
        """Becomes what `tensors` were saved of."""
        import torch

        device = self._silent.device
        self.step = tensors["step"].item()
        self._silent = torch.from_numpy(tensors["silent"]).to(device)
        for name, parameter in zip(_PARAMETERS, self.model.parameters, strict=True):
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(tensors[name]))
            if self.step:
                moments = {
                    moment: torch.from_numpy(tensors[f"{moment}.{name}"]).to(device)
                    for moment in ("exp_avg", "exp_avg_sq")
                }
                self._adam.state[parameter] = {"step": torch.tensor(float(self.step)), **moments}
