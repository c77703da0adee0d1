"""Averaged gradients between two real processes, without starting interpreters."""

import pytest
import torch
from processes import in_processes
from torch import nn

from reward_forcing.processes import World, from_first
from reward_forcing.training.distributed import average_gradients, broadcast_weights, gather


def test_gradients_are_averaged_and_unused_parameters_stay_without(tmp_path):
    def check(world: World) -> None:
        both, one, none = (nn.Parameter(torch.zeros(2, 3)) for _ in range(3))
        both.grad = torch.full((2, 3), 1.0 + 2 * world.rank)
        if world.rank == 1:
            one.grad = torch.full((2, 3), 8.0)
        extras = average_gradients([both, one, none], torch.tensor([float(world.rank), 5.0]), world)
        assert extras.tolist() == [0.5, 5.0]
        assert both.grad.eq(2.0).all()
        assert one.grad is not None
        assert one.grad.eq(4.0).all()
        assert none.grad is None

    in_processes(2, tmp_path, check)


def test_an_averaged_gradient_has_its_parameters_memory_layout(tmp_path):
    def check(world: World) -> None:
        p = nn.Parameter(torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last))
        p.grad = torch.arange(96.0).view(2, 3, 4, 4)
        average_gradients([p], torch.zeros(1), world)
        assert p.grad.stride() == p.stride()
        assert torch.equal(p.grad, torch.arange(96.0).view(2, 3, 4, 4))

    in_processes(2, tmp_path, check)


def test_every_process_gets_the_first_ones_weights_and_values(tmp_path):
    def check(world: World) -> None:
        network = nn.BatchNorm1d(3)
        nn.init.constant_(network.weight, world.rank)
        network.running_mean.fill_(world.rank)  # type: ignore[union-attr]
        broadcast_weights([network], world)
        assert network.weight.eq(0).all()
        assert network.running_mean.eq(0).all()  # type: ignore[union-attr]
        assert from_first({"rank": world.rank}, world) == {"rank": 0}
        assert gather(world.rank, world) == [0, 1]

    in_processes(2, tmp_path, check)


def test_a_single_process_needs_no_group():
    alone = World(0, 1, torch.device("cpu"))
    p = nn.Parameter(torch.zeros(2))
    assert average_gradients([p], torch.tensor([3.0]), alone).tolist() == [3.0]
    assert p.grad is None
    assert from_first(1, alone) == 1
    assert gather(1, alone) == [1]


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_first_process_speaks(rank):
    assert World(rank, 2, torch.device("cpu")).is_first == (rank == 0)
