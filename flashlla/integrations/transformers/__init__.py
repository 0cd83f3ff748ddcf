"""Hugging Face transformers: attention functions, masks, conversion, and our language model."""

from flashlla.integrations.transformers.conversion import convert_attention
from flashlla.integrations.transformers.registration import register

__all__ = ["convert_attention", "register"]
