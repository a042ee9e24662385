"""A growing block Krylov space, the principal directions found in it, and how far they may still be off.

Dimension names: d features, k directions wanted, b = width of a block, m = size of the space. Vectors are rows.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Estimator = Literal["residual", "move", "closed", "none"]
_NEARLY_RIGHT = 0.1  # residual over value, about the sine of a Ritz vector's angle

Tensors = dict[str, np.ndarray]


class KrylovSpace:
    """An orthonormal space, its image under the covariance, and the best k directions in it (Rayleigh-Ritz).

    Since the images of all blocks are kept, values and residuals over the whole space cost no pass over the rows.
    Source: Musco & Musco 2015 (block Krylov for PCA).
    """

    def __init__(self, k: int, d: int) -> None:
        self.k = k
        self.vectors: np.ndarray = np.empty((0, d))
        """(m, d) float64, orthonormal rows."""
        self.images: np.ndarray = np.empty((0, d))
        """(m, d) float64, each times the covariance."""
        self.n_newest = 0
        """Vectors of the newest block."""
        self.values: np.ndarray = np.empty(0)
        """(k,) Ritz values, in descending order."""
        self.ritz: np.ndarray = np.empty((0, d))
        """(k, d) float64, orthonormal Ritz vectors."""
        self.residuals: np.ndarray = np.empty(0)
        """(k,) norm of each Ritz vector's image less its value times itself."""
        self.angle_degrees: float = 90.0
        """Estimate of the largest principal angle between the Ritz vectors and the true directions."""
        self.estimated_by: Estimator = "none"
        """`residual`; `move`, the angle to the directions before the newest block; `closed`, the space has it all."""

    @property
    def residual(self) -> float:
        """Largest residual, as a share of the largest value."""
        return float(self.residuals.max() / max(self.values[0], np.finfo(float).tiny))

    def extend(self, block: np.ndarray, image: np.ndarray) -> None:
        """Takes in a block (b, d) of independent vectors and its image (b, d), both exact to the image's rounding.

        The block need not be orthonormal to the space: vectors and images are made so together, in float64.
        Cost: O(d m b + d b^2).
        """
        for _ in range(2):  # twice is enough (Parlett)
            inside = block @ self.vectors.T
            block, image = block - inside @ self.vectors, image - inside @ self.images
        triangle = np.linalg.cholesky(block @ block.T)  # block = triangle · orthonormal rows
        self.n_newest = len(block)
        self.vectors = np.vstack([self.vectors, np.linalg.solve(triangle, block)])
        self.images = np.vstack([self.images, np.linalg.solve(triangle, image)])
        self._solve()

    def next_block(self) -> np.ndarray:
        """Orthonormal vectors (b, d) of what the newest block's images bring that is new to the space.

        Where there is none (b = 0) the covariance leads out of the space no more, and its directions are exact.
        """
        grown = self.images[-self.n_newest :]
        for _ in range(2):
            grown = grown - (grown @ self.vectors.T) @ self.vectors
        basis, triangle = np.linalg.qr(grown.T)
        left, sizes, _ = np.linalg.svd(triangle)
        grown = (basis @ left[:, sizes > 1e-12 * self.values[0]]).T
        if len(grown) == 0:
            self.angle_degrees, self.estimated_by = 0.0, "closed"
        return grown - (grown @ self.vectors.T) @ self.vectors  # type: ignore[no-any-return]

    def _solve(self) -> None:
        k, small = self.k, self.images @ self.vectors.T  # (m, m)
        outside = self.images - small @ self.vectors  # (m, d)
        noise = (small - small.T) / 2
        values, rotation = np.linalg.eigh(small - noise)
        values, rotation = values[::-1], rotation[:, ::-1].T
        # Inner products of the residuals, image less value times vector, which are not formed: (m, d) is large.
        products = rotation @ (outside @ outside.T + noise @ noise.T) @ rotation.T
        before = self.ritz
        self.values, self.ritz = values[:k], rotation[:k] @ self.vectors
        self.residuals = np.sqrt(products.diagonal()[:k].clip(0))
        move = largest_angle(before, self.ritz) if len(before) else 90.0
        bound = residual_bound(values, products, k, rounding=rotation @ noise @ rotation.T)
        estimates: dict[Estimator, float] = {"move": move, "residual": bound}
        self.estimated_by, self.angle_degrees = min(estimates.items(), key=lambda item: item[1])

    def tensors(self) -> Tensors:
        """What a space is continued from."""
        tensors = {name: np.asarray(value) for name, value in vars(self).items() if name not in ("k", "estimated_by")}
        return tensors | {"estimated_by": np.frombuffer(self.estimated_by.encode(), dtype=np.uint8)}

    @classmethod
    def from_tensors(cls, k: int, tensors: Tensors) -> KrylovSpace:
        """The space that `tensors` came from."""
        space = cls(k, tensors["vectors"].shape[1])
        for name in ("vectors", "images", "values", "ritz", "residuals"):
            setattr(space, name, tensors[name].copy())
        space.n_newest, space.angle_degrees = tensors["n_newest"].item(), tensors["angle_degrees"].item()
        space.estimated_by = tensors["estimated_by"].tobytes().decode()  # type: ignore[assignment]
        return space


def residual_bound(values: np.ndarray, products: np.ndarray, k: int, *, rounding: np.ndarray) -> float:
    """Estimate in degrees of the largest angle between the first k of m Ritz vectors and the true directions.

    Two things are missing in a Ritz vector: what lies outside the space, which is its residual over the gap to the
    variances there, and what other Ritz vectors hold by mistake, which is the former times their residuals over their
    gaps. Variances outside are taken to be no larger than those after the last Ritz pair that is nearly right, as are
    all before it: the gap is wide where the space holds more directions than are asked for. Where two variances on
    either side of k are so near that rounding turns their directions into each other, no residual tells: that is
    estimated by how far the covariance, as computed, is from symmetric there.

    Args:
        values: (m,) Ritz values in descending order.
        products: (m, m) inner products of the residuals: image of each Ritz vector less its value times itself.
        rounding: (m, m) antisymmetric part of the covariance between the Ritz vectors, which is nothing but rounding.
    Source: Davis & Kahan 1970, sin(theta) <= residual / gap, for each vector with a gap of its own.
    """
    norms = np.sqrt(products.diagonal().clip(0))
    wrong = np.flatnonzero(norms > _NEARLY_RIGHT * values)
    after = int(wrong[0]) if len(wrong) else len(values) - 1  # first pair that is not nearly right
    if after < k or values[k - 1] <= values[k]:
        return 90.0
    gaps = values[:k] - values[after] - norms[after]
    if gaps.min() <= 0:
        return 90.0
    outside = float(np.linalg.norm(norms[:k] / gaps))
    others = values[k - 1] - values[k:]
    mixed = np.linalg.eigvalsh(products[k:, k:] / others / others[:, None])[-1]  # square of the largest singular value
    turned = np.sqrt(np.square(rounding[max(k - 3, 0) : k, k : k + 3]).mean()) / others[0]
    sine = float(np.hypot(outside * np.sqrt(1 + max(mixed, 0.0)), turned))
    return float(np.degrees(np.arcsin(min(1.0, sine))))


def largest_angle(a: np.ndarray, b: np.ndarray) -> float:
    """Largest principal angle in degrees between the spans of orthonormal rows (k, d), accurate for small angles."""
    sine = float(np.linalg.norm(b - (b @ a.T) @ a, ord=2))
    return float(np.degrees(np.arcsin(min(1.0, sine))))
