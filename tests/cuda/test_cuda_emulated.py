"""The sources of the CUDA kernels, run on a host by an emulation of a block, against the definition."""

from __future__ import annotations

import pytest
import torch
from emulated import FEW_KEYS, SHARED, decode, exact
from torch import Tensor

from flashlla.ops import cuda
from flashlla.ops.cuda import _kernels
from flashlla.ops.types import Layout
from flashlla.testing.numerics import assert_within_budget, error_norm_ratio
from flashlla.testing.problems import DATA, random_operands

# One process: what a test compiles, others use.
pytestmark = [pytest.mark.usefixtures("emulation", "poisoned_memory"), pytest.mark.xdist_group("emulation")]

PROBES = ("solved", "given", "zero")
BF16, F16 = torch.bfloat16, torch.float16
CAPACITY = 1100
# Around a page of 16 keys, d and 1.25 d, several splits.
LENGTHS = [0, 1, 15, 16, 17, 64, 80, 600, CAPACITY]

probes = pytest.mark.parametrize("probe", PROBES)


def problem(probe: str = "solved", data: str = "steep", ridge: float = 0.1, **changes) -> dict[str, Tensor]:
    sizes = {"q_len": 1, "kv_len": CAPACITY, "heads": 2, "kv_heads": 1, "dtype": BF16, "ridge": ridge}
    if probe != "solved":
        sizes |= {"ridge": None, "probe": probe == "given", "gate": probe == "given"}
    return random_operands(data, **{**sizes, **changes})[0]


def lengths_of(*lengths: int, dtype: torch.dtype = torch.int32) -> Layout:
    return Layout(seqlens_k=torch.tensor(lengths, dtype=dtype))


def hold_to_budget(operands, layout: Layout, **options) -> tuple[Tensor, Tensor]:
    """Every batch row on its own; returns the output and the exact one."""
    ridge = round(float(operands["ridge"].min()), 6) if "ridge" in operands else None
    out, (o, lse) = decode(operands, layout, **options), exact(operands, layout, **options)
    for b in range(len(o)):
        assert_within_budget(out.o[b], o[b], operands["q"].dtype, ridge, name=f"row {b}")
    # The other probes' weights are rounded for the tensor cores, to a relative 2^-12, before they are summed.
    atol = 2e-5 if ridge is not None else 2.5e-4
    torch.testing.assert_close(out.lse.double(), lse, rtol=2e-6, atol=atol)
    assert not out.residual.any() and not out.iterations.any()
    return out.o, o


def paged(operands, lengths: list[int], page_size: int, seed: int = 0) -> tuple[dict[str, Tensor], Layout]:
    """The same caches in shuffled pages; unused slots hold NaN and unused entries of the table no page."""
    batch, capacity = operands["k"].shape[:2]
    columns = -(-capacity // page_size)
    order = torch.randperm(batch * columns, generator=torch.Generator().manual_seed(seed))
    table = torch.full((batch, columns), 2**30, dtype=torch.int32)
    pools = {}
    for name in ("k", "v"):
        pool = operands[name].new_full((batch * columns, page_size, *operands[name].shape[2:]), torch.nan)
        for b, length in enumerate(lengths):
            for c in range(-(-length // page_size)):
                rows = operands[name][b, c * page_size : min(length, (c + 1) * page_size)]
                pool[order[b * columns + c], : len(rows)] = rows
                table[b, c] = order[b * columns + c]
        pools[name] = pool
    return {**operands, **pools}, Layout(seqlens_k=torch.tensor(lengths), block_table=table)


# ---- error budgets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("ridge", [1.0, 0.01])
def test_solved_probe(data, ridge, dtype):
    operands = problem("solved", data, ridge, batch=len(LENGTHS), dtype=dtype)
    hold_to_budget(operands, lengths_of(*LENGTHS))


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("ridge", [0.1, 0.01])
@pytest.mark.parametrize(("head_dim", "keys"), [(16, 16), (64, 64), (64, 80), (64, 256)])
def test_few_keys(head_dim, keys, ridge, data, dtype):
    """Up to 4 times as many as dimensions: hardly more than the rounding of the output remains."""
    operands = problem("solved", data, ridge, kv_len=keys, dtype=dtype, head_dim=head_dim, heads=6)
    o, wide = hold_to_budget(operands, lengths_of(keys))
    actual = error_norm_ratio(o, wide)
    assert actual < 1.05 * error_norm_ratio(wide.to(dtype), wide)
    assert dtype == BF16 or actual < 3e-4


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("probe", ["given", "zero"])
def test_other_probes(probe, data, dtype):
    operands = problem(probe, data, batch=len(LENGTHS), dtype=dtype, q_len=3, heads=4)
    hold_to_budget(operands, lengths_of(*LENGTHS))


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize(("head_dim", "dtype"), [(128, BF16), (128, F16), (256, BF16)])
def test_larger_heads(head_dim, dtype, data):
    lengths = [1, head_dim, head_dim * 5 // 4, 600]
    operands = problem("solved", data, 0.01, batch=4, kv_len=600, dtype=dtype, head_dim=head_dim, heads=1)
    hold_to_budget(operands, lengths_of(*lengths))


@pytest.mark.parametrize("case", [("given", 128, BF16), ("zero", 128, F16), ("given", 256, F16)], ids=str)
def test_larger_heads_of_other_probes(case):
    probe, head_dim, dtype = case
    operands = problem(probe, batch=3, kv_len=600, dtype=dtype, head_dim=head_dim, q_len=2)
    hold_to_budget(operands, lengths_of(1, 77, 600))


@pytest.mark.parametrize("probe", ["solved", "given"])
@pytest.mark.parametrize(("head_dim", "value_dim"), [(40, 64), (57, 57), (64, 33), (16, 48), (57, 3)])
def test_odd_dimensions(probe, head_dim, value_dim):
    operands = problem(probe, batch=2, kv_len=300, dtype=F16, head_dim=head_dim, value_dim=value_dim)
    hold_to_budget(operands, lengths_of(31, 300))


@probes
@pytest.mark.parametrize("options", [{"window_size": 100}, {"window_size": 300}, {"causal": False}], ids=str)
def test_masks_and_query_tokens(probe, options):
    operands = problem(probe, batch=3, q_len=3, heads=4, kv_heads=2, kv_len=700)
    hold_to_budget(operands, lengths_of(2, 99, 700, dtype=torch.int64), **options)


@probes
def test_sixteen_tokens_of_a_group(probe):
    operands = problem(probe, q_len=16, heads=6, kv_heads=2, kv_len=200)
    hold_to_budget(operands, lengths_of(130))


@pytest.mark.parametrize("probe", ["solved", "given"])
def test_splits_of_the_true_size(probe, monkeypatch):
    monkeypatch.setattr(_kernels, "MIN_SPLIT", 1024)
    operands = problem(probe, kv_len=1300, q_len=2)
    hold_to_budget(operands, lengths_of(1300))


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1e4, 1e30])
def test_numbers_of_any_size(size):
    """bfloat16 has the range of float32: u and z are float16, and their scales have to follow."""
    operands = problem("solved", "iid", 0.1, kv_len=200)
    operands["k"] = (operands["k"] * min(size, 1.0)).to(BF16)
    operands["v"] = (operands["v"] * size).to(BF16)
    hold_to_budget(operands, lengths_of(200))


def test_growing_keys():
    """Every block of keys moves the maxima and the scales."""
    operands = problem("solved", "iid", 0.1, kv_len=600)
    growth = torch.logspace(-3, 1, 600, base=2.0)[None, :, None, None]
    operands["k"], operands["v"] = ((operands[name] * growth).to(BF16) for name in "kv")
    hold_to_budget(operands, lengths_of(600))


# ---- equalities --------------------------------------------------------------------------------------


@probes
@pytest.mark.parametrize("page_size", [16, 48, 256])
def test_pages_are_a_cache(probe, page_size):
    lengths = [0, page_size - 1, page_size, page_size + 1, 600]
    operands = problem(probe, batch=len(lengths), kv_len=600, q_len=2)
    expected = decode(operands, Layout(seqlens_k=torch.tensor(lengths)))
    actual = decode(*paged(operands, lengths, page_size))
    assert torch.equal(actual.o, expected.o) and torch.equal(actual.lse, expected.lse)
    assert actual.o.isfinite().all()


@probes
def test_a_row_does_not_depend_on_its_batch(probe):
    lengths = [300, 17, 600]
    operands = problem(probe, batch=3, kv_len=600, q_len=2, heads=4, kv_heads=2)
    together = decode(operands, lengths_of(*lengths))
    for b, length in enumerate(lengths):
        alone = decode({name: t[b : b + 1] for name, t in operands.items()}, lengths_of(length))
        assert torch.equal(together.o[b], alone.o[0])


@probes
@pytest.mark.parametrize("window_size", [0, 70])
def test_tokens_together_are_tokens_one_by_one(probe, window_size):
    length = 513  # the number of splits differs between tokens
    operands = problem(probe, kv_len=length, q_len=3)
    together = decode(operands, lengths_of(length), window_size=window_size).o
    for i in range(3):
        token = {name: t if name in "kv" else t[:, i : i + 1] for name, t in operands.items()}
        alone = decode(token, lengths_of(length - 2 + i), window_size=window_size).o
        assert torch.equal(together[:, i : i + 1], alone)


@probes
def test_threads_in_another_order(probe, emulation):
    operands = problem(probe, batch=2, q_len=2, kv_len=300)
    expected = decode(operands, lengths_of(300, 70)).o
    emulation.order = -1
    assert torch.equal(decode(operands, lengths_of(300, 70)).o, expected)


@probes
def test_launches_in_pieces(probe, emulation, monkeypatch):
    operands = problem(probe, batch=3, kv_len=300, heads=4, kv_heads=2)
    expected = decode(operands, lengths_of(300, 20, 0)).o
    assert len(emulation.launched) == 1
    monkeypatch.setattr(cuda, "SCRATCH_BYTES", 1)
    assert torch.equal(decode(operands, lengths_of(300, 20, 0)).o, expected)
    assert len(emulation.launched) == 1 + 6  # one for each sequence and key head


@probes
def test_little_shared_memory_and_strides(probe, emulation):
    """Fewer stages, and loads of single numbers, change no bit."""
    operands = problem(probe, batch=2, kv_len=300, q_len=2, dtype=F16)
    expected = decode(operands, lengths_of(300, 70)).o
    emulation.shared = 50_000
    assert torch.equal(decode(operands, lengths_of(300, 70)).o, expected)
    emulation.shared = SHARED
    for name in "kv":  # rows at odd addresses, heads before rows
        host = torch.full((2, 1, 301, 67), torch.nan, dtype=F16)
        operands[name] = host[:, :, :300, 1:65].transpose(1, 2).copy_(operands[name])
    assert torch.equal(decode(operands, lengths_of(300, 70)).o, expected)
    first, fewer, odd = emulation.launched
    assert fewer.stages == 1 < first.stages
    assert first.aligned and not odd.aligned


# ---- what is not visible -----------------------------------------------------------------------------


@probes
@pytest.mark.parametrize("poison", [torch.nan, torch.inf], ids=str)
def test_unused_slots_are_not_read(probe, poison):
    operands = problem(probe, batch=2, kv_len=200, q_len=2)
    expected = decode(operands, lengths_of(130, 70), window_size=60)
    for name in "kv":
        for b, (first, last) in enumerate([(130 - 61, 130), (70 - 61, 70)]):
            operands[name][b, :first] = poison
            operands[name][b, last:] = poison
    actual = decode(operands, lengths_of(130, 70), window_size=60)
    assert torch.equal(actual.o, expected.o) and actual.o.isfinite().all()


@probes
@pytest.mark.parametrize("name", ["k", "v"])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf], ids=str)
def test_a_later_token_does_not_reach_earlier_ones(probe, name, poison):
    operands = problem(probe, kv_len=200, q_len=3)
    expected = decode(operands, lengths_of(150)).o
    operands[name][:, 149] = poison
    actual = decode(operands, lengths_of(150)).o
    assert torch.equal(actual[:, :2], expected[:, :2])
    assert not actual[:, 2].isfinite().any()


@probes
@pytest.mark.parametrize("name", ["k", "v"])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_a_broken_visible_slot_shows(probe, name, poison):
    operands = problem(probe, batch=2, kv_len=200)
    operands[name][0, 3] = poison
    actual = decode(operands, lengths_of(150, 150)).o
    assert not actual[0].isfinite().any()
    assert actual[1].isfinite().all()


@pytest.mark.parametrize("ridge", [0.0, -1.0, torch.nan])
def test_a_ridge_that_is_not_positive_shows(ridge):
    operands = problem(batch=2, kv_len=80)
    clean = decode(operands, lengths_of(80, 80)).o
    operands["ridge"][0] = ridge
    out = decode(operands, lengths_of(80, 80)).o
    assert out[0].isnan().all()
    assert torch.equal(out[1], clean[1])


@probes
def test_nothing_visible(probe):
    operands = problem(probe, batch=2, kv_len=50, q_len=3)
    out = decode(operands, lengths_of(0, 2))
    assert not out.o[0].any() and (out.lse[0] == -torch.inf).all()
    assert not out.o[1, 0].any() and out.lse[1, 0, 0] == -torch.inf
    assert out.o[1, 1:].any(-1).all()


@pytest.mark.parametrize("shape", [{"batch": 0}, {"kv_len": 0}])
def test_empty_operands(shape):
    operands = problem("solved", **shape)
    out = decode(operands, lengths_of(*[0] * len(operands["q"])))
    assert out.o.shape == operands["q"].shape and not out.o.any()


# ---- what is refused ---------------------------------------------------------------------------------


def test_refusals(emulation):
    with pytest.raises(NotImplementedError, match="up to 256, not 264"):
        decode(problem("solved", head_dim=264, kv_len=9), lengths_of(9))
    with pytest.raises(NotImplementedError, match="16 query tokens"):
        decode(problem("solved", q_len=17, kv_len=20), lengths_of(20))
    with pytest.raises(NotImplementedError, match="over a cache"):
        decode(problem("solved", kv_len=9), Layout())
    with pytest.raises(NotImplementedError, match="no gradient"):
        cuda.backward(*[None] * 11)
    emulation.shared = 101376
    with pytest.raises(NotImplementedError, match="101376"):
        decode(problem("solved", head_dim=256, kv_len=9), lengths_of(9))


@pytest.mark.parametrize("keys", [0, 1, 128, 129, 1024, 1025, 2000, 8192, 8193, 50_000])
def test_no_row_has_more_splits_than_scratch_memory(keys):
    def splits(n: int) -> int:
        size = FEW_KEYS
        while size < 4 * FEW_KEYS and size * 8 < n:
            size *= 2
        return -(-n // size)

    worst = max(map(splits, range(max(0, keys - 9000), keys + 1)))
    assert worst <= _kernels.most_splits(keys) <= max(worst, 1)
