"""The original Wan2.1 VAE checkpoint (`Wan2.1_VAE.pth`) as diffusers' `AutoencoderKLWan`: names, config, weights.

The map of names, in both directions, is derived from the names alone. The values are the same in both.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor

from reward_forcing.checkpoints.diffusers import check_fit
from reward_forcing.checkpoints.files import LazyTensor, read_content

_QUANT = {"conv1": "quant_conv", "conv2": "post_quant_conv"}
_ENDS = {"conv1": "conv_in", "head.0": "norm_out", "head.2": "conv_out"}
_RESIDUAL = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}
_QUANT_BACK, _ENDS_BACK, _RESIDUAL_BACK = ({new: old for old, new in d.items()} for d in (_QUANT, _ENDS, _RESIDUAL))
_RESAMPLE = ("resample.1", "time_conv")
_ATTENTION = ("norm", "to_qkv", "proj")
_UP = re.compile(r"decoder\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.")
_IN_BLOCK = re.compile(r"(?:(mid_block)|(down_blocks)\.(\d+))\.(?:(resnets|attentions)\.(\d+)\.)?(.+)")
_BLOCK = re.compile(r"(downsamples|middle|upsamples)\.(\d+)\.(.+)")


def wan_vae_key_map(names: Iterable[str]) -> dict[str, str]:
    """diffusers' name of every original parameter name.

    The original numbers the decoder's layers in one row; diffusers groups them into blocks that end at a resampling
    layer, so the map needs all names at once. Raises ValueError for a name that the Wan2.1 VAE does not have.
    """
    names = list(names)
    ends = sorted(
        {int(m[1]) for m in (re.match(r"decoder\.upsamples\.(\d+)\.resample\.", name) for name in names) if m}
    )
    return {name: _rename(name, ends) for name in names}


def wan_vae_names(names: Iterable[str]) -> dict[str, str]:
    """The original name of every one of diffusers' parameter names: the inverse of `wan_vae_key_map`.

    Raises ValueError for a name that the Wan2.1 VAE does not have.
    """
    names = list(names)
    layers = sorted({(int(m[1]), m[2] != "resnets", int(m[3])) for m in map(_UP.match, names) if m})
    numbers = {layer: i for i, layer in enumerate(layers)}  # of a block, the residual layers come first
    original = {name: _original(name, numbers) for name in names}
    if wan_vae_key_map(original.values()) != {old: new for new, old in original.items()}:
        raise ValueError("the VAE's parameters are not named as those of a Wan2.1 VAE")
    return original


def wan_vae_config(weights: Mapping[str, Tensor | LazyTensor]) -> dict[str, Any]:
    """The `AutoencoderKLWan` config that original weights imply, without the latents' statistics.

    Raises ValueError if the weights are not those of a Wan2.1 VAE.
    """
    needed = ("encoder.conv1.weight", "conv2.weight", "encoder.downsamples.0.residual.6.weight")
    if missing := [name for name in needed if name not in weights]:
        raise ValueError(f"not the weights of a Wan2.1 VAE: '{missing[0]}' is missing")
    layers = sorted({int(m[2]) for m in map(_BLOCK.search, weights) if m and m[1] == "downsamples"})
    ends = [i for i in layers if f"encoder.downsamples.{i}.resample.1.weight" in weights]
    base = weights["encoder.conv1.weight"].shape[0]
    last_of_stage = [i - 1 for i in ends] + [layers[-1]]
    widths = [weights[f"encoder.downsamples.{i}.residual.6.weight"].shape[0] for i in last_of_stage]
    return {
        "base_dim": base,
        "z_dim": weights["conv2.weight"].shape[0],
        "dim_mult": [width // base for width in widths],
        "num_res_blocks": ends[0] if ends else len(layers),
        "attn_scales": [],
        "temperal_downsample": [f"encoder.downsamples.{i}.time_conv.weight" in weights for i in ends],
        "scale_factor_spatial": 2 ** len(ends),
        "scale_factor_temporal": 2 ** sum(f"encoder.downsamples.{i}.time_conv.weight" in weights for i in ends),
    }


def wan_vae_from_original(weights: Mapping[str, Tensor], **config: Any) -> AutoencoderKLWan:
    """The diffusers VAE with the given original weights; `config` adds or replaces entries, such as `latents_mean`.

    Raises ValueError if a name is unknown, missing or of another shape than the config implies.
    """
    return _wan_vae_of({name: LazyTensor.of(tensor, mapped=False) for name, tensor in weights.items()}, config)


def _wan_vae_of(weights: Mapping[str, LazyTensor], config: Mapping[str, Any]) -> AutoencoderKLWan:
    """The VAE of original weights, which are read once they are known to fit."""
    vae = AutoencoderKLWan(**{**wan_vae_config(weights), **config})
    names = wan_vae_key_map(weights)
    renamed = {names[name]: tensor for name, tensor in weights.items()}
    check_fit(vae, renamed, "VAE that they imply")
    vae.load_state_dict({name: tensor.read() for name, tensor in renamed.items()})
    return vae


def load_wan_vae(path: str | Path, **config: Any) -> AutoencoderKLWan:
    """The diffusers VAE in an original checkpoint file, a torch file (read without executing code) or safetensors.

    diffusers' defaults for `latents_mean` and `latents_std` are those of the published Wan2.1 VAE.
    Raises ValueError if the file cannot be read as weights or does not hold a Wan2.1 VAE.
    """
    weights = read_content(Path(path))
    try:
        if strange := [name for name, tensor in weights.items() if not isinstance(tensor, LazyTensor)]:
            raise ValueError(f"not the weights of a Wan2.1 VAE: '{strange[0]}' is no tensor")
        return _wan_vae_of(weights, config)
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from error


def _rename(name: str, ends: list[int]) -> str:
    """diffusers' name of one parameter; `ends` are the numbers of the decoder's resampling layers."""
    path, _, kind = name.rpartition(".")
    if path in _QUANT:
        return f"{_QUANT[path]}.{kind}"
    side, _, layer = path.partition(".")
    if side in ("encoder", "decoder"):
        if layer in _ENDS:
            return f"{side}.{_ENDS[layer]}.{kind}"
        if (match := _BLOCK.fullmatch(layer)) and (renamed := _rename_block(match[1], int(match[2]), match[3], ends)):
            return f"{side}.{renamed}.{kind}"
    raise ValueError(f"unknown parameter '{name}'; expected a name of the Wan2.1 VAE, such as 'encoder.conv1.weight'")


def _rename_block(group: str, i: int, layer: str, ends: list[int]) -> str | None:
    if group == "middle" and i % 2:
        return f"mid_block.attentions.{i // 2}.{layer}" if layer in _ATTENTION else None
    if layer in _RESIDUAL:
        layer = _RESIDUAL[layer]
        if group == "middle":
            return f"mid_block.resnets.{i // 2}.{layer}"
        if group == "downsamples":
            return f"down_blocks.{i}.{layer}"
        before = [end for end in ends if end < i]
        return f"up_blocks.{len(before)}.resnets.{i - (before[-1] + 1 if before else 0)}.{layer}"
    if layer not in _RESAMPLE or group == "middle":
        return None
    return f"down_blocks.{i}.{layer}" if group == "downsamples" else f"up_blocks.{ends.index(i)}.upsamplers.0.{layer}"


def _original(name: str, numbers: Mapping[tuple[int, bool, int], int]) -> str:
    """The original name of one parameter of diffusers'; `numbers` are those of the decoder's layers in one row."""
    path, _, kind = name.rpartition(".")
    side, _, layer = path.partition(".")
    if path in _QUANT_BACK or layer in _ENDS_BACK:
        return f"{_QUANT_BACK[path] if path in _QUANT_BACK else f'{side}.{_ENDS_BACK[layer]}'}.{kind}"
    if up := _UP.match(name):
        number, layer = numbers[int(up[1]), up[2] != "resnets", int(up[3])], path[up.end() :]
        return f"decoder.upsamples.{number}.{_RESIDUAL_BACK.get(layer, layer)}.{kind}"
    if match := _IN_BLOCK.fullmatch(layer):
        layer = _RESIDUAL_BACK.get(match[6], match[6])
        if match[2]:
            return f"{side}.downsamples.{match[3]}.{layer}.{kind}"
        if match[4]:
            return f"{side}.middle.{2 * int(match[5]) + (match[4] == 'attentions')}.{layer}.{kind}"
    raise ValueError(
        f"unknown parameter '{name}'; expected a name of diffusers' AutoencoderKLWan, as 'quant_conv.weight'"
    )
