"""Noise depends on what it is for and on nothing else."""

import pickle
from itertools import product

import pytest
import torch

from reward_forcing.rollout.noise import SeededNoise

SHAPE = (3, 4, 2, 2)


def test_noise_is_float32_on_the_cpu_and_repeats():
    first, second = SeededNoise((5, 6))(2, 1, SHAPE), SeededNoise((5, 6))(2, 1, SHAPE)
    assert first.shape == (2, *SHAPE)
    assert first.dtype == torch.float32
    assert first.device.type == "cpu"
    assert torch.equal(first, second)


def test_a_sample_does_not_depend_on_its_batch():
    batch = SeededNoise((5, 6, 7))(2, 1, SHAPE)
    assert torch.equal(batch[1:2], SeededNoise((6,))(2, 1, SHAPE))


def test_neighbouring_seeds_chunks_and_draws_share_nothing():
    seeds = (0, 1, 2**32, 2**64 - 1)
    drawn = [SeededNoise((seed,))(chunk, draw, SHAPE) for seed, chunk, draw in product(seeds, range(3), range(3))]
    rows = torch.stack(drawn).flatten(1)
    correlation = torch.corrcoef(rows).fill_diagonal_(0.0).abs()
    assert correlation.max() < 0.7  # 36 rows of 48 independent numbers; a shared stream would give 1


def test_noise_is_standard_normal():
    noise = SeededNoise((1,))(0, 0, (100_000,))
    assert abs(noise.mean().item()) < 0.02
    assert abs(noise.std().item() - 1) < 0.02
    assert abs((noise**4).mean().item() - 3) < 0.1


def test_order_of_draws_changes_nothing_and_noise_pickles():
    noise = SeededNoise([3])  # pyright: ignore[reportArgumentType]
    expected = noise(7, 2, SHAPE)
    noise(0, 0, SHAPE)
    again = pickle.loads(pickle.dumps(noise))
    assert again == noise == SeededNoise((3,))
    assert torch.equal(again(7, 2, SHAPE), expected)


@pytest.mark.parametrize("seeds", [(), (-1,), (2**64,)])
def test_impossible_seeds_are_rejected(seeds):
    with pytest.raises(ValueError, match=r"seeds must be one or more integers in 0 \.\. 2\^64 - 1"):
        SeededNoise(seeds)
