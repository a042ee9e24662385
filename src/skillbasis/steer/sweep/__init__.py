"""Dose and response of steering: settings are chosen on validation problems, and the best is tested once on others."""

from .plan import SweepSettings
from .run import load_tasks, sweep

__all__ = ["SweepSettings", "load_tasks", "sweep"]
