"""Implementations of the operator: one file (or folder) a backend, and what the backends share."""
