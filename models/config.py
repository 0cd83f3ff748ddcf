"""The configuration of a language model: plain data, checked once, stored as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .mixers import MIXERS


@dataclass(frozen=True)
class LanguageModelConfig:
    """Sizes and choices of a :class:`LanguageModel`.

    Attributes:
        vocab_size: number of tokens.
        dim: width of the residual stream.
        depth: number of blocks.
        heads: query heads of the mixer.
        kv_heads: key and value heads, a divisor of heads; None means heads.
        mixer: name of the token mixer, one of ``flashlla.models.mixers.MIXERS``.
        mixer_options: keyword options of that mixer, JSON values: ``{"ridge": 1.0, "window_size": 64}``.
        mlp_hidden: width of the SwiGLU; None means 8/3 of dim, rounded up to a multiple of 8.
        tie_embeddings: one matrix for the embedding and the logits.

    Raises:
        TypeError: a field of the wrong type, or mixer_options that JSON cannot hold.
        ValueError: a size below 1, heads that do not divide, an unknown mixer.
    """

    vocab_size: int
    dim: int
    depth: int
    heads: int
    kv_heads: int | None = None
    mixer: str = "lla"
    mixer_options: Mapping[str, Any] = field(default_factory=dict)
    mlp_hidden: int | None = None
    tie_embeddings: bool = True

    def __post_init__(self):
        for name in ("vocab_size", "dim", "depth", "heads", "kv_heads", "mlp_hidden"):
            size = getattr(self, name)
            if size is None and name in ("kv_heads", "mlp_hidden"):
                continue
            if not isinstance(size, int) or isinstance(size, bool):
                raise TypeError(f"{name} must be an int, got {type(size).__name__}")
            if size < 1:
                raise ValueError(f"{name}={size} must be at least 1")
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} is no multiple of kv_heads={self.kv_heads}")
        if self.mixer not in MIXERS:
            raise ValueError(f"mixer={self.mixer!r} is unknown; choose one of {', '.join(sorted(MIXERS))}")
        if not isinstance(self.tie_embeddings, bool):
            raise TypeError(f"tie_embeddings must be a bool, got {type(self.tie_embeddings).__name__}")
        if not isinstance(self.mixer_options, Mapping):
            raise TypeError(f"mixer_options must be a mapping, got {type(self.mixer_options).__name__}")
        try:
            options = json.loads(json.dumps(dict(self.mixer_options)))
        except TypeError as error:
            raise TypeError(f"mixer_options must hold JSON values only: {error}") from error
        object.__setattr__(self, "mixer_options", options)  # a copy: later changes by the caller stay outside

    @property
    def hidden(self) -> int:
        """Width of the SwiGLU, the default resolved."""
        return -(-8 * self.dim // 24) * 8 if self.mlp_hidden is None else self.mlp_hidden

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LanguageModelConfig:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: unknown or missing keys, and as the constructor does.
        """
        known = {f.name for f in fields(cls)}
        required = {"vocab_size", "dim", "depth", "heads"}
        if unknown := sorted(set(data) - known):
            raise ValueError(
                f"unknown keys in a LanguageModelConfig: {', '.join(unknown)}; "
                f"it has {', '.join(sorted(known))}"
            )
        if missing := sorted(required - set(data)):
            raise ValueError(f"missing keys in a LanguageModelConfig: {', '.join(missing)}")
        return cls(**data)
