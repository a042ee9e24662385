"""Choose rows of a corpus to train on: along directions of a basis, and the baselines they must beat."""

from .strategy import STRATEGIES, Candidates, SelectionSettings, parse_direction, select

__all__ = ["STRATEGIES", "Candidates", "SelectionSettings", "parse_direction", "select"]
