"""A model made ready for the processes of a world."""

from __future__ import annotations

from torch import nn

from .context_parallel import split_context
from .tensor_parallel import split_heads
from .world import World


def distribute(model: nn.Module, world: World) -> nn.Module:
    """Share ``model`` among the processes, in place; returns the module to call.

    All start from the weights of the first process. The order is PyTorch's: heads first, then what averages
    gradients.

    Raises:
        ValueError, NotImplementedError: a model that cannot be shared this way.
    """
    if world.mesh is None:
        return model
    _copy_weights_of_first(model)
    if world.parallel.context > 1:
        split_context(model, world.mesh.get_group("context"))
    if world.parallel.tensor > 1:
        split_heads(model, world.mesh["tensor"])
    if world.replicas.size() == 1:
        return model
    if world.parallel.strategy == "fsdp":
        return _fully_sharded(model, world.replicas)
    device_ids = [world.device] if world.device.type == "cuda" else None
    group = world.replicas.get_group()
    return nn.parallel.DistributedDataParallel(model, device_ids, process_group=group)


def _copy_weights_of_first(model: nn.Module) -> None:
    import torch.distributed as dist

    for t in [*model.parameters(), *model.buffers()]:
        dist.broadcast(t.detach(), 0)


def _fully_sharded(model: nn.Module, mesh) -> nn.Module:
    """FSDP2 with a unit for every member of a ``ModuleList``, and one for the rest."""
    from torch.distributed.fsdp import fully_shard

    for module in model.modules():
        for block in module if isinstance(module, nn.ModuleList) else ():
            if any(True for _ in block.parameters()):
                fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)
