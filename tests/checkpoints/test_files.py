"""Weight files: told by content, read one tensor at a time, and refused with the likely cause."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from reward_forcing.checkpoints.files import LazyTensor, find_weights, read_content


class Payload:
    """An object that would run code when unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        """Raise instead of harm, so that a test notices."""
        return (pytest.fail, ("code from the file has run",))


def broken(tmp_path: Path, kind: str) -> Path:
    """A file of the given kind of brokenness, with a suffix that promises otherwise."""
    path = tmp_path / "weights.pt"
    tensors = {"a": torch.randn(100, 10)}
    if kind == "truncated safetensors":
        save_file(tensors, path)
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "truncated torch":
        torch.save(tensors, path)
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"a": Payload()}))
    elif kind == "torch with objects":
        torch.save({"a": torch.zeros(1), "b": Payload()}, path)
    elif kind == "numpy":
        with path.open("wb") as file:
            np.savez(file, a=np.zeros(3))
    elif kind == "list":
        torch.save([torch.zeros(1)], path)
    else:
        path.write_bytes(
            {
                "empty": b"",
                "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
                "web page": b"<!DOCTYPE html><html>404</html>",
                "text": b"hello, these are my weights",
            }[kind]
        )
    return path


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("truncated safetensors", "damaged or incomplete"),
        ("truncated torch", "damaged or incomplete"),
        ("pickle", "bare Python pickle"),
        ("torch with objects", "Python objects besides tensors"),
        ("numpy", "damaged or incomplete"),
        ("list", "holds a list"),
        ("empty", "is empty"),
        ("lfs", "Git LFS pointer"),
        ("web page", "web page"),
        ("text", "neither a safetensors nor a torch file"),
    ],
)
def test_a_broken_file_is_refused_with_its_cause(kind: str, cause: str, tmp_path: Path) -> None:
    path = broken(tmp_path, kind)
    with pytest.raises(ValueError, match=cause) as raised:
        read_content(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int64])
@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_tensors_come_back_bit_by_bit_whatever_the_suffix(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    tensor = (torch.randn(3, 4) * 10).to(dtype)
    if kind == "safetensors":
        save_file({"a": tensor}, path)
    else:
        torch.save({"a": tensor}, path)
    lazy = read_content(path)["a"]
    assert isinstance(lazy, LazyTensor)
    assert (lazy.shape, lazy.dtype, lazy.nbytes) == ((3, 4), dtype, 12 * dtype.itemsize)
    assert torch.equal(lazy.read().view(torch.uint8), tensor.view(torch.uint8))


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        find_weights(tmp_path / "absent")


def test_an_empty_folder_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no weights in"):
        find_weights(tmp_path)


def test_a_folder_of_several_checkpoints_asks_for_one(tmp_path: Path) -> None:
    for name in ("longlive_base.pt", "lora.pt"):
        torch.save({}, tmp_path / name)
    with pytest.raises(ValueError, match=r"name one: longlive_base.pt, lora.pt"):
        find_weights(tmp_path)


def test_missing_shards_are_named(tmp_path: Path) -> None:
    index = tmp_path / "a.safetensors.index.json"
    index.write_text('{"weight_map": {"x": "one.safetensors", "y": "two.safetensors"}}')
    save_file({"x": torch.zeros(1)}, tmp_path / "one.safetensors")
    with pytest.raises(FileNotFoundError, match=r"missing: two\.safetensors"):
        find_weights(tmp_path)


def test_an_index_without_a_map_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="no weight_map"):
        find_weights(tmp_path)
