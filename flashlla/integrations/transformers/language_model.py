"""Our language model as a model of transformers: files, ``generate()``, Trainer, auto classes."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

try:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
    from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
    from transformers.utils import can_return_tuple
except ImportError as error:
    raise ImportError(
        f"transformers 4.57 or later is needed ({error}): pip install 'flashlla[hf]'"
    ) from error

from flashlla.integrations.transformers.cache import FlashLLACache
from flashlla.integrations.transformers.config import FlashLLAConfig
from flashlla.integrations.transformers.rows import Rows, find_rows, first_tokens
from flashlla.models import LanguageModel
from flashlla.models.backbone import EMBEDDING_STD
from flashlla.models.mixers import ATTENTION_MIXERS

# Releases of transformers differ in what they call the cache, in outputs and in what generate() passes.
CACHE_NAME = "cache" if "cache" in {f.name for f in fields(CausalLMOutputWithPast)} else "past_key_values"
CACHE_KINDS = {None: "growing", "dynamic": "growing", "dynamic_full": "growing", "static": "static"}
GROWING_START = 1024  # most tokens for which generate() makes room at once in caches that grow


class FlashLLAPreTrainedModel(PreTrainedModel):
    """What both models here share. Weights, embeddings and caches are those of a plain LanguageModel."""

    config_class = FlashLLAConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # noqa: RUF012 (transformers reads a list)
    _skip_keys_device_placement = ["past_key_values", "cache"]  # noqa: RUF012

    def __init__(self, config: FlashLLAConfig):
        asked = config._attn_implementation
        if asked not in (None, "eager"):
            raise ValueError(
                f"attn_implementation={asked!r} has no effect here: mixer={config.mixer!r} says what mixes "
                "tokens; leave it out"
            )
        super().__init__(config)

    @classmethod
    def from_language_model(cls, model: LanguageModel, **options: Any) -> FlashLLAPreTrainedModel:
        """A plain model as one of transformers; the weights are shared, not copied.

        Args:
            model: the plain model, which then is the attribute ``language_model``.
            options: of :class:`FlashLLAConfig`, such as special tokens.
        """
        with torch.device("meta"):
            wrapped = cls(FlashLLAConfig.from_language_model_config(model.config, **options))
        wrapped.base_model.language_model = model
        wrapped.train(model.training)
        return wrapped

    def make_cache(
        self, batch_size: int, max_length: int, *, kind: str = "growing", dtype: torch.dtype | None = None
    ) -> FlashLLACache:
        """An empty cache for ``past_key_values`` of a forward pass or of ``generate()``.

        Args:
            batch_size: number of sequences; in ``generate()`` times num_beams, or num_return_sequences.
            max_length: tokens that each may reach; where ``"growing"`` starts.
            kind, dtype: see :meth:`flashlla.models.LanguageModel.make_states`.

        Raises:
            TypeError, ValueError, NotImplementedError: as make_states does.
        """
        return FlashLLACache(self._plain.make_states(batch_size, max_length, kind=kind, dtype=dtype))

    def get_input_embeddings(self) -> nn.Embedding:
        embedding: nn.Embedding = self._plain.embedding
        return embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self._plain.embedding = value

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As in transformers; the configuration of the plain model follows."""
        embeddings: nn.Embedding = super().resize_token_embeddings(*args, **kwargs)
        self._plain.config = self.config.to_language_model_config()
        return embeddings

    @property
    def _plain(self) -> LanguageModel:
        return self.base_model.language_model

    def _init_weights(self, module: nn.Module) -> None:
        """Start what the constructor of LanguageModel has not: new tables, and what a checkpoint lacks."""
        if module in set(self._plain.modules()):
            self.base_model._start_missing()
        elif isinstance(module, (nn.Embedding, nn.Linear)):
            nn.init.normal_(module.weight, std=EMBEDDING_STD)


class FlashLLAModel(FlashLLAPreTrainedModel):
    """Embedding, blocks and norm of a :class:`flashlla.models.LanguageModel`.

    Attributes:
        language_model: the plain model. A head that is not tied is part of it, and unused here.

    Raises:
        TypeError, ValueError: as LanguageModel does, and for an attn_implementation, which would do nothing.
    """

    def __init__(self, config: FlashLLAConfig):
        super().__init__(config)
        self.constructed = False
        self.language_model = LanguageModel(config.to_language_model_config())
        self.gradient_checkpointing = False
        self.post_init()
        self.constructed = True  # what is without a start from here on is missing in a checkpoint

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: FlashLLACache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        cache: FlashLLACache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states behind the norm.

        Args:
            input_ids: ``[batch, seq]``, int64.
            attention_mask: ``[batch, columns]``, 0 for padding, which may stand anywhere and leaves no trace;
                the last seq columns are those of input_ids. None means no padding.
            position_ids: ``[batch, seq]`` or ``[1, seq]``. They pack sequences: one begins where they do not
                go up, counts from 0 again, and sees nothing of the others, whatever the mixer.
            past_key_values: what the batch continues, from :meth:`make_cache` or an earlier output; updated
                in place. Without gradient only.
            inputs_embeds: ``[batch, seq, dim]`` instead of input_ids.
            use_cache: return a cache. None means what the configuration says, but not where gradients are
                recorded or sequences are packed.
            output_hidden_states: return what each block reads, and last_hidden_state behind it.
            output_attentions: must stay off.
            cache: past_key_values by its other name.
            kwargs: what transformers passes to every model; without effect.

        Returns:
            ``last_hidden_state`` ``[batch, seq, dim]``, without meaning at padding; the cache; hidden_states.

        Raises:
            TypeError: input_ids of another dtype, or a cache that is not ours.
            ValueError: wrong shapes, both or none of input_ids and inputs_embeds, a cache for packed
                sequences, or a full one.
            NotImplementedError: output_attentions, or a gradient through a cache.
        """
        given = self._given(input_ids, inputs_embeds)
        if self._chosen("output_attentions", output_attentions):
            raise NotImplementedError("output_attentions=True: the weights are never formed; leave it out")
        if kwargs.get("cu_seq_lens_q") is not None and position_ids is None:
            raise ValueError("cu_seq_lens_q needs position_ids, by which sequences are told apart; pass them")
        cache = _one_cache(past_key_values, cache)
        rows, cache = self._arrange(given, attention_mask, position_ids, cache, use_cache)
        x = given if rows is None else rows.take(given)
        x = self.language_model.embedding(x) if inputs_embeds is None else x
        read: list[Tensor] | None = [] if self._chosen("output_hidden_states", output_hidden_states) else None
        x = self._run_blocks(x, cache, rows, read)
        x = self.language_model.norm(x)
        if cache is not None:
            cache.count(given.shape[1], padded=rows is not None)
        if rows is not None:
            x, read = rows.put_back(x), None if read is None else [rows.put_back(r) for r in read]
        return BaseModelOutputWithPast(
            last_hidden_state=x, hidden_states=None if read is None else (*read, x), **{CACHE_NAME: cache}
        )

    def _start_missing(self) -> None:
        """Give all weights that a checkpoint lacks, at once, the start that they have in a new model.

        Raises:
            ValueError: it lacks all of them.
        """
        parameters = dict(self.language_model.named_parameters())
        missing = [n for n, p in parameters.items() if not getattr(p, "_is_hf_initialized", False)]
        if not self.constructed or not missing:
            return
        if len(missing) == len(parameters):
            raise ValueError(
                "the checkpoint has no weight of this model; what save_model() has written is read by "
                "load_model(), and from_language_model() makes a model of transformers of it"
            )
        fresh = LanguageModel(self.language_model.config)
        for name in missing:
            with torch.no_grad():
                parameters[name].copy_(fresh.get_parameter(name))
            parameters[name]._is_hf_initialized = True

    def _given(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if input_ids is not None and inputs_embeds is None:
            self.language_model.check_tokens(input_ids)
            return input_ids
        if input_ids is not None or inputs_embeds is None:
            raise ValueError("pass one of input_ids and inputs_embeds, and not both")
        dim = self.config.dim
        if inputs_embeds.dim() != 3 or inputs_embeds.shape[2] != dim:
            raise ValueError(
                f"inputs_embeds has shape {tuple(inputs_embeds.shape)}; expected [batch, seq, {dim}]"
            )
        return inputs_embeds

    def _chosen(self, name: str, value: bool | None) -> bool:
        return getattr(self.config, name) if value is None else value

    def _arrange(
        self,
        given: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: FlashLLACache | None,
        use_cache: bool | None,
    ) -> tuple[Rows | None, FlashLLACache | None]:
        """How the batch is read, and the cache that takes it in, made if it is wanted."""
        batch, seq = given.shape[:2]
        by_default = self.config.use_cache and not torch.is_grad_enabled()
        wanted = by_default if use_cache is None else use_cache
        rows = find_rows(attention_mask, position_ids, batch, seq, cached=wanted or cache is not None)
        if rows is not None and rows.packed:
            if cache is not None or use_cache:
                raise ValueError(
                    "position_ids pack several sequences into a row, and a cache continues one a row; pass "
                    "use_cache=False"
                )
            return rows, None
        return rows, self.make_cache(batch, 2 * max(seq, 1)) if wanted and cache is None else cache

    def _run_blocks(
        self, x: Tensor, cache: FlashLLACache | None, rows: Rows | None, read: list[Tensor] | None
    ) -> Tensor:
        """``x`` behind all blocks; what each of them reads goes into ``read``."""
        blocks = self.language_model.blocks
        states = [None] * len(blocks) if cache is None else cache.states
        lengths = None if cache is None or rows is None else rows.lengths
        recompute = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        for block, state in zip(blocks, states, strict=True):
            if read is not None:
                read.append(x)
            if recompute:
                x = self._gradient_checkpointing_func(block, x, state, lengths)
            else:
                x = block(x, state, lengths)
        return x


class FlashLLAForCausalLM(FlashLLAPreTrainedModel, GenerationMixin):
    """A :class:`flashlla.models.LanguageModel` for ``generate()``, Trainer and what else speaks transformers.

    Raises:
        TypeError, ValueError: as :class:`FlashLLAModel` does.
    """

    def __init__(self, config: FlashLLAConfig):
        super().__init__(config)
        self.model = FlashLLAModel(config)
        # What transformers calls a model that cannot go back, as assisted generation has to.
        self._is_stateful = any(name not in ATTENTION_MIXERS for name, _ in self.language_model.config.mixers)
        self.post_init()

    @property
    def language_model(self) -> LanguageModel:
        """The plain model, whose weights these are."""
        return self.model.language_model

    def get_output_embeddings(self) -> nn.Linear:
        """A layer with the weights of the logits: the model's own, which may be those of its embedding."""
        layer = nn.Linear(self.config.dim, self.config.vocab_size, bias=False, device="meta")
        layer.weight = self.language_model.output_weight
        return layer

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        plain = self.language_model
        if plain.head is None:
            plain.embedding.weight = new_embeddings.weight
        else:
            plain.head = new_embeddings.weight

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: FlashLLACache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: FlashLLACache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the token behind every position, and the loss of ``labels``.

        Args:
            labels: ``[batch, seq]``, each compared with the logits one column before. Left out are -100, what
                stands behind padding, and what begins a packed sequence.
            use_cache: as in :meth:`FlashLLAModel.forward`; with labels, None means no.
            logits_to_keep: how many columns at the end get logits, 0 for all; or which, int64.
            kwargs: go to the loss as well, such as ``num_items_in_batch``.
            others: as for :meth:`FlashLLAModel.forward`. Raises as it does.

        Returns:
            ``loss``, a scalar; ``logits`` ``[batch, seq, vocab_size]``, without meaning at padding; the
            cache; hidden_states.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=False if use_cache is None and labels is not None else use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            cache=cache,
            return_dict=True,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        plain = self.language_model
        # A device_map may have parted hidden states and weights.
        logits = plain.logits(outputs.last_hidden_state[:, kept].to(plain.output_weight.device))
        loss = None
        if labels is not None:
            first = first_tokens(attention_mask, position_ids, *labels.shape)
            labels = labels if first is None else labels.masked_fill(first, -100)
            loss = self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        past = {CACHE_NAME: outputs.get(CACHE_NAME)}
        return CausalLMOutputWithPast(loss=loss, logits=logits, hidden_states=outputs.hidden_states, **past)

    def _prepare_cache_for_generation(
        self,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        """Make the cache of ``generate()``, where transformers would make one of its own."""
        if not generation_config.use_cache:
            return
        asked = generation_config.cache_implementation
        if asked not in CACHE_KINDS:
            raise ValueError(
                f"cache_implementation={asked!r} is not for this model; choose 'dynamic' or 'static', or "
                "pass a cache from make_cache(), which has other kinds"
            )
        if _one_cache(model_kwargs.get("past_key_values"), model_kwargs.get("cache")) is not None:
            if asked is not None:
                raise ValueError(f"cache_implementation={asked!r} and a cache exclude each other; pass one")
            return
        rows = batch_size * max(generation_config.num_beams, generation_config.num_return_sequences)
        kind, length = CACHE_KINDS[asked], max(max_cache_length, 1)
        length = min(length, GROWING_START) if kind == "growing" else length
        model_kwargs[CACHE_NAME] = self.make_cache(rows, length, kind=kind)


def register_language_model() -> None:
    """Make ``AutoConfig``, ``AutoModel`` and ``AutoModelForCausalLM`` know these classes; idempotent."""
    AutoConfig.register(FlashLLAConfig.model_type, FlashLLAConfig, exist_ok=True)
    AutoModel.register(FlashLLAConfig, FlashLLAModel, exist_ok=True)
    AutoModelForCausalLM.register(FlashLLAConfig, FlashLLAForCausalLM, exist_ok=True)


def _one_cache(past_key_values: Any, cache: Any) -> FlashLLACache | None:
    """The cache, by whichever of its two names it was given."""
    if past_key_values is not None and cache is not None:
        raise ValueError("past_key_values and cache are two names of one argument; pass one of them")
    given = cache if past_key_values is None else past_key_values
    if given is not None and not isinstance(given, FlashLLACache):
        raise TypeError(
            f"past_key_values must be a FlashLLACache, got {type(given).__name__}; make_cache() of the model "
            "makes one"
        )
    return given
