"""Directions from a TopK sparse autoencoder of the activations: each row is a sum of few of many directions.

Dimension names: n rows, d = blocks x hidden features, m latents in the dictionary, K directions kept in the basis.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..activations import ActivationSource
from ..errors import SkillbasisError, UsageError
from .basis import SkillBasis
from .latent_sums import Measures
from .moments import reading_of
from .sae_fit import SaeFit
from .sae_settings import SaeSettings, TrainingStep


def fit_sae(
    source: ActivationSource,
    settings: SaeSettings | None = None,
    *,
    checkpoint: Path | None = None,
    on_step: Callable[[TrainingStep], None] | None = None,
) -> SkillBasis:
    """Finds directions by a TopK sparse autoencoder of the centred activations.

    The basis holds decoder rows, unit and in the units of the activations, ordered by importance: the mean over all
    rows of the squared length that a latent adds to the reconstruction. A direction points to where its latent is
    active, so its sign means something and is kept. Its score is the linear (x - mean)·v like that of any basis, not
    the latent's activation; the configuration says how the two correlate. Directions are not orthogonal: shares of
    variance overlap, and `score_covariance` holds the covariance of the scores.

    Args:
        source: n rows of d features, read shard by shard: stored, or made by the model in every pass.
        checkpoint: a file that keeps the state; with it a killed call is continued by the same call and gives the same
            bytes, and a call with another k alone trains nothing again. The caller removes it when the basis is saved.
        on_step: called after every step of training.
    Returns: the basis. Its configuration holds `held_out` and `training` (rows; explained_variance: 1 - the fraction
        of variance unexplained, about the corpus mean and in the units trained in, with a 95 % interval over rows;
        active_per_row, L0), `dictionary` (size, alive and dead latents, activation_frequency of each),
        `span_variance_ratio` (share of the variance of the activations within the span of the directions) and, by
        direction, `latents`, `importance`, `activation_frequency` (share of all rows), `mean_activation` (how far it
        moves a row in which it is active, in the units of the activations), `score_activation_correlation` and
        `nearest_cosine` (to the most similar other direction kept). Dead latents are active in no row.
    Raises: UsageError: settings that do not fit the activations, or k above the latents alive. SkillbasisError: the
        activations do not vary or are not finite, or training diverges.
    Cost: a pass over the rows for their moments, one per epoch (one in all where the rows fit the buffer), and one to
        measure; O(d m) time per row trained on, and O(d m) memory for parameters and Adam, independent of n.
    Source: Gao et al. 2024, arXiv 2406.04093 (TopK, AuxK, unit decoder rows by projected gradients, encoder = decoder
        transposed at first). Departures: the offset begins at the mean, not the geometric median; the learning rate
        falls to 0 over the last fifth of the steps; no moving average of the weights.
    """
    import torch

    settings = settings or SaeSettings()
    fit = SaeFit(source, settings, checkpoint)
    with torch.enable_grad():
        fit.find_moments()
        fit.train(on_step)
    with torch.no_grad():
        return _basis(source, settings, fit, fit.measure())


def _basis(source: ActivationSource, settings: SaeSettings, fit: SaeFit, measures: Measures) -> SkillBasis:
    latents, moments, n_alive = measures.latents, fit.moments, int((measures.latents.fired > 0).sum())
    if n_alive == 0:
        raise SkillbasisError("no latent is ever active: training has failed; choose a smaller learning_rate")
    k = settings.k or n_alive
    if k > n_alive:
        raise UsageError(
            f"k = {k} is more than the {n_alive} latents that are ever active ({settings.dictionary_size - n_alive} of "
            f"{settings.dictionary_size} are dead); choose {n_alive} or fewer"
        )
    kept = np.argsort(-latents.importance, kind="stable")[:k]
    vectors = fit.trainer.model.decoder.detach().cpu().numpy().astype(np.float64)[kept] * fit.scale  # (k, d)
    lengths = np.linalg.norm(vectors, axis=1)
    directions = vectors / lengths[:, None]
    covariance = latents.score_covariance[np.ix_(kept, kept)]
    cosines = directions @ directions.T
    variance = covariance.diagonal().copy()
    config: dict[str, Any] = reading_of(source) | {
        "rows": moments.n_rows,
        "method": "sae",
        "settings": asdict(settings),
        "n_components": k,
        "orthogonal": False,
        "signs": "a direction points to where its latent is active",
        "block_rms": moments.block_rms.tolist(),
        "explained_variance": variance.tolist(),
        "explained_variance_ratio": (variance / moments.total_variance).tolist(),
        "total_variance": moments.total_variance,
        "span_variance_ratio": _span_variance(cosines, covariance) / moments.total_variance,
        "held_out": measures.held_out.report(),
        "training": measures.training.report()
        | {
            "steps": fit.trainer.step,
            "batch_rows": fit.batches.batch_rows,
            "epochs": fit.trainer.step / fit.batches.batches_per_epoch,
            "device": str(fit.device),
        },
        "dictionary": {
            "size": settings.dictionary_size,
            "alive": n_alive,
            "dead": settings.dictionary_size - n_alive,
            "activation_frequency": latents.frequency.tolist(),
        },
        "latents": kept.tolist(),
        "importance": latents.importance[kept].tolist(),
        "activation_frequency": latents.frequency[kept].tolist(),
        "mean_activation": (latents.mean_active[kept] * lengths).tolist(),
        "score_activation_correlation": _json_list(latents.correlation[kept]),
        "nearest_cosine": _nearest(cosines),
    }
    shape = (len(source.block_ids), source.hidden_size)
    return SkillBasis(
        directions=directions.reshape(k, *shape).astype(np.float32),
        mean=moments.mean.reshape(shape).astype(np.float32),
        explained_variance=variance,
        score_std=np.sqrt(variance),
        config=config,
        score_covariance=covariance,
    )


def _span_variance(gram: np.ndarray, covariance: np.ndarray) -> float:
    """Variance of the projection on the span of directions: the trace of (V V^T)^-1 V C V^T, V the directions as rows.

    Args: gram: (k, k) V V^T. covariance: (k, k) V C V^T, of the scores.
    """
    # Directions that are combinations of the others up to rounding in float32 add nothing.
    return float(np.trace(np.linalg.pinv(gram, rcond=1e-5, hermitian=True) @ covariance))


def _nearest(cosines: np.ndarray) -> list[float | None]:
    """For each direction its cosine to the other one nearest to its line; None where there is no other."""
    if len(cosines) == 1:
        return [None]
    others = cosines.copy()
    np.fill_diagonal(others, 0)
    return [float(row[np.abs(row).argmax()]) for row in others]


def _json_list(values: np.ndarray) -> list[float | None]:
    """Numbers; None where one is undefined."""
    return [float(value) if math.isfinite(value) else None for value in values]
