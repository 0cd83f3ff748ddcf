"""Tensor parallel attention and SwiGLU: the processes of a mesh share heads and hidden units, as DTensors.

A layer sums over processes once forward, behind its last projection, and once backward, before its first.
Embeddings, norms of the residual stream and whatever else the model has are computed by all alike.
"""

from __future__ import annotations

from types import MethodType

from torch import Tensor, nn
from torch.distributed.tensor import Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.distributed.tensor.placement_types import Replicate

from flashlla.nn.attention import ParallaxAttention, _Attention
from flashlla.nn.per_head import Gate, Ridge

from ..backbone import SwiGLU
from .shards import local

HEADS_DIM = 2  # of [batch, seq, heads, head_dim]


def split_heads(model: nn.Module, mesh) -> None:
    """Share heads and hidden units of ``model`` over the 1-d ``mesh``, in place.

    Raises:
        ValueError: key heads or hidden units that do not divide, or nothing to share.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, (_Attention, SwiGLU))}
    if not any(isinstance(layer, _Attention) for layer in layers.values()):
        raise ValueError("the model has no attention layer of flashlla.nn to share; use tensor=1")
    for name, layer in layers.items():
        size = layer.kv_heads if isinstance(layer, _Attention) else layer.gate.out_features
        if size % mesh.size():
            what = "kv_heads" if isinstance(layer, _Attention) else "hidden width"
            raise ValueError(f"{name}: {what} {size} is no multiple of tensor={mesh.size()}")
    for layer in layers.values():
        (_split_attention if isinstance(layer, _Attention) else _split_mlp)(layer, mesh)


def _split_attention(layer: _Attention, mesh) -> None:
    plan: dict[str, ParallelStyle] = {
        "q_proj": ColwiseParallel(),
        "k_proj": ColwiseParallel(),
        "v_proj": ColwiseParallel(),
        "out_proj": RowwiseParallel(),
    }
    norms = ["q_norm", "k_norm"]
    if isinstance(layer, ParallaxAttention):
        plan["r_proj"] = ColwiseParallel()
        norms.append("r_norm")
        layer.r_scale = nn.Parameter(distribute_tensor(layer.r_scale.data, mesh, [Shard(0)]))
        layer._more_queries = MethodType(_scaled_queries, layer)
    for name in norms:
        if isinstance(getattr(layer, name), nn.RMSNorm):
            plan[name] = SequenceParallel(sequence_dim=HEADS_DIM, use_local_output=True)
    plan |= {n: _PerHead() for n, m in layer.named_children() if isinstance(m, (Ridge, Gate))}
    parallelize_module(layer, mesh, {"": _replicated_input(), **plan})
    layer.heads //= mesh.size()
    layer.kv_heads //= mesh.size()


def _split_mlp(layer: SwiGLU, mesh) -> None:
    plan = {"gate": ColwiseParallel(), "up": ColwiseParallel(), "down": RowwiseParallel()}
    parallelize_module(layer, mesh, {"": _replicated_input(), **plan})


def _replicated_input() -> PrepareModuleInput:
    """One sum of the gradients for all projections that read the input."""
    return PrepareModuleInput(input_layouts=(Replicate(),), desired_input_layouts=(Replicate(),))


class _PerHead(ParallelStyle):
    """A learned number for each head: a process holds and returns those of its own heads."""

    def _apply(self, module: nn.Module, device_mesh) -> nn.Module:
        return distribute_module(module, device_mesh, self._shard, output_fn=self._to_local)

    @staticmethod
    def _shard(name: str, module: nn.Module, mesh) -> None:
        for key, p in module.named_parameters(recurse=False):
            module.register_parameter(key, nn.Parameter(distribute_tensor(p.data, mesh, [Shard(0)])))

    @staticmethod
    def _to_local(module: nn.Module, out, mesh):
        return local(out) if isinstance(out, Tensor) else out


def _scaled_queries(layer: ParallaxAttention, x: Tensor, turn) -> tuple[Tensor, ...]:
    """In place of the layer's own: the factors of this process's heads."""
    whole = layer.r_scale
    try:
        layer._parameters["r_scale"] = local(whole)
        return ParallaxAttention._more_queries(layer, x, turn)
    finally:
        layer._parameters["r_scale"] = whole
