"""Seeded test data, from easy to hard.

- ``"iid"``: queries, keys and values are standard normal.
- ``"steep"``: the keys have a spectrum that falls from 2 to 0.06 over the head dimensions and a common mean
  of norm ``4 sqrt(head_dim)``; the queries come from the same distribution, as in self-attention. The mean
  is most of every key and carries no information: moments that are not centred lose it all to cancellation.
- ``"far"``: such keys, and standard normal queries far away from them. The regression extrapolates, the
  linear correction is many times the average of the values, and the error of the probe is that of the output.
"""

from __future__ import annotations

import torch
from torch import Tensor

DATA = ("iid", "steep", "far")


def random_operands(
    data: str,
    *,
    batch: int = 1,
    q_len: int = 64,
    kv_len: int | None = None,
    heads: int = 1,
    kv_heads: int | None = None,
    head_dim: int = 64,
    value_dim: int | None = None,
    dtype: torch.dtype = torch.float32,
    ridge: float | None = 1.0,
    gate: bool = True,
    probe: bool = False,
    seed: int = 0,
) -> tuple[dict[str, Tensor], Tensor]:
    """Operands of one dense call by argument name, and a gradient of its output.

    Args:
        data: one of ``DATA``.
        ridge: value of a ``[batch, q_len, heads]`` ridge; None leaves it out (Parallax, softmax).
        gate: whether to draw a gate for each row and head, uniform in [0.5, 1.5].
        probe: whether to draw ``r``, of a size that makes its correction comparable to the average.

    Raises:
        ValueError: unknown data.
    """
    if data not in DATA:
        raise ValueError(f"data={data!r} is unknown; choose one of {', '.join(DATA)}")
    kv_len = q_len if kv_len is None else kv_len
    kv_heads = heads if kv_heads is None else kv_heads
    value_dim = head_dim if value_dim is None else value_dim
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    q = normal(batch, q_len, heads, head_dim)
    k = normal(batch, kv_len, kv_heads, head_dim)
    v = normal(batch, kv_len, kv_heads, value_dim)
    do = normal(batch, q_len, heads, value_dim).to(dtype)
    if data != "iid":
        spectrum = torch.logspace(1, -4, head_dim, base=2.0, dtype=torch.float64)
        mean = normal(head_dim)
        mean = mean * 4 * head_dim**0.5 / mean.norm()
        k = mean + spectrum * k
        q = q if data == "far" else mean + spectrum * q
    operands = {name: t.to(dtype) for name, t in {"q": q, "k": k, "v": v}.items()}
    if probe:
        spread = 1.0 if data == "iid" else 2.0
        operands["r"] = (normal(batch, q_len, heads, head_dim) / (spread * head_dim**0.5)).to(dtype)
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    if ridge is not None:
        operands["ridge"] = torch.full((batch, q_len, heads), ridge, dtype=accumulate)
    if gate:
        uniform = torch.rand(batch, q_len, heads, generator=generator, dtype=torch.float64)
        operands["gate"] = (0.5 + uniform).to(accumulate)
    return operands, do
