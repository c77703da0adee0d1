"""The transformer against Wan2.1, Self Forcing and diffusers."""

from collections.abc import Callable

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from reward_forcing.checkpoints.wan import WAN_TO_DIFFUSERS, diffusers_to_wan, wan_to_diffusers
from reward_forcing.models.attention import AttentionPattern, TextContext
from reward_forcing.models.masks import block_causal, teacher_forcing
from reward_forcing.models.wan_dit import WanDiT

TOLERANCE = 2e-5


def assert_close(ours: Tensor, reference: Tensor) -> None:
    torch.testing.assert_close(ours, reference, atol=TOLERANCE, rtol=0)


@pytest.mark.golden("a_*")
@torch.no_grad()
def test_bidirectional_forward_equals_the_reference(case):
    network, tensors = case.network(), case.tensors
    text = network.encode_text(case.text())
    velocity, kv = network(tensors["x"].transpose(1, 2), tensors["timestep"], text)
    assert kv is None
    assert_close(velocity.transpose(1, 2), tensors["out"])
    assert_close(velocity.transpose(1, 2), tensors["out_diffusers"])


@pytest.mark.golden("a_*")
@torch.no_grad()
def test_diffusers_agrees_on_our_state_dict(case):
    network, tensors = case.network(), case.tensors
    theirs = WanTransformer3DModel(**case.network_settings())
    theirs.load_state_dict(network.state_dict(), strict=True)
    velocity = theirs(tensors["x"], tensors["timestep"], case.text(), return_dict=False)[0]
    assert_close(velocity, tensors["out_diffusers"])


@pytest.mark.golden("a_*")
def test_key_map_is_the_one_of_the_sidecar_and_inverts(case):
    names = {name: name for name in case.sidecar["key_map"]}
    renamed = wan_to_diffusers(names)
    assert {original: name for name, original in renamed.items()} == case.sidecar["key_map"]
    assert diffusers_to_wan(wan_to_diffusers(names)) == names
    assert len(set(WAN_TO_DIFFUSERS.values())) == len(WAN_TO_DIFFUSERS)


@torch.no_grad()
def velocity_under(network: WanDiT, x: Tensor, timestep: Tensor, text: TextContext, mask: AttentionPattern) -> Tensor:
    """Velocity under a pattern, from and to the [B, C, F, H, W] layout of the reference."""
    return network(x.transpose(1, 2), timestep, text, pattern=mask)[0].transpose(1, 2)


@pytest.mark.golden("d_*")
@pytest.mark.parametrize("output", ["blockcausal", "blockcausal_local", "blockcausal_first_frame"])
def test_block_causal_forward_equals_the_reference(case, output):
    tensors, network, chunk = case.tensors, case.network(), case.sidecar["frames_per_chunk"]
    first = output == "blockcausal_first_frame"
    x, timestep = (tensors["x_i2v"], tensors["t_i2v"]) if first else (tensors["x"], tensors["timestep"])
    window = case.sidecar["local_attn_size"] if output == "blockcausal_local" else None
    mask = block_causal(x.shape[2], chunk, window=window, first_chunk=1 if first else None)
    text = network.encode_text(case.text())
    assert_close(velocity_under(network, x, timestep, text, mask), tensors[f"out_{output}"])


@pytest.mark.golden("d_*")
@pytest.mark.parametrize(("output", "clean_timestep"), [("teacher_forcing", 0.0), ("teacher_forcing_aug100", 100.0)])
def test_teacher_forcing_forward_equals_the_reference(case, output, clean_timestep):
    tensors, network = case.tensors, case.network()
    frames = tensors["x"].shape[2]
    x = torch.cat([tensors["clean_x"], tensors["x"]], dim=2)
    timestep = torch.cat([torch.full_like(tensors["timestep"], clean_timestep), tensors["timestep"]], dim=1)
    mask = teacher_forcing(frames, case.sidecar["frames_per_chunk"])
    velocity = velocity_under(network, x, timestep, network.encode_text(case.text()), mask)
    assert_close(velocity[:, :, frames:], tensors[f"out_{output}"])


@pytest.mark.golden("d_*")
@pytest.mark.parametrize(
    ("name", "pattern"), [("mask_blockcausal_frames", block_causal), ("mask_tf_frames", teacher_forcing)]
)
def test_dense_masks_equal_the_reference(case, name: str, pattern: Callable[[int, int], AttentionPattern]):
    frames = case.tensors["x"].shape[2]
    assert torch.equal(pattern(frames, case.sidecar["frames_per_chunk"]).dense(), case.tensors[name])
