"""A tiny VAE's file, in the public layout of TAEHV, as the decoder of a stream.

Told by its content; latent channels, widths and factors follow from the shapes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from reward_forcing.checkpoints.detect import found_in
from reward_forcing.checkpoints.diffusers import check_fit, shape_of
from reward_forcing.checkpoints.files import LazyTensor, read_weights
from reward_forcing.checkpoints.forcing import roles_of
from reward_forcing.checkpoints.fp8 import unscaled
from reward_forcing.models.tiny_vae import COLOURS, TinyDecoder, TinySizes, TinyVAE
from reward_forcing.models.vae import channels_last, fastest_dtype

_MARK = "decoder.3.conv.0.weight"  # of the first block with memory, which no other VAE has
_WIDTHS = ("decoder.1", "decoder.8", "decoder.14", "decoder.20")
_GROWTH = ("decoder.7.conv", "decoder.13.conv", "decoder.19.conv")
_POOLING = ("encoder.2.conv", "encoder.7.conv", "encoder.12.conv")


@dataclass(frozen=True)
class TinyCheckpoint:
    """A tiny VAE on disk, its parameters unread and known to fit a `TinyVAE` of `sizes`."""

    path: Path
    sizes: TinySizes
    parameters: dict[str, LazyTensor]


def open_tiny_vae(path: str | Path) -> TinyCheckpoint:
    """The tiny VAE in a torch or safetensors file, or a folder of one, checked by its headers.

    The file may hold the decoder alone. Raises FileNotFoundError if nothing is there, ValueError for a file that is
    damaged, holds something else, or lacks a part.
    """
    path = Path(path)
    content = read_weights(path)[1]
    try:
        roles = roles_of(content)
        if (state := next((state for state in roles.values() if _MARK in state), None)) is None:
            raise ValueError(f"expected a tiny VAE of TAEHV's layout (a parameter {_MARK}); {found_in(roles)}")
        parameters = unscaled(state)
        sizes = tiny_sizes(parameters)
        with torch.device("meta"):
            network = TinyVAE(sizes)
        check_fit(network, parameters, "tiny VAE that they imply")
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from error
    return TinyCheckpoint(path, sizes, parameters)


def load_tiny_decoder(
    path: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> TinyDecoder:
    """The decoder in a file, frozen, in `dtype` or the fastest one; on a CPU `channels_last`.

    It is named by the file. Raises as `open_tiny_vae` does, before any weights are read.
    """
    checkpoint = open_tiny_vae(path)
    with torch.device("meta"):
        vae = TinyVAE(checkpoint.sizes)
    dtype = dtype or fastest_dtype(device)
    weights = {name: tensor.read().to(device, dtype) for name, tensor in checkpoint.parameters.items()}
    vae.load_state_dict(weights, assign=True)
    vae.eval().requires_grad_(False)
    vae = channels_last(vae) if torch.device(device).type == "cpu" else vae
    return TinyDecoder(vae, f"TAEHV {checkpoint.path.stem}")


def tiny_sizes(parameters: Mapping[str, LazyTensor]) -> TinySizes:
    """The sizes that the shapes imply, as far as they are what they should be, which `check_fit` tells.

    Raises ValueError if one of the layers that tell is missing or of no such kind.
    """

    def shape(layer: str) -> tuple[int, ...]:
        return shape_of(parameters, f"{layer}.weight", 4, "tiny VAE")

    first, second, third, last = (shape(layer)[0] for layer in _WIDTHS)
    grown = [max(1, shape(layer)[0] // shape(layer)[1]) for layer in _GROWTH]
    has_encoder = any(name.startswith("encoder.") for name in parameters)
    pooled = [max(1, shape(layer)[1] // shape(layer)[0]) for layer in _POOLING] if has_encoder else (2, 2, 1)
    return TinySizes(
        latent_channels=shape("decoder.1")[1],
        widths=(first, second, third, last),
        growth=(grown[0], grown[1], grown[2]),
        patch=max(1, math.isqrt(shape("decoder.22")[0] // COLOURS)),
        encoder_width=shape("encoder.0")[0] if has_encoder else None,
        pooling=(pooled[0], pooled[1], pooled[2]),
    )
