"""Experiments: one package each, built on :mod:`flashlla.models` and :mod:`flashlla.experiments.common`."""
