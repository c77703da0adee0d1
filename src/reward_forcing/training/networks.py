"""Networks that a stage starts from or looks through, read from diffusers folders with one-line errors."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

from reward_forcing.models.vae import StreamingVAE
from reward_forcing.models.wan_dit import WanDiT

SHAPES_COMPILED = 64
"""Shapes of input that a compiled block is specialised on before it runs uncompiled: windows, batches, switches."""


def load_transformer(folder: Path, device: torch.device, compiled: bool = False) -> WanDiT:
    """The transformer of a diffusers folder, in float32. Raises FileNotFoundError if there is none."""
    _check(folder, "transformer")
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


def load_vae(folder: Path) -> StreamingVAE:
    """The VAE of a diffusers folder, in float32 on the CPU, frozen. Raises FileNotFoundError if there is none."""
    _check(folder, "VAE")
    vae = AutoencoderKLWan.from_pretrained(folder, torch_dtype=torch.float32)
    return StreamingVAE(vae.eval().requires_grad_(False))


def _check(folder: Path, what: str) -> None:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no {what} in '{folder}' (config.json is missing); train it first, or give its folder")
