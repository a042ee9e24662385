"""Principal directions of stored activations: exact from the covariance where it is small, else block Krylov.

Dimension names: n rows, d = blocks x hidden features, k components, b = width of a Krylov block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from ..activations import ActivationStore
from ..errors import SkillbasisError, UsageError, nearest
from .basis import SkillBasis, fix_signs

_MAX_EXACT_FEATURES = 2048  # covariance of 32 MiB in float64, n d^2 work: exact is also the fastest here
_MAX_PASSES = 30
_NO_VARIATION = 1e-6  # of the root-mean-square value: what is left then is float32 rounding

Method = Literal["auto", "exact", "krylov"]
METHODS: tuple[str, ...] = get_args(Method)


@dataclass(frozen=True)
class PcaSettings:
    """How the principal directions are found."""

    k: int = 10
    """Number of directions (the paper's 10)."""
    seed: int = 0
    """Seed of the first Krylov block; the exact method does not use it."""
    tol_degrees: float = 0.1
    """Block Krylov stops when the largest principal angle to the previous subspace is below this."""
    method: Method = "auto"
    """`exact` for up to 2048 features, else `krylov`, unless one of them is named."""
    normalize_blocks: bool = False
    """Divide each block by its root-mean-square deviation before the PCA, so that late blocks, whose activations are
    larger, do not outweigh the others; directions are orthogonal in that metric."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            hint = nearest(self.method, list(METHODS))
            raise UsageError(f"unknown method {self.method!r}{hint}; allowed are {', '.join(METHODS)}")
        if self.k < 1:
            raise UsageError(f"k must be at least 1, not {self.k}")
        if not self.tol_degrees > 0:
            raise UsageError(f"tol_degrees must be above 0, not {self.tol_degrees}")


def fit_pca(store: ActivationStore, settings: PcaSettings | None = None) -> SkillBasis:
    """Finds the k principal directions of the centred activations.

    Args:
        store: n rows of d features, read shard by shard.
    Returns: a basis; directions in descending order of variance, signs fixed.
    Raises: UsageError: k above the number of features, not below the number of rows, or above the rank.
        SkillbasisError: the activations do not vary.
    Cost: exact: three passes, O(n d^2) time, O(d^2) memory. Krylov: one pass per iteration, O(n d b) each,
        memory O(d b passes), independent of n.
    Source: Musco & Musco 2015 (block Krylov for PCA), with Rayleigh-Ritz on the whole Krylov space.
    """
    settings = settings or PcaSettings()
    n, d, k = len(store), store.n_features, settings.k
    if k > d:
        raise UsageError(f"k = {k} is more than the {d} features of the activations; choose a smaller k")
    if k >= n:
        raise UsageError(f"k = {k} needs more than {k} rows, but the activations have {n}; choose a smaller k")
    mean, block_rms = _moments(store)
    total_variance = float((block_rms**2).sum() * store.hidden_size * n / (n - 1))
    if total_variance <= _NO_VARIATION**2 * float((mean**2).sum()):
        raise SkillbasisError("the activations do not vary over the rows: every text reads the same to the model")
    scale = np.repeat(block_rms if settings.normalize_blocks else np.ones_like(block_rms), store.hidden_size)
    mean_rms = np.sqrt(np.square(mean).reshape(len(block_rms), -1).mean(axis=1))  # (blocks,)
    still = np.flatnonzero(block_rms <= _NO_VARIATION * mean_rms)
    if settings.normalize_blocks and len(still):
        raise SkillbasisError(
            f"block {store.block_ids[still[0]]} does not vary over the rows; leave it out with --layers"
        )

    def product(block: np.ndarray) -> np.ndarray:
        """Covariance of the centred, scaled activations times a (d, b) block, one pass over the shards."""
        total = np.zeros(block.shape, dtype=np.float64)
        mean32, inverse, block32 = mean.astype(np.float32), (1 / scale).astype(np.float32), block.astype(np.float32)
        for part in store.shards():
            centred = (part - mean32) * inverse  # (rows, d)
            total += centred.T @ (centred @ block32)
        return total / (n - 1)

    exact = settings.method == "exact" or (settings.method == "auto" and d <= _MAX_EXACT_FEATURES)
    if exact:
        values, vectors, report = _exact(store, mean, scale, k)
    else:
        values, vectors, report = _block_krylov(product, d, settings)
    directions = (vectors / scale[:, None]).T  # (k, d), back in the units of the activations
    lengths = np.linalg.norm(directions, axis=1)
    directions = fix_signs(directions / lengths[:, None])
    score_variance = _score_variance(store, mean, directions)
    # Eigenvalues along no variance at all come out of the iteration as rounding noise; those of the scores do not.
    measured = score_variance * lengths**2
    rank = int((measured > 1e-10 * measured.max()).sum())
    if rank < k:
        raise UsageError(f"k = {k} is more than the {rank} directions along which the activations vary; choose {rank}")
    keys: tuple[str, ...] = (
        "model",
        "model_type",
        "weights_fingerprint",
        "tokenizer_fingerprint",
        "template_fingerprint",
    )
    keys += ("hidden_size", "n_blocks", "block_ids", "pooling", "span", "max_length", "dtype", "corpus")
    config: dict[str, Any] = {key: store.manifest[key] for key in (*keys, "corpus_fingerprint", "rows")}
    config |= {
        "method": "pca",
        "settings": asdict(settings),
        "n_components": k,
        "orthogonal": not settings.normalize_blocks,
        "block_rms": block_rms.tolist(),
        "explained_variance": score_variance.tolist(),
        "explained_variance_ratio": (score_variance / total_variance).tolist(),
        "total_variance": total_variance,
        "eigenvalues": values.tolist(),
        **report,
    }
    return SkillBasis(
        directions=directions.reshape(k, len(store.block_ids), store.hidden_size).astype(np.float32),
        mean=mean.reshape(len(store.block_ids), store.hidden_size).astype(np.float32),
        explained_variance=score_variance,
        score_std=np.sqrt(score_variance),
        config=config,
    )


def _moments(store: ActivationStore) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and root-mean-square deviation of each block (blocks,), in float64, merged shard by shard.

    Source: Chan, Golub & LeVeque 1979: merging centred sums, since sums of squares would cancel under a large mean.
    """
    count, mean, squares = 0, np.zeros(store.n_features), np.zeros(store.n_features)
    for part in store.shards():
        part_mean = part.mean(axis=0, dtype=np.float64)
        part_squares = np.square(part - part_mean.astype(np.float32)).sum(axis=0, dtype=np.float64)
        delta, total = part_mean - mean, count + len(part)
        squares += part_squares + delta**2 * count * len(part) / total
        mean += delta * len(part) / total
        count = total
    per_block = squares.reshape(len(store.block_ids), -1)  # (blocks, hidden)
    return mean, np.sqrt(per_block.mean(axis=1) / count)


def _score_variance(store: ActivationStore, mean: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Variance (k,) of the scores along unit directions (k, d), one pass."""
    total = np.zeros(len(directions))
    mean32, directions32 = mean.astype(np.float32), directions.astype(np.float32)
    for part in store.shards():
        total += np.square((part - mean32) @ directions32.T, dtype=np.float64).sum(axis=0)
    return total / (len(store) - 1)


def _exact(
    store: ActivationStore, mean: np.ndarray, scale: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Top k eigenpairs of the covariance, accumulated in float64. Returns: values (k,), vectors (d, k), report."""
    from scipy.linalg import eigh

    d = store.n_features
    covariance = np.zeros((d, d))
    for part in store.shards():
        for start in range(0, len(part), 2048):  # bounds the float64 copy
            centred = (part[start : start + 2048].astype(np.float64) - mean) / scale
            covariance += centred.T @ centred
    covariance /= len(store) - 1
    values, vectors = eigh(covariance, subset_by_index=[d - k, d - 1])
    return values[::-1], vectors[:, ::-1], {"solver": "exact", "passes": 3, "residual": 0.0}


def _block_krylov(
    product: Callable[[np.ndarray], np.ndarray], d: int, settings: PcaSettings
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Top k eigenpairs of a covariance known by its products, from a growing block Krylov space.

    Each pass multiplies the newest block once; since products with all earlier blocks are kept, Rayleigh-Ritz values
    and residuals of the whole space cost no further pass.
    Returns: values (k,), vectors (d, k), report with passes, last angle in degrees and relative residual.
    """
    from scipy.linalg import qr

    k, width = settings.k, min(d, settings.k + 10)
    rng = np.random.default_rng(settings.seed)
    newest = np.linalg.qr(rng.standard_normal((d, width)))[0]
    space, images, ritz = newest, np.empty((d, 0)), None
    for passes in range(1, _MAX_PASSES + 1):  # noqa: B007 (used below)
        image = product(newest)  # (d, b)
        images = np.hstack([images, image])
        small = space.T @ images
        values, rotation = np.linalg.eigh((small + small.T) / 2)
        values, rotation = values[::-1][:k], rotation[:, ::-1][:, :k]
        previous, ritz = ritz, space @ rotation  # (d, k)
        residual = np.linalg.norm(images @ rotation - ritz * values, axis=0) / max(values[0], 1e-300)
        angle = 90.0 if previous is None else _largest_angle(previous, ritz)
        if angle < settings.tol_degrees:
            break
        grown = image
        for _ in range(2):  # twice is enough (Parlett): keeps the space orthonormal
            grown = grown - space @ (space.T @ grown)
        newest, triangle, _ = qr(grown, mode="economic", pivoting=True)  # the pivots tell which columns are new
        pivots: np.ndarray = np.abs(np.asarray(triangle, dtype=np.float64).diagonal())
        newest = newest[:, pivots > 1e-12 * values[0]]
        if newest.shape[1] == 0:
            angle = 0.0
            break  # the space is closed under the covariance: the answer is exact
        newest = np.linalg.qr(newest - space @ (space.T @ newest))[0]
        space = np.hstack([space, newest])
    else:
        raise SkillbasisError(
            f"the directions had not settled to {settings.tol_degrees} degrees after {_MAX_PASSES} passes "
            f"(last move {angle:.2f} degrees: the spectrum is flat there); choose a smaller k or a larger --tol"
        )
    report = {"solver": "krylov", "passes": passes + 2, "angle_degrees": angle, "residual": float(residual.max())}
    assert ritz is not None
    return values, ritz, report


def _largest_angle(a: np.ndarray, b: np.ndarray) -> float:
    """Largest principal angle in degrees between the spans of orthonormal (d, k) blocks, accurate for small angles."""
    sine = float(np.linalg.norm(b - a @ (a.T @ b), ord=2))
    return float(np.degrees(np.arcsin(min(1.0, sine))))
