"""The moving average against its closed form."""

import pytest
import torch
from torch import nn

from reward_forcing.training.ema import Ema, EmaSettings


def follow(settings: EmaSettings, weights: list[float]) -> Ema:
    p = nn.Parameter(torch.zeros(2))
    ema = Ema(settings, {"p": p})
    for step, weight in enumerate(weights):
        p.data.fill_(weight)
        ema.update(step)
    return ema


def test_the_average_equals_its_closed_form():
    weights = [1.0, 5.0, -2.0, 7.0, 3.0]
    d = 0.9
    n = len(weights) - 1
    closed = d**n * weights[0] + sum((1 - d) * d ** (n - i) * w for i, w in enumerate(weights) if i > 0)
    torch.testing.assert_close(follow(EmaSettings(decay=d), weights).average["p"], torch.full((2,), closed))


def test_the_average_starts_as_a_copy_at_from_step():
    settings = EmaSettings(decay=0.5, from_step=2)
    assert follow(settings, [1.0, 2.0]).average == {}
    assert follow(settings, [1.0, 2.0, 8.0]).average["p"].tolist() == [8.0, 8.0]
    assert follow(settings, [1.0, 2.0, 8.0, 4.0]).average["p"].tolist() == [6.0, 6.0]


def test_warm_up_forgets_the_first_weights_sooner():
    ema = follow(EmaSettings(decay=0.99, warm_up=True), [1.0, 0.0, 0.0])
    assert ema.average["p"][0].item() == pytest.approx((1 / 20) * (2 / 21))
    ema.updates = 10**6
    assert ema.decay() == 0.99


def test_the_average_of_bfloat16_weights_does_not_stall_in_rounding():
    p = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    ema = Ema(EmaSettings(decay=0.999), {"p": p})
    ema.update(0)
    p.data.fill_(1.0)
    for step in range(1, 1001):
        ema.update(step)
    assert ema.average["p"].item() == pytest.approx(1 - 0.999**1000, rel=1e-4)


def test_applied_shows_the_average_and_gives_the_weights_back_even_after_an_error():
    p = nn.Parameter(torch.zeros(2))
    ema = Ema(EmaSettings(decay=0.5), {"p": p})
    ema.update(0)
    p.data.fill_(4.0)
    ema.update(1)
    with ema.applied():
        assert p.tolist() == [2.0, 2.0]
    assert p.tolist() == [4.0, 4.0]
    with pytest.raises(ZeroDivisionError), ema.applied():
        raise ZeroDivisionError
    assert p.tolist() == [4.0, 4.0]
    assert ema.average["p"].tolist() == [2.0, 2.0]
