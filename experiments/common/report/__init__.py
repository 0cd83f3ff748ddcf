"""One page with all results: without scripts or requests, for phones, for the dark, and for the keyboard."""

from . import benchmarks
from .page import Section, render

__all__ = ["Section", "benchmarks", "render"]
