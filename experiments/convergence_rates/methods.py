"""The two estimators, functions of flashlla as they are, and the constants to choose from."""

from __future__ import annotations

from torch import Tensor

from flashlla import lla_attention, softmax_attention

BANDWIDTHS = tuple(2 ** (-step / 4) for step in range(4, 25))  # 0.5 to 0.016; the ball has radius 1
RIDGES = (0.01, 0.1)  # in units of bandwidth^2, about the variance of the keys that a query sees


def lla(q: Tensor, k: Tensor, v: Tensor, bandwidth: float, ridge: float) -> Tensor:
    """The local linear estimator, with the arguments and the weights of :func:`softmax`."""
    ridge *= bandwidth**2
    return lla_attention(*_heads(q, k, v), scale=bandwidth**-2, ridge=ridge, causal=False)[0, :, 0]


def softmax(q: Tensor, k: Tensor, v: Tensor, bandwidth: float) -> Tensor:
    """The local constant (Nadaraya-Watson) estimator with a Gaussian kernel, ``[queries, value_dim]``.

    Args:
        q, k: ``[queries, dim + 1]`` and ``[keys, dim + 1]``, all of one norm.
        v: ``[keys, value_dim]``.
        bandwidth: standard deviation of the kernel.
    """
    return softmax_attention(*_heads(q, k, v), scale=bandwidth**-2, causal=False)[0, :, 0]


def _heads(*operands: Tensor) -> list[Tensor]:
    return [operand[None, :, None] for operand in operands]


ESTIMATORS = {"lla": lla, "softmax": softmax}
SETTINGS: dict[str, list[dict[str, float]]] = {
    "lla": [{"bandwidth": bandwidth, "ridge": ridge} for bandwidth in BANDWIDTHS for ridge in RIDGES],
    "softmax": [{"bandwidth": bandwidth} for bandwidth in BANDWIDTHS],
}
