"""Whether the directions of a basis would be found again from other rows: split halves and bootstrap.

Dimension names: n rows, K directions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..activations import ActivationSource
from ..errors import ArtifactError, UsageError
from ..statistics import nan_to_none
from . import bootstrap_pca
from .basis import SkillBasis
from .compare import Floats, match, span
from .pca import PcaSettings, fit_pca
from .sae import fit_sae
from .sae_settings import SaeSettings
from .subset import RowSubset

STABLE = 0.9
"""A direction is unstable where the lower end of its absolute cosine under resampling is below this: it then may well
turn by more than 26 degrees, and share less than 81 % of its variance with its match.

The median would not do. Two directions of equal variance turn freely in their plane, but the one that is matched is
never more than 45 degrees off (median cosine 0.92), and a bootstrap repeats the gap that the sample happens to show
(Beran & Srivastava 1985, Annals of Statistics 13:95-115). In simulations (400 and 2,000 normal rows) the lower end
finds 98 of 100 directions of such a pair, the median none, and calls 1 of 100 unstable whose variances are four
standard errors apart."""
_HALF_TOL_DEGREES = 1.0

Refit = Callable[[ActivationSource], SkillBasis]


@dataclass(frozen=True)
class StabilitySettings:
    """How stability is measured."""

    n_repeats: int = 5
    """Times the rows are split in two random halves; each half is a fit of its own."""
    n_bootstrap: int = 200
    """Resamples of the rows, for bases of PCA; 0 leaves the bootstrap out, and the halves decide."""
    threshold: float = STABLE
    """A direction is unstable where the lower end of its absolute cosine is below this."""
    seed: int = 0
    """Of splits and resamples."""
    space: int | None = None
    """Dimensions of the space in which resamples are decomposed; by default 4 K + 32, or all where rows are few."""

    def __post_init__(self) -> None:
        if self.n_repeats < 1:
            raise UsageError(f"at least 1 split in halves is needed, not {self.n_repeats}")
        if self.n_bootstrap != 0 and self.n_bootstrap < 20:
            raise UsageError(
                f"{self.n_bootstrap} resamples are too few for an interval; give 20 or more, or 0 for none"
            )
        if not 0 < self.threshold < 1:
            raise UsageError(f"the threshold is a cosine between 0 and 1, not {self.threshold}")


@dataclass(frozen=True)
class Middle:
    """The median of repeated measurements with two ends."""

    median: float
    low: float
    """2.5th percentile of the resamples; of halves, which are few and overlap, the smallest."""
    high: float
    """97.5th percentile of the resamples; of halves the largest."""

    @classmethod
    def of_resamples(cls, values: NDArray[np.floating]) -> Self:
        low, median, high = np.quantile(values, [0.025, 0.5, 0.975])
        return cls(float(median), float(low), float(high))

    @classmethod
    def of_halves(cls, values: NDArray[np.floating]) -> Self:
        return cls(float(np.median(values)), float(values.min()), float(values.max()))


@dataclass(frozen=True)
class DirectionStability:
    """What resampling does to one direction. Cosines are absolute, after matching by the Hungarian method."""

    direction: int
    unstable: bool
    """Whether the lower end of `cosine` (of `half_cosine` where there was no bootstrap) is below the threshold."""
    half_cosine: Middle
    """Cosine with its match in each half of the rows; 0 where a half has fewer directions and none was left."""
    half_span_cosine: Middle
    """Cosine with the span of the matches of all directions in each half."""
    between_halves: Middle
    """Cosine of its two matches, in one half and the other."""
    cosine: Middle | None
    """Cosine with its match in bootstrap resamples; None without a bootstrap, as all that follows."""
    span_cosine: Middle | None
    """Cosine with the span of the resample's K directions. Near 1 while `cosine` is not, the direction turns among the
    others of the basis, and their span is what stands; low as well, it is lost to directions outside the basis."""
    eigenvalue: Middle | None
    """Variance along the matched direction, in units of the block deviations for `normalize_blocks`. Variances of
    resamples are biased, upwards for the first directions."""
    gap: float | None
    """Distance to the nearest other variance as a share of its own. Below about sqrt(2/n), rows cannot tell the two
    directions apart (North et al. 1982)."""
    outside_loss: float | None
    """The most by which variance outside the leading space would lower the squared cosine, to first order; None where
    it cannot be bounded."""


@dataclass(frozen=True)
class Stability:
    """How far the directions of a basis depend on which rows of the corpus there were.

    It means: had other rows of the same kind been drawn, the same model and settings would have given a direction at
    about this cosine. A stable direction is a property of model and kind of text, not of the sample. It does not mean
    that the direction would be found in another corpus, layer or model (`compare`), that it has one meaning, or that it
    matters to what the model does. Rows are drawn as independent: near-duplicates make directions look more stable.

    Halves hold half the rows, so they vary more than the basis itself; the bootstrap varies about as the basis does.
    """

    basis: str
    """Fingerprint of the basis."""
    method: str
    """How the basis was found."""
    n_rows: int
    n_repeats: int
    n_bootstrap: int
    """0 where there was none."""
    threshold: float
    seed: int
    space: int | None
    """Dimensions of the leading space; None without a bootstrap."""
    space_share: float | None
    """Share of the variance of the activations that lies in it."""
    directions: tuple[DirectionStability, ...]

    @property
    def unstable(self) -> tuple[int, ...]:
        """Directions below the threshold."""
        return tuple(entry.direction for entry in self.directions if entry.unstable)

    def to_json(self) -> dict[str, Any]:
        """All of it, JSON-able."""
        return dict(nan_to_none(asdict(self)))

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """The record that `to_json` gave."""

        def restored(entry: dict[str, Any]) -> DirectionStability:
            parts: dict[str, Any] = {k: Middle(**v) if isinstance(v, dict) else v for k, v in entry.items()}
            return DirectionStability(**parts)

        return cls(**record | {"directions": tuple(restored(entry) for entry in record["directions"])})


def measure_stability(
    source: ActivationSource,
    basis: SkillBasis,
    settings: StabilitySettings | None = None,
    *,
    refit: Refit | None = None,
    on_step: Callable[[int, int, str], None] | None = None,
) -> Stability:
    """Measures how stable each direction of a basis is under resampling of the rows.

    Args:
        source: the activations the basis was found on.
        basis: of any method; only one of PCA is bootstrapped.
        settings: how often, and what counts as unstable.
        refit: finds such a basis in other rows; by default the method and settings of the basis. A sparse autoencoder
            has a seed of its own for each half, and all its live latents may be matches.
        on_step: called with (steps done, in all, what was done).
    Raises: ArtifactError: activations of another model, reading or corpus. UsageError: too few rows, or a basis of
        some other method without `refit`.
    Cost: 2 `n_repeats` fits, and for the bootstrap three passes over the rows, then O(n m^2) per resample; memory of
        one fit and of the (n, m) float32 scores in the leading space.
    """
    settings = settings or StabilitySettings()
    _check(source, basis, refit)
    refit = refit or _refit_like(basis)
    resampling = basis.config["method"] == "pca" and settings.n_bootstrap > 0
    n_steps = settings.n_repeats + resampling
    report = on_step or (lambda done, n_steps, words: None)
    report(0, n_steps, "")
    halves = []
    for repeat in range(settings.n_repeats):
        halves.append(_Halves.of(source, basis, refit, [settings.seed, repeat]))
        report(repeat + 1, n_steps, "split halves")
    cosines = np.concatenate([half.cosines for half in halves])  # (2 R, K)
    span_cosines = np.concatenate([half.span_cosines for half in halves])
    between = np.stack([half.between for half in halves])  # (R, K)
    drawn = _Bootstrap.of(source, basis, settings) if resampling else None
    report(n_steps, n_steps, "bootstrap" if drawn else "split halves")
    entries = []
    for k in range(basis.n_components):
        half_cosine = Middle.of_halves(cosines[:, k])
        resampled = drawn.entry(k) if drawn else _NO_BOOTSTRAP
        deciding = resampled["cosine"] or half_cosine
        entries.append(
            DirectionStability(
                direction=k,
                unstable=deciding.low < settings.threshold,
                half_cosine=half_cosine,
                half_span_cosine=Middle.of_halves(span_cosines[:, k]),
                between_halves=Middle.of_halves(between[:, k]),
                **resampled,
            )
        )
    return Stability(
        basis=basis.fingerprint,
        method=basis.config["method"],
        n_rows=basis.config["rows"],
        n_repeats=settings.n_repeats,
        n_bootstrap=settings.n_bootstrap if resampling else 0,
        threshold=settings.threshold,
        seed=settings.seed,
        space=drawn.space if drawn else None,
        space_share=drawn.share if drawn else None,
        directions=tuple(entries),
    )


def _check(source: ActivationSource, basis: SkillBasis, refit: Refit | None) -> None:
    basis.check_activations(source.manifest)
    if source.manifest["corpus_fingerprint"] != basis.config["corpus_fingerprint"]:
        raise ArtifactError(
            f"the basis was found on another corpus ({basis.config['corpus']}) than the activations are of "
            f"({source.manifest['corpus']}), and stability is about the rows it was found on; give those activations"
        )
    if refit is None and basis.config["method"] not in ("pca", "sae"):
        raise UsageError(
            f"how a basis of method {basis.config['method']!r} is found in other rows is not known here; give refit="
        )
    if len(source) // 2 <= basis.n_components:
        raise UsageError(
            f"half of {len(source)} rows are too few to find {basis.n_components} directions in; extract more rows"
        )


def _refit_like(basis: SkillBasis) -> Refit:
    """The method and settings of a basis, for other rows."""
    if basis.config["method"] == "sae":
        own_sae = SaeSettings(**basis.config["settings"])
        seeds = itertools.count(own_sae.seed + 1)  # what a dictionary becomes depends on where it starts
        # Which latents are the most important may change without any of them being lost: all are kept.
        return lambda rows: fit_sae(rows, replace(own_sae, seed=next(seeds), k=None))
    own = PcaSettings(**basis.config["settings"])
    # Halves differ by far more than a degree, and need not settle to less.
    settings = replace(own, tol_degrees=max(own.tol_degrees, _HALF_TOL_DEGREES))
    return lambda rows: fit_pca(rows, settings)


@dataclass(frozen=True)
class _Halves:
    """What one split in halves says of each of K directions."""

    cosines: Floats
    """(2, K) with the match in each half."""
    span_cosines: Floats
    """(2, K)."""
    between: Floats
    """(K,)."""

    @classmethod
    def of(cls, source: ActivationSource, basis: SkillBasis, refit: Refit, seed: list[int]) -> _Halves:
        n = len(source)
        first = np.zeros(n, dtype=bool)
        first[np.random.default_rng(seed).permutation(n)[: n // 2]] = True
        frame = basis.frame
        matched = np.zeros((2, *frame.shape))  # the match of each direction in each half; 0 where it has none
        span_cosines = np.empty((2, len(frame)))
        for half, keep in enumerate((first, ~first)):
            found = refit(RowSubset(source, keep)).frame
            for pair in match(frame @ found.T):
                matched[half, pair.a] = found[pair.b]
            matches = matched[half][matched[half].any(axis=1)]
            span_cosines[half] = np.linalg.norm(frame @ span(matches).T, axis=1).clip(0, 1)
        cosines = np.abs(np.einsum("hkd,kd->hk", matched, frame)).clip(0, 1)
        return cls(cosines, span_cosines, np.abs(np.einsum("kd,kd->k", *matched)).clip(0, 1))


_NO_BOOTSTRAP: dict[str, Any] = dict.fromkeys(("cosine", "span_cosine", "eigenvalue", "gap", "outside_loss"))


@dataclass(frozen=True)
class _Bootstrap:
    """What resampling says of each of K directions."""

    space: int
    share: float
    resamples: bootstrap_pca.Resamples
    gaps: Floats
    losses: Floats

    @classmethod
    def of(cls, source: ActivationSource, basis: SkillBasis, settings: StabilitySettings) -> _Bootstrap:
        k, d = basis.n_components, source.n_features
        space = settings.space or bootstrap_pca.default_space(k, len(source), d)
        if not k <= space <= d:
            raise UsageError(f"the leading space has at least {k} and at most {d} dimensions, not {space}")
        scores = bootstrap_pca.leading_scores(source, basis, space, seed=settings.seed)
        variances = np.linalg.eigvalsh(scores.covariance())[::-1]
        return cls(
            space,
            min(float(variances.sum() / scores.total_variance), 1.0),
            bootstrap_pca.bootstrap(scores, settings.n_bootstrap, seed=settings.seed),
            bootstrap_pca.gaps(variances, k),
            bootstrap_pca.outside_loss(scores, variances),
        )

    def entry(self, k: int) -> dict[str, Any]:
        loss = float(self.losses[k])
        return {
            "cosine": Middle.of_resamples(self.resamples.cosines[:, k]),
            "span_cosine": Middle.of_resamples(self.resamples.span_cosines[:, k]),
            "eigenvalue": Middle.of_resamples(self.resamples.eigenvalues[:, k]),
            "gap": float(self.gaps[k]),
            "outside_loss": loss if np.isfinite(loss) else None,
        }
