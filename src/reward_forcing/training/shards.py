"""A folder of tensor shards with a manifest: written part by part by any number of processes, resumed for free."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import torch
from pydantic import PositiveInt
from safetensors.torch import load_file, save_file
from torch import Tensor

from reward_forcing.checkpoints.files import files_hash
from reward_forcing.config import Settings

MANIFEST = "manifest.json"


class Manifest(Settings):
    """What a store holds; subclasses add what its content depends on. count: items in all."""

    count: PositiveInt
    shard_size: PositiveInt = 256

    @property
    def shards(self) -> int:
        """Number of shards; the last may be smaller."""
        return -(-self.count // self.shard_size)

    def items(self, shard: int) -> range:
        """The items of one shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.count))


M = TypeVar("M", bound=Manifest)


def weights_hash(folder: Path) -> str:
    """SHA-256 over all .safetensors files of a folder, as hex. Raises FileNotFoundError if there is none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"no .safetensors weights in '{folder}'")
    return files_hash(files)


def write_shards(
    out: Path, manifest: Manifest, make: Callable[[range], dict[str, Tensor]], share: tuple[int, int] = (0, 1)
) -> Iterator[int]:
    """Make the shards of part `share` (i of n) that `out` lacks; yields the number done, from 0 on.

    make: items -> tensors whose first axis runs over these items. A shard appears whole or not at all.
    Raises ValueError if `out` holds a store with another manifest.
    """
    claim_store(out, manifest)
    for done, shard in enumerate(range(share[0], manifest.shards, share[1])):
        yield done
        file = shard_path(out, shard)
        if not file.is_file():
            tensors = make(manifest.items(shard))
            write_whole(file, lambda temporary, tensors=tensors: save_file(tensors, temporary))
    yield len(range(share[0], manifest.shards, share[1]))


def claim_store(out: Path, manifest: Manifest) -> None:
    """Make the folder of a store and write its manifest, unless it is there already.

    Raises ValueError if `out` holds a store with another manifest.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / MANIFEST
    if not path.is_file():
        write_whole(path, lambda temporary: temporary.write_text(manifest.model_dump_json(indent=2)))
        return
    held = type(manifest).model_validate_json(path.read_text())
    if held != manifest:
        theirs, ours = held.model_dump(), manifest.model_dump()
        changed = ", ".join(f"{key}: {theirs[key]!r} -> {ours[key]!r}" for key in ours if theirs[key] != ours[key])
        raise ValueError(f"'{out}' holds another store ({changed}); use another folder, or delete this one")


def read_manifest(folder: Path, manifest_class: type[M], made_by: str) -> M:
    """The manifest of a store. Raises FileNotFoundError, naming the command `made_by`, if there is none."""
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"no data in '{folder}' ({MANIFEST} is missing); make it: {made_by}")
    return manifest_class.model_validate_json(path.read_text())


def read_shards(folder: Path, manifest_class: type[M], made_by: str) -> tuple[M, dict[str, Tensor]]:
    """The manifest and the tensors of a whole store, joined along their first axis. Raises as `find_shards` does."""
    manifest, files = find_shards(folder, manifest_class, made_by)
    parts = [load_file(file) for file in files]
    return manifest, {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def find_shards(folder: Path, manifest_class: type[M], made_by: str) -> tuple[M, list[Path]]:
    """The manifest of a whole store and where its shards lie.

    Raises FileNotFoundError, naming the command `made_by`, if the store is missing or lacks shards.
    """
    manifest = read_manifest(folder, manifest_class, made_by)
    files = [shard_path(folder, shard) for shard in range(manifest.shards)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"'{folder}' lacks {len(missing)} of {len(files)} shards, {missing[0]} first; run again: {made_by}"
        )
    return manifest, files


def shard_path(folder: Path, shard: int) -> Path:
    """Where shard number `shard` of a store lies."""
    return folder / f"shard_{shard:05d}.safetensors"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file that appears at `path` whole or not at all."""
    temporary = path.with_name(f"{path.stem}.{uuid4().hex[:12]}.tmp")  # process numbers repeat between containers
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
