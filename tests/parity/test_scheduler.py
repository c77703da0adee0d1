"""Sigma tables, conversions and weights against the reference scheduler: tables bit for bit."""

import re

import pytest
import torch

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
    x0_to_velocity,
)

pytestmark = pytest.mark.golden("e_*")


def numbered(case, pattern: str) -> list[re.Match]:
    """Matches of `pattern` among the case's tensor names."""
    found = [match for match in (re.fullmatch(pattern, name) for name in case.tensors) if match]
    assert found, f"no tensor named like {pattern}"
    return found


def assert_close(ours, reference):
    torch.testing.assert_close(ours, reference, atol=1e-6, rtol=2e-6)


def test_sigma_tables_are_exact(case):
    for match in numbered(case, r"shift(\d+)_sigmas"):
        table = sigma_table(int(match[1]))
        assert torch.equal(table, case.tensors[match[0]])
        assert torch.equal(1000 * table, case.tensors[f"shift{match[1]}_timesteps"])


def test_warped_denoising_steps_are_exact(case):
    for match in numbered(case, r"shift(\d+)_warp_(\d+(?:_\d+)*)"):
        sigmas = warp_denoising_steps([int(step) for step in match[2].split("_")], int(match[1]))
        assert torch.equal(1000 * torch.tensor(sigmas), case.tensors[match[0]])


def test_ode_sigmas_are_exact_and_end_at_zero(case):
    for match in numbered(case, r"ode(\d+)_sigmas"):
        sigmas = ode_sigmas(int(match[1]), shift=8)
        assert torch.equal(sigmas[:-1], case.tensors[match[0]])
        assert torch.equal(1000 * sigmas[:-1], case.tensors[f"ode{match[1]}_timesteps"])
        assert sigmas[-1] == 0


def test_euler_steps_equal_the_reference(case):
    x, velocity = case.tensors["ode_latent"], case.tensors["ode_flow"]
    for match in numbered(case, r"ode(\d+)_step(\d+|_last)"):
        steps = int(match[1])
        index = steps - 1 if match[2] == "_last" else int(match[2])
        sigmas = ode_sigmas(steps, shift=8)
        assert_close(euler_step(x, velocity, sigmas[index], sigmas[index + 1]), case.tensors[match[0]])


@pytest.mark.parametrize("suffix", ["", "_bf16"])
def test_noising_and_conversion_equal_the_reference(case, suffix):
    """The reference rounds inputs and results to their dtype, and converts to x0 in float64 in between."""
    dtype = torch.bfloat16 if suffix else torch.float32
    x0, noise, velocity = (case.tensors[name].to(dtype) for name in ("x0", "noise", "v"))
    for match in numbered(case, r"shift(\d+)_xt"):
        sigma = nearest_sigma(case.tensors["t"], sigma_table(int(match[1])))
        x = case.tensors[match[0]].to(dtype)
        assert torch.equal(add_noise(x0, noise, sigma).to(dtype), case.tensors[match[0] + suffix])
        ours = velocity_to_x0(x.double(), velocity.double(), sigma).to(dtype)
        assert torch.equal(ours, case.tensors[f"shift{match[1]}_x0_from_flow{suffix}"])


def test_velocity_from_clean_latents_equals_the_reference(case):
    for match in numbered(case, r"shift(\d+)_flow_from_x0"):
        sigma = nearest_sigma(case.tensors["t"], sigma_table(int(match[1])))
        x0 = case.tensors["x0"] + 0.1 * case.tensors["v"]
        ours = x0_to_velocity(case.tensors[f"shift{match[1]}_xt"], x0, sigma)
        torch.testing.assert_close(ours, case.tensors[match[0]], atol=2e-5, rtol=2e-6)


def test_training_weights_equal_the_reference(case):
    """To rounding: the exponential of one processor differs from another's in the last place."""
    for match in numbered(case, r"shift(\d+)_weights"):
        table = sigma_table(int(match[1]))
        ours = flow_matching_weight(1000 * table, table), flow_matching_weight(case.tensors["t"], table)
        theirs = case.tensors[match[0]], case.tensors[f"shift{match[1]}_weight_at_t"]
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_timesteps_of_distribution_matching_equal_the_reference(case):
    for match in numbered(case, r"dmd_t_shift(\d+)_clamped"):
        uniform = torch.arange(1000) / 1000
        ours = (1000 * shift_sigma(uniform, int(match[1]))).clamp(20, 980)
        assert_close(ours, case.tensors[match[0]])
