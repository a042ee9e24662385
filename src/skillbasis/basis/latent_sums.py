"""What a last pass over the rows measures of a trained sparse autoencoder: reconstruction, activations, linear scores.

Dimension names: n rows, d features, m latents. All sums are float64 and add up over rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    import torch

    from .autoencoder import Autoencoder

Tensors = dict[str, np.ndarray]

_Z95 = 1.959963984540054  # of the normal distribution


@dataclass
class ErrorSums:
    """Reconstruction of some rows. With e = |y - reconstruction|^2 and t = |y|^2 of a row, y centred by the corpus."""

    moments: np.ndarray
    """(3, 3) float64: sum over the rows of (1, e, t)^T (1, e, t)."""
    n_active: np.ndarray
    """() float64: active latents, summed over the rows."""

    @classmethod
    def empty(cls) -> Self:
        return cls(np.zeros((3, 3)), np.zeros(()))

    def add(self, error: np.ndarray, square: np.ndarray, n_active: float) -> None:
        """Adds rows: e (n,), t (n,), and how many latents they have active in all."""
        row = np.column_stack([np.ones(len(error)), error, square])
        self.moments += row.T @ row
        self.n_active += n_active

    @property
    def n_rows(self) -> int:
        return int(self.moments[0, 0])

    @property
    def unexplained(self) -> float:
        """FVU = sum e / sum t: the fraction of the rows' variance about the corpus mean that is not reconstructed."""
        return float(self.moments[0, 1] / self.moments[0, 2])

    @property
    def standard_error(self) -> float:
        """Of `unexplained`, over the rows; NaN of fewer than two.

        Source: the ratio estimator, Cochran 1977, Sampling Techniques, section 6.5.
        """
        n, ratio = self.n_rows, self.unexplained
        if n < 2:
            return math.nan
        spread = self.moments[1, 1] - 2 * ratio * self.moments[1, 2] + ratio**2 * self.moments[2, 2]
        return float(math.sqrt(max(spread, 0.0) * n / (n - 1)) / self.moments[0, 2])

    def report(self) -> dict[str, Any]:
        """JSON-able: rows, fraction of variance explained with its 95 % interval, and active latents per row (L0)."""
        explained, margin = 1 - self.unexplained, _Z95 * self.standard_error
        return {
            "rows": self.n_rows,
            "explained_variance": explained,
            "low": explained - margin if math.isfinite(margin) else None,
            "high": explained + margin if math.isfinite(margin) else None,
            "active_per_row": float(self.n_active / self.n_rows),
        }


@dataclass
class LatentSums:
    """Activations z (in the scaled units) and linear scores s = (x - mean)·v of every latent."""

    n_rows: np.ndarray
    """() float64."""
    fired: np.ndarray
    """(m,) rows with z > 0."""
    z: np.ndarray
    """(m,) sum of z."""
    z_square: np.ndarray
    """(m,) sum of z^2."""
    s: np.ndarray
    """(m,) sum of s."""
    s_products: np.ndarray
    """(m, m) sum of s s^T."""
    s_z: np.ndarray
    """(m,) sum of s z."""

    @classmethod
    def empty(cls, m: int) -> Self:
        return cls(
            n_rows=np.zeros(()),
            fired=np.zeros(m),
            z=np.zeros(m),
            z_square=np.zeros(m),
            s=np.zeros(m),
            s_products=np.zeros((m, m)),
            s_z=np.zeros(m),
        )

    def add(self, values: torch.Tensor, latents: torch.Tensor, scores: torch.Tensor) -> None:
        """Adds rows: activations (n, k) of their latents (n, k), and the scores (n, m) of all latents."""
        import torch

        z = torch.zeros_like(scores).scatter(1, latents, values)  # (n, m)
        self.n_rows += len(scores)
        self.fired += _numpy((z > 0).sum(dim=0))
        self.z += _numpy(z.sum(dim=0))
        self.z_square += _numpy(z.square().sum(dim=0))
        self.s += _numpy(scores.sum(dim=0))
        self.s_products += _numpy(scores.T @ scores)
        self.s_z += _numpy((scores * z).sum(dim=0))

    @property
    def importance(self) -> np.ndarray:
        """(m,) mean of z^2 over all rows: the squared length a latent adds to the reconstruction of a row."""
        return self.z_square / self.n_rows  # type: ignore[no-any-return]

    @property
    def frequency(self) -> np.ndarray:
        """(m,) share of rows in which a latent is active."""
        return self.fired / self.n_rows  # type: ignore[no-any-return]

    @property
    def mean_active(self) -> np.ndarray:
        """(m,) mean of z over the rows in which a latent is active; 0 of dead ones."""
        return self.z / np.maximum(self.fired, 1)  # type: ignore[no-any-return]

    @property
    def score_covariance(self) -> np.ndarray:
        """(m, m) covariance of the linear scores (divided by n - 1)."""
        return (self.s_products - np.outer(self.s, self.s) / self.n_rows) / (self.n_rows - 1)  # type: ignore[no-any-return]

    @property
    def correlation(self) -> np.ndarray:
        """(m,) Pearson correlation of z and s over all rows; NaN of dead latents."""
        covariance = self.s_z / self.n_rows - self.z / self.n_rows * self.s / self.n_rows
        z_variance = self.z_square / self.n_rows - (self.z / self.n_rows) ** 2
        s_variance = self.s_products.diagonal() / self.n_rows - (self.s / self.n_rows) ** 2
        with np.errstate(invalid="ignore", divide="ignore"):
            return covariance / np.sqrt(z_variance * s_variance)  # type: ignore[no-any-return]


@dataclass
class Measures:
    """Of all latents over all rows, and of the reconstruction of training and of held-out rows."""

    latents: LatentSums
    training: ErrorSums
    held_out: ErrorSums

    @classmethod
    def empty(cls, m: int) -> Self:
        return cls(LatentSums.empty(m), ErrorSums.empty(), ErrorSums.empty())

    def add(
        self, model: Autoencoder, rows: torch.Tensor, directions: torch.Tensor, scale: torch.Tensor, held: np.ndarray
    ) -> None:
        """Adds rows.

        Args:
            rows: (n, d) less the mean.
            directions: (m, d) unit, in the units of the rows.
            scale: (d,) that the rows are divided by for the model.
            held: (n,) bool, which of them are held out.
        """
        scaled = rows / scale
        values, latents = model.top(model.pre_activations(scaled))
        error = _numpy((scaled - model.decode(values, latents)).square().sum(dim=1))
        square, n_active = _numpy(scaled.square().sum(dim=1)), _numpy((values > 0).sum(dim=1))
        for sums, part in ((self.training, ~held), (self.held_out, held)):
            sums.add(error[part], square[part], float(n_active[part].sum()))
        self.latents.add(values, latents, rows @ directions.T)

    def tensors(self) -> Tensors:
        return {
            f"{part.name}.{field.name}": getattr(getattr(self, part.name), field.name)
            for part in fields(self)
            for field in fields(getattr(self, part.name))
        }

    def restore(self, tensors: Tensors) -> None:
        """Becomes what `tensors` were saved of."""
        for name, tensor in tensors.items():
            of, field = name.split(".")
            part = getattr(self, of)
            setattr(part, field, tensor.reshape(getattr(part, field).shape).copy())  # a file knows no shape ()


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.cpu().numpy().astype(np.float64)
