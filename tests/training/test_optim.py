"""Muon, the split of weights between Muon and AdamW, and learning-rate schedules."""

import math

import pytest
import torch
from processes import in_processes
from torch import nn

from reward_forcing.training import optim
from reward_forcing.training.optim import (
    AdamWSettings,
    LearningRateSettings,
    Muon,
    MuonSettings,
    build_optimizers,
    hidden_matrices,
    orthogonalise,
)


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 40), (2, 40, 8), (1, 192, 192)])
def test_orthogonalise_brings_singular_values_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices).float())
    well_conditioned = torch.linalg.svdvals(matrices) > 0.05 * torch.linalg.matrix_norm(matrices)[:, None]
    assert values[well_conditioned].min() > 0.6
    assert values.max() < 1.3


def test_orthogonalise_keeps_the_singular_vectors():
    matrix = torch.randn(1, 12, 30, generator=torch.Generator().manual_seed(1))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    alignment = torch.nn.functional.cosine_similarity((u @ v).flatten(), orthogonalise(matrix).float().flatten(), dim=0)
    assert alignment > 0.95


def test_orthogonalise_ignores_the_scale_and_survives_zero():
    matrix = torch.randn(1, 6, 6)
    assert torch.allclose(orthogonalise(matrix), orthogonalise(1e-4 * matrix), atol=0.05)
    assert orthogonalise(torch.zeros(1, 6, 6)).abs().max() == 0


def test_muon_updates_equal_shapes_as_if_each_were_alone():
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(4, 6, generator=generator) for _ in range(3)]
    gradients = [torch.randn(4, 6, generator=generator) for _ in range(3)]

    def after_two_steps(chosen):
        parameters = [nn.Parameter(weights[i].clone()) for i in chosen]
        optimizer = Muon(parameters, lr=0.1)
        for _ in range(2):
            for p, i in zip(parameters, chosen, strict=True):
                p.grad = gradients[i].clone()
            optimizer.step()
        return parameters

    together = after_two_steps([0, 1, 2])
    for i in range(3):
        torch.testing.assert_close(together[i], after_two_steps([i])[0], atol=2e-3, rtol=0)


def test_processes_orthogonalise_a_part_each_and_all_get_all(tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 6), (6, 4), (4, 6), (4, 6), (8, 8), (4, 6), (4, 6)]
    matrices = [torch.randn(shape, generator=generator) for shape in shapes]
    expected = [orthogonalise(matrix[None])[0] for matrix in matrices]

    def check(world):
        counted = []
        monkeypatch.setattr(optim, "orthogonalise", lambda stack: counted.append(len(stack)) or orthogonalise(stack))
        for number in (7, 1):  # with one, two of the processes have nothing to do
            for found, one in zip(optim.orthogonalise_together(matrices[:number]), expected, strict=False):
                torch.testing.assert_close(found, one, atol=0.01, rtol=0)
        assert sum(counted) == [3 + 1, 2, 2][world.rank]

    in_processes(3, tmp_path, check)


def test_muon_moves_a_tall_matrix_by_its_stated_length_and_decays_it():
    p = nn.Parameter(torch.ones(16, 4))
    p.grad = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    before = p.detach().clone()
    Muon([p], lr=0.01, weight_decay=0.5).step()
    move = p.detach() - before * (1 - 0.01 * 0.5)
    singular = torch.linalg.svdvals(move) / (0.01 * math.sqrt(16 / 4))
    assert ((singular > 0.6) & (singular < 1.3)).all()


def test_muon_lowers_the_loss_of_a_convolutional_network_in_channels_last_memory():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(2, 6, 3), nn.SiLU(), nn.Conv3d(6, 6, 3), nn.SiLU(), nn.Conv3d(6, 1, 1))
    network.to(memory_format=torch.channels_last_3d)
    settings = MuonSettings(lr=0.02, adam=AdamWSettings(lr=1e-3))
    hidden = hidden_matrices(network, ("0", "4"))
    assert hidden == ["2.weight"]
    optimizers = build_optimizers(settings, dict(network.named_parameters()), hidden)
    x, y = torch.randn(4, 2, 6, 6, 6), torch.randn(4, 1, 2, 2, 2)
    losses = []
    for _ in range(40):
        network.zero_grad()
        loss = (network(x) - y).square().mean()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_muon_refuses_vectors():
    with pytest.raises(ValueError, match="2 or more dimensions"):
        Muon([nn.Parameter(torch.ones(3))], lr=0.1)


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(1, 6, 8))
        self.embedding = nn.Embedding(10, 8)
        self.first = nn.Linear(8, 8)
        self.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Conv2d(8, 4, 3), nn.Conv2d(8, 8, 3, groups=8)])
        self.norm = nn.LayerNorm(8)
        self.score = nn.Linear(8, 1)
        self.first_of_all = nn.Linear(8, 8)


def test_only_kernels_of_linear_and_conv_layers_inside_the_edges_go_to_muon():
    assert hidden_matrices(Mixed(), ("first",)) == ["blocks.0.weight", "blocks.1.weight", "first_of_all.weight"]


def test_an_edge_that_names_no_module_is_an_error():
    with pytest.raises(ValueError, match="no module 'frist'"):
        hidden_matrices(Mixed(), ("frist",))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_every_parameter_has_exactly_one_optimizer(kind):
    network = Mixed()
    adam = AdamWSettings(lr=0.1)
    settings = adam if kind == "adamw" else MuonSettings(lr=0.2, adam=adam)
    optimizers = build_optimizers(settings, dict(network.named_parameters()), hidden_matrices(network))
    held = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, network.parameters()))


def test_the_learning_rate_warms_up_holds_and_decays_over_the_last_fraction():
    settings = LearningRateSettings(warm_up_steps=4, decay="linear", decay_fraction=0.5, floor=0.1)
    scales = [settings.scale(step, 20) for step in range(21)]
    assert scales[:4] == [0.25, 0.5, 0.75, 1.0]
    assert scales[4:11] == [1.0] * 7
    assert scales[15] == pytest.approx(0.55)
    assert scales[20] == pytest.approx(0.1)
    assert LearningRateSettings(decay="cosine").scale(10, 20) == pytest.approx(0.5)
    assert LearningRateSettings().scale(10**6, 20) == 1.0
