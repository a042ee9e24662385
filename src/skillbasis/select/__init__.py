"""Choose rows of a corpus to train on: along directions of a basis, and the baselines they must beat."""

from ..callable_module import make_callable
from .candidates import Candidates, SelectionSettings, SignedDirection, parse_direction
from .strategy import STRATEGIES, select

__all__ = ["STRATEGIES", "Candidates", "SelectionSettings", "SignedDirection", "parse_direction", "select"]

make_callable(__name__, select)
