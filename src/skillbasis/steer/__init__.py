"""Steer a model along directions: while it runs, in a checkpoint, and in the formats of other engines."""

from ..callable_module import make_callable
from .hooks import SCOPES, Scope, steer
from .request import parse_weights, requested_vector
from .vectors import UNITS, SteeringVector, combined_vector, direction_vector, random_vector

__all__ = [
    "SCOPES",
    "UNITS",
    "Scope",
    "SteeringVector",
    "combined_vector",
    "direction_vector",
    "parse_weights",
    "random_vector",
    "requested_vector",
    "steer",
]

make_callable(__name__, steer)
