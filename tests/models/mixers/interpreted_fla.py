"""Errors of the mixers by the real kernels of flash-linear-attention, in Triton's interpreter on the CPU.

A script for a process of its own, which prints them as JSON: ``{mixer: {quantity: relative error}}``. Three
things stand in the way of the interpreter and are replaced here: the timing of configurations, loop variables
with the methods of a tensor, and products of bfloat16, which it takes from the bits as if they were integers.
Operands are in float16 all the same, because sums of bfloat16 are wrong there as well.
"""

import builtins
import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.autotuner import Autotuner

from flashlla.models import mixers
from flashlla.models.mixers import forms

CASES = {
    "linear_attention": ("linear_attention", {}),
    "linear_attention, shared keys": ("linear_attention", {"kv_heads": 1}),
    "gla": ("gla", {}),
    "gla, shared keys": ("gla", {"kv_heads": 1}),
    "deltanet": ("deltanet", {"negative_eigenvalues": True}),
    "deltanet, shared keys": ("deltanet", {"kv_heads": 1, "value_dim": 24}),
    "gated_deltanet": ("gated_deltanet", {}),
    "gated_deltanet, shared keys": ("gated_deltanet", {"kv_heads": 1}),
    "mesanet": ("mesanet", {}),
    "mesanet, shared keys": ("mesanet", {"kv_heads": 1}),
    "mamba2": ("mamba2", {"head_dim": 16, "state_dim": 16}),
    "mamba2, groups": ("mamba2", {"head_dim": 16, "state_dim": 8, "groups": 2}),
}
DIM, HEADS, PIECES = 32, 2, (66, 1, 5)  # 66 positions are two chunks; what follows starts from a state


class LoopVariable(int):
    """What the kernels do with a loop variable beyond arithmetic."""

    def to(self, dtype: tl.dtype) -> "LoopVariable":
        return self


def prepare_the_interpreter() -> None:
    Autotuner._bench = lambda *args, **kwargs: [0.0, 0.0, 0.0]
    product = interpreter.InterpreterBuilder.create_dot

    def create_dot(self, a, b, *rest):
        return product(self, widened(a), widened(b), *rest)

    interpreter.InterpreterBuilder.create_dot = create_dot
    import fla.ops  # noqa: F401

    for name, module in list(sys.modules.items()):
        if name.startswith("fla.ops"):
            module.range = lambda *bounds: map(LoopVariable, builtins.range(*bounds))


def widened(x: interpreter.TensorHandle) -> interpreter.TensorHandle:
    if x.dtype.scalar != tl.bfloat16:
        return x
    return interpreter.TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).detach().norm() / expected.detach().norm())


def errors(name: str, options: dict) -> dict[str, float]:
    torch.manual_seed(0)
    mixer = mixers.build_mixer(name, DIM, HEADS, form="fla", **options).half()
    exact = mixers.build_mixer(name, DIM, HEADS, form="recurrent", **options).double()
    exact.load_state_dict(mixer.state_dict())
    x, weights = torch.randn(2, 1, sum(PIECES), DIM).half()
    found, expected = x.clone().requires_grad_(), x.double().requires_grad_()
    out, exact_out = mixer(found), exact(expected)
    (out * weights).sum().backward()
    (exact_out * weights.double()).sum().backward()
    result = {
        "without a state": relative(out, exact_out),
        "gradient of the input": relative(found.grad, expected.grad),
    }
    grads = [(p.grad, exact.get_parameter(key).grad) for key, p in mixer.named_parameters()]
    result["gradients of the parameters"] = max(relative(g, e) for g, e in grads if e.norm() > 0)
    with torch.no_grad():
        state, exact_state = mixer.make_state(1, 1), exact.make_state(1, 1)
        pieces = [mixer(piece, state) for piece in x.split(PIECES, 1)]
        exact_pieces = [exact(piece, exact_state) for piece in x.double().split(PIECES, 1)]
    result["from a state"] = relative(torch.cat(pieces, 1), torch.cat(exact_pieces, 1))
    for key, tensor in exact_state.tensors.items():
        result[f"state {key}"] = relative(state.tensors[key], tensor)
    before = {key: tensor.clone() for key, tensor in state.tensors.items()}
    with torch.no_grad():
        mixer(x[:, :3], state, [0])
    result["padding"] = max(float((state.tensors[key] - t).abs().max()) for key, t in before.items())
    return result


if __name__ == "__main__":
    prepare_the_interpreter()
    forms._rejection = lambda device_type, dtype, decays: None  # it is right: they do not run on a CPU
    print(json.dumps({case: errors(*mixer) for case, mixer in CASES.items()}))
