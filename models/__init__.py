"""Models whose token mixer is a choice of the configuration, their training, and generation."""

from .checkpoint import load_model, save_model
from .config import LanguageModelConfig
from .encoder import Encoder, EncoderConfig
from .generation import generate, stream, stream_text
from .language_model import LanguageModel
from .policy import PolicyConfig, PolicyModel, PolicyOutput

__all__ = [
    "Encoder",
    "EncoderConfig",
    "LanguageModel",
    "LanguageModelConfig",
    "PolicyConfig",
    "PolicyModel",
    "PolicyOutput",
    "generate",
    "load_model",
    "save_model",
    "stream",
    "stream_text",
]
