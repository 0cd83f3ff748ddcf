"""Conjugate gradients with operands rounded as the Triton kernels round them: a table of docs/numerics.md.

    .venv/bin/python bench/rounding.py

Emulated in float64 on the CPU: a direction is rounded once, weights to one or two numbers of the dtype, and
everything that is derived from them follows.
"""

from __future__ import annotations

import torch
from _common import ROOT, markdown_table, replace_between_markers
from torch import Tensor

from flashlla.testing.numerics import error_norm_ratio
from flashlla.testing.problems import random_operands

PAGE = ROOT / "docs" / "numerics.md"
LENGTH, HEAD_DIM, TILE = 512, 64, 64


def rounded(x: Tensor, dtype: torch.dtype, terms: int) -> Tensor:
    """The sum of so many numbers of a dtype that is nearest to x."""
    total = torch.zeros_like(x)
    for _ in range(terms):
        total = total + (x - total).to(dtype).double()
    return total


class Problem:
    """Causal attention of one head in float64, on operands rounded to bfloat16, and its exact output."""

    def __init__(self, data: str, ridge: float):
        operands, _ = random_operands(
            data, q_len=LENGTH, head_dim=HEAD_DIM, dtype=torch.bfloat16, ridge=ridge, seed=1
        )
        q, self.k, self.v = (operands[name][0, :, 0].double() for name in "qkv")
        hidden = torch.ones(LENGTH, LENGTH).triu(1).bool()
        self.ridge = ridge
        self.p = (HEAD_DIM**-0.5 * q @ self.k.T).masked_fill(hidden, -torch.inf).softmax(-1)
        self.kbar = self.p @ self.k
        self.b = q - self.kbar
        second = torch.einsum("ij,jd,je->ide", self.p, self.k, self.k)
        system = second - self.kbar[:, :, None] * self.kbar[:, None] + ridge * torch.eye(HEAD_DIM)
        self.exact = self.output(torch.linalg.solve(system, self.b))

    def products(self, x: Tensor) -> Tensor:
        """``(k_j - kbar_i) . x_i``."""
        return x @ self.k.T - (x * self.kbar).sum(-1, keepdim=True)

    def output(self, g: Tensor) -> Tensor:
        return (self.p * (1 + self.products(g))) @ self.v

    def covariance_times(self, x: Tensor, dtype: torch.dtype, terms: int) -> Tensor:
        t = rounded(self.p * self.products(x), dtype, terms)
        return t @ self.k - t.sum(-1, keepdim=True) * self.kbar + self.ridge * x

    def solve(
        self, dtype: torch.dtype, terms: int, rtol: float, max_iters: int = 300
    ) -> tuple[Tensor, Tensor]:
        """The probe, and the iterations of every row."""
        x, r = torch.zeros_like(self.b), self.b.clone()
        rr = (r * r).sum(-1)
        goal, d, iterations = rr * rtol**2, r, torch.zeros(LENGTH)
        active = rr > goal
        for _ in range(max_iters):
            if not active.any():
                break
            norm = rr.clamp_min(1e-300).sqrt()[:, None]
            d = norm * rounded(d / norm, dtype, 1)
            ad = self.covariance_times(d, dtype, terms)
            step = torch.where(active, (r * d).sum(-1) / (d * ad).sum(-1), 0.0)[:, None]
            x, r = x + step * d, r - step * ad
            new = (r * r).sum(-1)
            d = torch.where(active[:, None], r + (new / rr)[:, None] * d, d)
            rr, iterations = torch.where(active, new, rr), iterations + active
            active = active & (rr > goal)
        return x, iterations


def main() -> None:
    """Write the table."""
    torch.set_num_threads(1)
    lines = []
    for data in ("iid", "steep"):
        for ridge in (1.0, 0.1, 0.01):
            for rtol in (1e-3, 1e-4):
                problem = Problem(data, ridge)
                line = [data, f"{ridge:g}", f"{rtol:.0e}"]
                for dtype, terms in ((torch.bfloat16, 1), (torch.bfloat16, 2), (torch.float64, 1)):
                    g, iterations = problem.solve(dtype, terms, rtol)
                    error = error_norm_ratio(problem.output(g), problem.exact)
                    slowest = iterations.view(-1, TILE).amax(1)[1:].mean()
                    line += [f"{error:.1e}", f"{iterations[TILE:].mean():.1f} / {slowest:.1f}"]
                lines.append(line)
    kinds = ("one term", "two terms", "float64")
    head = ["data", "ridge", "rtol"]
    for kind in kinds:
        head += [f"{kind}: error", "iterations"]
    replace_between_markers(PAGE, "rounding", "\n" + markdown_table(head, lines) + "\n")


if __name__ == "__main__":
    main()
