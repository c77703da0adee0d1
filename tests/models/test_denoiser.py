"""The denoiser: sigma in, clean latents out, in float32 whatever the network computes in."""

import pytest
import torch

from reward_forcing.models.denoiser import Denoiser

SHAPE = (2, 3, 4, 4, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_prediction_follows_from_the_velocity_at_a_thousand_sigma(tiny_dit, dtype):
    network = tiny_dit().to(dtype)
    x, sigma = torch.randn(SHAPE), torch.rand(2, 3)
    text = network.encode_text(torch.randn(2, 5, 12))
    prediction = Denoiser(network)(x, sigma, text, want_kv=True)
    velocity, kv = network(x, 1000 * sigma, text, want_kv=True)
    assert prediction.velocity.dtype == prediction.x0.dtype == torch.float32
    assert torch.equal(prediction.velocity, velocity.float())
    assert torch.equal(prediction.x0, x - sigma[..., None, None, None] * velocity.float())
    assert torch.equal(prediction.kv.keys, kv.keys)


@torch.no_grad()
def test_sigma_per_frame_is_shared_by_the_batch(tiny_dit):
    network = tiny_dit()
    x, sigma = torch.randn(SHAPE), torch.rand(3)
    text = network.encode_text(torch.randn(2, 5, 12))
    denoiser = Denoiser(network)
    assert torch.equal(denoiser(x, sigma, text).x0, denoiser(x, sigma.repeat(2, 1), text).x0)
    assert denoiser(x, sigma, text).kv is None
    assert torch.equal(denoiser(x, torch.zeros(3), text).x0, x)


def test_sigma_of_another_shape_is_refused(tiny_dit):
    network = tiny_dit()
    text = network.encode_text(torch.randn(2, 5, 12))
    with pytest.raises(ValueError, match=r"sigma must be \[3\] or \[2, 3\], got \[2\]"):
        Denoiser(network)(torch.randn(SHAPE), torch.rand(2), text)
