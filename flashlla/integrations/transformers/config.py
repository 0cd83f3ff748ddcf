"""The configuration of our language model as transformers wants it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from transformers import PretrainedConfig

from flashlla.models import LanguageModelConfig

_FIELDS = tuple(f.name for f in fields(LanguageModelConfig))


class FlashLLAConfig(PretrainedConfig):
    """The fields of :class:`flashlla.models.LanguageModelConfig` as transformers stores and reads them.

    The usual names work as well, as arguments and as attributes: ``hidden_size``, ``num_hidden_layers``,
    ``num_attention_heads`` and ``tie_word_embeddings`` stand for dim, depth, heads and tie_embeddings.
    ``num_key_value_heads`` and ``intermediate_size`` can be read: they are kv_heads and mlp_hidden with their
    defaults resolved.

    Args:
        use_cache: whether a forward pass without labels and without gradient returns a cache.
        bos_token_id, eos_token_id, pad_token_id: special tokens, None for none.
        kwargs: the fields of LanguageModelConfig, of which vocab_size, dim, depth and heads are required, and
            whatever else transformers keeps in a configuration.

    Raises:
        TypeError, ValueError: as LanguageModelConfig does; a missing field, say, or an unknown mixer.
    """

    model_type = "flashlla"
    has_no_defaults_at_init = True
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012 (transformers reads a list)
    attribute_map = {  # noqa: RUF012 (transformers reads a dict)
        "hidden_size": "dim",
        "num_hidden_layers": "depth",
        "num_attention_heads": "heads",
        "tie_word_embeddings": "tie_embeddings",
    }

    def __init__(
        self,
        *,
        use_cache: bool = True,
        bos_token_id: int | None = None,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
        **kwargs: Any,
    ):
        kwargs = {self.attribute_map.get(name, name): value for name, value in kwargs.items()}
        given = {name: kwargs.pop(name) for name in _FIELDS if name in kwargs}
        checked = LanguageModelConfig.from_dict(given).to_dict()
        super().__init__(
            tie_word_embeddings=checked["tie_embeddings"],
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            **kwargs,
        )
        self.use_cache = use_cache
        for name, value in checked.items():
            setattr(self, name, value)

    @property
    def num_key_value_heads(self) -> int:
        """Key and value heads, the default resolved."""
        kv_heads: int = self.heads if self.kv_heads is None else self.kv_heads
        return kv_heads

    @property
    def intermediate_size(self) -> int:
        """Width of the SwiGLU, the default resolved."""
        hidden: int = self.to_language_model_config().hidden
        return hidden

    def to_language_model_config(self) -> LanguageModelConfig:
        """The configuration of the plain model.

        Raises:
            TypeError, ValueError: a field has been changed to what LanguageModelConfig does not take.
        """
        return LanguageModelConfig.from_dict({name: getattr(self, name) for name in _FIELDS})

    @classmethod
    def from_language_model_config(cls, config: LanguageModelConfig, **kwargs: Any) -> FlashLLAConfig:
        """The inverse of :meth:`to_language_model_config`; kwargs are those of the constructor."""
        return cls(**config.to_dict(), **kwargs)
