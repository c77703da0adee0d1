"""The flow's equations: inverses of each other, in float32 or better, and strict about shapes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reward_forcing.flow import (
    add_noise,
    euler_step,
    flow_matching_weight,
    nearest_sigma,
    ode_sigmas,
    shift_sigma,
    sigma_table,
    velocity_to_x0,
    warp_denoising_steps,
    widen,
    x0_to_velocity,
)

sigmas = st.floats(0.01, 1.0)
shifts = st.floats(1.0, 12.0)


def latents(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(sigma=sigmas)
def test_velocity_and_clean_latents_are_inverse(sigma):
    x0, noise = latents(0, 2, 3, 4, 2, 2), latents(1, 2, 3, 4, 2, 2)
    x = add_noise(x0, noise, sigma)
    torch.testing.assert_close(velocity_to_x0(x, noise - x0, sigma), x0, atol=1e-5, rtol=0)
    torch.testing.assert_close(x0_to_velocity(x, x0, sigma), noise - x0, atol=1e-4, rtol=1e-4)


@given(start=sigmas, stop=sigmas)
def test_euler_steps_along_the_true_velocity_stay_on_the_line(start, stop):
    x0, noise = latents(0, 1, 2, 3), latents(1, 1, 2, 3)
    x = euler_step(add_noise(x0, noise, start), noise - x0, start, stop)
    torch.testing.assert_close(x, add_noise(x0, noise, stop), atol=1e-5, rtol=0)


def test_each_frame_gets_its_own_sigma():
    x0, noise = latents(0, 2, 3, 4, 2, 2), latents(1, 2, 3, 4, 2, 2)
    sigma = torch.rand(2, 3)
    x = add_noise(x0, noise, sigma)
    for sample in range(2):
        for frame in range(3):
            expected = add_noise(x0[sample, frame], noise[sample, frame], sigma[sample, frame])
            assert torch.equal(x[sample, frame], expected)


@pytest.mark.parametrize("sigma", [torch.rand(3), torch.rand(3, 2)])
def test_sigma_that_does_not_fit_the_leading_axes_is_refused(sigma):
    with pytest.raises(ValueError, match=r"expand a per-frame \[F\] to \[B, F\]"):
        add_noise(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), sigma)


@pytest.mark.parametrize(("dtype", "wide"), [("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")])
def test_widening_never_loses_digits(dtype, wide):
    assert widen(torch.ones(2, dtype=getattr(torch, dtype))).dtype == getattr(torch, wide)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_low_precision_latents_come_back_in_float32(low):
    x, sigma = torch.ones(1, 2, 3, dtype=low), torch.full((1,), 0.5)
    for result in (add_noise(x, x, sigma), velocity_to_x0(x, x, sigma), x0_to_velocity(x, x, sigma)):
        assert result.dtype == torch.float32
    assert euler_step(x, x, 0.5, 0.25).dtype == torch.float32
    assert add_noise(x.double(), x.double(), sigma).dtype == torch.float64


@given(shift=shifts, u=st.floats(0.0, 1.0))
def test_shift_keeps_both_ends_and_never_lowers_sigma(shift, u):
    assert shift_sigma(0.0, shift) == 0
    assert shift_sigma(1.0, shift) == pytest.approx(1)
    assert u - 1e-12 <= shift_sigma(u, shift) <= 1 + 1e-12
    assert shift_sigma(u, 1.0) == u


@given(shift=shifts, steps=st.integers(1, 1000))
def test_tables_fall_from_one_and_only_solvers_reach_zero(shift, steps):
    table, solver = sigma_table(shift, steps), ode_sigmas(steps, shift)
    assert table[0].item() == pytest.approx(1)
    assert (table > 0).all()
    assert (solver.diff() < 0).all()
    assert solver[-1] == 0
    assert torch.equal(solver[:-1], table)


def test_warped_steps_of_the_paper():
    warped = warp_denoising_steps([1000, 750, 500, 250], shift=5)
    assert [1000 * sigma for sigma in warped] == pytest.approx([1000, 937.5, 833.3333, 625])


@pytest.mark.parametrize("steps", [[], [1000, 0], [500, 750], [500, 500], [1001]])
def test_steps_that_are_no_descent_are_refused(steps):
    with pytest.raises(ValueError, match="decrease strictly"):
        warp_denoising_steps(steps, shift=5)


@given(shift=shifts)
def test_a_table_entry_is_its_own_nearest(shift):
    table = sigma_table(shift)
    assert torch.equal(nearest_sigma(1000 * table, table), table)


@given(shift=shifts)
def test_training_weights_average_one_and_vanish_at_an_end(shift):
    table = sigma_table(shift)
    weights = flow_matching_weight(1000 * table, table)
    assert weights.mean().item() == pytest.approx(1, abs=1e-5)
    assert weights.min() == 0
    assert weights.argmin() in (0, 999)
