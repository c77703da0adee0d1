"""What the checkpoint tests share."""

from collections.abc import Callable

import pytest
import torch
from checkpoints.layouts import random_network

from reward_forcing.checkpoints.files import LazyTensor
from reward_forcing.models.wan_dit import WanDiT


@pytest.fixture(scope="session")
def network() -> WanDiT:
    """The network that the layouts hold."""
    return random_network()


@pytest.fixture
def no_weight_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make reading any tensor of a file a failure."""

    def fail(self: LazyTensor) -> Callable[[], torch.Tensor]:
        pytest.fail("a weight was read before the checkpoint was refused")

    monkeypatch.setattr(LazyTensor, "read", property(fail, lambda *_: None), raising=False)
