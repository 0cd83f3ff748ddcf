"""Bad input is refused before anything is computed, with the argument and its value in the message."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from flashlla import (
    _backends,
    lla_attention,
    lla_attention_varlen,
    lla_attention_with_kvcache,
    parallax_attention,
)

NAN, INF = float("nan"), float("inf")


def zeros(*shape: int, **kwargs) -> Tensor:
    return torch.zeros(shape, **kwargs)


def dense(**changes) -> dict:
    return {"q": zeros(2, 5, 4, 8), "k": zeros(2, 6, 2, 8), "v": zeros(2, 6, 2, 3), "ridge": 1.0, **changes}


def packed(**changes) -> dict:
    q, k, v = zeros(6, 4, 8), zeros(6, 2, 8), zeros(6, 2, 3)
    return {"q": q, "k": k, "v": v, "cu_seqlens": torch.tensor([0, 2, 6]), "ridge": 1.0, **changes}


def cached(**changes) -> dict:
    caches = {"k_cache": zeros(2, 9, 2, 8), "v_cache": zeros(2, 9, 2, 3)}
    return {"q": zeros(2, 3, 4, 8), **caches, "cache_seqlens": torch.tensor([4, 6]), "ridge": 1.0, **changes}


def appended(**changes) -> dict:
    return cached(**{"k": torch.ones(2, 3, 2, 8), "v": torch.ones(2, 3, 2, 3), **changes})


def given(**changes) -> dict:
    operands = dense(**{"r": zeros(2, 5, 4, 8), **changes})
    del operands["ridge"]
    return operands


def last_stride_two(*shape: int) -> Tensor:
    return zeros(*shape[:-1], 2 * shape[-1])[..., ::2]


def ints(*values: int, **kwargs) -> Tensor:
    return torch.tensor(values, **kwargs)


# id: (arguments, error, words that the message must contain)
DENSE = {
    "q_type": (dense(q=[1.0]), TypeError, "q list"),
    "k_type": (dense(k=None), TypeError, "k NoneType"),
    "q_rank": (dense(q=zeros(5, 4, 8)), ValueError, "q (5,4,8) [batch,seq,heads,head_dim]"),
    "v_rank": (dense(v=zeros(2, 6, 2)), ValueError, "v (2,6,2)"),
    "q_dtype": (dense(q=zeros(2, 5, 4, 8).int()), TypeError, "q torch.int32"),
    "mixed_dtypes": (dense(k=zeros(2, 6, 2, 8).half()), TypeError, "k torch.float16 q torch.float32"),
    "mixed_value_dtype": (dense(v=zeros(2, 6, 2, 3).double()), TypeError, "v torch.float64"),
    "mixed_devices": (dense(k=zeros(2, 6, 2, 8, device="meta")), ValueError, "k meta q cpu"),
    "q_last_stride": (dense(q=last_stride_two(2, 5, 4, 8)), ValueError, "q stride 2 contiguous"),
    "v_last_stride": (dense(v=last_stride_two(2, 6, 2, 3)), ValueError, "v stride 2 contiguous"),
    "head_dim_0": (dense(q=zeros(2, 5, 4, 0), k=zeros(2, 6, 2, 0)), ValueError, "q 0 256"),
    "head_dim_257": (dense(q=zeros(2, 5, 4, 257), k=zeros(2, 6, 2, 257)), ValueError, "q 257 256"),
    "value_dim_257": (dense(v=zeros(2, 6, 2, 257)), ValueError, "v 257 256"),
    "value_dim_0": (dense(v=zeros(2, 6, 2, 0)), ValueError, "v 0 256"),
    "batch_sizes": (dense(k=zeros(3, 6, 2, 8), v=zeros(3, 6, 2, 3)), ValueError, "q k batch 2 3"),
    "head_dims": (dense(k=zeros(2, 6, 2, 7)), ValueError, "q 8 k 7"),
    "kv_lengths": (dense(v=zeros(2, 7, 2, 3)), ValueError, "k (2,6,2,8) v (2,7,2,3)"),
    "kv_heads": (dense(v=zeros(2, 6, 4, 3)), ValueError, "k (2,6,2,8) v (2,6,4,3)"),
    "heads_not_divisible": (dense(q=zeros(2, 5, 3, 8)), ValueError, "q 3 heads 2 k"),
    "no_heads": (dense(q=zeros(2, 5, 0, 8)), ValueError, "q 0 heads"),
    "no_kv_heads": (dense(k=zeros(2, 6, 0, 8), v=zeros(2, 6, 0, 3)), ValueError, "k 0"),
    "ridge_zero": (dense(ridge=0.0), ValueError, "ridge 0.0"),
    "ridge_negative": (dense(ridge=-2.5), ValueError, "ridge -2.5"),
    "ridge_nan": (dense(ridge=NAN), ValueError, "ridge nan"),
    "ridge_inf": (dense(ridge=INF), ValueError, "ridge inf"),
    "ridge_type": (dense(ridge="1"), TypeError, "ridge str"),
    "ridge_bool": (dense(ridge=True), TypeError, "ridge bool"),
    "ridge_none": (dense(ridge=None), TypeError, "ridge NoneType"),
    "ridge_int_tensor": (dense(ridge=torch.tensor(1)), TypeError, "ridge torch.int64"),
    "ridge_shape": (dense(ridge=torch.ones(5, 3)), ValueError, "ridge (5,3) (2,5,4)"),
    "ridge_rank": (dense(ridge=torch.ones(2, 5, 4, 1)), ValueError, "ridge (2,5,4,1) (2,5,4)"),
    "ridge_tensor_zero": (dense(ridge=torch.tensor([1.0, 2.0, 0.0, 1.0])), ValueError, "ridge 0.0"),
    "ridge_tensor_negative": (dense(ridge=torch.tensor([1.0, 2.0, -3.0, 1.0])), ValueError, "ridge -3.0"),
    "ridge_tensor_nan": (dense(ridge=torch.tensor([1.0, 2.0, NAN, 1.0])), ValueError, "ridge nan"),
    "ridge_tensor_inf": (dense(ridge=torch.tensor([1.0, 2.0, INF, 1.0])), ValueError, "ridge inf"),
    "gate_nan": (dense(gate=NAN), ValueError, "gate nan"),
    "gate_type": (dense(gate=[1.0]), TypeError, "gate list"),
    "gate_shape": (dense(gate=torch.ones(2)), ValueError, "gate (2,) (2,5,4)"),
    "scale_nan": (dense(scale=NAN), ValueError, "scale nan"),
    "scale_inf": (dense(scale=INF), ValueError, "scale inf"),
    "window_0": (dense(window_size=0), ValueError, "window_size 0"),
    "window_negative": (dense(window_size=-1), ValueError, "window_size -1"),
    "window_float": (dense(window_size=2.0), TypeError, "window_size float"),
    "window_bool": (dense(window_size=True), TypeError, "window_size bool"),
    "window_without_causal": (dense(window_size=3, causal=False), ValueError, "window_size 3 causal"),
    "solver": (dense(solver="lu"), ValueError, "solver 'lu' auto cg direct"),
    "solver_of_triton": (
        dense(solver="direct", backend="triton"),
        NotImplementedError,
        "triton solver 'direct' auto cg",
    ),
    "rtol_zero": (dense(rtol=0.0), ValueError, "rtol 0.0"),
    "rtol_one": (dense(rtol=1.0), ValueError, "rtol 1.0"),
    "rtol_nan": (dense(rtol=NAN), ValueError, "rtol nan"),
    "max_iters_zero": (dense(max_iters=0), ValueError, "max_iters 0"),
    "max_iters_float": (dense(max_iters=2.5), ValueError, "max_iters 2.5"),
    "deterministic": (dense(deterministic="yes"), TypeError, "deterministic 'yes'"),
    "backend": (dense(backend="fast"), ValueError, "backend 'fast' auto blockwise cpu reference"),
    "cpu_float64": (
        {**{n: t.double() if isinstance(t, Tensor) else t for n, t in dense().items()}, "backend": "cpu"},
        NotImplementedError,
        "cpu float64 auto",
    ),
    "cpu_on_meta": (
        {**{n: t.to("meta") if isinstance(t, Tensor) else t for n, t in dense().items()}, "backend": "cpu"},
        NotImplementedError,
        "cpu meta",
    ),
}
GIVEN = {
    "r_shape": (given(r=zeros(2, 5, 2, 8)), ValueError, "r (2,5,2,8) q (2,5,4,8)"),
    "r_dtype": (given(r=zeros(2, 5, 4, 8).half()), TypeError, "r torch.float16"),
    "r_type": (given(r=1.0), TypeError, "r float"),
    "r_last_stride": (given(r=last_stride_two(2, 5, 4, 8)), ValueError, "r stride 2"),
}
PACKED = {
    "rank": (packed(q=zeros(1, 6, 4, 8)), ValueError, "q (1,6,4,8) [total,heads,head_dim]"),
    "falls": (packed(cu_seqlens=ints(0, 4, 2, 6)), ValueError, "cu_seqlens 4 2"),
    "start": (packed(cu_seqlens=ints(1, 6)), ValueError, "cu_seqlens 1 0"),
    "negative": (packed(cu_seqlens=ints(0, -1, 6)), ValueError, "cu_seqlens -1"),
    "end_short": (packed(cu_seqlens=ints(0, 5)), ValueError, "cu_seqlens 5 6"),
    "end_long": (packed(cu_seqlens=ints(0, 7)), ValueError, "cu_seqlens 7 6"),
    "empty": (packed(cu_seqlens=ints(dtype=torch.int32)), ValueError, "cu_seqlens empty"),
    "lone_zero": (packed(cu_seqlens=ints(0)), ValueError, "cu_seqlens 0 6"),
    "dtype": (packed(cu_seqlens=torch.tensor([0.0, 6.0])), TypeError, "cu_seqlens torch.float32"),
    "int16": (packed(cu_seqlens=ints(0, 6, dtype=torch.int16)), TypeError, "cu_seqlens torch.int16"),
    "type": (packed(cu_seqlens=[0, 6]), TypeError, "cu_seqlens list"),
    "dims": (packed(cu_seqlens=torch.tensor([[0, 6]])), ValueError, "cu_seqlens (1,2)"),
    "device": (packed(cu_seqlens=torch.tensor([0, 6], device="meta")), ValueError, "cu_seqlens meta"),
    "keys_missing": (packed(q=zeros(5, 4, 8), cu_seqlens=ints(0, 5)), ValueError, "q 5 k 6 cu_seqlens_k"),
    "keys_fall": (packed(cu_seqlens_k=ints(0, 7, 6)), ValueError, "cu_seqlens_k 7 6"),
    "keys_end": (packed(cu_seqlens_k=ints(0, 2, 5)), ValueError, "cu_seqlens_k 5 6"),
    "keys_count": (packed(cu_seqlens_k=ints(0, 6)), ValueError, "cu_seqlens_k 2 cu_seqlens 3"),
    "keys_type": (packed(cu_seqlens_k=6), TypeError, "cu_seqlens_k int"),
    "ridge_shape": (packed(ridge=torch.ones(1, 6, 4)), ValueError, "ridge (1,6,4) (6,4)"),
    "ridge_negative": (packed(ridge=-torch.ones(6, 4)), ValueError, "ridge -1.0"),
}
CACHED = {
    "overflow": (appended(cache_seqlens=ints(4, 7)), ValueError, "cache 7 3 9"),
    "overflow_int": (appended(cache_seqlens=7), ValueError, "cache 7 3 9"),
    "overflow_without_new": (cached(cache_seqlens=ints(4, 10)), ValueError, "cache 10 9"),
    "negative": (cached(cache_seqlens=ints(4, -1)), ValueError, "cache_seqlens -1"),
    "negative_int": (cached(cache_seqlens=-1), ValueError, "cache_seqlens -1"),
    "count": (cached(cache_seqlens=ints(4)), ValueError, "cache_seqlens 1 2"),
    "dtype": (cached(cache_seqlens=torch.tensor([4.0, 6.0])), TypeError, "cache_seqlens torch.float32"),
    "type": (cached(cache_seqlens=[4, 6]), TypeError, "cache_seqlens list"),
    "bool": (cached(cache_seqlens=True), TypeError, "cache_seqlens bool"),
    "none": (cached(cache_seqlens=None), TypeError, "cache_seqlens NoneType"),
    "k_alone": (appended(v=None), ValueError, "k v together"),
    "v_alone": (appended(k=None), ValueError, "k v together"),
    "k_type": (appended(k=1.0), TypeError, "k float"),
    "k_dtype": (appended(k=zeros(2, 3, 2, 8).half()), TypeError, "k torch.float16"),
    "k_length": (appended(k=zeros(2, 2, 2, 8)), ValueError, "k (2,2,2,8) (2,3,2,8)"),
    "v_heads": (appended(v=zeros(2, 3, 4, 3)), ValueError, "v (2,3,4,3) (2,3,2,3)"),
    "bad_option_after_good_cache": (appended(solver="lu"), ValueError, "solver 'lu'"),
    "bad_backend_after_good_cache": (appended(backend="fast"), ValueError, "backend 'fast'"),
    "bad_ridge_after_good_cache": (appended(ridge=-torch.ones(2, 3, 4)), ValueError, "ridge -1.0"),
    "nan_ridge_after_good_cache": (appended(ridge=torch.tensor(NAN)), ValueError, "ridge nan"),
    "cache_dtypes": (cached(v_cache=zeros(2, 9, 2, 3).half()), TypeError, "v torch.float16"),
    "cache_lengths": (cached(v_cache=zeros(2, 8, 2, 3)), ValueError, "v (2,8,2,3)"),
    "cache_stride": (cached(k_cache=last_stride_two(2, 9, 2, 8)), ValueError, "k stride 2"),
}


def table(cases: dict) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("arguments", "error", "words"), cases.values(), ids=cases)


@pytest.fixture(autouse=True)
def nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str):
        raise AssertionError(f"backend {name!r} was reached")

    monkeypatch.setattr(_backends, "load", load)


def refuse(function, arguments: dict, error: type, words: str) -> None:
    with pytest.raises(error) as caught:
        function(**arguments)
    assert type(caught.value) is error
    message = str(caught.value).replace(" ", "")
    for word in words.split():
        assert re.search(re.escape(word), message), f"{word!r} is not in: {caught.value}"


@table(DENSE)
def test_dense(arguments, error, words):
    refuse(lla_attention, arguments, error, words)


@table(GIVEN)
def test_given_probe(arguments, error, words):
    refuse(parallax_attention, arguments, error, words)


@table(PACKED)
def test_packed(arguments, error, words):
    refuse(lla_attention_varlen, arguments, error, words)


@table(CACHED)
def test_cache(arguments, error, words):
    caches = [t.clone() for name, t in arguments.items() if name.endswith("_cache")]
    refuse(lla_attention_with_kvcache, arguments, error, words)
    after = [t for name, t in arguments.items() if name.endswith("_cache")]
    assert all(torch.equal(a, b) for a, b in zip(after, caches, strict=True)), "the cache was written"


def test_unknown_argument():
    with pytest.raises(TypeError, match="lambda_"):
        lla_attention(**dense(), lambda_=1.0)


def test_options_are_keyword_only():
    operands = dense()
    with pytest.raises(TypeError, match="positional"):
        lla_attention(operands["q"], operands["k"], operands["v"], 1.0)


def test_environment_names_a_backend(monkeypatch):
    monkeypatch.setenv("FLASHLLA_BACKEND", "fast")
    refuse(lla_attention, dense(), ValueError, "backend 'fast'")
