"""Named tensors in a folder, as torch's distributed checkpoints (DCP): every process writes and reads its own part.

A folder written by some processes is read by any number of them, sharded otherwise or not at all. Nothing in it can run
code: DCP keeps its index as a pickle, which is read here with a list of what it may hold.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

INDEX = ".metadata"
_CLASSES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None) -> None:
    """Write tensors to an empty folder: a whole one once, of a sharded one each process its part.

    group: of all processes, on the CPU; None in a single process. A collective operation.
    """
    _expect_one_process(group)
    writer = _Writer(str(folder))
    save(dict(tensors), storage_writer=writer, process_group=group, no_dist=group is None)


def stored_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors in a folder by name: whole, on the meta device, with shapes and dtypes but without values."""
    return {
        name: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
        for name, entry in _Reader(str(folder)).read_metadata().state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def read_tensors(folder: Path, tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None) -> None:
    """Read tensors into those given, in place: whole ones in every process, of a sharded one its part.

    A collective operation, as `write_tensors`. Raises an error of torch's if one is missing or of another shape.
    """
    _expect_one_process(group)
    reader = _Reader(str(folder))
    load(dict(tensors), storage_reader=reader, process_group=group, no_dist=group is None)


def _expect_one_process(group: dist.ProcessGroup | None) -> None:
    """Keep torch from warning, at every call, of what `group` None asks for."""
    if group is None:
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


class _Writer(FileSystemWriter):
    """DCP's writer, whose index does not tell where it was written."""

    def storage_meta(self) -> StorageMeta:
        """What is noted of this writing: nothing."""
        return StorageMeta()


class _Reader(FileSystemReader):
    """DCP's reader, whose index may hold nothing but DCP's own records, shapes and dtypes."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index of the folder. Raises pickle.UnpicklingError for one that holds anything else."""
        with (Path(self.path) / INDEX).open("rb") as file:
            metadata = _IndexUnpickler(file).load()
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """The class of this name, if an index may hold it."""
        if module in _CLASSES and "." not in name:
            found = super().find_class(module, name)
            if isinstance(found, type) and found.__module__ == module:
                return found
        if module == "torch" and (name == "Size" or isinstance(getattr(torch, name, None), torch.dtype)):
            return getattr(torch, name)
        if (module, name) == ("torch.serialization", "_get_layout"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"an index of tensors may not hold {module}.{name}")
