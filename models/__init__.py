"""Language models whose token mixer is a choice of the configuration."""

from .checkpoint import load_model, load_training_state, save_model, save_training_state
from .config import LanguageModelConfig
from .generation import generate, stream, stream_text
from .language_model import LanguageModel

__all__ = [
    "LanguageModel",
    "LanguageModelConfig",
    "generate",
    "load_model",
    "load_training_state",
    "save_model",
    "save_training_state",
    "stream",
    "stream_text",
]
