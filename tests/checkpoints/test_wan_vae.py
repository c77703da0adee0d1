"""Original Wan2.1 VAE files; the full map of names is held by the parity tests."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from reward_forcing.checkpoints.wan_vae import load_wan_vae, wan_vae_from_original, wan_vae_key_map, wan_vae_names

GOLDEN = Path(__file__).parents[1] / "parity" / "golden" / "vae_wan_d4_z4.safetensors"


@pytest.fixture(scope="module")
def weights():
    return {name.removeprefix("w."): t for name, t in load_file(GOLDEN).items() if name.startswith("w.")}


@pytest.mark.parametrize("name", ["vae.pth", "vae.safetensors"])
def test_both_file_types_load_every_weight(tmp_path, weights, name):
    save = torch.save if name.endswith("pth") else save_file
    save(weights, tmp_path / name)
    vae = load_wan_vae(tmp_path / name, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    loaded = vae.state_dict()
    assert all(torch.equal(loaded[new], weights[old]) for old, new in wan_vae_key_map(weights).items())
    assert vae.config.temperal_downsample == [False, True, True]


def test_names_go_back_to_the_recorded_originals(weights):
    recorded = json.loads(GOLDEN.with_suffix(".json").read_text())["original_to_diffusers"]
    assert wan_vae_names(recorded.values()) == {new: old for old, new in recorded.items()}
    for name in ("encoder.stem.weight", "decoder.up_blocks.0.upsamplers.0.conv.weight", "quant_conv2.weight"):
        with pytest.raises(ValueError, match=r"unknown parameter|not named as those of a Wan2"):
            wan_vae_names([*recorded.values(), name])


def test_map_reaches_every_parameter_once(weights):
    names = wan_vae_key_map(weights)
    assert set(names.values()) == set(wan_vae_from_original(weights).state_dict())
    assert len(set(names.values())) == len(names)


@pytest.mark.parametrize("name", ["encoder.stem.weight", "decoder.middle.0.time_conv.weight", "scale"])
def test_unknown_names_are_refused(name):
    with pytest.raises(ValueError, match=f"unknown parameter '{name}'"):
        wan_vae_key_map([name])


def test_a_missing_weight_is_named(weights):
    rest = {name: t for name, t in weights.items() if name != "decoder.head.2.bias"}
    with pytest.raises(ValueError, match=r"decoder\.conv_out\.bias"):
        wan_vae_from_original(rest)


def test_other_weights_are_refused(weights):
    with pytest.raises(ValueError, match=r"not the weights of a Wan2\.1 VAE"):
        wan_vae_from_original({"layer.weight": torch.zeros(1)})


def test_a_file_that_cannot_be_a_vae_is_named(tmp_path, weights):
    save_file(
        {name: t[:1] if name == "conv2.weight" else t for name, t in weights.items()}, tmp_path / "vae.safetensors"
    )
    with pytest.raises(ValueError, match=r"vae\.safetensors'.*do not fit the VAE"):
        load_wan_vae(tmp_path / "vae.safetensors", latents_mean=[0.0], latents_std=[1.0])
