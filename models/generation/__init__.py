"""Generation from a language model with its decode states: one prefill, then one token a step."""

from .api import generate, stream, stream_text
from .sampling import sample

__all__ = ["generate", "sample", "stream", "stream_text"]
