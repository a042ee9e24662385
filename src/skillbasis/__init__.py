"""skillbasis: find a language model's own skill axes, say what they mean, and act on them.

The names below are imported when they are first used, so that `import skillbasis` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .activations import ActivationStore, ExtractionSettings, LiveActivations, RayReader, extract, repair
    from .basis import PcaSettings, SaeSettings, Scores, SkillBasis, fit_pca, fit_sae, measure_stability, score
    from .corpus import Corpus, load_corpus
    from .evaluate import SamplingSettings, evaluate, load_task
    from .evaluate.comparing import compare_evaluations
    from .interpret import describe_basis
    from .interpret.comparison import compare
    from .interpret.locate import locate
    from .interpret.skills import describe_skills
    from .lm import LanguageModel, load_model
    from .select import Candidates, SelectionSettings, select
    from .steer import SteeringVector, combined_vector, direction_vector, random_vector, steer
    from .steer.contrasts import mean_difference, success_vector
    from .steer.gradients import gradient_vector
    from .train import TrainingSettings, fine_tune

_HOME = {
    "ActivationStore": "activations",
    "Candidates": "select",
    "Corpus": "corpus",
    "ExtractionSettings": "activations",
    "LanguageModel": "lm",
    "LiveActivations": "activations",
    "PcaSettings": "basis",
    "RayReader": "activations",
    "SaeSettings": "basis",
    "SamplingSettings": "evaluate",
    "Scores": "basis",
    "SelectionSettings": "select",
    "SkillBasis": "basis",
    "SteeringVector": "steer",
    "TrainingSettings": "train",
    "combined_vector": "steer",
    "compare": "interpret.comparison",
    "compare_evaluations": "evaluate.comparing",
    "describe_basis": "interpret",
    "describe_skills": "interpret.skills",
    "direction_vector": "steer",
    "extract": "activations",
    "fine_tune": "train",
    "fit_pca": "basis",
    "fit_sae": "basis",
    "gradient_vector": "steer.gradients",
    "load_corpus": "corpus",
    "load_model": "lm",
    "load_task": "evaluate",
    "locate": "interpret.locate",
    "mean_difference": "steer.contrasts",
    "measure_stability": "basis",
    "random_vector": "steer",
    "repair": "activations",
    "score": "basis",
    "success_vector": "steer.contrasts",
}
_CALLABLE = ("evaluate", "select", "steer")  # packages that can be called like their main function

__all__ = [
    "ActivationStore",
    "Candidates",
    "Corpus",
    "ExtractionSettings",
    "LanguageModel",
    "LiveActivations",
    "PcaSettings",
    "RayReader",
    "SaeSettings",
    "SamplingSettings",
    "Scores",
    "SelectionSettings",
    "SkillBasis",
    "SteeringVector",
    "TrainingSettings",
    "combined_vector",
    "compare",
    "compare_evaluations",
    "describe_basis",
    "describe_skills",
    "direction_vector",
    "evaluate",
    "extract",
    "fine_tune",
    "fit_pca",
    "fit_sae",
    "gradient_vector",
    "load_corpus",
    "load_model",
    "load_task",
    "locate",
    "mean_difference",
    "measure_stability",
    "random_vector",
    "repair",
    "score",
    "select",
    "steer",
    "success_vector",
]


def __getattr__(name: str) -> Any:
    if name in _CALLABLE:
        return import_module(f".{name}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module 'skillbasis' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
