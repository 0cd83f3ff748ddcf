"""Experiments: one package each, built on :mod:`flashlla.models`."""
