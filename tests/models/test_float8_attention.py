"""Attention in float8: what rounding changes, and where it is refused."""

import pytest
import torch

from reward_forcing.models.attention import attend
from reward_forcing.models.float8_attention import KERNEL, LARGEST, attend_in_float8, check_kernel, round_heads


def heads(tokens: int = 40, seed: int = 0) -> torch.Tensor:
    """Heads [2, tokens, 3, 8] whose sizes differ by samples and heads."""
    sizes = torch.tensor([[1e-3, 1.0, 50.0], [2.0, 300.0, 1e-2]])[:, None, :, None]
    return torch.randn(2, tokens, 3, 8, generator=torch.Generator().manual_seed(seed)) * sizes


def test_every_head_fills_the_range_of_float8() -> None:
    numbers, scale = round_heads(heads())
    assert numbers.dtype == torch.float8_e4m3fn
    assert scale.shape == (2, 1, 3, 1)
    assert torch.equal(numbers.float().abs().amax(dim=(1, 3)), torch.full((2, 3), LARGEST))


def test_what_is_large_in_a_head_is_off_by_at_most_a_sixteenth() -> None:
    given = heads()
    numbers, scale = round_heads(given)
    large = given.abs() > scale * 2**-6  # what is no subnormal number of e4m3
    assert large.float().mean() > 0.99
    assert ((numbers.float() * scale - given).abs() <= given.abs() / 16 + 1e-9)[large].all()


def test_the_scale_itself_is_not_rounded() -> None:
    given = torch.linspace(0.5, 1, 4096).bfloat16().reshape(1, -1, 1, 8)
    numbers, scale = round_heads(given)
    exact = given.float() / scale
    half_a_step = 2 ** (exact.log2().floor() - 4)  # e4m3 keeps three bits after the first
    assert ((numbers.float() - exact).abs() <= half_a_step * (1 + 1e-5)).all()


def test_heads_of_zeros_stay_zeros() -> None:
    numbers, scale = round_heads(torch.zeros(1, 4, 2, 8))
    assert torch.isfinite(scale).all()
    assert not numbers.float().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_changes_by_its_rounding(dtype: torch.dtype) -> None:
    query, key, value = (torch.randn(2, 40, 3, 16, dtype=dtype) for _ in range(3))
    exact, made = attend(query, key, value), attend_in_float8(query, key, value)
    assert made.dtype == dtype
    assert made.shape == exact.shape
    assert 1e-3 < ((made - exact).float().norm() / exact.float().norm()).item() < 0.06


def test_gpus_without_the_kernel_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_kernel(torch.device("cpu"))
    gpu, capability = torch.device("cuda"), (8, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
    with pytest.raises(ValueError, match=r"Hopper GPU \(9.0\), not A100; use attention=exact"):
        check_kernel(gpu)
    capability = (9, 0)
    monkeypatch.setattr("reward_forcing.models.float8_attention.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=rf"whose module {KERNEL} is not installed"):
        check_kernel(gpu)
    monkeypatch.setattr("reward_forcing.models.float8_attention.find_spec", lambda name: object())
    check_kernel(gpu)
