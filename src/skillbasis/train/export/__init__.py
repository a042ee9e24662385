"""Training data in the formats of other trainers."""

from .hub import push_dataset
from .llamafactory import LlamaFactoryRun
from .write import FORMATS, export, export_format

__all__ = ["FORMATS", "LlamaFactoryRun", "export", "export_format", "push_dataset"]
