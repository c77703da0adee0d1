"""Weight files as named tensors that are read one at a time: safetensors, sharded safetensors, torch files.

The format is told by content, never by suffix, and nothing here can run code from a file. Knows no network: names come
out as they stand in the file.
"""

import hashlib
import json
import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from reward_forcing.config import first_few

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
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_FOREIGN = re.compile(r"(?:GLOBAL|global|class) ([\w.]+\.\w+)")  # how torch names what it refuses to import
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.safetensors")
_COMPANIONS = ("Wan2.1_VAE.", "models_t5_", "models_clip_")  # what the original repository keeps beside its transformer


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
    def of(cls, tensor: Tensor, mapped: bool = True) -> "LazyTensor":
        """A stored tensor as a lazy one. mapped: it is the file's own memory, so `read` copies it."""
        tensor = tensor.detach()
        return cls(tuple(tensor.shape), tensor.dtype, tensor.clone if mapped else lambda: tensor)

    def map(self, change: Callable[[Tensor], Tensor], dtype: torch.dtype | None = None) -> "LazyTensor":
        """It with `change` applied when it is read, which keeps its shape and gives `dtype` (None: its own)."""
        return LazyTensor(self.shape, dtype or self.dtype, lambda: change(self.read()))


def find_weights(path: Path) -> tuple[Path, ...]:
    """The weight files of a checkpoint: `path` itself, the shards an index names, or what a folder holds.

    A folder may be a whole model (its `transformer/` is meant), a diffusers component, or a repository of the original
    Wan. Raises FileNotFoundError if there is nothing to read, ValueError if a folder holds several candidates, and for
    a shard by itself.
    """
    return _find(path)[0]


def companions(path: Path) -> list[Path]:
    """What holds the VAE and the text encoder in the folder of a model: their files (original Wan) or folders."""
    folders = [path / part for part in ("vae", "text_encoder") if (path / part).is_dir()]
    files = [file for file in sorted(path.glob("*")) if file.name.startswith(_COMPANIONS)] if path.is_dir() else []
    return folders + files


def read_weights(path: Path) -> tuple[tuple[Path, ...], dict[str, Any]]:
    """The weight files of a checkpoint, as `find_weights` does, and what they hold together, as `read_content` does.

    Raises ValueError also if a parameter is in two shards, or not in the shard that the index says.
    """
    files, weight_map = _find(path)
    content: dict[str, Any] = {}
    for file in files:
        part = read_content(file)
        if twice := sorted(content.keys() & part.keys()):
            raise ValueError(f"'{file}' holds '{twice[0]}', which another shard of '{path}' holds too")
        if lacking := [name for name, shard in weight_map.items() if shard == file.name and name not in part]:
            lost = first_few([f"'{name}'" for name in lacking], 1)
            raise ValueError(f"'{file}' lacks {lost}, which its index says is there; fetch it again")
        content |= part
    return files, content


def _find(path: Path) -> tuple[tuple[Path, ...], dict[str, str]]:
    """The weight files of a checkpoint, and name -> file name as its index says (empty without one)."""
    if not path.exists():
        raise FileNotFoundError(f"no file or folder '{path}'")
    if path.is_file():
        if path.name.endswith(".index.json"):
            return _shards(path)
        if match := _SHARD.fullmatch(path.name):
            raise ValueError(f"'{path}' is one of {int(match[2])} shards; name the folder or the index of all")
        return (path,), {}
    folder = path / "transformer" if (path / "transformer").is_dir() else path
    if indices := sorted(folder.glob("*.safetensors.index.json")):
        return _shards(_only(folder, indices))
    for pattern in ("diffusion_pytorch_model.safetensors", "*.safetensors", "*.pt", "*.pth", "*.bin"):
        if found := [file for file in sorted(folder.glob(pattern)) if not file.name.startswith(_COMPANIONS)]:
            return (_only(folder, found),), {}
    raise FileNotFoundError(f"no weights in '{folder}'; expected .safetensors (single or with an index) or .pt")


def read_content(path: Path) -> dict[str, Any]:
    """What one weight file holds, as nested dicts with a `LazyTensor` for every tensor.

    Raises ValueError, with the likely cause, for a file that is damaged, is no weight file, or would need to run code;
    MemoryError for a torch file that exceeds this machine's memory.
    """
    kind = _kind(path)
    if kind == "safetensors":
        return _read_safetensors(path)
    # torch reads whatever is called .safetensors as such, unless it is given the open file
    mapped = kind == "torch" and path.suffix != ".safetensors"
    try:
        with path.open("rb") as file:
            content = torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # damaged bytes fail in any way: as a decoder's, an index's, a key's error
        if isinstance(error, pickle.UnpicklingError) and (found := _FOREIGN.search(str(error))):
            raise ValueError(
                f"'{path}' holds Python objects besides tensors ({found[1]}), which could run code; it is not read. "
                "Save its state dicts alone with torch.save or safetensors"
            ) from error
        if "unable to mmap" in str(error):
            raise MemoryError(
                f"'{path}' of {path.stat().st_size / 2**30:.0f} GiB cannot be mapped: the system grants no more than "
                "its memory. A safetensors file is read without this; convert it on a larger machine"
            ) from error
        raise ValueError(_damage(path, error)) from error
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' holds a {type(content).__name__}; expected a dict of tensors or of state dicts")
    return _lazy(content, mapped)


def save_safetensors(
    path: Path, tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str] = MappingProxyType({"format": "pt"})
) -> None:
    """Write a safetensors file, one tensor in memory at a time; larger number formats first, as alignment asks."""
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].nbytes
        kind, shape = _NAMES[tensors[name].dtype], list(tensors[name].shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(_bytes_of(tensors[name].read().contiguous()))


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
        head.startswith(b"GGUF"): "is a GGUF file, whose quantised weights are not read; fetch the safetensors file",
        head.startswith(b"version https://git-lfs"): "is a Git LFS pointer, not the weights; run `git lfs pull`",
        head[:1] == b"\x80": "is a bare Python pickle, which could run code; it is not read",
        start == b"<": "is a web page, not weights; the download went wrong",
    }
    raise ValueError(f"'{path}' {reasons.get(True, 'is neither a safetensors nor a torch file')}")


def _read_safetensors(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file, whose header the library checks and whose bytes are read without mapping.

    torch's mapping is one that could be written to, which a system grants up to the memory it has: no 14B file could be
    looked into on a smaller machine.
    """
    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise ValueError(_damage(path, error)) from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    if unknown := [name for name, entry in header.items() if entry["dtype"] not in _DTYPES]:
        raise ValueError(f"'{path}': {unknown[0]} has the unsupported dtype {header[unknown[0]]['dtype']}")

    def reader(shape: tuple[int, ...], dtype: torch.dtype, start: int) -> Callable[[], Tensor]:
        def read() -> Tensor:
            tensor = torch.empty(shape, dtype=dtype)
            with path.open("rb") as file:
                file.seek(8 + length + start)
                if file.readinto(_bytes_of(tensor)) < tensor.nbytes:
                    raise ValueError(f"'{path}' has become shorter while it was read; fetch it again")
            return tensor

        return read

    content: dict[str, Any] = {}
    for name, entry in header.items():
        shape, dtype = tuple(entry["shape"]), _DTYPES[entry["dtype"]]
        content[name] = LazyTensor(shape, dtype, reader(shape, dtype, entry["data_offsets"][0]))
    return content


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _lazy(content: Any, mapped: bool) -> Any:
    if isinstance(content, dict):
        return {str(name): _lazy(value, mapped) for name, value in content.items()}
    return LazyTensor.of(content, mapped) if isinstance(content, Tensor) else content


def _shards(index: Path) -> tuple[tuple[Path, ...], dict[str, str]]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
        outside = [name for name in names if Path(name).name != name]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"'{index}' is not a safetensors index: it has no weight_map") from error
    if outside:
        raise ValueError(f"'{index}' names a shard outside its folder: '{outside[0]}'")
    shards = tuple(index.parent / name for name in names)
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise FileNotFoundError(f"'{index}' names shards that are missing: {first_few(missing, 3)}")
    return shards, weight_map


def _only(folder: Path, found: list[Path]) -> Path:
    if len(found) > 1 and (match := _SHARD.fullmatch(found[0].name)):
        raise FileNotFoundError(f"'{folder}' holds shards without '{match[1]}.safetensors.index.json'; fetch it too")
    if len(found) > 1:
        raise ValueError(f"'{folder}' holds several checkpoints; name one: {', '.join(path.name for path in found)}")
    return found[0]


def _damage(path: Path, error: Exception) -> str:
    lines = str(error).strip().splitlines()
    reason = lines[0].split(". ")[0].rstrip(".") if lines else type(error).__name__  # torch goes on to guess the cause
    return f"'{path}' is damaged or incomplete ({reason}); fetch it again"


def files_hash(files: Iterable[Path]) -> str:
    """SHA-256 over the bytes of files, one after the other in the given order, in hexadecimal."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()
