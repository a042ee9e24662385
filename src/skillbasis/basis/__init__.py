"""Directions of activations, principal ones or those of a sparse autoencoder, and the scores of examples along them."""

from .basis import SkillBasis
from .pca import PcaSettings, fit_pca
from .sae import fit_sae
from .sae_settings import SaeSettings, TrainingStep
from .scores import Scores, score
from .stability import Stability, StabilitySettings, measure_stability

__all__ = [
    "PcaSettings",
    "SaeSettings",
    "Scores",
    "SkillBasis",
    "Stability",
    "StabilitySettings",
    "TrainingStep",
    "fit_pca",
    "fit_sae",
    "measure_stability",
    "score",
]
