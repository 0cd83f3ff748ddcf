"""Which parameter is updated by what, the state of the optimizers by name, and the norm of the gradients."""

from __future__ import annotations

from collections.abc import Container, Iterable

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from .config import OptimizerConfig
from .muon import Muon
from .shards import is_sharded, layout, local


def block_matrices(model: nn.Module) -> set[str]:
    """Names of the matrices of the blocks: parameters with two dimensions inside a ``ModuleList``, but for
    those of embeddings. These are what Muon is made for.
    """
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    embeddings = {
        id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)
    }
    return {
        name
        for name, p in model.named_parameters()
        if p.dim() == 2 and id(p) not in embeddings and any(name.startswith(f"{start}.") for start in lists)
    }


def build_optimizers(model: nn.Module, config: OptimizerConfig) -> list[Optimizer]:
    """AdamW, or Muon and AdamW, over all parameters of ``model`` that want a gradient.

    Raises:
        ValueError: Muon for a model without blocks, or nothing to train.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError("the model has no parameter that wants a gradient")
    matrices = block_matrices(model) & set(parameters) if config.name == "muon" else set()
    if config.name == "muon" and not matrices:
        raise ValueError(
            "optimizer 'muon' found no matrix inside an nn.ModuleList of the model; use 'adamw', or keep the "
            "blocks in a ModuleList"
        )
    adamw = _groups((p for name, p in parameters.items() if name not in matrices), config.weight_decay)
    optimizers: list[Optimizer] = (
        [AdamW(adamw, lr=config.learning_rate, betas=config.betas, eps=config.eps)] if adamw else []
    )
    if matrices:
        groups = _groups((parameters[name] for name in parameters if name in matrices), config.weight_decay)
        optimizers.append(
            Muon(
                groups,
                lr=config.learning_rate,
                momentum=config.momentum,
                newton_schulz_steps=config.newton_schulz_steps,
            )
        )
    return optimizers


def _groups(parameters: Iterable[Tensor], weight_decay: float) -> list[dict]:
    """Parameter groups by weight decay and by mesh: fused updates take no two meshes at once."""
    groups: dict[tuple, dict] = {}
    for p in parameters:
        decay = weight_decay if p.dim() > 1 else 0.0
        groups.setdefault((decay, *layout(p)), {"params": [], "weight_decay": decay})["params"].append(p)
    return list(groups.values())


def optimizer_tensors(model: nn.Module, optimizers: list[Optimizer]) -> dict[str, Tensor]:
    """The state of all optimizers as ``{parameter}.{entry}``: the tensors themselves, not copies."""
    names = {p: name for name, p in model.named_parameters()}
    return {
        f"{names[p]}.{entry}": t
        for optimizer in optimizers
        for p, state in optimizer.state.items()
        for entry, t in state.items()
        if isinstance(t, Tensor)
    }


def stateless_parameters(model: nn.Module, optimizers: list[Optimizer]) -> list[str]:
    """Names of the trained parameters that no optimizer has a state of: none ever had a gradient."""
    held = {p for optimizer in optimizers for p, state in optimizer.state.items() if state}
    return [name for name, p in model.named_parameters() if p.requires_grad and p not in held]


def create_state(optimizers: list[Optimizer], leave_out: Container[Tensor] = ()) -> None:
    """Let optimizers that have not taken a step allocate their state; parameters stay as they are."""
    for optimizer in optimizers:
        rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = 0.0
            for p in group["params"]:
                p.grad = None if p in leave_out else torch.zeros_like(p)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def complete_gradients(parameters: Iterable[Tensor]) -> None:
    """Sum gradients of which every process holds a term, as DTensor leaves those of tensor-parallel norms."""
    for p in parameters:
        if is_sharded(p.grad) and p.grad.placements != p.placements:
            p.grad = p.grad.redistribute(placements=p.placements)


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale gradients down to a total norm of at most ``max_norm``; returns the norm before, a 0-dim tensor.

    As ``torch.nn.utils.clip_grad_norm_``, also over gradients that are sharded over different meshes.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    shares: dict[tuple, list[Tensor]] = {}
    for g in gradients:
        shares.setdefault(_sharding_groups(g), []).append(local(g))
    squares = [_sum_of_squares(grads, groups) for groups, grads in shares.items()]
    norm = torch.stack(squares).sum().sqrt() if len(squares) > 1 else squares[0].sqrt()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_([local(g) for g in gradients], factor)
    return norm


def _sharding_groups(g: Tensor) -> tuple:
    """The process groups that share ``g``: over these its squares have to be summed."""
    if not is_sharded(g):
        return ()
    return tuple(
        g.device_mesh.get_group(i) for i, place in enumerate(g.placements) if not place.is_replicate()
    )


def _sum_of_squares(gradients: list[Tensor], groups: tuple) -> Tensor:
    """Over all processes, in float32 or better."""
    wide = torch.promote_types(gradients[0].dtype, torch.float32)
    total = torch.stack(torch._foreach_norm(gradients, 2, wide)).square().sum()
    for group in groups:
        torch.distributed.all_reduce(total, group=group)
    return total
