"""A network's configuration, from a `config.json` or from the shapes of its parameters, and whether both agree.

Parameters are named as in diffusers throughout. Only the number of heads leaves no trace in the shapes.
"""

import inspect
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reward_forcing.checkpoints.files import LazyTensor
from reward_forcing.config import unknown
from reward_forcing.models.wan_dit import WanDiT

CLASS_NAMES = ("WanTransformer3DModel", "WanModel", "CausalWanModel", "WanDiT")
PUBLISHED_SIZES = {(30, 12, 8960): "Wan2.1 1.3B", (40, 40, 13824): "Wan2.1 14B"}  # layers, heads, feed-forward width
_PUBLISHED_HEAD_DIM = 128  # of every published Wan network, the smallest of which is 1536 wide
_SMALLEST_PUBLISHED_WIDTH = 1536


def read_config(path: Path) -> dict[str, Any] | None:
    """The `WanDiT` settings in a diffusers or original Wan `config.json`, or None if there is no such file.

    A file without a class name belongs to something else and counts as none. The original's file gives heads and
    epsilon; shapes give the rest. Raises ValueError for another kind of network.
    """
    if not path.is_file():
        return None
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"'{path}' is not valid JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"'{path}' must hold a JSON object, got {type(raw).__name__}")
    if (kind := raw.get("_class_name")) is None:
        return None
    if kind not in CLASS_NAMES:
        raise ValueError(f"'{path}' describes a {kind}; expected one of {', '.join(CLASS_NAMES)}")
    if raw.get("model_type", "t2v") != "t2v":
        raise ValueError(f"'{path}' describes a network of type {raw['model_type']}; only text-to-video is supported")
    if "num_heads" in raw:
        heads, width = raw["num_heads"], raw.get("dim")
        if not (isinstance(heads, int) and isinstance(width, int) and heads > 0 and width % heads == 0):
            raise ValueError(f"'{path}': dim = {width} must be a multiple of num_heads = {heads}")
        return {"num_attention_heads": heads, "attention_head_dim": width // heads, "eps": raw.get("eps", 1e-6)}
    known = inspect.signature(WanDiT.__init__).parameters
    settings = {name: value for name, value in raw.items() if not name.startswith("_")}
    for name, value in settings.items():
        if name not in known and value is not None:
            raise ValueError(f"'{path}': {unknown('setting', name, list(known)[1:])}")
    return {name: value for name, value in settings.items() if name in known}


def infer_config(
    parameters: Mapping[str, LazyTensor], stored: Mapping[str, Any] | None = None, heads: int | None = None
) -> dict[str, Any]:
    """The `WanDiT` arguments under which `parameters` fit: sizes from shapes, the rest from `stored`, then defaults.

    Without `stored` and `heads`, heads are taken to be 128 wide where the network is as wide as a published one.
    Raises ValueError if an expected parameter is missing or no tensor of its kind, if a block is missing, if the heads
    cannot be known, or if `stored` or `heads` contradict the shapes.
    """
    patch, out = shape_of(parameters, "patch_embedding.weight", 5), shape_of(parameters, "proj_out.weight", 2)
    width = patch[0]
    blocks = {int(match[1]) for match in (re.match(r"blocks\.(\d+)\.", name) for name in parameters) if match}
    if gaps := sorted(set(range(len(blocks))) - blocks):
        raise ValueError(f"block {gaps[0]} is missing: the blocks are {_first(sorted(blocks))}")
    sizes = {
        "patch_size": tuple(patch[2:]),
        "in_channels": patch[1],
        "out_channels": out[0] // math.prod(patch[2:]),
        "text_dim": shape_of(parameters, "condition_embedder.text_embedder.linear_1.weight", 2)[1],
        "freq_dim": shape_of(parameters, "condition_embedder.time_embedder.linear_1.weight", 2)[1],
        "ffn_dim": shape_of(parameters, "blocks.0.ffn.net.0.proj.weight", 2)[0],
        "num_layers": len(blocks),
        "cross_attn_norm": "blocks.0.norm2.weight" in parameters,
    }
    settings = dict(stored or {})
    for name, kind in (("num_attention_heads", int), ("attention_head_dim", int), ("eps", float | int)):
        if settings.get(name) is not None and not isinstance(settings[name], kind):
            raise ValueError(f"config.json says {name} = {settings[name]!r}, which is no number of that kind")
    for name, value in sizes.items():
        told = settings.get(name)
        if told is not None and (tuple(told) if isinstance(told, list) else told) != value:
            raise ValueError(f"config.json says {name} = {told}, but the weights have {value}; the two do not belong")
    return settings | sizes | _heads(width, settings, heads)


def empty_network(config: Mapping[str, Any]) -> WanDiT:
    """A `WanDiT` of this configuration whose parameters have shapes but no memory.

    Raises ValueError for a configuration that is not one of a `WanDiT`.
    """
    try:
        with torch.device("meta"):
            return WanDiT(**config)
    except (TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"the configuration is none of a Wan transformer: {error}") from error


def check_fit(network: nn.Module, parameters: Mapping[str, LazyTensor], what: str = "network") -> None:
    """Raise ValueError that lists the first missing, unexpected and misshapen parameters, if there are any.

    what: the network in words.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    problems = {
        "missing": sorted(expected.keys() - parameters.keys()),
        "unexpected": sorted(parameters.keys() - expected.keys()),
        "of another shape": [
            f"{name} {list(parameters[name].shape)} instead of {list(shape)}"
            for name, shape in expected.items()
            if name in parameters and parameters[name].shape != shape
        ],
    }
    told = [f"{len(names)} {kind} ({_first(names)})" for kind, names in problems.items() if names]
    if told:
        raise ValueError(f"the weights do not fit the {what}: {'; '.join(told)}")


def shape_of(
    parameters: Mapping[str, LazyTensor], name: str, dimensions: int, what: str = "Wan transformer"
) -> tuple[int, ...]:
    """The shape of a parameter; raises ValueError if it is missing, or can be of no `what`: empty, other dimensions."""
    if name not in parameters:
        raise ValueError(f"'{name}' is missing, so this is not a whole {what}; it has {_first(parameters)}")
    shape = parameters[name].shape
    if len(shape) != dimensions or 0 in shape:
        raise ValueError(f"'{name}' has the shape {list(shape)}, which no {what} has")
    return shape


def original_config(network: WanDiT) -> dict[str, Any]:
    """`config.json` of the original Wan repository for this network."""
    config = network.config
    return {
        "_class_name": "WanModel",
        "model_type": "t2v",
        "dim": config["num_attention_heads"] * config["attention_head_dim"],
        "num_heads": config["num_attention_heads"],
        "ffn_dim": config["ffn_dim"],
        "freq_dim": config["freq_dim"],
        "num_layers": config["num_layers"],
        "in_dim": config["in_channels"],
        "out_dim": config["out_channels"],
        "text_dim": config["text_dim"],
        "eps": config["eps"],
    }


def _heads(width: int, settings: Mapping[str, Any], heads: int | None) -> dict[str, int]:
    told = settings.get("num_attention_heads")
    if told is not None and heads is not None and told != heads:
        raise ValueError(f"the configuration says {told} heads, not {heads}; leave the number of heads out")
    heads = told if told is not None else heads
    if heads is None and width >= _SMALLEST_PUBLISHED_WIDTH and width % _PUBLISHED_HEAD_DIM == 0:
        heads = width // _PUBLISHED_HEAD_DIM
    if heads is None:
        raise ValueError(
            f"the number of attention heads of a network of width {width} cannot be told from its weights; "
            "give it (--heads on the command line) or put a config.json beside them"
        )
    if heads < 1 or width % heads:
        raise ValueError(f"{heads} heads do not divide the width {width}")
    if settings.get("attention_head_dim", width // heads) != width // heads:
        raise ValueError(
            f"config.json says {heads} heads of {settings['attention_head_dim']}, but the weights are {width} wide"
        )
    return {"num_attention_heads": heads, "attention_head_dim": width // heads}


def _first(names: Any, count: int = 3) -> str:
    names = list(map(str, names))
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
