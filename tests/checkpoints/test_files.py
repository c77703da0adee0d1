"""Weight files: told by content, read one tensor at a time, and refused with the likely cause."""

import json
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints.damages import Payload
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from reward_forcing.checkpoints import inspect, load_transformer
from reward_forcing.checkpoints.files import LazyTensor, find_weights, read_content, read_weights, save_safetensors
from reward_forcing.checkpoints.wan_vae import load_wan_vae


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
    elif kind == "truncated legacy":
        torch.save(tensors, path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "damaged inside":
        torch.save(tensors, path)
        path.write_bytes(path.read_bytes().replace(b"_rebuild_tensor", b"\xff" * 15))
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
                "gguf": b"GGUF" + bytes(60),
            }[kind]
        )
    return path


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("truncated safetensors", "damaged or incomplete"),
        ("truncated torch", "damaged or incomplete"),
        ("truncated legacy", "damaged or incomplete"),
        ("damaged inside", "damaged or incomplete"),
        ("numpy", "damaged or incomplete"),
        ("list", "holds a list"),
        ("empty", "is empty"),
        ("lfs", "Git LFS pointer"),
        ("web page", "web page"),
        ("text", "neither a safetensors nor a torch file"),
        ("gguf", "a GGUF file, whose quantised weights are not read"),
    ],
)
def test_a_broken_file_is_refused_with_its_cause(kind: str, cause: str, tmp_path: Path) -> None:
    path = broken(tmp_path, kind)
    with pytest.raises(ValueError, match=cause) as raised:
        read_content(path)
    assert str(path) in str(raised.value)


def save_pickle(content: object, path: Path) -> None:
    """Save as Python does."""
    path.write_bytes(pickle.dumps(content))


def save_legacy(content: object, path: Path) -> None:
    """Save as torch did before 1.6."""
    torch.save(content, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("read", [read_content, load_transformer, inspect, load_wan_vae])
@pytest.mark.parametrize("save", [save_pickle, torch.save, save_legacy])
@pytest.mark.parametrize("inside", [False, True])
def test_code_in_a_file_never_runs(
    inside: bool, save: Callable[[object, Path], None], read: Callable[[Path], object], tmp_path: Path
) -> None:
    path, trace = tmp_path / "weights.pt", tmp_path / "trace"
    payload = Payload(trace)
    save({"generator": {"patch_embedding.weight": payload}, "step": 1} if inside else payload, path)
    with pytest.raises(ValueError, match=r"could run code; it is not read") as raised:
        read(path)
    assert str(path) in str(raised.value)
    assert not trace.exists()
    if save is save_pickle:
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert trace.exists(), "the file is as dangerous as the test says"


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_any_damaged_byte_is_either_harmless_or_told(options: dict[str, bool], tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"a": torch.ones(2), "b": {"c": torch.zeros(3)}}, path, **options)
    whole = path.read_bytes()
    told = []
    for i in range(0, len(whole), 7):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 0x5A]) + whole[i + 1 :])
        try:
            read_content(path)
        except ValueError as error:
            told.append(str(error))
    assert told
    assert all(str(path) in message for message in told)


@pytest.mark.parametrize("kind", ["safetensors", "torch", "legacy"])
def test_a_tensor_that_was_read_does_not_change_with_its_file(kind: str, tmp_path: Path) -> None:
    path, tensor = tmp_path / "weights", torch.randn(1000)
    save = {"safetensors": save_file, "torch": torch.save, "legacy": save_legacy}[kind]
    save({"a": tensor}, path)
    found = read_content(path)["a"].read()
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(found, tensor)


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


def test_what_is_written_lazily_is_what_safetensors_reads(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 4),
        "b": torch.randn(5).bfloat16(),
        "c": torch.tensor(2.5),
        "d": torch.zeros(0, 3),
        "e": torch.randn(4, 3).t().half(),
        "f": torch.randn(2).to(torch.float8_e4m3fn),
    }
    path = tmp_path / "a.safetensors"
    save_safetensors(
        path, {name: LazyTensor.of(tensor) for name, tensor in tensors.items()}, {"format": "pt", "x": "y"}
    )
    found = load_file(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name].float(), tensor.float())
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "x": "y"}


def test_writing_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    def read() -> torch.Tensor:
        assert not any(reference() is not None for reference in alive), "the tensor before is still in memory"
        tensor = torch.zeros(10)
        alive.append(weakref.ref(tensor))
        return tensor

    lazy = LazyTensor((10,), torch.float32, read)
    save_safetensors(tmp_path / "a.safetensors", {"a": lazy, "b": lazy, "c": lazy})
    assert len(alive) == 3


def test_a_file_cut_after_it_was_opened_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.randn(100)}, path)
    lazy = read_content(path)["a"]
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"a\.safetensors' has become shorter"):
        lazy.read()


def test_a_torch_file_beyond_this_machines_memory_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": torch.zeros(1)}, path)

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("unable to mmap 28577112501 bytes from file <a.pt>: Cannot allocate memory (12)")

    monkeypatch.setattr(torch.UntypedStorage, "from_file", refuse)
    with pytest.raises(MemoryError, match=r"a\.pt' of 0 GiB cannot be mapped"):
        read_content(path)


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


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"weight_map": []}', '{"weight_map": {"a": ["b"]}}'])
def test_an_index_without_a_map_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match="no weight_map"):
        find_weights(tmp_path)


def test_an_index_reaches_no_file_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "model" / "a.safetensors.index.json").write_text('{"weight_map": {"x": "../other.safetensors"}}')
    with pytest.raises(ValueError, match=r"names a shard outside its folder: '\.\./other\.safetensors'"):
        find_weights(tmp_path / "model")


def write_shards(folder: Path, first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], index: str) -> None:
    """Two shards and an index with the given map."""
    save_file(first, folder / "a-00001-of-00002.safetensors")
    save_file(second, folder / "a-00002-of-00002.safetensors")
    (folder / "a.safetensors.index.json").write_text(index)


def test_a_shard_that_lacks_what_its_index_says_is_named(tmp_path: Path) -> None:
    where = {"x": "a-00001-of-00002.safetensors", **dict.fromkeys("yz", "a-00002-of-00002.safetensors")}
    write_shards(tmp_path, {"x": torch.zeros(1)}, {"y": torch.zeros(1)}, json.dumps({"weight_map": where}))
    with pytest.raises(ValueError, match=r"a-00002-of-00002\.safetensors' lacks 'z', which its index says"):
        read_weights(tmp_path)


def test_shards_that_overlap_are_refused(tmp_path: Path) -> None:
    where = {"x": "a-00001-of-00002.safetensors", "y": "a-00002-of-00002.safetensors"}
    both = {"x": torch.zeros(1), "y": torch.zeros(1)}
    write_shards(tmp_path, {"x": torch.zeros(1)}, both, json.dumps({"weight_map": where}))
    with pytest.raises(ValueError, match=r"00002-of-00002\.safetensors' holds 'x', which another shard"):
        read_weights(tmp_path)


def test_shards_without_their_index_ask_for_it(tmp_path: Path) -> None:
    write_shards(tmp_path, {"x": torch.zeros(1)}, {"y": torch.zeros(1)}, "")
    (tmp_path / "a.safetensors.index.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds shards without 'a\.safetensors\.index\.json'"):
        find_weights(tmp_path)
    with pytest.raises(ValueError, match="is one of 2 shards; name the folder or the index"):
        find_weights(tmp_path / "a-00001-of-00002.safetensors")
