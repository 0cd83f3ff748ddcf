"""The classes that vLLM sees, over vLLM itself: what it asks them before and during a step, on the CPU."""

from types import SimpleNamespace

import pytest
import torch

from flashlla import lla_attention

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec

from flashlla.integrations.vllm import backend as plugin
from flashlla.integrations.vllm import register

register()
BACKEND = AttentionBackendEnum.CUSTOM.get_class()
HEADS, KV_HEADS, DIM, PAGE = 4, 2, 16, 16
SUPPORTED = {
    "head_size": 64,
    "dtype": torch.bfloat16,
    "kv_cache_dtype": "auto",
    "block_size": 16,
    "use_mla": False,
    "has_sink": False,
    "use_sparse": False,
    "use_mm_prefix": False,
    "use_per_head_quant_scales": False,
    "device_capability": None,
    "attn_type": "decoder",
}


@pytest.fixture
def config(monkeypatch):
    """The little that is read of a configuration of vLLM."""
    model = SimpleNamespace(lla_ridge=0.5)
    config = SimpleNamespace(
        model_config=SimpleNamespace(hf_text_config=model, hf_config=model), speculative_config=None
    )
    monkeypatch.setattr(plugin, "get_current_vllm_config", lambda: config)
    return config


def make_layer(sliding_window=None, **options):
    return BACKEND.get_impl_cls()(HEADS, DIM, DIM**-0.5, KV_HEADS, None, sliding_window, **options)


def make_builder(config, window_size=None):
    sizes = {"block_size": PAGE, "num_kv_heads": KV_HEADS, "head_size": DIM, "dtype": torch.float32}
    spec = (
        SlidingWindowSpec(**sizes, sliding_window=window_size) if window_size else FullAttentionSpec(**sizes)
    )
    return BACKEND.get_builder_cls()(spec, ["layer"], config, torch.device("cpu"))


def metadata(counts, lengths, table, slots, **changes):
    start = torch.nn.functional.pad(torch.tensor(counts).cumsum(0), (1, 0)).int()
    lengths = torch.tensor(lengths).int()
    arguments = {
        "query_start_loc": start,
        "query_start_loc_cpu": start,
        "seq_lens": lengths,
        "seq_lens_cpu_upper_bound": lengths,
        "num_reqs": len(counts),
        "num_actual_tokens": sum(counts),
        "max_query_len": max(counts),
        "max_seq_len": int(lengths.max()),
        "block_table_tensor": table,
        "slot_mapping": slots,
    }
    return CommonAttentionMetadata(**arguments | changes)


def test_the_classes_are_complete_and_selected_by_name():
    for cls in (BACKEND, BACKEND.get_impl_cls(), BACKEND.get_builder_cls()):
        assert not cls.__abstractmethods__
    assert BACKEND.__module__ == "flashlla.integrations.vllm.backend"
    assert AttentionBackendEnum[BACKEND.get_name()] is AttentionBackendEnum.CUSTOM


@pytest.mark.parametrize(
    "changes",
    ({}, {"has_sliding_window": True}, {"head_size": 256}, {"block_size": None}, {"dtype": torch.float32}),
)
def test_what_vllm_is_told_that_is_served(changes):
    assert BACKEND.validate_configuration(**SUPPORTED | changes) == []


@pytest.mark.parametrize(
    ("name", "value"),
    (
        ("head_size", 320),
        ("dtype", torch.float64),
        ("kv_cache_dtype", "fp8"),
        ("block_size", 20),
        ("use_mla", True),
        ("has_sink", True),
        ("use_sparse", True),
        ("use_mm_prefix", True),
        ("attn_type", "encoder_only"),
        ("attn_type", "encoder_decoder"),
        ("use_non_causal", True),
        ("use_dcp", True),
    ),
)
def test_what_vllm_is_told_that_is_not(name, value):
    assert len(BACKEND.validate_configuration(**SUPPORTED | {name: value})) == 1


@pytest.mark.parametrize("window_size", (None, 9))
def test_a_prompt_in_pieces_and_steps_behind_it(window_size, config, generator):
    layer, builder = make_layer(window_size), make_builder(config, window_size)
    q, k, v = (torch.randn(2, 40, heads, DIM, generator=generator) for heads in (HEADS, KV_HEADS, KV_HEADS))
    options = {"ridge": 0.5, "window_size": window_size, "backend": "reference"}
    expected = lla_attention(*(t.double() for t in (q, k, v)), **options)
    cache = torch.zeros(8, PAGE, KV_HEADS, 2 * DIM).transpose(1, 2)
    table = torch.tensor([[3, 5, 1, 99], [6, 2, 7, 99]]).int()
    seen = [0, 0]
    for counts in ([20, 3], [17, 1], [1, 36], [1, 0], [1, 0]):
        rows = [torch.arange(first, first + new) for first, new in zip(seen, counts, strict=True)]
        slots = torch.cat([t[r // PAGE].long() * PAGE + r % PAGE for t, r in zip(table, rows, strict=True)])
        new = [torch.cat([t[i, r] for i, r in enumerate(rows)]) for t in (q, k, v)]
        seen = [a + b for a, b in zip(seen, counts, strict=True)]
        layer.do_kv_cache_update(None, *new[1:], cache, slots)
        batch = builder.build(0, metadata(counts, seen, table, slots))
        out = torch.empty_like(new[0])
        assert layer.forward(None, *new, cache, batch, out) is out
        whole = torch.cat([expected[i, r] for i, r in enumerate(rows)])
        torch.testing.assert_close(out.double(), whole, rtol=1e-4, atol=1e-5)
    assert seen == [40, 40]


def test_memory_is_measured_without_metadata(config):
    out = torch.full((3, HEADS, DIM), torch.nan)
    assert not make_layer().forward(None, out, out, out, torch.tensor([]), None, out).any()


def test_lengths_on_the_device_alone(config):
    table, slots = torch.tensor([[1, 2]]).int(), torch.arange(20)
    batch = make_builder(config).build(0, metadata([4], [20], table, slots, seq_lens_cpu_upper_bound=None))
    assert batch.prompts.cu_seqlens_k.tolist() == [0, 20]


def test_refusals(config):
    table, slots = torch.tensor([[1]]).int(), torch.arange(4)
    with pytest.raises(NotImplementedError, match="cascade attention"):
        make_builder(config).build(16, metadata([4], [4], table, slots))
    with pytest.raises(NotImplementedError, match="not causal"):
        make_builder(config).build(0, metadata([4], [4], table, slots, causal=False))
    with pytest.raises(NotImplementedError, match="alibi_slopes"):
        BACKEND.get_impl_cls()(HEADS, DIM, 1.0, KV_HEADS, [0.5] * HEADS)
    with pytest.raises(NotImplementedError, match="sinks is not supported"):
        make_layer(sinks=torch.zeros(HEADS))
    with pytest.raises(NotImplementedError, match="quantised outputs"):
        make_layer().forward(None, *[torch.empty(0)] * 4, None, torch.empty(0), output_scale=torch.ones(1))
    config.model_config.hf_config.lla_ridge = -1
    with pytest.raises(ValueError, match="lla_ridge=-1 must be greater than 0"):
        make_layer()
    config.speculative_config = SimpleNamespace()
    with pytest.raises(NotImplementedError, match="speculative decoding"):
        make_builder(config)
