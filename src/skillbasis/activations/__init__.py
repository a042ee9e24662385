"""From texts to one vector per example: pooled hidden states of chosen decoder blocks."""

from .extract import ExtractionSettings, extract
from .store import ActivationStore

__all__ = ["ActivationStore", "ExtractionSettings", "extract"]
