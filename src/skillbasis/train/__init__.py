"""Supervised fine-tuning on prompt-completion data."""

from .loop import fine_tune_in_memory
from .settings import PRESETS, LoraSettings, TrainingSettings
from .sft import fine_tune, fine_tuned

__all__ = ["PRESETS", "LoraSettings", "TrainingSettings", "fine_tune", "fine_tune_in_memory", "fine_tuned"]
