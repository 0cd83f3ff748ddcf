"""The classes that vLLM asks of an attention backend, over :mod:`flashlla.integrations.vllm.batches`."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.config import get_current_vllm_config
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionImpl,
    AttentionMetadataBuilder,
    AttentionType,
    CommonAttentionMetadata,
    MultipleOf,
)

from flashlla._validation import MAX_HEAD_DIM
from flashlla.integrations.settings import Settings

from .batches import Batch, attend, make_batch, write
from .layers import check_layer


class LocalLinearAttentionBackend(AttentionBackend):
    """What vLLM may ask for, answered before it builds a model."""

    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.bfloat16, torch.float16, torch.float32]
    forward_includes_kv_cache_update = False

    @staticmethod
    def get_name() -> str:
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type[LocalLinearAttentionImpl]:
        return LocalLinearAttentionImpl

    @staticmethod
    def get_builder_cls() -> type[BatchBuilder]:
        return BatchBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        return [MultipleOf(16)]

    @classmethod
    def supports_head_size(cls, head_size: int) -> bool:
        return 1 <= head_size <= MAX_HEAD_DIM

    @classmethod
    def supports_sliding_window(cls) -> bool:
        return True


class BatchBuilder(AttentionMetadataBuilder[Batch]):
    """Makes a :class:`Batch` once a step, for all layers that share a cache.

    Raises:
        NotImplementedError: speculative decoding, whose lengths the host does not know.
    """

    reorder_batch_threshold = 1  # decoding requests come first

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device):
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        if vllm_config.speculative_config is not None:
            raise NotImplementedError(
                "speculative decoding is not supported by flashlla's backend; leave --speculative-config out"
            )

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> Batch:
        """
        Raises:
            NotImplementedError: a shared prefix (cascade attention), or attention that is not causal.
        """
        common = common_attn_metadata
        if common_prefix_len:
            raise NotImplementedError(
                f"common_prefix_len={common_prefix_len}: cascade attention is not supported; pass "
                "disable_cascade_attn=True"
            )
        if common.causal is not True:
            raise NotImplementedError("attention that is not causal is not supported by flashlla's backend")
        lengths = common.seq_lens_cpu_upper_bound
        requests = common.num_reqs
        return make_batch(
            common.query_start_loc[: requests + 1],
            common.seq_lens[:requests],
            common.block_table_tensor[:requests],
            query_start_cpu=common.query_start_loc_cpu[: requests + 1],
            lengths_cpu=(common.seq_lens.cpu() if lengths is None else lengths)[:requests],
            page_size=self.kv_cache_spec.block_size,
            window_size=getattr(self.kv_cache_spec, "sliding_window", None),
        )


class LocalLinearAttentionImpl(AttentionImpl[Batch]):
    """Attention of one layer. Ridge and gate are ``lla_ridge`` and ``lla_gate`` of the model's configuration.

    Raises:
        NotImplementedError: biases, soft caps, sinks, quantised caches, encoders, and extra arguments.
        TypeError, ValueError: a configuration that :class:`Settings` does not take.
    """

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        **extra: Any,
    ):
        check_layer(
            head_size=head_size,
            dtype=torch.get_default_dtype(),
            kv_cache_dtype=kv_cache_dtype,
            attn_type=str(getattr(attn_type, "value", attn_type)),
            alibi_slopes=alibi_slopes,
            logits_soft_cap=logits_soft_cap,
            extra=extra,
        )
        self.num_heads, self.head_size, self.scale = num_heads, head_size, float(scale)
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.kv_cache_dtype, self.window_size = kv_cache_dtype, sliding_window
        self.kv_sharing_target_layer_name = kv_sharing_target_layer_name
        model = get_current_vllm_config().model_config
        self.settings = Settings.of(model.hf_text_config, model.hf_config)

    def do_kv_cache_update(
        self, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        write(*self._pages(kv_cache), key, value, slot_mapping)

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        kv_cache: Tensor,
        attn_metadata: Batch | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Attend with ``query`` ``[tokens, heads, head_size]``; keys and values are in the cache already.

        Returns:
            ``output``, ``[tokens, heads, head_size]``. Without metadata, when vLLM measures memory, it is 0.

        Raises:
            NotImplementedError: a quantised output.
        """
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError("quantised outputs are not supported by flashlla's backend")
        if attn_metadata is None:
            return output.fill_(0)
        return attend(
            query,
            *self._pages(kv_cache),
            attn_metadata,
            output,
            scale=self.scale,
            window_size=self.window_size,
            settings=self.settings,
        )

    def _pages(self, kv_cache: Tensor) -> tuple[Tensor, Tensor]:
        """``[blocks, kv_heads, block_size, 2 head_size]`` as views of keys and of values by page."""
        k_pages, v_pages = kv_cache.transpose(1, 2).split(self.head_size, -1)
        return k_pages, v_pages
