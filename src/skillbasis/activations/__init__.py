"""From texts to one vector per example: pooled hidden states of chosen decoder blocks."""

from .extract import extract, repair
from .reader import BadRowsError, RayReader
from .settings import ExtractionSettings
from .source import ActivationSource, LiveActivations
from .store import ActivationStore, settings_of

__all__ = [
    "ActivationSource",
    "ActivationStore",
    "BadRowsError",
    "ExtractionSettings",
    "LiveActivations",
    "RayReader",
    "extract",
    "repair",
    "settings_of",
]
