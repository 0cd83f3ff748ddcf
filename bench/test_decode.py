"""One query over a long cache against PyTorch's softmax attention of the same query over the same memory."""

from __future__ import annotations

import pytest
import torch
from _common import THREADS, in_threads, interleave, threads
from torch.nn.functional import scaled_dot_product_attention

from flashlla import lla_attention_with_kvcache, softmax_attention_with_kvcache
from flashlla.testing.numerics import assert_within_budget
from flashlla.testing.problems import random_operands

LENGTH, HEADS = 16384, 8


def sdpa(q, k, v):
    """softmax attention of one query; tensors are heads first."""
    return scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])


@pytest.mark.parametrize("count", THREADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("kv_heads", [8, 2])
def test_decode(benchmark, report, shrink, kv_heads, head_dim, dtype, count):
    n = shrink(LENGTH)
    operands, _ = random_operands(
        "iid",
        q_len=1,
        kv_len=n,
        heads=HEADS,
        kv_heads=kv_heads,
        head_dim=head_dim,
        dtype=dtype,
        gate=False,
    )
    q, k, v, ridge = (operands[name] for name in ("q", "k", "v", "ridge"))

    def lla(backend="cpu", cast=lambda t: t):
        return lla_attention_with_kvcache(
            cast(q), cast(k), cast(v), cache_seqlens=n, ridge=cast(ridge), backend=backend
        )

    exact = lla("blockwise", torch.Tensor.double)
    assert_within_budget(lla(), exact, dtype, 1.0)
    views = [t.transpose(1, 2) for t in (q, k, v)]
    copies = [t.contiguous() for t in views]
    with threads(count):
        times = interleave(
            benchmark,
            {
                "lla": lla,
                "softmax": lambda: softmax_attention_with_kvcache(q, k, v, cache_seqlens=n, backend="cpu"),
                "sdpa": lambda: sdpa(*views),
                "sdpa, heads contiguous": lambda: sdpa(*copies),
            },
            rounds=25,
        )
    report(
        f"Decoding, time over that of torch SDPA on the same cache, n={n}",
        f"{HEADS}/{kv_heads} heads, d={head_dim}, {str(dtype)[6:]}, {in_threads(count)}",
        times["lla"] / times["sdpa"],
        "x",
        at_most=4,
        detail={
            "over sdpa with heads contiguous": f"{times['lla'] / times['sdpa, heads contiguous']:.2f}x",
            "our softmax over sdpa": f"{times['softmax'] / times['sdpa']:.2f}x",
            "lla ms": f"{times['lla'] * 1e3:.2f}",
            "sdpa ms": f"{times['sdpa'] * 1e3:.2f}",
        },
    )
