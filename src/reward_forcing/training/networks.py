"""Networks that a stage starts from or looks through, read from diffusers folders with one-line errors."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import nn

from reward_forcing.geometry import Geometry
from reward_forcing.models.vae import StreamingVAE
from reward_forcing.models.wan_dit import WanDiT

SHAPES_COMPILED = 64
"""Shapes of input that a compiled block is specialised on before it runs uncompiled: windows, batches, switches."""


def load_transformer(folder: Path, device: torch.device, compiled: bool = False) -> WanDiT:
    """The transformer of a diffusers folder, in float32. Raises FileNotFoundError if there is none."""
    check_network(folder, "transformer")
    network = WanDiT.from_pretrained(folder, torch_dtype=torch.float32)
    return prepared(network, device, compiled)


def prepared(network: WanDiT, device: torch.device, compiled: bool) -> WanDiT:
    """`network` on `device`; `compiled`: its blocks are compiled, in place, one kernel set for each shape they meet.

    On a CPU that needs a C++ compiler. Names and values of parameters stay as they are.
    """
    network = network.to(device)  # pyright: ignore[reportArgumentType] diffusers wraps `to` without its types
    if compiled:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES_COMPILED)
        network.compile_repeated_blocks(dynamic=False)
    return network


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
