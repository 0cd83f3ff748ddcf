"""Tensors that may be sharded over processes (DTensor), seen as a whole or as what this process holds."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(t: Tensor | None) -> bool:
    """Whether ``t`` is a DTensor."""
    return isinstance(t, DTensor)


def local(t: Tensor) -> Tensor:
    """What this process holds of ``t``; shares its memory."""
    return t.to_local() if is_sharded(t) else t


def whole(t: Tensor) -> Tensor:
    """All of ``t``, on every process; collective where it is sharded."""
    return t.full_tensor() if is_sharded(t) else t


def like_shards_of(sharded: Tensor, t: Tensor) -> Tensor:
    """``t``, which every process has as a whole, sharded as ``sharded`` is; without communication."""
    if not is_sharded(sharded):
        return t
    return distribute_tensor(t, sharded.device_mesh, sharded.placements, src_data_rank=None)


def layout(t: Tensor) -> tuple:
    """Equal for tensors that are sharded over the same mesh."""
    return (t.device_mesh,) if is_sharded(t) else ()


def forget_gathered(model: nn.Module) -> None:
    """FSDP2 keeps gathered weights between calls; they must not outlive the shards that they came from."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
