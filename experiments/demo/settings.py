"""What a run of the demonstration is: everything that decides its results."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from flashlla import models

MIXERS = ("lla", "softmax")
VOCABULARY = 256  # bytes

# About three minutes of both mixers together on two cores of a server CPU with AVX2.
DEFAULT_STEPS = 320


class DemoError(Exception):
    """A demonstration that cannot start or go on; the message says why, and what to do."""


@dataclass(frozen=True)
class Settings:
    """One run: the same for both mixers, but for ``ridge``, which softmax attention does not have.

    ``steps`` None stands for "as many as fit in ``minutes``", until :func:`training.steps_in` has measured
    how many these are.
    """

    steps: int | None = DEFAULT_STEPS
    minutes: float | None = None
    seed: int = 0
    ridge: str | float = "learned"
    dim: int = 128
    depth: int = 2
    heads: int = 4
    context: int = 256
    batch: int = 8
    learning_rate: float = 4e-3
    device: str = "cpu"
    corpus: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def differences(self, stored: dict[str, Any]) -> list[str]:
        """In words, what ``stored`` settings have otherwise."""
        ours, compared = self.to_dict(), {f.name for f in fields(self)} - {"minutes"}
        if self.steps is None:
            compared = compared - {"steps"} | {"minutes"}
        return [
            f"{name} is {stored.get(name)} there and {ours[name]} here"
            for name in ours
            if name in compared and stored.get(name) != ours[name]
        ]

    def model_config(self, mixer: str) -> models.LanguageModelConfig:
        """The model of one mixer."""
        options = {"ridge": self.ridge} if mixer == "lla" else {}
        return models.LanguageModelConfig(
            vocab_size=VOCABULARY,
            dim=self.dim,
            depth=self.depth,
            heads=self.heads,
            mixer=mixer,
            mixer_options=options,
        )
