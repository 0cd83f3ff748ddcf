"""Triton's decoding kernels in the interpreter: budgets against the float64 reference over the same cache,
and the bits that pages, batches and invisible keys must not change.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flashlla import (
    _validation,
    lla_attention_with_kvcache,
    parallax_attention_with_kvcache,
    softmax_attention_with_kvcache,
)
from flashlla.ops.triton import cached
from flashlla.testing.numerics import assert_within_budget
from flashlla.testing.problems import random_operands

pytestmark = pytest.mark.usefixtures("poisoned_memory")

FUNCTIONS = {
    "lla": lla_attention_with_kvcache,
    "parallax": parallax_attention_with_kvcache,
    "softmax": softmax_attention_with_kvcache,
}
HALF = (torch.bfloat16, torch.float16)
dtype = pytest.mark.parametrize("dtype", HALF, ids=str)
member = pytest.mark.parametrize("member", FUNCTIONS)


def problem(member: str = "lla", data: str = "iid", **changes) -> dict[str, Tensor]:
    """Operands of a call over a cache of ``kv_len`` rows, all of them used."""
    sizes = {"q_len": 1, "kv_len": 70, "heads": 2, "kv_heads": 1, "head_dim": 16, "ridge": 0.1} | changes
    if member != "lla":
        sizes |= {"ridge": None, "probe": member == "parallax", "gate": member != "softmax"}
    operands = random_operands(data, **sizes)[0]
    return {f"{name}_cache" if name in ("k", "v") else name: t for name, t in operands.items()}


def run(member: str, operands: dict[str, Tensor], lengths, **options) -> Tensor:
    return FUNCTIONS[member](**operands, cache_seqlens=lengths, backend="triton", **options)


def exact(member: str, operands: dict[str, Tensor], lengths, **options) -> Tensor:
    operands = {name: t.double() for name, t in operands.items()}
    return FUNCTIONS[member](**operands, cache_seqlens=lengths, backend="reference", **options)


def check(member: str, operands: dict[str, Tensor], lengths, **options) -> Tensor:
    out = run(member, operands, lengths, **options)
    ridge = round(float(operands["ridge"].min()), 6) if member == "lla" else None
    expected = exact(member, operands, lengths, **options)
    assert_within_budget(out, expected, operands["q"].dtype, ridge)
    return out


def paged(operands: dict[str, Tensor], page_size: int, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """The same caches in pages of a pool, in random order, NaN where nothing is; and the table of them."""
    batch, capacity = operands["k_cache"].shape[:2]
    pages = -(-capacity // page_size)
    order = torch.randperm(batch * pages + 3, generator=torch.Generator().manual_seed(seed))
    table = order[: batch * pages].view(batch, pages).int()
    pools = {}
    for name in ("k_cache", "v_cache"):
        t = operands[name]
        padded = torch.nn.functional.pad(t, (0, 0, 0, 0, 0, pages * page_size - capacity), value=torch.nan)
        pool = t.new_full((len(order), page_size, *t.shape[2:]), torch.nan)
        pool[table.long()] = padded.view(batch, pages, page_size, *t.shape[2:])
        pools[name] = pool
    return operands | pools, table


# ---- budgets ---------------------------------------------------------------------------------------------


@dtype
@pytest.mark.parametrize("kv_len", [0, 1, 2, 15, 16, 17, 20, 63, 64, 65, 1024, 1025])
def test_lengths(dtype, kv_len):
    check("lla", problem(kv_len=kv_len, dtype=dtype), kv_len)


@dtype
@pytest.mark.parametrize("data", ["iid", "steep", "far"])
@pytest.mark.parametrize("ridge", [1.0, 0.01])
@pytest.mark.parametrize(("kv_len", "head_dim"), [(70, 64), (600, 16)])
def test_ridges_and_data(dtype, data, ridge, kv_len, head_dim):
    check("lla", problem(data=data, kv_len=kv_len, head_dim=head_dim, ridge=ridge, dtype=dtype), kv_len)


@member
@dtype
@pytest.mark.parametrize("q_len", [1, 3])
@pytest.mark.parametrize("options", [{}, {"window_size": 20}, {"causal": False}], ids=str)
def test_members_and_masks(member, dtype, q_len, options):
    operands = problem(member, "steep", q_len=q_len, batch=2, heads=4, kv_heads=2, value_dim=12, dtype=dtype)
    check(member, operands, torch.tensor([70, 33]), **options)


def test_the_most_tokens_that_a_step_has():
    check("lla", problem(q_len=16, heads=1, kv_len=40, dtype=torch.bfloat16), 40)


@member
@pytest.mark.parametrize(("head_dim", "value_dim"), [(1, 1), (57, 40), (128, 128), (140, 16), (24, 200)])
def test_dimensions(member, head_dim, value_dim):
    operands = problem(member, kv_len=90, head_dim=head_dim, value_dim=value_dim, dtype=torch.bfloat16)
    check(member, operands, 90)


@pytest.mark.parametrize("member", ["parallax", "softmax"])
def test_more_rows_than_a_tile(member):
    check(member, problem(member, q_len=16, heads=6, dtype=torch.bfloat16), 70)


@pytest.mark.parametrize("magnitude", [1e-6, 1e6])
def test_keys_outside_the_range_of_float16(magnitude):
    """Logits and ridge are scaled along with the keys, so that the result stays the same."""
    operands = problem(kv_len=600, dtype=torch.bfloat16)
    operands["k_cache"] *= magnitude
    operands["q"] *= magnitude
    operands["ridge"] *= magnitude**2
    out = run("lla", operands, 600, scale=0.25 / magnitude**2)
    assert_within_budget(out, exact("lla", operands, 600, scale=0.25 / magnitude**2), torch.bfloat16, 0.1)


@pytest.mark.parametrize("sharpness", [4.0, 30.0])
@pytest.mark.parametrize("ridge", [1.0, 0.01])
@dtype
def test_peaked_attention(sharpness, ridge, dtype):
    """Few of many keys carry all the weight: the covariance is singular although the row sees many."""
    operands = problem(kv_len=600, head_dim=32, ridge=ridge, dtype=dtype)
    check("lla", operands, 600, scale=sharpness / 32**0.5)


@pytest.mark.parametrize("grown", [1e3, 1e6])
def test_keys_that_grow(grown):
    """The scale of the first block is not that of the rest."""
    operands = problem(kv_len=600, dtype=torch.bfloat16)
    operands["k_cache"][:, :100] /= grown
    operands["v_cache"][:, :64] = 0
    check("lla", operands, 600)


# ---- bits ------------------------------------------------------------------------------------------------


@member
@pytest.mark.parametrize("page_size", [16, 7, 64])
@pytest.mark.parametrize("options", [{}, {"window_size": 40}], ids=str)
def test_pages_change_no_bit(member, page_size, options):
    operands = problem(member, q_len=2, batch=2, dtype=torch.bfloat16)
    lengths = torch.tensor([70, 48])
    expected = run(member, operands, lengths, **options)
    pages, table = paged(operands, page_size)
    table[1, -(-48 // page_size) :] = -1
    assert torch.equal(run(member, pages, lengths, block_table=table, **options), expected)


@member
def test_a_paged_prefill(member):
    operands = problem(member, q_len=17, batch=2, kv_len=24, heads=1, dtype=torch.bfloat16)
    pages, table = paged(operands, 16)
    lengths = torch.tensor([24, 20])
    out = run(member, pages, lengths, block_table=table)
    assert torch.equal(out, run(member, operands, lengths))
    assert_within_budget(out, exact(member, operands, lengths), torch.bfloat16, 0.1)


@member
def test_alone_and_in_a_batch(member):
    operands = problem(member, batch=2, kv_len=1100, heads=1, dtype=torch.bfloat16)
    lengths = torch.tensor([1100, 31])
    together = run(member, operands, lengths)
    for b in range(2):
        alone = {name: t[b : b + 1] for name, t in operands.items()}
        for name in ("k_cache", "v_cache"):
            alone[name] = alone[name][:, : int(lengths[b])]  # nor does the capacity matter
        assert torch.equal(run(member, alone, lengths[b : b + 1]), together[b : b + 1])


@member
def test_what_is_not_seen_may_be_anything(member):
    """Unused slots, keys before the window, and keys of later tokens."""
    operands = problem(member, q_len=3, kv_len=60, dtype=torch.bfloat16)
    clean = run(member, operands, 50, window_size=20)
    for name in ("k_cache", "v_cache"):
        operands[name][:, 50:] = torch.nan
        operands[name][:, :28] = torch.inf
        operands[name][:, 49] = torch.nan
    out = run(member, operands, 50, window_size=20)
    assert torch.equal(out[:, :2], clean[:, :2])
    assert not out[:, 2].isfinite().any()


@member
@pytest.mark.parametrize("name", ["k_cache", "v_cache"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_visible_key_that_is_not_finite_shows(member, name, value):
    operands = problem(member, batch=2, dtype=torch.bfloat16)
    clean = run(member, operands, 70)
    operands[name][0, 30, 0, 3] = value
    out = run(member, operands, 70)
    broken = out[0, ..., 3] if name == "v_cache" and member == "lla" else out[0]
    assert not broken.isfinite().any()
    assert torch.equal(out[1], clean[1])


@pytest.mark.parametrize("ridge", [0.0, -1.0, torch.nan])
def test_a_ridge_that_is_not_positive_shows(ridge, monkeypatch):
    """On a GPU its sign is not read on the host, so that the kernels have to tell."""
    operands = problem(batch=2, dtype=torch.bfloat16)
    clean = run("lla", operands, 70)
    operands["ridge"][0] = ridge
    monkeypatch.setattr(_validation, "check_ridge_values", lambda ridge: None)
    out = run("lla", operands, 70)
    assert out[0].isnan().all()
    assert torch.equal(out[1], clean[1])


def test_an_empty_batch():
    operands = problem(batch=2, dtype=torch.bfloat16)
    empty = {name: t[:0] for name, t in operands.items()}
    assert run("lla", empty, torch.zeros(0, dtype=torch.int64)).shape == (0, 1, 2, 16)


# ---- splits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [0, 1, 512, 4096, 4097, 40000, 10**6])
def test_the_bound_of_splits_holds(capacity):
    def splits(keys: int) -> int:
        size = 1024
        while size * 8 < keys and size < 4096:
            size *= 2
        return -(-keys // size)

    lengths = {capacity, *(capacity * i // 100 for i in range(100)), min(capacity, 4096)}
    assert max(map(splits, lengths)) <= cached.most_splits(capacity)
