"""Principal directions of activations, and the scores of examples along them."""

from .basis import SkillBasis
from .pca import PcaSettings, fit_pca
from .scores import Scores, score

__all__ = ["PcaSettings", "Scores", "SkillBasis", "fit_pca", "score"]
