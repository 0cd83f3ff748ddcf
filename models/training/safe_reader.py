"""What is in the shards of a checkpoint, as JSON, and a reader that believes none of it.

PyTorch's own index ``.metadata`` is a pickle, and each tensor in a shard is an archive with another. Here the
index is JSON, a tensor is the bytes in its archive, and no pickle is read. All sizes are held against one
another, and against those of the files, before memory is taken.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.futures import Future


class Place(NamedTuple):
    """Where a chunk is: bytes of a file; and its sizes."""

    file: str
    begin: int
    length: int
    sizes: torch.Size


def index_of(metadata: Metadata) -> dict[str, Any]:
    """The tensors that were saved, as JSON: dtype, size, and of each chunk its place in tensor and files."""
    places = {(at.fqn, at.offset): where for at, where in metadata.storage_data.items()}
    return {
        name: {
            "dtype": str(saved.properties.dtype).removeprefix("torch."),
            "size": list(saved.size),
            "chunks": [
                {
                    "offsets": list(chunk.offsets),
                    "sizes": list(chunk.sizes),
                    "file": (where := places[name, chunk.offsets]).relative_path,
                    "begin": where.offset,
                    "length": where.length,
                }
                for chunk in saved.chunks
            ],
        }
        for name, saved in metadata.state_dict_metadata.items()
    }


class SafeReader(dcp.StorageReader):
    """Reads ``files`` of a checkpoint in ``folder``, as the index says that :func:`index_of` made.

    Raises:
        ValueError: ``index`` is none, or what it says cannot be.
    """

    def __init__(self, folder: Path, files: Collection[str], index: Any):
        self.folder = folder
        self._tensors, self._places = _read_index(index, files)

    def reset(self, checkpoint_id: Any = None) -> None:
        pass

    def read_metadata(self) -> Metadata:
        return Metadata(self._tensors, storage_data=self._places, storage_meta=StorageMeta())

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args, **kwargs) -> None:
        pass

    def prepare_local_plan(self, plan: dcp.LoadPlan) -> dcp.LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[dcp.LoadPlan]) -> list[dcp.LoadPlan]:
        return plans

    def read_data(self, plan: dcp.LoadPlan, planner: dcp.LoadPlanner) -> Future[None]:
        for item in plan.items:
            tensor = self._read(item.storage_index)
            for dim, (first, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                tensor = tensor.narrow(dim, first, length)
            target = planner.resolve_tensor(item).detach()
            target.copy_(tensor)
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike) -> bool:
        return True

    def _read(self, at: MetadataIndex) -> Tensor:
        """One chunk of a tensor."""
        place = self._places[at]
        with open(self.folder / place.file, "rb") as shard:
            if place.begin + place.length > os.fstat(shard.fileno()).st_size:
                raise ValueError(f"{place.file} is too short for what the index says of {at.fqn}")
            shard.seek(place.begin)
            archive = io.BytesIO(shard.read(place.length))
        return _from_archive(archive, self._tensors[at.fqn].properties.dtype, place.sizes, at.fqn)


def _from_archive(archive: io.BytesIO, dtype: torch.dtype, sizes: torch.Size, name: str) -> Tensor:
    """The tensor in what ``torch.save`` wrote of a contiguous one: its numbers are a record of their own."""
    wanted = math.prod(sizes) * dtype.itemsize
    with zipfile.ZipFile(archive) as records:
        (record,) = (r for r in records.infolist() if r.filename.endswith("/data/0"))
        stored = record.compress_type == zipfile.ZIP_STORED and record.compress_size == record.file_size
        if not stored or record.file_size != wanted:
            raise ValueError(
                f"{name} has {record.file_size} bytes in its shard where its size needs {wanted}"
            )
        if not wanted:
            return torch.empty(sizes, dtype=dtype)
        return torch.frombuffer(bytearray(records.read(record)), dtype=dtype).view(sizes)


# ---- the index ------------------------------------------------------------------------------------------


def _read_index(
    index: Any, files: Collection[str]
) -> tuple[dict[str, TensorStorageMetadata], dict[MetadataIndex, Place]]:
    """The inverse of :func:`index_of` for an index from anywhere.

    Raises:
        ValueError: it is no such index, or its chunks are not each number of their tensors once.
    """
    tensors, places = {}, {}
    try:
        for name, entry in index.items():
            dtype, size, chunks = getattr(torch, entry["dtype"]), _sizes(entry["size"]), []
            if not isinstance(dtype, torch.dtype):
                raise ValueError(f"{name} has dtype {entry['dtype']}, which is none of torch")
            for chunk in entry["chunks"]:
                offsets, sizes, file = _sizes(chunk["offsets"]), _sizes(chunk["sizes"]), chunk["file"]
                if file not in files:
                    raise ValueError(f"{name} is in {file}, which is no file of the checkpoint")
                place = Place(file, *_sizes((chunk["begin"], chunk["length"])), sizes)
                places[MetadataIndex(name, offsets)] = place
                chunks.append(ChunkStorageMetadata(offsets, sizes))
            _check_cover(name, size, chunks)
            tensors[name] = TensorStorageMetadata(TensorProperties(dtype), size, chunks)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"its index is none of this format: {error!r}") from error
    return tensors, places


def _sizes(numbers: Sequence[int]) -> torch.Size:
    if any(type(number) is not int or not 0 <= number < 2**63 for number in numbers):
        raise ValueError(f"{list(numbers)} are no sizes")
    return torch.Size(numbers)


def _check_cover(name: str, size: torch.Size, chunks: Sequence[ChunkStorageMetadata]) -> None:
    """The chunks are parts of the tensor, together as many numbers as it has, and no two overlap."""
    for chunk in chunks:
        ends = [first + length for first, length in zip(chunk.offsets, chunk.sizes, strict=True)]
        if len(ends) != len(size) or any(end > whole for end, whole in zip(ends, size, strict=True)):
            raise ValueError(f"{name} has a chunk that is no part of it")
    if sum(math.prod(chunk.sizes) for chunk in chunks) != math.prod(size) or _overlap(chunks):
        raise ValueError(f"{name} has chunks that are not each of its numbers once")


def _overlap(chunks: Sequence[ChunkStorageMetadata]) -> bool:
    """Whether two boxes have a number in common; in the order of their first rows most need no look."""
    boxes = sorted((tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in chunks if math.prod(chunk.sizes))
    for i, (first, sizes) in enumerate(boxes):
        for other, others in boxes[i + 1 :]:
            if first and other[0] >= first[0] + sizes[0]:
                break
            if all(a < b + m and b < a + n for a, n, b, m in zip(first, sizes, other, others, strict=True)):
                return True
    return False
