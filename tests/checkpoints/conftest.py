"""What the checkpoint tests share."""

import pytest
from checkpoints.layouts import random_network

from reward_forcing.models.wan_dit import WanDiT


@pytest.fixture(scope="session")
def network() -> WanDiT:
    """The network that the layouts hold."""
    return random_network()
