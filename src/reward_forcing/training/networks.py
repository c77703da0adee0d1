"""Networks that a stage starts from or looks through, read from diffusers folders with one-line errors."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import nn

from reward_forcing.checkpoints.detect import open_checkpoint
from reward_forcing.checkpoints.load import open_network
from reward_forcing.geometry import Geometry
from reward_forcing.models.vae import StreamingVAE
from reward_forcing.models.wan_dit import WanDiT
from reward_forcing.training.parallel import Placement, like, matrices, parallelize

SHAPES_COMPILED = 64
"""Shapes of input that a compiled block is specialised on before it runs uncompiled: windows, batches, switches."""


def load_transformer(folder: Path, device: torch.device) -> WanDiT:
    """The transformer of a diffusers folder, whole and in float32. Raises FileNotFoundError if there is none."""
    return place_transformer(folder, Placement(device))


def prepared(network: WanDiT, placement: Placement) -> WanDiT:
    """`network`, in place, sharded and compiled as `placement` says: a set of kernels for each shape a block meets.

    On a CPU compiling needs a C++ compiler. Names and values of parameters stay as they are.
    """
    parallelize(network, placement)
    if placement.compiled:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES_COMPILED)
        for block in network.blocks:
            block.compile(dynamic=False)
    return network


@torch.no_grad()
def place_transformer(folder: Path, placement: Placement, trained: bool = True) -> WanDiT:
    """The transformer of a diffusers folder, prepared: in float32, or frozen with its matrices as they compute.

    The network is built without memory and one tensor is read at a time, so that of a sharded one no process ever holds
    more than its own part. Raises FileNotFoundError if there is none, ValueError for a file that is damaged or unfit.
    """
    check_network(folder, "transformer")
    network, stored = open_network(open_checkpoint(folder))
    for parameter in network.parameters():
        parameter.data = parameter.data.float()
    if not trained:
        network.requires_grad_(False)
        for _, module in matrices(network, cast=True):
            module.weight.data = module.weight.data.to(placement.compute)
    nn.Module.to_empty(prepared(network, placement), device=placement.device)
    for name, parameter in network.named_parameters():
        parameter.copy_(like(stored[name].read(), parameter))
    return network.eval()


def save_transformer(network: nn.Module, folder: Path) -> None:
    """Write a transformer as a diffusers folder."""
    assert isinstance(network, WanDiT)
    network.save_pretrained(folder)


def load_vae(folder: Path, device: torch.device | str = "cpu") -> StreamingVAE:
    """The VAE of a diffusers folder, in float32, frozen. Raises FileNotFoundError if there is none."""
    check_network(folder, "VAE")
    vae = AutoencoderKLWan.from_pretrained(folder, torch_dtype=torch.float32)
    nn.Module.to(vae, device)
    return StreamingVAE(vae.eval().requires_grad_(False))


def vae_geometry(folder: Path, height: int, width: int) -> Geometry:
    """The sizes of clips for the VAE of a diffusers folder, from its configuration alone.

    Raises FileNotFoundError if there is none, ValueError for a height and width that do not divide.
    """
    check_network(folder, "VAE")
    with torch.device("meta"):
        vae = AutoencoderKLWan.from_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    assert isinstance(vae, AutoencoderKLWan)
    factors = StreamingVAE(vae)
    return Geometry(height, width, spatial_factor=factors.spatial_factor, temporal_factor=factors.temporal_factor)


def check_network(folder: Path, what: str) -> None:
    """Raise FileNotFoundError unless a folder holds a network, which a message calls `what`."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no {what} in '{folder}' (config.json is missing); train it first, or give its folder")
