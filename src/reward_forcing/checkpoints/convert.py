"""A checkpoint of any format, written again in another; values and dtypes stay as they are, bit by bit, unless asked.

Owns what the files of each format are called and hold. One network is written; the other parts of a model belong to
`repository`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import torch

from reward_forcing.checkpoints.detect import open_checkpoint
from reward_forcing.checkpoints.diffusers import original_config
from reward_forcing.checkpoints.files import LazyTensor, save_safetensors
from reward_forcing.checkpoints.forcing import DEFAULT_ROLE, flat, wrapped
from reward_forcing.checkpoints.hub import TRANSFORMER_FILES, resolve
from reward_forcing.checkpoints.load import open_network, with_lora
from reward_forcing.checkpoints.wan import diffusers_to_wan
from reward_forcing.config import unknown
from reward_forcing.models.wan_dit import WanDiT

Target = Literal["diffusers", "wan", "forcing", "forcing-flat", "comfy"]
FOLDERS = ("diffusers", "wan")
SHARD_BYTES = 5_000_000_000
COMFY_HEAD_DIM = 128
"""ComfyUI takes a Wan network to have width / 128 heads, whatever the file says."""

_STEM = "diffusion_pytorch_model"


def convert(
    source: str | Path,
    destination: str | Path,
    to: Target,
    which: str | None = None,
    *,
    heads: int | None = None,
    lora: str | Path | None = None,
    lora_alpha: float | None = None,
    dtype: torch.dtype | None = None,
    causal: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """The path written: a folder with config.json and safetensors (diffusers, wan) or a file.

    A file is a `.pt` by role as most of the forcing family reads (forcing), a bare one as Reward Forcing's code reads
    (forcing-flat), or safetensors for ComfyUI's `models/diffusion_models` (comfy; causal marks it for the loader of
    autoregressive models). One network is written: that of role `which` (None: the generator). lora, lora_alpha: see
    `with_lora`. dtype: of every parameter, None for as they are (scaled fp8 becomes bfloat16).

    Safetensors are written one tensor at a time, in shards of at most `shard_bytes` in a folder; a `.pt` file needs the
    whole network in memory, once. An interrupted run leaves nothing at `destination`.
    Raises FileExistsError if something is there, and otherwise as `load_transformer` does.
    """
    destination = check_destination(destination, to)
    if causal and to != "comfy":
        raise ValueError(f"only a file for ComfyUI is marked as causal, not {to}; leave the mark out")
    checkpoint = open_checkpoint(resolve(source, TRANSFORMER_FILES))
    network, parameters = open_network(checkpoint, which, heads)
    if to == "comfy" and network.config["attention_head_dim"] != COMFY_HEAD_DIM:
        raise ValueError(
            f"'{source}' has heads of {network.config['attention_head_dim']}, and ComfyUI takes heads of "
            f"{COMFY_HEAD_DIM}: it would run another network than this"
        )
    if lora is not None:
        parameters = with_lora(parameters, lora, lora_alpha)
    parameters = in_dtype(parameters, dtype)
    destination.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".convert-", dir=destination.parent) as scratch:
        partial = Path(scratch) / destination.name
        if to in FOLDERS:
            write_folder(partial, network, parameters, original=to == "wan", shard_bytes=shard_bytes)
        elif to == "comfy":
            config = {"config": json.dumps({"transformer": {"causal_ar": True}})} if causal else {}
            save_safetensors(partial, diffusers_to_wan(parameters), {"format": "pt"} | config)
        else:
            state = {name: tensor.read() for name, tensor in diffusers_to_wan(parameters).items()}
            role = checkpoint.role(which) if checkpoint.format == "forcing" else DEFAULT_ROLE
            config = {name: value for name, value in network.config.items() if not name.startswith("_")}
            torch.save(flat(state) if to == "forcing-flat" else wrapped(state, role, config), partial)
        return partial.replace(destination)


def check_destination(destination: str | Path, to: Target) -> Path:
    """The path to write to; raises ValueError for an unknown format, FileExistsError if something is there."""
    destination = Path(destination)
    if to not in get_args(Target):
        raise ValueError(unknown("format", to, get_args(Target)))
    if destination.exists() and (to not in FOLDERS or not destination.is_dir() or any(destination.iterdir())):
        raise FileExistsError(f"'{destination}' exists; name a new {'folder' if to in FOLDERS else 'file'}")
    return destination


def in_dtype(tensors: Mapping[str, LazyTensor], dtype: torch.dtype | None) -> dict[str, LazyTensor]:
    """`tensors` in another number format when they are read, or as they are (None)."""
    if dtype is None:
        return dict(tensors)
    return {name: tensor.map(lambda t: t.to(dtype), dtype) for name, tensor in tensors.items()}


def write_folder(
    folder: Path,
    network: WanDiT,
    parameters: Mapping[str, LazyTensor],
    *,
    original: bool,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a transformer's folder, new or empty, with config.json: the original Wan's or diffusers'."""
    folder.mkdir(exist_ok=True)
    if original:
        write_json(folder / "config.json", original_config(network))
        parameters = diffusers_to_wan(parameters)
    else:
        network.save_config(folder)
    write_shards(folder, _STEM, parameters, shard_bytes)


def write_shards(folder: Path, stem: str, tensors: Mapping[str, LazyTensor], shard_bytes: int = SHARD_BYTES) -> None:
    """Write `tensors` as `stem`.safetensors, or as shards with an index if they exceed `shard_bytes`."""
    shards = _split(tensors, shard_bytes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        part = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        file = folder / f"{stem}{part}.safetensors"
        save_safetensors(file, {name: tensors[name] for name in names})
        weight_map |= dict.fromkeys(names, file.name)
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / f"{stem}.safetensors.index.json", index)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, indented as the hub's are."""
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
