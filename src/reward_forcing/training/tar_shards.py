"""A folder of tar shards in webdataset's layout with a manifest: written part by part by any number of processes.

Owns how items become members of a tar and are found again. Knows nothing of what the members hold. Item `i` is the run
of members `KEY.EXTENSION` with KEY = `i` in nine digits; `webdataset.WebDataset` streams the same files.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Generic, TypeVar

from reward_forcing.training.shards import Manifest, claim_store, read_manifest, write_whole

M = TypeVar("M", bound=Manifest)
Item = Mapping[str, bytes]
"""The members of one item: extension -> bytes. An extension may hold dots, as in `trajectory.safetensors`."""


def write_tar_shards(
    out: Path, manifest: Manifest, make: Callable[[range], Iterable[Item]], share: tuple[int, int] = (0, 1)
) -> Iterator[int]:
    """Make the shards of part `share` (i of n) that `out` lacks; yields the number done, from 0 on.

    make: item numbers -> their members, in order; they are written as they come, so a shard is never held in memory.
    A shard appears whole or not at all, and its bytes depend on the members alone (no times, no owners). What a killed
    process left of a shard is deleted when the shard is made again.
    Raises ValueError if `out` holds a store with another manifest, or if `make` returns too few or too many items.
    """
    claim_store(out, manifest)
    shards = range(share[0], manifest.shards, share[1])
    for done, shard in enumerate(shards):
        yield done
        path = tar_path(out, shard)
        if not path.is_file():
            for left in out.glob(f"{path.stem}.*.tmp"):
                left.unlink()
            items = manifest.items(shard)
            write_whole(path, lambda temporary, items=items: _write_tar(temporary, items, make(items)))
    yield len(shards)


def tar_path(folder: Path, shard: int) -> Path:
    """Where shard number `shard` of a store lies."""
    return folder / f"shard_{shard:05d}.tar"


def shards_made(folder: Path, manifest: Manifest) -> int:
    """How many of a store's shards are there."""
    return sum(tar_path(folder, shard).is_file() for shard in range(manifest.shards))


class TarStore(Generic[M]):
    """A whole store, read item by item through an index of the tars: nothing but the index is kept in memory."""

    def __init__(self, folder: Path, manifest_class: type[M], made_by: str) -> None:
        """Open a store that the command `made_by` makes. Raises FileNotFoundError if it is missing or lacks shards."""
        self.folder = folder
        self.manifest = read_manifest(folder, manifest_class, made_by)
        self._made_by = made_by
        self._indexed: dict[int, dict[int, dict[str, tuple[int, int]]]] = {}
        paths = [tar_path(folder, shard) for shard in range(self.manifest.shards)]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"'{folder}' lacks {len(missing)} of {len(paths)} shards, {missing[0]} first; run again: {made_by}"
            )

    def __len__(self) -> int:
        return self.manifest.count

    def read(self, index: int) -> dict[str, bytes]:
        """The members of item `index`: extension -> bytes.

        Raises IndexError outside 0 .. count - 1, and ValueError if the item's shard is damaged.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of a store of {len(self)}")
        shard = index // self.manifest.shard_size
        if shard not in self._indexed:
            self._indexed[shard] = self._index(shard)
        with tar_path(self.folder, shard).open("rb") as file:
            return {extension: _read_at(file, *place) for extension, place in self._indexed[shard][index].items()}

    def _index(self, shard: int) -> dict[int, dict[str, tuple[int, int]]]:
        """Item -> extension -> (offset, bytes) in the shard's tar."""
        path = tar_path(self.folder, shard)
        index: dict[int, dict[str, tuple[int, int]]] = {}
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    key, _, extension = member.name.partition(".")
                    index.setdefault(int(key), {})[extension] = (member.offset_data, member.size)
        except (tarfile.TarError, ValueError):
            index = {}
        if list(index) != list(self.manifest.items(shard)):
            raise ValueError(f"'{path}' is damaged; delete it and run again: {self._made_by}")
        return index


def _read_at(file: io.BufferedReader, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _write_tar(path: Path, numbers: range, items: Iterable[Item]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, item in zip(numbers, items, strict=True):
            for extension, content in item.items():
                member = tarfile.TarInfo(f"{number:09d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
