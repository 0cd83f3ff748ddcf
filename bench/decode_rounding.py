"""Errors of Triton's decoding kernels, interpreted on the CPU: the table of docs/numerics.md.

    TRITON_INTERPRET=1 .venv/bin/python bench/decode_rounding.py

Errors are norm ratios to float64 over two heads of one query each; the least that a result in that dtype
can have (the exact one, rounded) stands beside them.
"""

from __future__ import annotations

import torch
from _common import ROOT, markdown_table, replace_between_markers

from flashlla import lla_attention_with_kvcache
from flashlla.testing.numerics import error_norm_ratio
from flashlla.testing.problems import DATA, random_operands

PAGE = ROOT / "docs" / "numerics.md"
HEAD_DIM, HEADS = 64, 2
LENGTHS = (64, 512, 2048)


def error(data: str, ridge: float, length: int, dtype: torch.dtype) -> tuple[float, float]:
    """Of the kernels, and of the exact result rounded to dtype."""
    x, _ = random_operands(
        data, q_len=1, kv_len=length, heads=HEADS, head_dim=HEAD_DIM, dtype=dtype, ridge=ridge, gate=False
    )

    def call(backend: str, dtype: torch.dtype):
        q, k, v, ridge = (x[name].to(dtype) for name in ("q", "k", "v", "ridge"))
        return lla_attention_with_kvcache(q, k, v, cache_seqlens=length, ridge=ridge, backend=backend)

    exact = call("reference", torch.float64)
    return error_norm_ratio(call("triton", dtype), exact), error_norm_ratio(exact.to(dtype), exact)


def main() -> None:
    """Write the table."""
    torch.set_num_threads(1)
    lines = []
    for data in DATA:
        for ridge in (1.0, 0.1, 0.01):
            line = [data, f"{ridge:g}"]
            for dtype in (torch.float16, torch.bfloat16):
                errors = [error(data, ridge, length, dtype) for length in LENGTHS]
                line += [f"{kernel:.1e}" for kernel, _ in errors] + [
                    f"{max(least for _, least in errors):.1e}"
                ]
            lines.append(line)
    head = ["data", "ridge"]
    for name in ("float16", "bfloat16"):
        head += [f"{name}: n={LENGTHS[0]}", *(f"n={n}" for n in LENGTHS[1:]), "rounding alone"]
    replace_between_markers(PAGE, "decode-rounding", "\n" + markdown_table(head, lines) + "\n")


if __name__ == "__main__":
    main()
