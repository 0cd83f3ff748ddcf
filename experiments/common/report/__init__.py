"""One page with the results of all experiments: without scripts or requests, for phones and for the dark."""

from .page import Section, render

__all__ = ["Section", "render"]
