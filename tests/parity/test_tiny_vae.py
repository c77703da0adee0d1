"""The tiny autoencoder against TAEHV, whose weights come in under their own names."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from reward_forcing.checkpoints.files import LazyTensor
from reward_forcing.checkpoints.tiny_vae import tiny_sizes
from reward_forcing.models.tiny_vae import TinyDecoder, TinySizes, TinyVAE

FOLDER = Path(os.environ.get("REWARD_FORCING_GOLDEN", Path(__file__).parent / "golden"))
CASES = sorted(path.stem for path in FOLDER.glob("vae_taehv_*.safetensors"))
TOLERANCE = 2e-5  # of frames in [0, 1]

Case = tuple[TinyVAE, dict[str, Tensor], dict[str, Any]]


def drawn(sidecar: dict[str, Any]) -> dict[str, Tensor]:
    """The weights that the sidecar's rule draws: splitmix64 of a counter, by tensor and element."""
    rule, weights = sidecar["weights"], {}
    for k, (name, shape) in enumerate(sidecar["state_dict_shapes"].items()):
        size = int(np.prod(shape))
        x = np.arange(size, dtype=np.uint64) + np.uint64((sidecar["seed"] << 48) + (k << 32))
        x += np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
        u = (x >> np.uint64(11)) / 2**53 * 2 - 1
        is_bias = name.endswith("bias")
        amplitude = rule["bias_amp"] if is_bias else (3 * rule["gain"] * shape[0] / size) ** 0.5
        weights[name] = torch.from_numpy((u * amplitude).astype(np.float32)).reshape(shape)
    last = f"decoder.{rule['last_conv_index']}"
    weights[f"{last}.weight"] *= 0.125
    weights[f"{last}.bias"] += 0.5
    return weights


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    path = FOLDER / f"{request.param}.safetensors"
    tensors, sidecar = load_file(path), json.loads(path.with_suffix(".json").read_text())
    stored = {name.removeprefix("w."): tensors.pop(name) for name in list(tensors) if name.startswith("w.")}
    weights = stored or drawn(sidecar)
    vae = TinyVAE(tiny_sizes({name: LazyTensor.of(weight) for name, weight in weights.items()})).eval()
    vae.load_state_dict(weights)
    return vae, tensors, sidecar


def test_there_is_a_golden_tiny_vae() -> None:
    assert CASES


def test_the_published_size_is_the_default(case: Case) -> None:
    vae, _, sidecar = case
    assert (vae.sizes == TinySizes()) == (sidecar["mode"] == "full")
    assert sum(parameter.numel() for parameter in vae.parameters()) == sidecar["checks"]["params"]
    shapes = {name: list(weight.shape) for name, weight in vae.state_dict().items()}
    assert shapes == sidecar["state_dict_shapes"]


def test_drawn_weights_are_those_of_the_sidecar(case: Case) -> None:
    vae, _, sidecar = case
    first = sidecar.get("weights", {}).get("first_values", {})
    for name, values in first.items():
        torch.testing.assert_close(vae.state_dict()[name].flatten()[:3], torch.tensor(values), atol=0, rtol=0)
    assert bool(first) == ("weights" in sidecar)


def test_one_call_decodes_what_the_reference_decodes(case: Case) -> None:
    vae, tensors, _ = case
    frames, _ = TinyDecoder(vae).decode(tensors["latent"])
    torch.testing.assert_close(frames, tensors["decoded"], atol=TOLERANCE, rtol=0)


def test_streamed_chunks_decode_what_the_reference_decodes(case: Case) -> None:
    vae, tensors, sidecar = case
    state, chunks = None, []
    for latents in tensors["latent"].split(sidecar["stream_chunks_latents"], dim=1):
        frames, state = TinyDecoder(vae).decode(latents, state)
        chunks.append(frames)
    assert [chunk.shape[1] for chunk in chunks] == sidecar["stream_chunk_frames"]
    torch.testing.assert_close(torch.cat(chunks, 1), tensors["decoded"], atol=TOLERANCE, rtol=0)


def test_a_clip_is_encoded_to_what_the_reference_encodes(case: Case) -> None:
    vae, tensors, _ = case
    torch.testing.assert_close(vae.encode(tensors["video"]), tensors["encoded"], atol=TOLERANCE, rtol=0)
