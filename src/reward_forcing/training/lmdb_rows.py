"""Reads arrays from an LMDB as CausVid, Self Forcing and Reward Forcing publish them.

Owns the layout: under `NAME_shape` the array's shape as decimal numbers, under `NAME_I_data` the raw bytes of row I.
Latents are float16, texts UTF-8. A folder is one LMDB, or holds several, which are read as one.
"""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

FILE = "data.mdb"

_open_now: WeakValueDictionary[Path, Any] = WeakValueDictionary()  # LMDB refuses to open a file twice in one process


def lmdb_folders(folder: Path) -> list[Path]:
    """The LMDBs of a folder: itself, or its subfolders by name; empty if there is none."""
    if (folder / FILE).is_file():
        return [folder]
    return sorted(file.parent for file in folder.glob(f"*/{FILE}"))


class LmdbRows:
    """Rows of named arrays, read one at a time; the operating system maps the files, so memory holds what is in use."""

    def __init__(self, folder: Path) -> None:
        """Open for reading only. Raises FileNotFoundError if there is no LMDB, ValueError if one cannot be read.

        Raises ImportError without the package `lmdb`.
        """
        self.folder = folder
        self.folders = lmdb_folders(folder)
        if not self.folders:
            raise FileNotFoundError(f"no LMDB in '{folder}' (no {FILE}, nor one in its subfolders)")
        self._parts = [_open(part.resolve()) for part in self.folders]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of array `name`, its rows counted over all LMDBs of the folder.

        Raises ValueError if one of them lacks it, or if their rows differ in shape.
        """
        shapes = self._shapes(name)
        if len({shape[1:] for shape in shapes}) > 1:
            raise ValueError(f"the LMDBs in '{self.folder}' hold {name} of different shapes: {sorted(set(shapes))}")
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def row(self, name: str, index: int) -> bytes:
        """Row `index` of array `name` as it is stored. Raises IndexError outside 0 .. rows - 1."""
        starts = list(accumulate((shape[0] for shape in self._shapes(name)), initial=0))
        if not 0 <= index < starts[-1]:
            raise IndexError(f"row {index} of {starts[-1]} {name} in '{self.folder}'")
        part = max(number for number, start in enumerate(starts[:-1]) if start <= index)
        return self._get(part, f"{name}_{index - starts[part]}_data")

    def text(self, name: str, index: int) -> str:
        """Row `index` of array `name` as text."""
        return self.row(name, index).decode("utf-8")

    def float16(self, name: str, index: int) -> NDArray[np.float16]:
        """Row `index` of array `name`, shaped as its rows. Raises ValueError if its size differs from theirs."""
        shape = self.shape(name)[1:]
        data = self.row(name, index)
        if len(data) != 2 * int(np.prod(shape)):
            raise ValueError(
                f"row {index} of {name} in '{self.folder}' has {len(data)} bytes, expected "
                f"{' x '.join(map(str, shape))} float16 values; only float16 is read"
            )
        return np.frombuffer(data, dtype=np.float16).reshape(shape).copy()

    def _shapes(self, name: str) -> list[tuple[int, ...]]:
        shapes = []
        for part, folder in enumerate(self.folders):
            text = self._get(part, f"{name}_shape").decode("ascii", errors="replace")
            if not text.split() or not all(number.isdigit() for number in text.split()):
                raise ValueError(f"'{folder}': {name}_shape should be whole numbers, got {text!r}")
            shapes.append(tuple(int(number) for number in text.split()))
        return shapes

    def _get(self, part: int, key: str) -> bytes:
        with self._parts[part].begin() as transaction:
            value = transaction.get(key.encode())
        if value is None:
            raise ValueError(f"'{self.folders[part]}' has no '{key}'; expected an LMDB as Self Forcing writes it")
        return value


def _open(folder: Path) -> Any:
    try:
        import lmdb
    except ImportError:
        raise ImportError(f"'{folder}' is an LMDB; to read it: pip install -e '.[train]' in its checkout") from None
    environment = _open_now.get(folder)
    if environment is None:
        try:
            environment = lmdb.open(str(folder), readonly=True, lock=False, readahead=False)
        except lmdb.Error as error:
            raise ValueError(f"'{folder}' cannot be read as an LMDB: {error}") from None
        _open_now[folder] = environment
    return environment
