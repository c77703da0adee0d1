"""A sharded network computes, learns and averages what a whole one does, and each process holds its part only."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import in_processes
from tiny_stages import ADAM, distilling, flow_matching, write_latents
from torch import Tensor
from torch.distributed.tensor import DTensor
from toy import build

from reward_forcing.models.wan_dit import WanDiT
from reward_forcing.processes import ALONE, World
from reward_forcing.training.distributed import average_gradients
from reward_forcing.training.learner import Learner
from reward_forcing.training.networks import place_transformer
from reward_forcing.training.parallel import Placement, is_sharded, like, parallelize, whole, whole_copy
from reward_forcing.training.settings import TrainSettings

CPU = torch.device("cpu")
Make = Callable[..., WanDiT]


def velocity(network: WanDiT, seed: int = 1) -> Tensor:
    """What a network answers to a clip and a prompt of noise, under autocast."""
    generator = torch.Generator().manual_seed(seed)
    text = network.encode_text(torch.randn(1, 5, 32, generator=generator))
    x = torch.randn(1, 4, 4, 4, 4, generator=generator)
    return network(x, torch.tensor([700.0]), text)[0]


def learner(network: WanDiT) -> Learner:
    settings = {"steps": 1, "optimizers": {"student": ADAM}, "ema": {"student": {"decay": 0.5}}}
    return Learner("student", network, TrainSettings.model_validate(settings | {"clip_norm": 0.1}))


def network_of(learner: Learner) -> WanDiT:
    assert isinstance(learner.network, WanDiT)
    return learner.network


def backward(learner: Learner, world: World, seeds: tuple[int, ...] = (1, 2)) -> None:
    """Gradients of the mean over two clips: one in each process, or both in one."""
    mine = seeds if world.size == 1 else (seeds[world.rank % len(seeds)],)
    for part, seed in enumerate(mine):
        learner.reduce_gradients(part == len(mine) - 1)
        (velocity(network_of(learner), seed).square().mean() / len(mine)).backward()
    average_gradients(learner.whole, torch.zeros(1), world)


@pytest.fixture
def make(tiny_dit: Make) -> Make:
    return lambda seed=0: tiny_dit(seed=seed, text_dim=32)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_sharded_forward_is_the_whole_one_to_the_last_bit(make: Make, tmp_path: Path, precision: str) -> None:
    def check(world: World) -> None:
        placement = Placement.of("full", precision, world.size, CPU)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            assert torch.equal(velocity(parallelize(make(), placement)), velocity(make()))

    in_processes(2, tmp_path, check)


def test_sharded_gradients_clipping_updates_and_averages_are_the_whole_ones(make: Make, tmp_path: Path) -> None:
    alone = learner(make())
    backward(alone, ALONE)
    norm = alone.clip()
    alone.step(0, 1.0)
    alone.step(1, 1.0)
    assert alone.ema is not None
    with alone.ema.applied():
        shown = velocity(network_of(alone)).detach()

    def check(world: World) -> None:
        sharded = learner(parallelize(make(), Placement.of("full", "fp32", world.size, CPU)))
        backward(sharded, world)
        for name, p in alone.parameters.items():
            mine = sharded.parameters[name].grad
            assert mine is not None
            assert p.grad is not None
            clipped = whole(mine) * (0.1 / norm)
            torch.testing.assert_close(clipped, p.grad, atol=1e-6, rtol=1e-5, msg=name)
        torch.testing.assert_close(sharded.clip(), norm)
        sharded.step(0, 1.0)
        sharded.step(1, 1.0)
        for name, p in alone.parameters.items():
            torch.testing.assert_close(whole(sharded.parameters[name]), p, atol=1e-5, rtol=1e-4)
        assert sharded.ema is not None
        before = velocity(network_of(sharded)).detach()
        with sharded.ema.applied():
            torch.testing.assert_close(velocity(network_of(sharded)).detach(), shown, atol=1e-4, rtol=1e-3)
        assert torch.equal(velocity(network_of(sharded)), before)
        assert not torch.allclose(before, shown, atol=1e-4)

    in_processes(2, tmp_path, check)


def test_gradients_cross_between_nodes_in_a_hybrid(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    alone = learner(make())
    backward(alone, ALONE)
    norm = alone.clip()

    def check(world: World) -> None:
        placement = Placement.of("hybrid", "fp32", world.size, CPU)
        assert placement.mesh is not None
        assert placement.mesh.shape == (2, 2)
        hybrid = learner(parallelize(make(), placement))
        backward(hybrid, world)
        torch.testing.assert_close(hybrid.clip(), norm)
        for name, p in alone.parameters.items():
            gradient = hybrid.parameters[name].grad
            assert gradient is not None
            torch.testing.assert_close(whole(gradient), p.grad, atol=1e-6, rtol=1e-5, msg=name)

    in_processes(4, tmp_path, check)


@pytest.mark.parametrize("told", ["", "3", "0"])
def test_a_hybrid_of_unknown_nodes_is_refused(monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", told)
    with pytest.raises(ValueError, match="needs nodes of equal size"):
        Placement.of("hybrid", "fp32", 4, CPU)


def test_several_parts_of_a_batch_are_reduced_once(make: Make, tmp_path: Path) -> None:
    alone = learner(make())
    backward(alone, ALONE, seeds=(1, 2, 3, 4))

    def check(world: World) -> None:
        sharded = learner(parallelize(make(), Placement.of("full", "fp32", world.size, CPU)))
        for part, seed in enumerate(((1, 2), (3, 4))[world.rank]):
            sharded.reduce_gradients(part == 1)
            (velocity(network_of(sharded), seed).square().mean() / 2).backward()
            assert all((p.grad is None) == (part == 0) for p in sharded.sharded)
        average_gradients(sharded.whole, torch.zeros(1), world)
        for name, p in alone.parameters.items():
            gradient = sharded.parameters[name].grad
            assert gradient is not None
            torch.testing.assert_close(whole(gradient), p.grad, atol=1e-6, rtol=1e-5, msg=name)

    in_processes(2, tmp_path, check)


def test_muon_updates_sharded_matrices_as_whole_ones(make: Make, tmp_path: Path) -> None:
    muon = {"kind": "muon", "lr": 0.02, "adam": ADAM}

    def updated(network: WanDiT) -> dict[str, Tensor]:
        settings = {"steps": 1, "optimizers": {"student": muon}}
        student = Learner("student", network, TrainSettings.model_validate(settings), ("proj_out",))
        for index, p in enumerate(student.parameters.values()):
            gradient = torch.randn(p.shape, generator=torch.Generator().manual_seed(index))
            p.grad = torch.empty_like(p).copy_(like(gradient, p))
        for step in range(2):
            student.step(step, 1.0)
        return {name: whole(p.detach()) for name, p in student.parameters.items()}

    expected = updated(make())

    def check(world: World) -> None:
        found = updated(parallelize(make(), Placement.of("full", "fp32", world.size, CPU)))
        for name, weights in expected.items():
            assert torch.equal(found[name], weights), name

    in_processes(2, tmp_path, check)


def test_each_process_reads_and_holds_its_part_of_a_file(tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = tiny_model_folder / "transformer"
    stored = WanDiT.from_pretrained(folder).state_dict()

    def check(world: World) -> None:
        network = place_transformer(folder, Placement.of("full", "fp32", world.size, CPU))
        state = network.state_dict()
        held = sum((t.to_local() if isinstance(t, DTensor) else t).numel() for t in state.values())
        matrices = sum(t.numel() for t in stored.values() if t.ndim == 2)
        assert held == sum(t.numel() for t in stored.values()) - matrices // 2
        assert all(torch.equal(whole(state[name]), stored[name]) for name in stored)
        copy = whole_copy(network, keep=world.is_first).state_dict()
        if world.is_first:
            assert all(torch.equal(copy[name], stored[name]) for name in stored)

    in_processes(2, tmp_path, check)


def test_a_fresh_network_is_drawn_alike_and_shared(tiny_model_folder: Path, tmp_path: Path) -> None:
    latents = write_latents(tmp_path / "latents")
    fresh = {
        "init": None,
        "model": {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1, "ffn_dim": 48},
    }
    drawn = flow_matching(tiny_model_folder, latents, **fresh).networks()["transformer"].state_dict()

    def check(world: World) -> None:
        network = flow_matching(tiny_model_folder, latents, world, shard="full", **fresh).networks()["transformer"]
        assert is_sharded(network)
        assert all(torch.equal(whole(tensor), drawn[name]) for name, tensor in network.state_dict().items())

    in_processes(2, tmp_path, check)


def test_a_frozen_network_in_the_compute_dtype_answers_as_in_float32(tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = tiny_model_folder / "transformer"
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = velocity(place_transformer(folder, Placement(CPU, torch.bfloat16)))
        frozen = place_transformer(folder, Placement(CPU, torch.bfloat16), trained=False)
        assert torch.equal(velocity(frozen), expected)
    assert frozen.proj_out.weight.dtype == torch.bfloat16
    assert frozen.condition_embedder.time_proj.weight.dtype == torch.float32

    def check(world: World) -> None:
        sharded = place_transformer(folder, Placement.of("full", "bf16", world.size, CPU), trained=False)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(velocity(sharded), expected)
        assert not any(p.requires_grad for p in sharded.parameters())

    in_processes(2, tmp_path, check)


@pytest.mark.parametrize("changes", [{"shard": "full"}, {"activation_checkpointing": True}])
def test_a_stage_without_transformers_refuses_what_is_made_for_them(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="stage 'toy' trains no transformer"):
        build(**changes)


def test_one_process_shares_nothing(tiny_model_folder: Path) -> None:
    assert distilling(tiny_model_folder, shard="full").placement.mesh is None
    assert not dist.is_initialized()
