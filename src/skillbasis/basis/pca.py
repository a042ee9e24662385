"""Principal directions of activations: exact from the covariance where it is small, else block Krylov.

Dimension names: n rows, d = blocks x hidden features, k components, b = width of a Krylov block. Vectors are rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ..activations import ActivationSource
from ..artifact import fingerprint
from ..errors import SkillbasisError, UsageError, nearest
from .basis import SkillBasis, fix_signs
from .krylov import KrylovSpace
from .moments import Moments, near_mean, reading_of
from .passes import Tensors, run_passes, strip_prefix
from .sums import CovarianceSums, PassSums

MAX_EXACT_FEATURES = 2048  # covariance of 32 MiB in float64, n d^2 work: exact is also the fastest here
_MAX_PASSES = 30
_NO_VARIANCE = 1e-10  # of the largest variance, along a direction: the same for variances, with room
_DOUBTFUL = 1e-6  # of the largest variance: sums in float32 may make up as much as a hundredth of this
_SPARE = 10  # vectors beyond k in a Krylov block
_N_RANDOM = 4  # of them, wholly random ones where the others are directions of a sample
_SAMPLE_ROWS = 512

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
    """Block Krylov stops when the directions are estimated to be nearer to the true ones than this."""
    method: Method = "auto"
    """`exact` for up to 2048 features, else `krylov`, unless one of them is named."""
    normalize_blocks: bool = False
    """Divide each block by its root-mean-square deviation before the PCA, so that late blocks, whose activations are
    larger, do not outweigh the others; directions are orthogonal in that metric."""
    width: int | None = None
    """Vectors of a Krylov block. By default k + 14 for stored activations, and max(8k, 128) where every pass runs the
    model: a wider block needs more memory and fewer passes."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            hint = nearest(self.method, list(METHODS))
            raise UsageError(f"unknown method {self.method!r}{hint}; allowed are {', '.join(METHODS)}")
        if self.k < 1:
            raise UsageError(f"k must be at least 1, not {self.k}")
        if not self.tol_degrees > 0:
            raise UsageError(f"tol_degrees must be above 0, not {self.tol_degrees}")
        if self.width is not None and self.width < self.k:
            raise UsageError(f"width must be at least k = {self.k}, not {self.width}")


def fit_pca(
    source: ActivationSource,
    settings: PcaSettings | None = None,
    *,
    checkpoint: Path | None = None,
    on_pass: Callable[[int], None] | None = None,
) -> SkillBasis:
    """Finds the k principal directions of the centred activations.

    Args:
        source: n rows of d features, read shard by shard: stored, or made by the model in every pass.
        checkpoint: a file that keeps the state of the passes; with it a killed call is continued by the same call
            and gives the same bytes. The caller removes it when the basis is saved.
        on_pass: called with the number of each pass, from 1, as it begins.
    Returns: a basis; directions in descending order of variance, signs fixed.
    Raises: UsageError: k above the number of features, not below the number of rows, or above the rank.
        SkillbasisError: the activations do not vary, or the directions do not settle.
    Cost: exact: one pass, O(n d^2) time, O(d^2) memory. Krylov: one pass per block, O(n d b) time each, memory
        O(d b passes), independent of n.
    Source: Musco & Musco 2015 (block Krylov for PCA), with Rayleigh-Ritz on the whole Krylov space.
    """
    settings = settings or PcaSettings()
    d, k = source.n_features, settings.k
    if k > d:
        raise UsageError(f"k = {k} is more than the {d} features of the activations; choose a smaller k")
    _check_rows(k, len(source))
    exact = settings.method == "exact" or (settings.method == "auto" and d <= MAX_EXACT_FEATURES)
    solver: _Exact | _BlockKrylov = _Exact(source, settings) if exact else _BlockKrylov(source, settings)
    inputs = {"settings": asdict(settings), "activations": source.manifest}
    run_passes(
        source,
        solver,
        inputs_fingerprint=fingerprint(inputs),
        checkpoint=checkpoint,
        on_pass=on_pass,
    )
    moments = solver.moments
    assert moments is not None
    directions = solver.vectors / moments.scale  # (k, d), back in the units of the activations
    lengths = np.linalg.norm(directions, axis=1)
    directions = fix_signs(directions / lengths[:, None])
    score_variance = solver.values / lengths**2
    config: dict[str, Any] = reading_of(source)
    config |= {
        "rows": moments.n_rows,
        "method": "pca",
        "settings": asdict(settings),
        "n_components": k,
        "orthogonal": not settings.normalize_blocks,
        "block_rms": moments.block_rms.tolist(),
        "explained_variance": score_variance.tolist(),
        "explained_variance_ratio": (score_variance / moments.total_variance).tolist(),
        "total_variance": moments.total_variance,
        "eigenvalues": solver.values.tolist(),
        **solver.report,
    }
    shape = (len(source.block_ids), source.hidden_size)
    return SkillBasis(
        directions=directions.reshape(k, *shape).astype(np.float32),
        mean=moments.mean.reshape(shape).astype(np.float32),
        explained_variance=score_variance,
        score_std=np.sqrt(score_variance),
        config=config,
    )


def _moments(sums: PassSums | CovarianceSums, source: ActivationSource, settings: PcaSettings) -> Moments:
    """Raises: UsageError: too few rows. SkillbasisError: rows that do not vary, or are not finite."""
    _check_rows(settings.k, sums.n_rows)
    return Moments.of(sums, source, normalize_blocks=settings.normalize_blocks)


def _check_rows(k: int, n_rows: int) -> None:
    if k >= n_rows:
        raise UsageError(f"k = {k} needs more than {k} rows, but the activations have {n_rows}; choose a smaller k")


def _check_rank(variances: np.ndarray) -> None:
    """Refuses directions along which nothing varies: they are rounding noise."""
    k, rank = len(variances), int((variances > _NO_VARIANCE * variances.max()).sum())
    if rank < k:
        raise UsageError(f"k = {k} is more than the {rank} directions along which the activations vary; choose {rank}")


class _Exact:
    """Top k eigenpairs of the whole covariance, gathered in float64 in one pass."""

    sums_type = CovarianceSums

    def __init__(self, source: ActivationSource, settings: PcaSettings) -> None:
        self._source, self._settings = source, settings
        self.moments: Moments | None = None
        self.values: np.ndarray = np.empty(0)
        self.vectors: np.ndarray = np.empty((0, source.n_features))
        self.report: dict[str, Any] = {"solver": "exact", "passes": 1, "residual": 0.0}

    @property
    def done(self) -> bool:
        return self.moments is not None

    def begin(self, first: np.ndarray) -> CovarianceSums:
        return CovarianceSums.empty(near_mean(first))

    def take(self, sums: CovarianceSums) -> None:
        from scipy.linalg import eigh

        self.moments = _moments(sums, self._source, self._settings)
        d, scale = self._source.n_features, self.moments.scale
        covariance = sums.covariance / scale / scale[:, None]
        values, vectors = eigh(covariance, subset_by_index=[d - self._settings.k, d - 1], overwrite_a=True)
        self.values, self.vectors = values[::-1], vectors[:, ::-1].T
        _check_rank(self.values)

    def tensors(self) -> Tensors:
        return {}

    def restore(self, tensors: Tensors) -> None:
        assert not tensors


class _BlockKrylov:
    """Top k eigenpairs from a growing block Krylov space: each pass multiplies its newest block once.

    The scale of the blocks is known only after the first pass. Since S^-1 C S^-1 (S B) = S^-1 (C B), the block B of
    that pass still counts: the space then begins with S B.
    """

    sums_type = PassSums

    def __init__(self, source: ActivationSource, settings: PcaSettings) -> None:
        self._source, self._settings = source, settings
        k, d = settings.k, source.n_features
        width = settings.width or (max(8 * k, 128) if source.live else k + _SPARE + _N_RANDOM)
        self._width = min(d, width)
        # Where passes are dear the random part is as wide as a wholly random block would be.
        self._n_random = min(self._width, k + _SPARE if source.live else _N_RANDOM)
        self.moments: Moments | None = None
        self._space = KrylovSpace(k, d)
        self._next: np.ndarray | None = None
        """(b, d) what the next pass multiplies, in the scaled units."""
        self._n_passes = 0
        self._measuring = self._was_measured = False
        self._measured: np.ndarray | None = None
        self.done = False

    @property
    def values(self) -> np.ndarray:
        """(k,) variances along the directions, in descending order."""
        return self._space.values if self._measured is None else self._measured

    @property
    def vectors(self) -> np.ndarray:
        """(k, d) orthonormal, in the scaled units."""
        return self._space.ritz

    @property
    def report(self) -> dict[str, Any]:
        return {
            "solver": "krylov",
            "passes": self._n_passes,
            "angle_degrees": self._space.angle_degrees,
            "angle_estimated_by": self._space.estimated_by,
            "residual": self._space.residual,
        }

    def begin(self, first: np.ndarray) -> PassSums:
        if self.moments is None:
            return PassSums.empty(near_mean(first), self._first_block(first), squares=True)
        assert self._next is not None
        return PassSums.empty(self.moments.mean, self._next / self.moments.scale)

    def _first_block(self, first: np.ndarray) -> np.ndarray:
        """The block (b, d) of the first pass: mostly the directions of a few rows, which saves two passes or more.

        Of stored activations these are rows spread over all of them, of others the first rows of the pass. The rest
        of the block is random, so that rows unlike the others cost a pass and nothing else: whatever direction the
        few rows lack has no rival among those they have.
        """
        d = self._source.n_features
        rows = self._source.sample(_SAMPLE_ROWS) if not self._source.live else first[: 4 * self._width]
        guess = self._directions_of(rows)[: self._width - self._n_random]
        random = np.random.default_rng(self._settings.seed).standard_normal((self._width - len(guess), d))
        return np.linalg.qr(np.vstack([guess, random / np.sqrt(d)]).T)[0].T

    def _directions_of(self, rows: np.ndarray) -> np.ndarray:
        """Vectors (<= n, d) that, scaled, are the principal directions of a few scaled rows (n, d)."""
        centred = rows - rows.mean(axis=0)
        scale: np.ndarray = np.ones(1, dtype=np.float32)
        if self._settings.normalize_blocks:
            by_block = np.square(centred).reshape(len(rows), len(self._source.block_ids), -1)
            rms = np.sqrt(by_block.mean(axis=(0, 2)))  # (blocks,)
            scale = np.repeat(np.where(rms > 0, rms, 1), self._source.hidden_size)
            centred /= scale
        values, vectors = np.linalg.eigh((centred @ centred.T).astype(np.float64))  # n is small, d is not
        kept = values[::-1] > 1e-6 * values[-1]  # what is less is rounding of the products in float32
        return (vectors[:, ::-1][:, kept][:, : self._width].T.astype(np.float32) @ centred) / scale  # type: ignore[no-any-return]

    def take(self, sums: PassSums) -> None:
        if self.moments is None:
            self.moments = _moments(sums, self._source, self._settings)
        if sums.n_rows != self.moments.n_rows:
            raise SkillbasisError(
                f"the first pass gave {self.moments.n_rows} rows and a later one {sums.n_rows}; "
                "leave corpus and model as they are while the directions are being found, and start again"
            )
        if not len(sums.squares):  # a later pass: it was shifted by the mean, up to rounding
            sums.total = sums.n_rows * (self.moments.mean - sums.shift)
        self._n_passes += 1
        block = sums.block.astype(np.float64)
        if self._measuring:
            self._measured = np.einsum("bd,bd->b", block, sums.image)
            self._measuring, self._was_measured = False, True
            _check_rank(self._measured)
        else:
            self._measured = None
            self._space.extend(block * self.moments.scale, sums.image / self.moments.scale)
        self._choose()

    def _choose(self) -> None:
        """Chooses what the next pass multiplies, or finds that there need be none."""
        space, tol = self._space, self._settings.tol_degrees
        if not space.angle_degrees < tol:
            self._next = space.next_block()
        settled = space.angle_degrees < tol  # also where the next block was found to be empty
        # A variance this small may be rounding noise of the sums. A pass over the directions themselves has none.
        doubtful = self._measured is None and space.values[-1] < _DOUBTFUL * space.values[0]
        if doubtful and (settled or (self._n_passes > 1 and not self._was_measured)):
            self._next, self._measuring = space.ritz, True
        elif settled:
            self.done = True
        if not self.done and self._n_passes >= _MAX_PASSES:
            k = self._settings.k
            raise SkillbasisError(
                f"the directions had not settled to {tol} degrees after {_MAX_PASSES} passes (last estimate "
                f"{space.angle_degrees:.2f} degrees: directions {k} and {k + 1} have nearly the same variance); "
                "choose a smaller k or a larger --tol"
            )

    def tensors(self) -> Tensors:
        if self.moments is None:
            return {}
        flags = {"n_passes": self._n_passes, "measuring": self._measuring, "was_measured": self._was_measured}
        state = {name: np.array(value, dtype=np.int64) for name, value in flags.items()}
        state |= {f"moments.{name}": tensor for name, tensor in self.moments.tensors().items()}
        return state | {f"space.{name}": tensor for name, tensor in self._space.tensors().items()}

    def restore(self, tensors: Tensors) -> None:
        if not tensors:
            return
        self._n_passes = tensors["n_passes"].item()
        self._measuring, self._was_measured = bool(tensors["measuring"].item()), bool(tensors["was_measured"].item())
        self.moments = Moments.from_tensors(strip_prefix(tensors, "moments."))
        self._space = KrylovSpace.from_tensors(self._settings.k, strip_prefix(tensors, "space."))
