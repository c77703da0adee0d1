"""Networks that a stage starts from or looks through, read from diffusers folders with one-line errors."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor, nn

from reward_forcing.checkpoints.detect import open_checkpoint
from reward_forcing.checkpoints.load import open_network, with_lora
from reward_forcing.geometry import Geometry
from reward_forcing.models.vae import StreamingVAE
from reward_forcing.models.vae_walk import Activation, normed_silu
from reward_forcing.models.wan_dit import SHAPES_COMPILED, WanDiT
from reward_forcing.training.lora import LoraSettings, adapt, adapter_names, adapters, initial_adapter, save_adapter
from reward_forcing.training.parallel import Placement, like, matrices, parallelize
from reward_forcing.training.stage import generator_for


def load_transformer(folder: Path, device: torch.device) -> WanDiT:
    """The transformer of a diffusers folder, whole and in float32. Raises FileNotFoundError if there is none."""
    return place_transformer(folder, Placement(device))


def prepared(network: WanDiT, placement: Placement) -> WanDiT:
    """`network`, in place, sharded and compiled as `placement` says; see `WanDiT.compile_blocks`."""
    parallelize(network, placement)
    return network.compile_blocks() if placement.compiled else network


@torch.no_grad()
def place_transformer(
    folder: Path, placement: Placement, trained: bool = True, lora: LoraSettings | None = None, seed: int = 0
) -> WanDiT:
    """The transformer of a diffusers folder, prepared: in float32, or frozen with its matrices as they compute.

    lora: frozen as well, but for new adapters in float32, whose initial values are a function of `seed`.
    The network is built without memory and one tensor is read at a time, so that of a sharded one no process ever holds
    more than its own part. Raises FileNotFoundError if there is none, ValueError for a file that is damaged or unfit
    and for layers to adapt that it does not have.
    """
    check_network(folder, "transformer")
    network, stored = open_network(open_checkpoint(folder))
    for parameter in network.parameters():
        parameter.data = parameter.data.float()
    if not trained or lora is not None:
        network.requires_grad_(False)
        for _, module in matrices(network, cast=True):
            module.weight.data = module.weight.data.to(placement.compute)
    if lora is not None:
        adapt(network, lora)
    new = set(adapter_names(network))
    nn.Module.to_empty(prepared(network, placement), device=placement.device)
    for name, parameter in network.named_parameters():
        values = (
            initial_adapter(name, parameter, generator_for("lora", seed, name)) if name in new else stored[name].read()
        )
        parameter.copy_(like(values, parameter))
    return network.eval()


def save_transformer(network: nn.Module, folder: Path, base: Path | None = None) -> None:
    """Write a transformer as a diffusers folder.

    base: the folder that an adapted network was placed from. Of such a network the adapters are written by themselves
    beside it, to `folder`_lora, and `folder` is the base in float32 with them merged.
    """
    assert isinstance(network, WanDiT)
    if adapters(network):
        assert base is not None, "an adapted network has been placed from a folder"
        alone = folder.with_name(f"{folder.name}_lora")
        save_adapter(network, alone)
        network, stored = open_network(open_checkpoint(base))
        merged = with_lora({name: tensor.map(Tensor.float, torch.float32) for name, tensor in stored.items()}, alone)
        network.load_state_dict({name: tensor.read() for name, tensor in merged.items()}, assign=True)
    network.save_pretrained(folder)


def compiled_activation() -> Activation:
    """The VAE's norms and activations as one kernel with its gradient, made anew for each shape."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES_COMPILED)
    return torch.compile(normed_silu, dynamic=False)


def load_vae(folder: Path, device: torch.device | str = "cpu", compiled: bool = False) -> StreamingVAE:
    """The VAE of a diffusers folder, in float32, frozen. Raises FileNotFoundError if there is none."""
    check_network(folder, "VAE")
    vae = AutoencoderKLWan.from_pretrained(folder, torch_dtype=torch.float32)
    nn.Module.to(vae, device)
    return StreamingVAE(vae.eval().requires_grad_(False), compiled=compiled)


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


def check_latent_size(folder: Path, latent_size: tuple[int, int]) -> None:
    """Raise ValueError unless latent frames of this size divide into the patches of a diffusers folder's transformer.

    Raises FileNotFoundError if there is none.
    """
    check_network(folder, "transformer")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    _, rows, columns = config.get("patch_size", (1, 2, 2))
    if latent_size[0] % rows or latent_size[1] % columns:
        raise ValueError(f"latent_size {latent_size} does not divide into patches of {(rows, columns)} ('{folder}')")


def check_network(folder: Path, what: str) -> None:
    """Raise FileNotFoundError unless a folder holds a network, which a message calls `what`."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no {what} in '{folder}' (config.json is missing); train it first, or give its folder")
