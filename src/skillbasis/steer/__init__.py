"""Steer a model along directions while it runs."""

from ..callable_module import make_callable
from .hooks import SCOPES, Scope, steer
from .vectors import UNITS, SteeringVector, direction_vector, random_vector

__all__ = ["SCOPES", "UNITS", "Scope", "SteeringVector", "direction_vector", "random_vector", "steer"]

make_callable(__name__, steer)
