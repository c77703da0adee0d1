"""RoPE: the split of the head, agreement with complex numbers, and accuracy at any position."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reward_forcing.models.rope import RANGE, axis_widths, rotate, rotation


@pytest.mark.parametrize(("head_dim", "widths"), [(128, (44, 42, 42)), (32, (12, 10, 10)), (40, (16, 12, 12))])
def test_heads_are_split_as_in_wan(head_dim, widths):
    assert axis_widths(head_dim) == widths


@given(
    head_dim=st.sampled_from([2, 4, 6, 10, 16, 32]),
    position=st.integers(-10, 100_000),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_rotation_is_a_product_of_complex_numbers_at_any_position(head_dim, position, grid):
    x = torch.randn(1, grid[0] * grid[1], 2, head_dim, generator=torch.Generator().manual_seed(0))
    out = rotate(x, rotation(torch.tensor([position]), grid, head_dim))
    for token in range(grid[0] * grid[1]):
        where = (position, token // grid[1], token % grid[1])
        angles = [
            place * 10000.0 ** (-2 * pair / width)
            for place, width in zip(where, axis_widths(head_dim), strict=True)
            for pair in range(width // 2)
        ]
        turn = torch.polar(torch.ones(len(angles), dtype=torch.float64), torch.tensor(angles, dtype=torch.float64))
        expected = torch.view_as_complex(x[0, token].double().unflatten(-1, (-1, 2))) * turn
        actual = torch.complex(*out[0, token].double().chunk(2, dim=-1))
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_rotation_keeps_dtype_and_leading_axes():
    x = torch.randn(5, 2, 3, 4, 2, 16).bfloat16()
    out = rotate(x, rotation(torch.tensor([4, 9, 2]), (2, 2), 16))
    assert out.dtype == torch.bfloat16
    assert out.shape == x.shape
    torch.testing.assert_close(out.float().norm(dim=-1), x.float().norm(dim=-1), atol=0.05, rtol=0.01)


def test_positions_in_any_order_and_across_ranges_are_turned_one_by_one():
    positions = [RANGE - 2, RANGE - 1, RANGE, 0, 1, 7, 3, -1, 5 * RANGE]
    together = rotation(torch.tensor(positions), (2, 3), 32)
    for frame, position in enumerate(positions):
        alone = rotation(torch.tensor([position]), (2, 3), 32)
        assert torch.equal(together.cos[frame], alone.cos[0])
        assert torch.equal(together.sin[frame], alone.sin[0])


def test_a_rotation_first_asked_for_while_streaming_serves_training_too():
    x = torch.randn(1, 6, 2, 16, requires_grad=True)
    with torch.inference_mode():
        rotation(torch.tensor([77]), (2, 3), 16)
    rotate(x, rotation(torch.tensor([77]), (2, 3), 16)).sum().backward()
    assert x.grad is not None
