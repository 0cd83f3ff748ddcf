"""PyTorch's reader of sharded checkpoints, without its ``pickle.load``: nothing that is read can run code.

The index ``.metadata`` is a pickle. It is read with the few classes of plain data that it needs and no
others; the class that announces objects in bytes, which PyTorch would unpickle, is not among them.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.metadata import StorageMeta

_INDEX_CLASSES = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
    *(("pathlib", f"{kind}{system}Path") for kind in ("", "Pure") for system in ("Posix", "Windows")),
    *(("pathlib._local", f"{kind}{system}Path") for kind in ("", "Pure") for system in ("Posix", "Windows")),
}


class SafeReader(dcp.FileSystemReader):
    """PyTorch's reader, with an index that cannot run code."""

    def read_metadata(self, *args, **kwargs):
        with open(Path(self.path) / ".metadata", "rb") as file:
            metadata = _IndexUnpickler(file).load()
        for entry in metadata.storage_data.values():
            if Path(entry.relative_path).name != entry.relative_path:
                raise pickle.UnpicklingError(".metadata names files outside the checkpoint")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _IndexUnpickler(pickle.Unpickler):
    """Plain data of ``torch.distributed.checkpoint``; of objects in bytes, which would be unpickled, none."""

    def find_class(self, module: str, name: str):
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and (module, name) not in _INDEX_CLASSES:
            raise pickle.UnpicklingError(f".metadata asks for {module}.{name}, which no checkpoint needs")
        return super().find_class(module, name)
