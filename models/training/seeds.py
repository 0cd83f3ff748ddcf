"""Randomness as a function of the run's seed, the step and the micro-batch: nothing to save or restore."""

from __future__ import annotations

import hashlib

import torch


def batch_seed(seed: int, step: int, rank: int, *more: int) -> int:
    """A seed of 63 bits that differs with every argument."""
    words = b"".join(int(n).to_bytes(8, "little") for n in (seed, step, rank, *more))
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little") >> 1


def batch_generator(seed: int, step: int, rank: int) -> torch.Generator:
    """A CPU generator with :func:`batch_seed`, for a batch source to draw from."""
    return torch.Generator().manual_seed(batch_seed(seed, step, rank))
