"""The denoiser: sigma in, clean latents out, in float32 whatever the network computes in."""

import pytest
import torch

from reward_forcing.models.denoiser import REMEMBERED, Denoiser

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
    assert torch.equal(prediction.kv.stacked()[0], kv.stacked()[0])


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


def embeddings_asked(network, monkeypatch) -> list[torch.Tensor]:
    """The timesteps that the network embeds from now on."""
    asked, embed = [], network.condition_embedder.time
    monkeypatch.setattr(
        network.condition_embedder, "time", lambda timestep: (asked.append(timestep), embed(timestep))[1]
    )
    return asked


@torch.no_grad()
def test_frozen_weights_embed_a_noise_level_once(tiny_dit, monkeypatch):
    network = tiny_dit().requires_grad_(False)
    x, text = torch.randn(SHAPE), network.encode_text(torch.randn(2, 5, 12))
    fresh = [Denoiser(network)(x, torch.full((3,), level), text).x0 for level in (0.9, 0.5)]
    denoiser, asked = Denoiser(network), embeddings_asked(network, monkeypatch)
    for _ in range(3):
        for level, expected in zip((0.9, 0.5), fresh, strict=True):
            assert torch.equal(denoiser(x, torch.full((3,), level), text).x0, expected)
    assert len(asked) == 2
    denoiser(x, torch.tensor([0.9, 0.9, 0.5]), text)
    assert len(asked) == 3


@torch.no_grad()
def test_few_noise_levels_are_remembered(tiny_dit):
    network = tiny_dit().requires_grad_(False)
    x, text = torch.randn(SHAPE), network.encode_text(torch.randn(2, 5, 12))
    denoiser = Denoiser(network)
    for level in torch.linspace(0, 1, 2 * REMEMBERED):
        denoiser(x, level.expand(3), text)
    assert len(denoiser._times) == REMEMBERED


@torch.no_grad()
def test_changed_weights_embed_anew(tiny_dit):
    network = tiny_dit().requires_grad_(False)
    x, sigma, text = torch.randn(SHAPE), torch.full((3,), 0.5), network.encode_text(torch.randn(2, 5, 12))
    denoiser, weight = Denoiser(network), network.condition_embedder.time_proj.weight

    def in_place() -> None:
        weight.mul_(1.5)

    def replaced() -> None:
        weight.data = weight.data * 1.5

    def loaded() -> None:
        network.load_state_dict({name: 1.1 * tensor for name, tensor in network.state_dict().items()})

    for change in (in_place, replaced, loaded):
        denoiser(x, sigma, text)
        change()
        assert torch.equal(denoiser(x, sigma, text).x0, Denoiser(network)(x, sigma, text).x0)


def test_nothing_is_remembered_of_weights_that_learn_or_while_gradients_are_on(tiny_dit, monkeypatch):
    network = tiny_dit()
    asked = embeddings_asked(network, monkeypatch)
    x, sigma = torch.randn(SHAPE), torch.full((3,), 0.5)
    denoiser = Denoiser(network)
    with torch.no_grad():
        text = network.encode_text(torch.randn(2, 5, 12))
        denoiser(x, sigma, text)
        denoiser(x, sigma, text)
    denoiser(x, sigma, text).x0.sum().backward()
    assert network.condition_embedder.time_proj.weight.grad is not None
    network.requires_grad_(False)
    denoiser(x, sigma, text)
    assert len(asked) == 4
