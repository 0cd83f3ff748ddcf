"""Local linear attention as it was published (arXiv 2510.01450), for comparisons of speed and error.

Its choices, all other than ours: moments relative to the query and not to the mean of the keys; always 32
iterations of conjugate gradients over all keys, in which rows freeze but nothing ends early; every operand of
a product rounded to bfloat16, sums and state in float32; weights with a denominator. ``z_ij = k_j - q_i``,

    w_ij = exp(scale q_i.k_j - max)           omega = sum_j w           mu = sum_j w z
    Sigma = sum_j w z z^T + ridge omega I     rho = Sigma^-1 mu         delta = omega - mu.rho
    s_ij = w_ij (1 - z_ij.rho) / delta        o = sum_j s v_j

The backward pass solves a second system, ``U = Sigma^-1 T``, ``T = sum_j C z``, ``C = w do.v / delta``. It
too is the published one and **leaves out a term**: omega in the ridge counts as a constant, for lack of
``ridge (U.rho - beta |rho|^2)``, ``beta = do.o / delta``, in the gradient of a weight. What this costs dq and
dk in accuracy is the baseline's error.

What is not published is how it runs here: products, masks and pipelines are those of our own kernels;
coefficients that meet the same vector are summed before their product, so that the backward kernels take 17
products and 3 an iteration where the published code takes 23 and 3; and lengths that no tile divides are
handled. All of this favours the baseline.

Layout ``[batch, seq, heads, head_dim]``, contiguous, causal, as many keys as queries, head_dim a power of 2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from flashlla.ops.triton import _runtime
from flashlla.ops.triton._common import LOG2_E, Span, dot, narrow, product, sweep

ITERATIONS = 32
TOLERANCE = tl.constexpr(1e-12)  # of the squared residual, at which a row freezes
# Numbers of a row, ``[3, batch, seq, heads]`` float32: those that the forward pass saves, those added later.
DENOMINATOR, TOP, OMEGA = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
BETA, Q_RHO, Q_U = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
PLANES = 3


# ---- sweeps over keys ------------------------------------------------------------------------------------


@triton.jit
def locate(tiles, heads, n, BLOCK: tl.constexpr):
    """First row of a program's tile, and the number of row 0 of its head among all ``[batch, seq, heads]``.

    Heads outermost, so that those that run at one time read the same keys; in a head the longest rows first.
    """
    tile, flat = tl.program_id(0) % tiles, (tl.program_id(0) // tiles).to(tl.int64)
    return (tiles - 1 - tile) * BLOCK, flat // heads * n * heads + flat % heads


@triton.jit
def load(p, stride, rows, length, dims, MASKED: tl.constexpr):
    """Rows of a matrix, ``[rows, dims]``, zeros behind the last one."""
    pointers = p + rows.to(tl.int64)[:, None] * stride + dims[None, :]
    if MASKED:
        return tl.load(pointers, mask=(rows < length)[:, None], other=0.0)
    else:
        return tl.load(pointers)


class Tile(NamedTuple):
    """A tile of rows, and the keys and values of its head."""

    q: tl.tensor
    scale: tl.tensor  # of logits in powers of two
    rows: tl.tensor
    p_k: tl.tensor
    p_v: tl.tensor
    stride: tl.tensor
    length: tl.tensor
    columns: tl.tensor
    dims: tl.tensor


@triton.jit
def load_block(tile, p, start, MASKED: tl.constexpr):
    """A block of keys or values."""
    return load(p, tile.stride, start + tile.columns, tile.length, tile.dims, MASKED)


@triton.jit
def logits(tile, k, start, MASKED: tl.constexpr):
    """Logits in powers of two, -inf under the mask."""
    s = product(tile.q, tl.trans(k), tl.float32) * tile.scale
    if MASKED:
        columns = (start + tile.columns)[None, :]
        s = tl.where(columns <= tile.rows[:, None], s, -float("inf"))
    return s


class Moments(NamedTuple):
    top: tl.tensor  # running maximum of the logits
    omega: tl.tensor
    wk: tl.tensor  # sum of w k


@triton.jit
def moments_block(
    state,
    tile,
    start,
    MASKED: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    TERMS: tl.constexpr,
    PROBE_TERMS: tl.constexpr,
):
    k = load_block(tile, tile.p_k, start, MASKED)
    s = logits(tile, k, start, MASKED)
    top = tl.maximum(state.top, tl.max(s, 1))
    w, shrink = tl.exp2(s - top[:, None]), tl.exp2(state.top - top)
    wk = dot(narrow(w, k.dtype), k, state.wk * shrink[:, None])
    return Moments(top, state.omega * shrink + tl.sum(w, 1), wk)


class Direction(NamedTuple):
    tile: Tile
    top: tl.tensor
    x: tl.tensor


@triton.jit
def covariance_block(
    wxk,
    context,
    start,
    MASKED: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    TERMS: tl.constexpr,
    PROBE_TERMS: tl.constexpr,
):
    """Adds ``sum_j w_j (k_j.x) k_j``."""
    k = load_block(context.tile, context.tile.p_k, start, MASKED)
    w = tl.exp2(logits(context.tile, k, start, MASKED) - context.top[:, None])
    return dot(narrow(w * product(context.x, tl.trans(k), tl.float32), k.dtype), k, wxk)


@triton.jit
def solve(b, tile, top, omega, wk, ridge, iterations, span, DIM: tl.constexpr, BLOCK_N: tl.constexpr):
    """``Sigma^-1 b`` for every row by conjugate gradients: all iterations, whatever the residuals."""
    q = tile.q.to(tl.float32)
    x, r, d = tl.zeros_like(b), b, b
    rr = tl.sum(r * r, 1)
    goal, active = rr * TOLERANCE, rr > 0
    for _ in range(iterations):
        context = Direction(tile, top, narrow(d, tile.q.dtype))
        wdk = sweep(covariance_block, tl.zeros_like(b), context, span, BLOCK_N, False, DIM, DIM, 1, 1)
        along_q, along_wk = tl.sum(q * d, 1), tl.sum(wk * d, 1)
        ad = wdk + (ridge * omega)[:, None] * d
        ad += (omega * along_q - along_wk)[:, None] * q - along_q[:, None] * wk
        step = tl.where(active, rr / (tl.sum(d * ad, 1) + 1e-10), 0.0)[:, None]
        x += step * d
        r -= step * ad
        new = tl.sum(r * r, 1)
        active = active & (new > goal) & (new - new == 0)
        d = r + tl.where(active, new / tl.where(active, rr, 1.0), 0.0)[:, None] * d
        rr = new
    return x


# ---- forward pass ----------------------------------------------------------------------------------------


class OutputContext(NamedTuple):
    tile: Tile
    top: tl.tensor
    rho: tl.tensor
    q_rho: tl.tensor
    denominator: tl.tensor


@triton.jit
def output_block(
    o,
    context,
    start,
    MASKED: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    TERMS: tl.constexpr,
    PROBE_TERMS: tl.constexpr,
):
    k = load_block(context.tile, context.tile.p_k, start, MASKED)
    v = load_block(context.tile, context.tile.p_v, start, MASKED)
    w = tl.exp2(logits(context.tile, k, start, MASKED) - context.top[:, None])
    c = product(context.rho, tl.trans(k), tl.float32) - context.q_rho[:, None]
    return dot(narrow(w * (1.0 - c) / context.denominator[:, None], v.dtype), v, o)


@triton.jit
def load_tile(
    first,
    own,
    p_q,
    p_k,
    p_v,
    n,
    heads,
    scale,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """A tile, rows behind the last one being zeros, and the blocks of keys that it sees."""
    rows, dims = first + tl.arange(0, BLOCK_M), tl.arange(0, DIM)
    q = load(p_q + own * DIM, heads * DIM, rows, n, dims, True)
    p_k, p_v, columns = p_k + own * DIM, p_v + own * DIM, tl.arange(0, BLOCK_N)
    tile = Tile(q, scale * LOG2_E, rows, p_k, p_v, heads * DIM, n, columns, dims)
    return tile, Span(0, 0, (first + 1) // BLOCK_N * BLOCK_N, tl.minimum(first + BLOCK_M, n))


@triton.jit
def published_fwd_kernel(
    p_q,
    p_k,
    p_v,
    p_o,
    p_rho,
    p_saved,
    plane,
    ridge,
    iterations,
    n,
    heads,
    tiles,
    scale,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """o and rho, both in bfloat16, and the planes DENOMINATOR, TOP and OMEGA."""
    first, own = locate(tiles, heads, n, BLOCK_M)
    tile, span = load_tile(first, own, p_q, p_k, p_v, n, heads, scale, DIM, BLOCK_M, BLOCK_N)
    zero, zeros = tl.zeros((BLOCK_M,), tl.float32), tl.zeros((BLOCK_M, DIM), tl.float32)

    state = Moments(zero - float("inf"), zero, zeros)
    top, omega, wk = sweep(moments_block, state, tile, span, BLOCK_N, False, DIM, DIM, 1, 1)
    q = tile.q.to(tl.float32)
    mu = wk - omega[:, None] * q
    rho = solve(mu, tile, top, omega, wk, zero + ridge, iterations, span, DIM, BLOCK_N)
    denominator = omega - tl.sum(mu * rho, 1)
    operand = narrow(rho, tile.q.dtype)
    context = OutputContext(tile, top, operand, tl.sum(rho * q, 1), denominator)
    o = sweep(output_block, zeros, context, span, BLOCK_N, False, DIM, DIM, 1, 1)

    at, exists = own + tile.rows * heads, tile.rows < n
    entries = at[:, None] * DIM + tile.dims[None, :]
    tl.store(p_o + entries, narrow(o, tile.q.dtype), mask=exists[:, None])
    tl.store(p_rho + entries, operand, mask=exists[:, None])
    tl.store(p_saved + DENOMINATOR * plane + at, denominator, mask=exists)
    tl.store(p_saved + TOP * plane + at, top, mask=exists)
    tl.store(p_saved + OMEGA * plane + at, omega, mask=exists)


# ---- backward pass, rows ---------------------------------------------------------------------------------


class AdjointContext(NamedTuple):
    tile: Tile
    top: tl.tensor
    do: tl.tensor
    denominator: tl.tensor


class AdjointSums(NamedTuple):
    wk: tl.tensor
    ck: tl.tensor
    tau: tl.tensor  # sum of C


@triton.jit
def adjoint_block(
    state,
    context,
    start,
    MASKED: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    TERMS: tl.constexpr,
    PROBE_TERMS: tl.constexpr,
):
    k = load_block(context.tile, context.tile.p_k, start, MASKED)
    v = load_block(context.tile, context.tile.p_v, start, MASKED)
    w = tl.exp2(logits(context.tile, k, start, MASKED) - context.top[:, None])
    c = product(context.do, tl.trans(v), tl.float32) * w / context.denominator[:, None]
    wk, ck = dot(narrow(w, k.dtype), k, state.wk), dot(narrow(c, k.dtype), k, state.ck)
    return AdjointSums(wk, ck, state.tau + tl.sum(c, 1))


@triton.jit
def logit_gradient(w, g, c_rho, c_u, beta, denominator):
    """Gradient of a logit, and ``C``; g is ``do.v``, c the products of ``z`` with rho and U."""
    c = g * w / denominator
    ds = c * (1.0 - c_rho) + w * (2.0 * beta * c_rho - beta - c_u + c_rho * (c_u - beta * c_rho))
    return ds, c


class RowContext(NamedTuple):
    tile: Tile
    top: tl.tensor
    do: tl.tensor
    denominator: tl.tensor
    beta: tl.tensor
    rho: tl.tensor
    q_rho: tl.tensor
    u: tl.tensor
    q_u: tl.tensor


class RowSums(NamedTuple):
    ds: tl.tensor  # sum of ds k
    rho: tl.tensor  # sum of w (z.rho)
    dmu: tl.tensor  # sum of w (z.Dmu), Dmu = 2 beta rho - U


@triton.jit
def row_block(
    state,
    context,
    start,
    MASKED: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    TERMS: tl.constexpr,
    PROBE_TERMS: tl.constexpr,
):
    k = load_block(context.tile, context.tile.p_k, start, MASKED)
    v = load_block(context.tile, context.tile.p_v, start, MASKED)
    w = tl.exp2(logits(context.tile, k, start, MASKED) - context.top[:, None])
    g = product(context.do, tl.trans(v), tl.float32)
    c_rho = product(context.rho, tl.trans(k), tl.float32) - context.q_rho[:, None]
    c_u = product(context.u, tl.trans(k), tl.float32) - context.q_u[:, None]
    beta = context.beta[:, None]
    ds, _ = logit_gradient(w, g, c_rho, c_u, beta, context.denominator[:, None])
    along_rho, along_dmu = tl.sum(w * c_rho, 1), tl.sum(w * (2.0 * beta * c_rho - c_u), 1)
    return RowSums(dot(narrow(ds, k.dtype), k, state.ds), state.rho + along_rho, state.dmu + along_dmu)


@triton.jit
def published_rows_bwd_kernel(
    p_q,
    p_k,
    p_v,
    p_o,
    p_do,
    p_rho,
    p_u,
    p_saved,
    p_added,
    p_dq,
    plane,
    ridge,
    iterations,
    n,
    heads,
    tiles,
    scale,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """dq and U in bfloat16, and the planes BETA, Q_RHO and Q_U."""
    first, own = locate(tiles, heads, n, BLOCK_M)
    tile, span = load_tile(first, own, p_q, p_k, p_v, n, heads, scale, DIM, BLOCK_M, BLOCK_N)
    at, exists = own + tile.rows * heads, tile.rows < n
    entries = at[:, None] * DIM + tile.dims[None, :]
    do = tl.load(p_do + entries, mask=exists[:, None], other=0.0)
    denominator = tl.load(p_saved + DENOMINATOR * plane + at, mask=exists, other=1.0)
    top = tl.load(p_saved + TOP * plane + at, mask=exists, other=0.0)
    omega = tl.load(p_saved + OMEGA * plane + at, mask=exists, other=1.0)
    zero, zeros = tl.zeros((BLOCK_M,), tl.float32), tl.zeros((BLOCK_M, DIM), tl.float32)

    context = AdjointContext(tile, top, do, denominator)
    state = AdjointSums(zeros, zeros, zero)
    wk, ck, tau = sweep(adjoint_block, state, context, span, BLOCK_N, False, DIM, DIM, 1, 1)
    q = tile.q.to(tl.float32)
    t = ck - tau[:, None] * q
    u = solve(t, tile, top, omega, wk, zero + ridge, iterations, span, DIM, BLOCK_N)

    o = tl.load(p_o + entries, mask=exists[:, None], other=0.0).to(tl.float32)
    beta = tl.sum(do.to(tl.float32) * o, 1) / denominator
    rho, u_operand = tl.load(p_rho + entries, mask=exists[:, None], other=0.0), narrow(u, tile.q.dtype)
    rho_wide = rho.to(tl.float32)
    q_rho, q_u = tl.sum(q * rho_wide, 1), tl.sum(q * u, 1)
    context = RowContext(tile, top, do, denominator, beta, rho, q_rho, u_operand, q_u)
    sums = sweep(row_block, RowSums(zeros, zero, zero), context, span, BLOCK_N, False, DIM, DIM, 1, 1)
    dq = scale * sums.ds + (tau + sums.dmu - 2.0 * beta * omega)[:, None] * rho_wide
    dq += (omega - sums.rho)[:, None] * u
    dq = tl.where((tile.rows > 0)[:, None], dq, 0.0)  # the first row returns its value, whatever it asks

    tl.store(p_dq + entries, narrow(dq, tile.q.dtype), mask=exists[:, None])
    tl.store(p_u + entries, u_operand, mask=exists[:, None])
    tl.store(p_added + BETA * plane + at, beta, mask=exists)
    tl.store(p_added + Q_RHO * plane + at, q_rho, mask=exists)
    tl.store(p_added + Q_U * plane + at, q_u, mask=exists)


# ---- backward pass, keys ---------------------------------------------------------------------------------


class KeyContext(NamedTuple):
    """A block of keys and values, and where the rows that see it begin."""

    k: tl.tensor
    v: tl.tensor
    scale: tl.tensor
    numbers: tl.tensor
    rows: tl.tensor
    dims: tl.tensor
    length: tl.tensor
    stride: tl.tensor
    p_q: tl.tensor
    p_do: tl.tensor
    p_rho: tl.tensor
    p_u: tl.tensor
    p_saved: tl.tensor
    p_added: tl.tensor
    plane: tl.tensor
    heads: tl.tensor


class KeySums(NamedTuple):
    k: tl.tensor
    v: tl.tensor


@triton.jit
def load_number(context, p, rows, exists, MASKED: tl.constexpr):
    """One number a row, as ``[1, rows]``."""
    pointers = p + rows.to(tl.int64) * context.heads
    if MASKED:
        return tl.load(pointers, mask=exists, other=1.0)[None, :]
    return tl.load(pointers)[None, :]


@triton.jit
def key_block(
    state,
    context,
    start,
    MASKED: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    TERMS: tl.constexpr,
    PROBE_TERMS: tl.constexpr,
):
    """Weights are ``[keys, rows]`` here: keys stay, rows stream."""
    rows = start + context.rows
    exists = rows < context.length
    q = load(context.p_q, context.stride, rows, context.length, context.dims, MASKED)
    do = load(context.p_do, context.stride, rows, context.length, context.dims, MASKED)
    rho = load(context.p_rho, context.stride, rows, context.length, context.dims, MASKED)
    u = load(context.p_u, context.stride, rows, context.length, context.dims, MASKED)
    denominator = load_number(context, context.p_saved + DENOMINATOR * context.plane, rows, exists, MASKED)
    top = load_number(context, context.p_saved + TOP * context.plane, rows, exists, MASKED)
    beta = load_number(context, context.p_added + BETA * context.plane, rows, exists, MASKED)
    q_rho = load_number(context, context.p_added + Q_RHO * context.plane, rows, exists, MASKED)
    q_u = load_number(context, context.p_added + Q_U * context.plane, rows, exists, MASKED)

    s = product(context.k, tl.trans(q), tl.float32) * (context.scale * LOG2_E) - top
    if MASKED:
        s = tl.where(exists[None, :] & (context.numbers[:, None] <= rows[None, :]), s, -float("inf"))
    w = tl.exp2(s)
    g = product(context.v, tl.trans(do), tl.float32)
    c_rho = product(context.k, tl.trans(rho), tl.float32) - q_rho
    c_u = product(context.k, tl.trans(u), tl.float32) - q_u
    ds, c = logit_gradient(w, g, c_rho, c_u, beta, denominator)
    dv = dot(narrow(w * (1.0 - c_rho) / denominator, do.dtype), do, state.v)
    dk = dot(narrow(context.scale * ds, q.dtype), q, state.k)
    dk = dot(narrow(w * (2.0 * beta * (1.0 - c_rho) + c_u) - c, rho.dtype), rho, dk)
    return KeySums(dot(narrow(w * (c_rho - 1.0), u.dtype), u, dk), dv)


@triton.jit
def published_keys_bwd_kernel(
    p_q,
    p_k,
    p_v,
    p_do,
    p_rho,
    p_u,
    p_saved,
    p_added,
    p_dk,
    p_dv,
    plane,
    n,
    heads,
    tiles,
    scale,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """dk and dv in bfloat16."""
    first, own = locate(tiles, heads, n, BLOCK_N)
    numbers, dims = first + tl.arange(0, BLOCK_N), tl.arange(0, DIM)
    exists = numbers < n
    entries = (own + numbers * heads)[:, None] * DIM + dims[None, :]
    k = tl.load(p_k + entries, mask=exists[:, None], other=0.0)
    v = tl.load(p_v + entries, mask=exists[:, None], other=0.0)
    p_q, p_do, p_rho, p_u = p_q + own * DIM, p_do + own * DIM, p_rho + own * DIM, p_u + own * DIM
    p_saved, p_added, rows = p_saved + own, p_added + own, tl.arange(0, BLOCK_M)
    context = KeyContext(
        k,
        v,
        scale,
        numbers,
        rows,
        dims,
        n,
        heads * DIM,
        p_q,
        p_do,
        p_rho,
        p_u,
        p_saved,
        p_added,
        plane,
        heads,
    )
    zeros = tl.zeros((BLOCK_N, DIM), tl.float32)
    full_begin = (tl.minimum(first + BLOCK_N, n) - 1 + BLOCK_M - 1) // BLOCK_M * BLOCK_M
    span = Span(first // BLOCK_M * BLOCK_M, full_begin, tl.maximum(n // BLOCK_M * BLOCK_M, full_begin), n)
    sums = sweep(key_block, KeySums(zeros, zeros), context, span, BLOCK_M, True, DIM, DIM, 1, 1)
    tl.store(p_dk + entries, narrow(sums.k, k.dtype), mask=exists[:, None])
    tl.store(p_dv + entries, narrow(sums.v, k.dtype), mask=exists[:, None])


# ---- calls -----------------------------------------------------------------------------------------------


class Config(NamedTuple):
    """How a kernel is cut and launched."""

    BLOCK_M: int
    BLOCK_N: int
    num_warps: int
    num_stages: int


class Configs(NamedTuple):
    """One for each kernel."""

    forward: Config
    rows: Config
    keys: Config


# Worth a try on a given GPU, by head dimension up to which they are meant; the first ones are taken unasked.
CANDIDATES: dict[int, dict[str, list[Config]]] = {
    64: {
        "forward": [Config(64, 64, 4, 2), Config(128, 64, 8, 3), Config(64, 128, 4, 2)],
        "rows": [Config(64, 64, 4, 2), Config(128, 64, 8, 2), Config(64, 32, 4, 3)],
        "keys": [Config(32, 64, 4, 3), Config(32, 64, 4, 2), Config(32, 128, 8, 3)],
    },
    128: {
        "forward": [Config(128, 32, 8, 2), Config(64, 64, 4, 2), Config(64, 32, 8, 2)],
        "rows": [Config(64, 32, 8, 2), Config(128, 32, 8, 2)],
        "keys": [Config(16, 64, 4, 3), Config(64, 32, 8, 2)],
    },
}


def candidates(dim: int) -> dict[str, list[Config]]:
    """Configurations of every kernel for a head dimension."""
    return CANDIDATES[64 if dim <= 64 else 128]


def default_configs(dim: int) -> Configs:
    """Those in which the unmasked loop of the solver, nearly all of the work, spills nothing on sm_90."""
    return Configs(**{kernel: choices[0] for kernel, choices in candidates(dim).items()})


class Saved(NamedTuple):
    """What a forward pass leaves for its backward pass."""

    o: Tensor
    rho: Tensor  # like q
    planes: Tensor  # [3, batch, seq, heads], float32


def published_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ridge: float,
    iterations: int = ITERATIONS,
    configs: Configs | None = None,
) -> tuple[Tensor, Saved]:
    """The output, in bfloat16 like the operands, and what the backward pass needs.

    Raises:
        ValueError: operands of another dtype, layout or size than the module docstring says.
    """
    _check(q, k, v)
    o, rho = torch.empty_like(q), torch.empty_like(q)
    planes = torch.empty(PLANES, *q.shape[:3], dtype=torch.float32, device=q.device)
    config = (configs or default_configs(q.shape[-1])).forward
    rows = (planes.stride(0), float(ridge), iterations)
    _launch(published_fwd_kernel, config, config.BLOCK_M, q, k, v, o, rho, planes, *rows)
    return o, Saved(o, rho, planes)


def published_backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    saved: Saved,
    ridge: float,
    iterations: int = ITERATIONS,
    configs: Configs | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv, in bfloat16."""
    do = do.contiguous()
    dq, dk, dv, u = (torch.empty_like(t) for t in (q, k, v, q))
    configs = configs or default_configs(q.shape[-1])
    added, plane = torch.empty_like(saved.planes), saved.planes.stride(0)
    _launch(
        published_rows_bwd_kernel,
        configs.rows,
        configs.rows.BLOCK_M,
        *(q, k, v, saved.o, do, saved.rho, u, saved.planes, added, dq, plane, float(ridge), iterations),
    )
    _launch(
        published_keys_bwd_kernel,
        configs.keys,
        configs.keys.BLOCK_N,
        *(q, k, v, do, saved.rho, u, saved.planes, added, dk, dv, plane),
    )
    return dq, dk, dv


class _Published(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, ridge, iterations, configs):
        o, saved = published_forward(q, k, v, ridge, iterations, configs)
        ctx.save_for_backward(q, k, v, *saved)
        ctx.options = (ridge, iterations, configs)
        return o

    @staticmethod
    def backward(ctx, do):
        q, k, v, *saved = ctx.saved_tensors
        return *published_backward(do, q, k, v, Saved(*saved), *ctx.options), None, None, None


def published_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ridge: float,
    iterations: int = ITERATIONS,
    configs: Configs | None = None,
) -> Tensor:
    """:func:`published_forward` with a gradient. As published, the ridge has none."""
    return _Published.apply(q, k, v, ridge, iterations, configs)


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    dim = q.shape[-1]
    if q.dim() != 4 or not q.shape == k.shape == v.shape:
        shapes = ", ".join(str(tuple(t.shape)) for t in (q, k, v))
        raise ValueError(f"q, k, v have shapes {shapes}; they must be equal, [batch, seq, heads, dim]")
    if any(t.dtype != torch.bfloat16 or not t.is_contiguous() for t in (q, k, v)):
        raise ValueError("q, k, v must be contiguous and bfloat16, in which the published kernels compute")
    if dim < 16 or dim & (dim - 1):
        raise ValueError(f"head_dim={dim} must be a power of two, 16 at least")


def _launch(kernel, config: Config, block: int, q: Tensor, *operands) -> None:
    """One program for every block of rows (or keys), head and batch row."""
    batch, n, heads, dim = q.shape
    tiles = triton.cdiv(n, block)
    sizes = (n, heads, tiles, dim**-0.5)
    _runtime.run(kernel, tiles * heads * batch, q, *operands, *sizes, DIM=dim, **config._asdict())
