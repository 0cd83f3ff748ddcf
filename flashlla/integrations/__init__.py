"""Conversion of existing models, and adapters for other libraries: each is imported by itself."""

from flashlla.integrations.convert import convert

__all__ = ["convert"]
