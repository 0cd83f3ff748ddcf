"""The demonstration behind ``flashlla demo``: one small language model, trained with LLA and with softmax."""

from .run import run
from .settings import DemoError, Settings

__all__ = ["DemoError", "Settings", "run"]
