"""Weight files as named tensors that are read one at a time: safetensors, sharded safetensors, torch files.

The format is told by content, never by suffix, and nothing here can run code from a file. Knows no network: names come
out as they stand in the file.
"""

import hashlib
import json
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

_LEGACY_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")  # what torch.save wrote first before it wrote zip files
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class LazyTensor:
    """Shape and dtype of a stored tensor; `read()` is a copy of it that no longer depends on the file."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @property
    def numel(self) -> int:
        """The number of elements."""
        return torch.Size(self.shape).numel()

    @property
    def nbytes(self) -> int:
        """The size in memory, in bytes."""
        return self.numel * self.dtype.itemsize

    @classmethod
    def of(cls, tensor: Tensor) -> "LazyTensor":
        """A tensor that is in memory, or mapped there, as a lazy one."""
        return cls(tuple(tensor.shape), tensor.dtype, tensor.detach().clone)


def find_weights(path: Path) -> tuple[Path, ...]:
    """The weight files of a checkpoint: `path` itself, the shards an index names, or what a folder holds.

    A folder may be a whole model (its `transformer/` is meant), a diffusers component, or a repository of the original
    Wan. Raises FileNotFoundError if there is nothing to read, ValueError if a folder holds several candidates.
    """
    if not path.exists():
        raise FileNotFoundError(f"no file or folder '{path}'")
    if path.is_file():
        return _shards(path) if path.name.endswith(".index.json") else (path,)
    folder = path / "transformer" if (path / "transformer").is_dir() else path
    if indices := sorted(folder.glob("*.safetensors.index.json")):
        return _shards(_only(folder, indices))
    for pattern in ("diffusion_pytorch_model.safetensors", "*.safetensors", "*.pt", "*.pth", "*.bin"):
        if found := sorted(folder.glob(pattern)):
            return (_only(folder, found),)
    raise FileNotFoundError(f"no weights in '{folder}'; expected .safetensors (single or with an index) or .pt")


def read_content(path: Path) -> dict[str, Any]:
    """What one weight file holds, as nested dicts with a `LazyTensor` for every tensor.

    Raises ValueError, with the likely cause, for a file that is damaged, is no weight file, or would need to run code.
    """
    kind = _kind(path)
    try:
        if kind == "safetensors":
            return _read_safetensors(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=kind == "torch")
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"'{path}' holds Python objects besides tensors, which could run code; it is not read. "
            "Save its state dicts alone with torch.save or safetensors"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, KeyError, OSError) as error:
        raise ValueError(f"'{path}' is damaged or incomplete ({_first_line(error)}); fetch it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' holds a {type(content).__name__}; expected a dict of tensors or of state dicts")
    return _lazy(content)


def _kind(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(64)
    start = head.lstrip()[:1]
    if head.startswith(b"PK\x03\x04"):
        return "torch"
    if head[8:9] == b"{":
        return "safetensors"
    if head[:1] == b"\x80" and _LEGACY_MAGIC in head:
        return "torch, legacy"
    reasons = {
        not head: "is empty; the download or the disk failed",
        head.startswith(b"version https://git-lfs"): "is a Git LFS pointer, not the weights; run `git lfs pull`",
        head[:1] == b"\x80": "is a bare Python pickle, which could run code; it is not read",
        start == b"<": "is a web page, not weights; the download went wrong",
    }
    raise ValueError(f"'{path}' {reasons.get(True, 'is neither a safetensors nor a torch file')}")


def _read_safetensors(path: Path) -> dict[str, Any]:
    def reader(name: str) -> Callable[[], Tensor]:
        def read() -> Tensor:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(name)

        return read

    content: dict[str, Any] = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dict
            entry = file.get_slice(name)
            dtype = _DTYPES.get(entry.get_dtype())
            if dtype is None:
                raise ValueError(f"'{path}': {name} has the unsupported dtype {entry.get_dtype()}")
            content[name] = LazyTensor(tuple(entry.get_shape()), dtype, reader(name))
    return content


def _lazy(content: Any) -> Any:
    if isinstance(content, dict):
        return {str(name): _lazy(value) for name, value in content.items()}
    return LazyTensor.of(content) if isinstance(content, Tensor) else content


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"'{index}' is not a safetensors index: it has no weight_map") from error
    shards = tuple(index.parent / name for name in names)
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise FileNotFoundError(f"'{index}' names shards that are missing: {', '.join(missing[:3])}{more}")
    return shards


def _only(folder: Path, found: list[Path]) -> Path:
    if len(found) > 1:
        raise ValueError(f"'{folder}' holds several checkpoints; name one: {', '.join(path.name for path in found)}")
    return found[0]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def files_hash(files: Iterable[Path]) -> str:
    """SHA-256 over the bytes of files, one after the other in the given order, in hexadecimal."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()
