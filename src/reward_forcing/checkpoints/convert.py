"""A checkpoint of any format, written again in another; values and dtypes stay as they are, bit by bit."""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save_file

from reward_forcing.checkpoints.detect import open_checkpoint
from reward_forcing.checkpoints.diffusers import original_config
from reward_forcing.checkpoints.files import LazyTensor
from reward_forcing.checkpoints.forcing import DEFAULT_ROLE, wrapped
from reward_forcing.checkpoints.hub import TRANSFORMER_FILES, resolve
from reward_forcing.checkpoints.load import open_network
from reward_forcing.checkpoints.wan import diffusers_to_wan
from reward_forcing.config import unknown
from reward_forcing.models.wan_dit import WanDiT

Target = Literal["diffusers", "wan", "forcing"]
SHARD_BYTES = 5_000_000_000
_STEM = "diffusion_pytorch_model"


def convert(
    source: str | Path,
    destination: str | Path,
    to: Target,
    which: str | None = None,
    *,
    heads: int | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """The path written: a folder with config.json and safetensors (diffusers, wan) or a `.pt` file (forcing).

    One network is written: that of role `which` (None: the generator). Folders are written shard by shard, so that at
    most `shard_bytes` are in memory; a `.pt` file needs the whole network there. An interrupted run leaves nothing at
    `destination`. Raises FileExistsError if something is there, and otherwise as `load_transformer` does.
    """
    destination = Path(destination)
    if to not in get_args(Target):
        raise ValueError(unknown("format", to, get_args(Target)))
    if destination.exists() and (to == "forcing" or not destination.is_dir() or any(destination.iterdir())):
        raise FileExistsError(f"'{destination}' exists; name a new {'file' if to == 'forcing' else 'folder'}")
    checkpoint = open_checkpoint(resolve(source, TRANSFORMER_FILES))
    network, parameters = open_network(checkpoint, which, heads)
    destination.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".convert-", dir=destination.parent) as scratch:
        partial = Path(scratch) / destination.name
        if to == "forcing":
            role = checkpoint.role(which) if checkpoint.format == "forcing" else DEFAULT_ROLE
            _write_forcing(partial, network, parameters, role)
        else:
            _write_folder(partial, network, parameters, original=to == "wan", shard_bytes=shard_bytes)
        return partial.replace(destination)


def _write_forcing(path: Path, network: WanDiT, parameters: Mapping[str, LazyTensor], role: str) -> None:
    state = {name: tensor.read() for name, tensor in diffusers_to_wan(parameters).items()}
    config = {name: value for name, value in network.config.items() if not name.startswith("_")}
    torch.save(wrapped(state, role, config), path)


def _write_folder(
    folder: Path, network: WanDiT, parameters: Mapping[str, LazyTensor], *, original: bool, shard_bytes: int
) -> None:
    folder.mkdir()
    if original:
        _write_json(folder / "config.json", original_config(network))
        parameters = diffusers_to_wan(parameters)
    else:
        network.save_config(folder)
    shards = _split(parameters, shard_bytes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        part = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        file = folder / f"{_STEM}{part}.safetensors"
        save_file({name: parameters[name].read() for name in names}, file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file.name)
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in parameters.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(folder / f"{_STEM}.safetensors.index.json", index)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _split(parameters: Mapping[str, LazyTensor], shard_bytes: int) -> list[list[str]]:
    """Names in order, in runs of at most `shard_bytes` (a larger tensor stands alone)."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in parameters.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards
