"""The streaming VAE against the reference VAE of Wan2.1, whose weights come in under their original names."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reward_forcing.checkpoints.wan_vae import wan_vae_config, wan_vae_from_original, wan_vae_key_map
from reward_forcing.models.vae import StreamingVAE

FOLDER = Path(os.environ.get("REWARD_FORCING_GOLDEN", Path(__file__).parent / "golden"))
CASES = sorted(path.stem for path in FOLDER.glob("vae_wan_*.safetensors"))
TOLERANCE = 1e-4  # of frames in [0, 1]; the sidecars allow 2e-4 of pixels in [-1, 1]


@pytest.fixture(scope="module", params=CASES)
def case(request):
    path = FOLDER / f"{request.param}.safetensors"
    tensors = load_file(path)
    weights = {name.removeprefix("w."): tensors.pop(name) for name in list(tensors) if name.startswith("w.")}
    statistics = {name: tensors[name].tolist() for name in ("latents_mean", "latents_std")}
    vae = StreamingVAE(wan_vae_from_original(weights, **statistics))
    return vae, weights, tensors, json.loads(path.with_suffix(".json").read_text())


def pixels(video):
    """[B, 3, T, H, W] in [-1, 1] as frames [B, T, 3, H, W] in [0, 1]."""
    return video.transpose(1, 2) / 2 + 0.5


def test_there_is_a_golden_vae():
    assert CASES


def test_key_map_equals_the_recorded_one(case):
    _, weights, _, sidecar = case
    assert wan_vae_key_map(weights) == sidecar["original_to_diffusers"]


def test_config_is_read_from_the_weights(case):
    _, weights, _, sidecar = case
    config, expected = wan_vae_config(weights), dict(sidecar["config"])
    expected["base_dim"] = expected.pop("dim")
    expected.pop("dropout")
    assert config.items() >= expected.items()


def test_one_call_decodes_what_the_reference_decodes(case):
    vae, _, tensors, _ = case
    frames, _ = vae.decode(tensors["latent"].transpose(1, 2))
    torch.testing.assert_close(frames, pixels(tensors["decoded_clamped"]), atol=TOLERANCE, rtol=0)


def test_streamed_chunks_decode_what_the_reference_decodes(case):
    vae, _, tensors, sidecar = case
    state, chunks = None, []
    for latents in tensors["latent"].transpose(1, 2).split(sidecar["stream_chunks_latents"], dim=1):
        frames, state = vae.decode(latents, state)
        chunks.append(frames)
    assert [chunk.shape[1] for chunk in chunks] == sidecar["stream_chunk_frames"]
    torch.testing.assert_close(torch.cat(chunks, 1), pixels(tensors["decoded_clamped"]), atol=TOLERANCE, rtol=0)


def test_one_call_encodes_what_the_reference_encodes(case):
    vae, _, tensors, _ = case
    latents, _ = vae.encode(pixels(tensors["video"]))
    torch.testing.assert_close(latents, tensors["encoded_mu_normalised"].transpose(1, 2), atol=TOLERANCE, rtol=0)
    raw = tensors["encoded_mu_raw"].transpose(1, 2)
    torch.testing.assert_close(vae.denormalise(latents), raw, atol=TOLERANCE, rtol=0)


def test_streamed_chunks_encode_what_the_reference_encodes(case):
    vae, _, tensors, sidecar = case
    state, chunks = None, []
    for frames in pixels(tensors["video"]).split(sidecar["stream_chunk_frames"], dim=1):
        latents, state = vae.encode(frames, state)
        chunks.append(latents)
    expected = tensors["encoded_mu_normalised"].transpose(1, 2)
    torch.testing.assert_close(torch.cat(chunks, 1), expected, atol=TOLERANCE, rtol=0)
