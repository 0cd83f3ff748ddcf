"""The processes of a run: who they are, and the little that they tell each other outside the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flashlla import _env

from .config import ParallelConfig


class World:
    """This process's place among those that ``torchrun`` started; a single process without it.

    Attributes:
        parallel: how the processes share the work.
        device: where this process computes: ``cuda:LOCAL_RANK`` if there is a GPU, else the CPU.
        rank, size: of this process, and how many there are.
        mesh: DeviceMesh with dimensions ``data``, ``context`` and ``tensor``; None for one process.
        replicas: DeviceMesh of the processes whose gradients are averaged: data and context parallel ones.
    """

    def __init__(self, parallel: ParallelConfig, device: torch.device, mesh: Any = None):
        self.parallel, self.device, self.mesh = parallel, device, mesh
        self.replicas = None if mesh is None else _replicas(mesh)
        self.rank = 0 if mesh is None else torch.distributed.get_rank()
        self.size = 1 if mesh is None else mesh.size()

    @classmethod
    def join(cls, parallel: ParallelConfig | None = None, device: torch.device | str | None = None) -> World:
        """Join the process group that ``torchrun`` describes in the environment, once in every process.

        Args:
            parallel: None is data parallel.
            device: None chooses.

        Raises:
            ValueError: tensor and context parallel processes that do not divide all of them.
        """
        parallel = ParallelConfig() if parallel is None else parallel
        if device is None:
            device = f"cuda:{_env.local_rank()}" if torch.cuda.is_available() else "cpu"
        device = torch.device(device)
        size, shared = _env.world_size(), parallel.tensor * parallel.context
        if size % shared:
            raise ValueError(
                f"{size} processes are no multiple of tensor * context = {shared}; start as many with "
                "torchrun --nproc-per-node"
            )
        if size // parallel.tensor > 1 < parallel.tensor and parallel.strategy == "ddp":
            raise ValueError(
                f"tensor={parallel.tensor} of {size} processes needs strategy='fsdp'; DDP shares no sharded "
                "model"
            )
        return cls(parallel, device, _make_mesh(parallel, device, size) if size > 1 else None)

    @property
    def is_main(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def size_of(self, dimension: str) -> int:
        """Processes along one dimension of the mesh."""
        return 1 if self.mesh is None else self.mesh[dimension].size()

    def rank_in(self, dimension: str) -> int:
        """This process's number along one dimension of the mesh."""
        return 0 if self.mesh is None else self.mesh.get_local_rank(dimension)

    def sum_over_replicas(self, t: Tensor) -> Tensor:
        """``t`` summed in place over the replicas."""
        if self.replicas is not None and self.replicas.size() > 1:
            torch.distributed.all_reduce(t, group=self.replicas.get_group())
        return t

    def any(self, here: bool) -> bool:
        """Whether it is so in some process; the same answer in all."""
        if self.size == 1:
            return here
        flag = torch.tensor(int(here), device=self.device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return bool(flag)

    def gather(self, entry: Any) -> list[Any]:
        """The entries of all processes, by rank."""
        if self.size == 1:
            return [entry]
        entries: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(entries, entry)
        return entries

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            torch.distributed.barrier()

    def leave(self) -> None:
        """End the process group that :meth:`join` began, when all processes are done with it."""
        if self.size > 1:
            self.barrier()
            torch.distributed.destroy_process_group()


def _make_mesh(parallel: ParallelConfig, device: torch.device, size: int):
    from torch.distributed.device_mesh import init_device_mesh

    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    data = size // (parallel.tensor * parallel.context)
    sizes, names = (data, parallel.context, parallel.tensor), ("data", "context", "tensor")
    mesh = init_device_mesh(device.type, sizes, mesh_dim_names=names)
    return mesh


def _replicas(mesh):
    data, context = mesh["data"], mesh["context"]
    if data.size() > 1 and context.size() > 1:
        return mesh["data", "context"]._flatten("replicas")
    return data if context.size() == 1 else context
