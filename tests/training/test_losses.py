"""The losses of distribution matching against their analytic values."""

import math

import pytest
import torch

from reward_forcing.flow import add_noise, ode_sigmas
from reward_forcing.models.attention import Prediction, TextContext
from reward_forcing.rewards.weighting import reward_weights
from reward_forcing.training.losses import dmd_gradient, dmd_loss, flow_loss, score_sigma
from reward_forcing.training.phases import Phase, phase_at
from reward_forcing.training.sampling import guided_x0, ode_trajectory

SHAPE = (2, 3, 4, 2, 2)
TEXT = TextContext(torch.zeros(1, 2, 1, 1, 2), torch.zeros(1, 2, 1, 1, 2))
NULL = TextContext(torch.ones(1, 2, 1, 1, 2), torch.zeros(1, 2, 1, 1, 2))


class Gaussian:
    """The exact denoiser of clean latents N(mean, variance); another mean without a prompt."""

    def __init__(self, mean: float, variance: float, mean_of_null: float = 0.0) -> None:
        self.mean, self.variance, self.mean_of_null = mean, variance, mean_of_null

    def __call__(self, x, sigma, text, past=None, want_kv=False) -> Prediction:
        mean = self.mean_of_null if text is NULL else self.mean
        s = sigma.expand(x.shape[:2])[..., None, None, None]
        gain = (1 - s) * self.variance / ((1 - s) ** 2 * self.variance + s**2)
        x0 = mean + gain * (x - (1 - s) * mean)
        return Prediction(x0, (x - x0) / s)

    def rotate(self, past, latent_size):
        return past


def test_the_dmd_gradient_of_gaussians_is_the_analytic_one() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, generator=generator) + 1.0
    sigma = torch.full((2,), 0.6)
    noisy = add_noise(x, torch.randn(SHAPE, generator=generator), sigma)
    real = Gaussian(2.0, 1.0)(noisy, sigma[:, None], TEXT).x0
    fake = Gaussian(1.0, 1.0)(noisy, sigma[:, None], TEXT).x0
    gradient = dmd_gradient(x, real, fake)
    shrink = 1 - 0.4 * 0.4 / (0.4**2 + 0.6**2)  # d x0 / d mean
    expected = (1.0 - 2.0) * shrink / (x - real).abs().mean(dim=(1, 2, 3, 4), keepdim=True)
    torch.testing.assert_close(gradient, expected.expand(SHAPE))


def test_the_loss_passes_the_gradient_on_divided_by_the_elements() -> None:
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).requires_grad_()
    gradient = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    dmd_loss(x, gradient).backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, gradient / x.numel())


def test_a_weight_scales_each_sample_inside_the_mean() -> None:
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).requires_grad_()
    gradient = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    weight = torch.tensor([0.5, 3.0])
    dmd_loss(x, gradient, weight).backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, weight[:, None, None, None, None] * gradient / x.numel())


def linear_reward_gradient(at: float, weighted: str, slope: float, beta: float) -> float:
    """Mean gradient of a generator N(at, 1) to a teacher N(0, 1), the reward being slope x; scores at sigma 0.5.

    The critic is what its weighted flow loss makes of it: the same family, its mean that of the weighted samples.
    """
    x = at + torch.randn(200_000, 1, 1, 1, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    weight = reward_weights(slope * x.flatten(), beta).double()
    if weighted == "critic":
        critic_mean, weight = float((x.flatten() / weight).sum() / (1 / weight).sum()), torch.ones_like(weight)
    else:
        critic_mean = float(x.mean())
    sigma = torch.full((len(x),), 0.5, dtype=torch.float64)
    noisy = add_noise(x, torch.zeros_like(x), sigma)
    fake, real = (Gaussian(mean, 1.0)(noisy, sigma[:, None], TEXT).x0 for mean in (critic_mean, 0.0))
    return float((weight[:, None, None, None, None] * (fake - real)).mean())


def test_weighting_the_generator_keeps_the_teacher_as_the_fixed_point_and_the_critic_tilts_it() -> None:
    """p = N(0, 1) and r = slope x: the optimum p exp(r / beta) / Z is N(slope / beta, 1) (Reward Forcing, Eq. 9)."""
    slope, beta = 0.3, 0.5
    assert linear_reward_gradient(0.0, "generator", slope, beta) == pytest.approx(0, abs=0.02)
    assert linear_reward_gradient(slope / beta, "generator", slope, beta) > 0.2
    assert linear_reward_gradient(slope / beta, "critic", slope, beta) == pytest.approx(0, abs=0.02)
    assert linear_reward_gradient(0.0, "critic", slope, beta) < -0.2


def test_a_weighted_generator_gradient_is_the_analytic_one() -> None:
    """The gradient is constant for these Gaussians: the weights multiply it by their mean E [exp(slope x / beta)]."""
    slope, beta, at = 0.3, 0.5, 0.4
    plain = linear_reward_gradient(at, "generator", 0.0, beta)
    factor = math.exp(slope * at / beta + (slope / beta) ** 2 / 2)
    assert linear_reward_gradient(at, "generator", slope, beta) == pytest.approx(factor * plain, rel=0.02)


def test_a_perfect_sample_has_a_finite_gradient() -> None:
    x = torch.ones(SHAPE)
    assert dmd_gradient(x, x, x + 1e-3).isfinite().all()


def test_score_levels_stay_in_their_range_and_favour_noise() -> None:
    sigma = score_sigma(4000, 5.0, 0.02, 0.98, torch.Generator().manual_seed(0))
    assert 0.02 - 1e-6 <= float(sigma.min()) <= float(sigma.max()) <= 0.98 + 1e-6
    assert 0.70 < float(sigma.mean()) < 0.78, "a uniform k after shift 5 has mean 0.75 to two places"


def test_the_flow_loss_is_zero_for_the_true_velocity() -> None:
    x, noise = torch.randn(SHAPE), torch.randn(SHAPE)
    assert float(flow_loss(noise - x, noise, x)) == 0.0


def test_the_flow_loss_is_the_mean_over_the_frames_of_its_mask() -> None:
    x, noise, velocity = (torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2, 3))
    mask, weight = torch.tensor([[False, True, True], [True, False, False]]), torch.tensor([1.0, 3.0])
    of_frames = (velocity - (noise - x)).square().mean(dim=(2, 3, 4))
    expected = (of_frames[0, 1] + of_frames[0, 2] + 3 * of_frames[1, 0]) / 3
    torch.testing.assert_close(flow_loss(velocity, noise, x, weight, mask), expected)
    everything = torch.ones_like(mask)
    torch.testing.assert_close(flow_loss(velocity, noise, x, None, everything), flow_loss(velocity, noise, x))


def test_guidance_moves_away_from_the_unconditional() -> None:
    x, sigma = torch.randn(SHAPE), torch.full((3,), 0.5)
    denoiser = Gaussian(2.0, 1.0, mean_of_null=1.0)
    c, u = denoiser(x, sigma, TEXT).x0, denoiser(x, sigma, NULL).x0
    torch.testing.assert_close(guided_x0(denoiser, x, sigma, TEXT, NULL, 4.0), u + 4 * (c - u))
    torch.testing.assert_close(guided_x0(denoiser, x, sigma, TEXT, NULL, 1.0), c)


def test_the_ode_carries_noise_to_the_data_and_keeps_points_on_the_way() -> None:
    noise = torch.randn((64, *SHAPE[1:]), generator=torch.Generator().manual_seed(3))
    sigmas = ode_sigmas(400, 1.0)
    trajectory = ode_trajectory(Gaussian(2.0, 0.25), noise, TEXT, NULL, sigmas, 1.0, keep=(0, 200, -1))
    assert trajectory.shape == (64, 3, *SHAPE[1:])
    assert torch.equal(trajectory[:, 0], noise)
    end = trajectory[:, -1]
    assert abs(float(end.mean()) - 2.0) < 0.05
    assert abs(float(end.std()) - 0.5) < 0.05
    middle = trajectory[:, 1]  # at sigma 0.5: mean 1, variance 0.25 * 0.25 + 0.25
    assert abs(float(middle.mean()) - 1.0) < 0.05


def test_phases_follow_each_other_in_their_shares() -> None:
    phases = [Phase(share=1, frames=1, batch=4), Phase(share=3, frames=5, batch=2)]
    assert [phase_at(phases, step, 8).frames for step in range(8)] == [1, 1, 5, 5, 5, 5, 5, 5]
    assert phase_at(phases, 100, 8).frames == 5
