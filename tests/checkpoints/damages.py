"""What can be wrong with weights in any layout: each damage is done to a written file or folder."""

import io
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save_file

State = dict[str, Any]
SUFFIXES = (".safetensors", ".pth", ".pt")
TRACE = "trace"
"""The file, beside a checkpoint with code in it, that the code would write."""


class Payload:
    """An object that writes the file `trace` when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (str(self.trace), "w"))


def weight_files(path: Path) -> list[Path]:
    """The weight files of a checkpoint: the file itself, or those of a folder without the VAE and text encoder."""
    found = [path] if path.is_file() else [file for file in path.rglob("*") if file.suffix in SUFFIXES]
    return sorted(file for file in found if path.is_file() or not file.name.startswith(("Wan2.1_VAE", "models_t5")))


def is_safetensors(file: Path) -> bool:
    """Whether a whole weight file is one of safetensors."""
    return file.read_bytes()[8:9] == b"{"


def read(file: Path) -> State:
    """What a whole weight file holds, no longer a part of it."""
    whole = file.read_bytes()
    return load(whole) if is_safetensors(file) else torch.load(io.BytesIO(whole), weights_only=True)


def states_of(content: State) -> list[State]:
    """The state dicts of a file's content."""
    return [value for value in content.values() if isinstance(value, dict)] or [content]


def edited(change: Callable[[State], None], holding: str = "") -> Callable[[Path], None]:
    """A damage that changes every state dict in the last weight file in which a parameter is called so."""

    def damage(path: Path) -> None:
        for file in reversed(weight_files(path)):
            content = read(file)
            if not any(holding in name for state in states_of(content) for name in state):
                continue
            kind = is_safetensors(file)
            for state in states_of(content):
                change(state)
            save_file(content, file) if kind else torch.save(content, file)
            return
        raise AssertionError(f"no file holds {holding}")

    return damage


def rewritten(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """A damage that changes the bytes of the last weight file."""

    def damage(path: Path) -> None:
        file = weight_files(path)[-1]
        file.write_bytes(change(file.read_bytes()))

    return damage


def in_a_block(state: State, columns: int = 0) -> str:
    """The name of a parameter in the second of several like parts, which any layout has; one of so many columns."""
    names = [name for name in state if (".1." in name and "block" in name) or "middle.1." in name]
    return max(name for name in names if not columns or (state[name].ndim > 1 and state[name].shape[1] >= columns))


def lose(state: State) -> None:
    """Remove a parameter."""
    del state[in_a_block(state)]


def add(state: State) -> None:
    """Put another parameter beside one."""
    state[f"{in_a_block(state)}.more"] = torch.zeros(3)


def narrow(state: State) -> None:
    """Make a matrix one column wide."""
    name = in_a_block(state, 2)
    state[name] = state[name][:, :1].clone()


def quantise(state: State) -> None:
    """Make integers of a matrix."""
    name = in_a_block(state, 2)
    state[name] = state[name].to(torch.int8)


def flatten(state: State) -> None:
    """Make a vector of the first layer."""
    name = next(name for name in state if name.endswith("patch_embedding.weight"))
    state[name] = state[name].flatten().clone()


def replace_by(name: str) -> Callable[[State], None]:
    """A change to one parameter of this name."""

    def change(state: State) -> None:
        state.clear()
        state[name] = torch.zeros(4, 4)

    return change


def put_code(path: Path) -> None:
    """A torch file that would run code in place of the weights."""
    torch.save({"generator": {"patch_embedding.weight": Payload(path.parent / TRACE)}}, weight_files(path)[-1])


def put_bare_pickle(path: Path) -> None:
    """A pickle that would run code in place of the weights."""
    weight_files(path)[-1].write_bytes(pickle.dumps(Payload(path.parent / TRACE)))


def put_code_among_tensors(path: Path) -> None:
    """Code in one entry beside whole weights, as a torch file whatever its name."""
    file = weight_files(path)[-1]
    torch.save({**read(file), "step": Payload(path.parent / TRACE)}, file)


def remove_weights(path: Path) -> None:
    """Remove the last weight file."""
    weight_files(path)[-1].unlink()


def remove_config(path: Path) -> None:
    """Remove the configuration of a folder, which a file has not."""
    for config in [*path.glob("config.json"), *path.glob("transformer/config.json")]:
        config.unlink()


def leave_an_empty_folder(path: Path) -> None:
    """Put an empty folder in the place of all."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.mkdir()


CODE = r"could run code; it is not read"
DAMAGED = r"is damaged or incomplete \(.+\); fetch it again"

OF_A_FILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut in the weights": (rewritten(lambda whole: whole[:-200]), DAMAGED),
    "cut in the header": (rewritten(lambda whole: whole[:100]), DAMAGED),
    "empty": (rewritten(lambda _: b""), "is empty; the download or the disk failed"),
    "a web page": (rewritten(lambda _: b"<html>404</html>"), "is a web page, not weights; the download went wrong"),
    "text": (rewritten(lambda _: b"these are my weights"), "is neither a safetensors nor a torch file"),
    "code": (put_code, CODE),
    "a bare pickle": (put_bare_pickle, CODE),
    "code among tensors": (put_code_among_tensors, CODE),
}
"""What may happen to any weight file, and what is said of it."""
