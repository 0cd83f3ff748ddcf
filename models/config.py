"""Configurations of the models: plain data, checked once, stored as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from flashlla.nn.checks import check_sizes

from .mixers import MIXERS, build_mixer

if TYPE_CHECKING:
    from typing_extensions import Self

REFERENCE_MIXER = "softmax"  # whose number of parameters the presets have, whatever their mixer


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """Sizes and choices of a stack of blocks, which every model here is.

    Attributes:
        dim: width of the residual stream.
        depth: number of blocks.
        heads: query heads of the mixer.
        kv_heads: key and value heads, a divisor of heads; None means heads.
        mixer: name of the token mixer, one of ``flashlla.models.mixers.MIXERS``; or a pattern of names for a
            hybrid stack, which is repeated: block i has ``mixer[i % len(mixer)]``, and depth is a multiple of
            the length. A list as long as depth names the mixer of every block.
        mixer_options: keyword options of that mixer, JSON values: ``{"ridge": 1.0, "window_size": 64}``; of a
            pattern, by name: ``{"lla": {"window_size": 64}, "mamba2": {"kv_heads": None}}``. A mixer's own
            ``heads`` and ``kv_heads`` go before those of the model.
        mlp_hidden: width of the SwiGLU; None means 8/3 of dim, rounded up to a multiple of 8, and 0 that a
            block is its mixer alone.

    Raises:
        TypeError: a field of the wrong type, or mixer_options that JSON cannot hold.
        ValueError: a size below 1, heads that do not divide, an unknown mixer, a pattern that does not fit
            depth, options of a mixer that is not in the pattern.
    """

    dim: int
    depth: int
    heads: int
    kv_heads: int | None = None
    mixer: str | Sequence[str] = "lla"
    mixer_options: Mapping[str, Any] = field(default_factory=dict)
    mlp_hidden: int | None = None

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __post_init__(self):
        check_sizes(dim=self.dim, depth=self.depth, heads=self.heads)
        check_given_sizes(
            kv_heads=self.kv_heads, mlp_hidden=None if self.mlp_hidden == 0 else self.mlp_hidden
        )
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} is no multiple of kv_heads={self.kv_heads}")
        self._check_mixer()
        if not isinstance(self.mixer_options, Mapping):
            raise TypeError(f"mixer_options must be a mapping, got {type(self.mixer_options).__name__}")
        try:
            options = json.loads(json.dumps(dict(self.mixer_options)))
        except TypeError as error:
            raise TypeError(f"mixer_options must hold JSON values only: {error}") from error
        object.__setattr__(self, "mixer_options", options)  # a copy: later changes by the caller stay outside
        if not isinstance(self.mixer, str):
            self._check_options_by_name()

    def _check_mixer(self) -> None:
        """One known name, or a pattern of them, which becomes a tuple."""
        if isinstance(self.mixer, str):
            if self.mixer not in MIXERS:
                raise ValueError(f"mixer={self.mixer!r} is unknown; choose one of {', '.join(MIXERS)}")
            return
        if not isinstance(self.mixer, Sequence):
            raise TypeError(f"mixer must be a name or a list of names, got {type(self.mixer).__name__}")
        if not self.mixer:
            raise ValueError("mixer is an empty list; give at least one name")
        for i, name in enumerate(self.mixer):
            if not isinstance(name, str) or name not in MIXERS:
                raise ValueError(f"mixer[{i}]={name!r} is unknown; choose one of {', '.join(MIXERS)}")
        if self.depth % len(self.mixer):
            raise ValueError(
                f"depth={self.depth} is no multiple of the {len(self.mixer)} names in mixer, which is a "
                "pattern to repeat; give as many names as there are blocks"
            )
        object.__setattr__(self, "mixer", tuple(self.mixer))

    def _check_options_by_name(self) -> None:
        for name, options in self.mixer_options.items():
            if name not in self.mixer:
                raise ValueError(
                    f"mixer_options has {name!r}, which is not in mixer={self.mixer}; for a pattern give the "
                    'options by name of the mixer: {"lla": {"ridge": 1.0}}'
                )
            if not isinstance(options, Mapping):
                raise TypeError(f"mixer_options[{name!r}] must be a mapping, got {type(options).__name__}")

    @property
    def mixers(self) -> tuple[tuple[str, dict[str, Any]], ...]:
        """Name of the mixer and its keyword arguments, heads among them, for every block."""
        heads = {"heads": self.heads, "kv_heads": self.kv_heads}
        if isinstance(self.mixer, str):
            return ((self.mixer, {**heads, **self.mixer_options}),) * self.depth
        names = self.mixer * (self.depth // len(self.mixer))
        return tuple((name, {**heads, **self.mixer_options.get(name, {})}) for name in names)

    @property
    def hidden(self) -> int:
        """Width of the SwiGLU, the default resolved."""
        return -(-8 * self.dim // 24) * 8 if self.mlp_hidden is None else self.mlp_hidden

    # ---- presets ----------------------------------------------------------------------------------------

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """The sizes called ``name``, ``changes`` applied, and with as many parameters whatever the mixer.

        Args:
            name: a key of ``PRESETS``.
            changes: other fields, or other values: ``preset("tiny", mixer="mamba2")``. With a given
                mlp_hidden the number of parameters is what comes out.

        Raises:
            ValueError: the name is unknown, and as the constructor does.
        """
        if name not in cls.PRESETS:
            raise ValueError(
                f"preset {name!r} of {cls.__name__} is unknown; choose one of {', '.join(cls.PRESETS)}"
            )
        config = cls(**{**cls.PRESETS[name], **changes})
        return config if config.mlp_hidden is not None else config.matched()

    def matched(self) -> Self:
        """This configuration with as many parameters as softmax attention and the default SwiGLU have.

        What the mixers have more, on average over the stack, the SwiGLUs have less.

        Raises:
            ValueError: the mixers alone have more than that.
        """
        heads = {"heads": self.heads, "kv_heads": self.kv_heads}
        allowed = _mixer_parameters(REFERENCE_MIXER, self.dim, heads)
        used = sum(_mixer_parameters(name, self.dim, options) for name, options in self.mixers) / self.depth
        default = replace(self, mlp_hidden=None).hidden
        hidden = round((default + (allowed - used) / (3 * self.dim)) / 8) * 8
        if hidden < 8:
            raise ValueError(
                f"mixer={self.mixer!r} has {used:,.0f} parameters a block, and a whole block with softmax "
                f"attention has {allowed + 3 * self.dim * default:,}; give mlp_hidden, or a narrower mixer"
            )
        return replace(self, mlp_hidden=hidden)

    # ---- JSON -------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data = asdict(self)
        return data if isinstance(self.mixer, str) else {**data, "mixer": list(self.mixer)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: unknown or missing keys, and as the constructor does.
        """
        known = {f.name for f in fields(cls)}
        required = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
        if unknown := sorted(set(data) - known):
            raise ValueError(
                f"unknown keys in a {cls.__name__}: {', '.join(unknown)}; it has {', '.join(sorted(known))}"
            )
        if missing := sorted(required - set(data)):
            raise ValueError(f"missing keys in a {cls.__name__}: {', '.join(missing)}")
        return cls(**data)


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig(StackConfig):
    """Sizes and choices of a :class:`LanguageModel`; those of the stack are in :class:`StackConfig`.

    Attributes:
        vocab_size: number of tokens.
        tie_embeddings: one matrix for the embedding and the logits.

    Raises:
        TypeError, ValueError: as :class:`StackConfig` does.
    """

    vocab_size: int
    tie_embeddings: bool = True

    PRESETS: ClassVar = {
        "tiny": {"vocab_size": 256, "dim": 128, "depth": 5, "heads": 4},
        "small": {"vocab_size": 256, "dim": 512, "depth": 10, "heads": 8},
        "base": {"vocab_size": 50304, "dim": 768, "depth": 12, "heads": 12},
        "large": {"vocab_size": 50304, "dim": 1024, "depth": 24, "heads": 16},
    }

    def __post_init__(self):
        check_sizes(vocab_size=self.vocab_size)
        super().__post_init__()
        if not isinstance(self.tie_embeddings, bool):
            raise TypeError(f"tie_embeddings must be a bool, got {type(self.tie_embeddings).__name__}")


def check_given_sizes(**sizes: int | None) -> None:
    """Every size that is not None is an int of at least 1."""
    check_sizes(**{name: size for name, size in sizes.items() if size is not None})


def _mixer_parameters(name: str, dim: int, options: Mapping[str, Any]) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build_mixer(name, dim, **options).parameters())
