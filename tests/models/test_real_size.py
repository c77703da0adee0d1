"""The published sizes: the same parameters as diffusers' network, and a real chunk through a cut of the smaller one."""

import math

import pytest
import torch
from diffusers import WanTransformer3DModel

from reward_forcing.geometry import Geometry
from reward_forcing.models.attention import Past
from reward_forcing.models.denoiser import Denoiser
from reward_forcing.models.sizes import WAN_1_3B, WAN_14B, Size
from reward_forcing.models.wan_dit import WanDiT


@pytest.mark.parametrize(
    ("size", "parameters"), [(WAN_1_3B, 1_418_996_800), (WAN_14B, 14_288_491_584)], ids=["1.3B", "14B"]
)
def test_parameters_are_those_of_diffusers(size: Size, parameters: int):
    with torch.device("meta"):
        ours, theirs = WanDiT(**size), WanTransformer3DModel(**size)
    shapes = {name: parameter.shape for name, parameter in ours.state_dict().items()}
    assert shapes == {name: parameter.shape for name, parameter in theirs.state_dict().items()}
    assert sum(math.prod(shape) for shape in shapes.values()) == parameters
    assert {key: value for key, value in theirs.config.items() if ours.config[key] != value} == {}


@torch.no_grad()
def test_a_cut_of_the_small_network_streams_a_chunk_at_480p_in_bfloat16():
    """One chunk behind a past of one chunk, at full resolution and width; about half a minute on one core."""
    geometry = Geometry(height=480, width=832)
    assert geometry.tokens_per_frame == 1560
    torch.manual_seed(0)
    network = WanDiT(**WAN_1_3B | {"num_layers": 2}).to_mixed(torch.bfloat16)
    denoiser = Denoiser(network)
    text = network.encode_text(torch.randn(1, 512, 4096))
    frames, latent_size = geometry.chunk_frames, (geometry.latent_height, geometry.latent_width)
    shape = (1, frames, geometry.tokens_per_frame, 12, 128)
    keys, values = ((torch.randn(shape), torch.randn(shape)) for _ in range(2))
    past = Past(keys, values, torch.arange(frames), torch.arange(frames, 2 * frames))
    x = torch.randn(1, frames, 16, *latent_size)
    prediction = denoiser(x, torch.ones(frames), text, denoiser.rotate(past, latent_size), want_kv=True)
    assert prediction.x0.shape == x.shape
    assert prediction.x0.dtype == torch.float32
    assert prediction.kv is not None
    assert [layer.shape for layer in prediction.kv.keys] == [shape, shape]
    assert prediction.kv.keys[0].dtype == torch.bfloat16
    assert prediction.x0.isfinite().all()
