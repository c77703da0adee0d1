"""Whole runs whose weights are shared: they equal unshared ones, and resume on as many processes as there are."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import in_processes
from tiny_stages import SEED, distilling, flow_matching, write_latents
from toy import learned, part

from reward_forcing.logs import JsonLines
from reward_forcing.processes import ALONE, World
from reward_forcing.training.rollouts import draw_course
from reward_forcing.training.stage import Draw
from reward_forcing.training.trainer import Trainer

STAGES = ["flow_matching", "causal", "dmd", "re_dmd", "rolling", "lora", "long"]
CHANGES: dict[str, dict[str, Any]] = {
    "dmd": {"kv_grad": "clean"},
    "re_dmd": {"kv_grad": "clean", "reward": True, "weighted": "critic", "critic_reuse": 2},
    "rolling": {
        "kv_grad": "clean",
        "rolling_share": 0.6,
        "longest_frames": 12,
        "switch_share": 0.5,
        "cache": {"window_frames": 8, "chunk_frames": 2, "sink": {"kind": "ema", "frames": 2, "alpha": 0.9}},
    },
    "lora": {"lora": {role: {"rank": 3, "alpha": 3.0} for role in ("generator", "fake_score")}},
    "long": {
        "long": {
            "max_frames": 27,
            "overlap_frames": 2,
            "switch": {"kind": "recache", "global_sink": False, "frames": 8},
        },
        "switch_share": 1.0,
    },
}
"""How the stages that distil differ from the tiny DMD stage."""


@pytest.fixture
def build(request: pytest.FixtureRequest, tiny_model_folder: Path, tmp_path: Path) -> Callable[..., Any]:
    """Builds the stage of the test's name: build(world=..., **changes)."""
    if request.param in CHANGES:
        return partial(distilling, tiny_model_folder, **CHANGES[request.param])
    latents = write_latents(tmp_path / "latents")
    return partial(flow_matching, tiny_model_folder, latents, causal=request.param == "causal")


def assert_close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    assert found["counts"] == expected["counts"]
    for name in expected.keys() - {"counts"}:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    assert found["counts"] == expected["counts"]
    assert [name for name in expected.keys() - {"counts"} if not torch.equal(found[name], expected[name])] == []


SHARDED: dict[str, Any] = {"shard": "full", "activation_checkpointing": True}


@pytest.mark.parametrize("build", STAGES, indirect=True)
def test_a_run_is_the_same_on_one_process_and_on_two_and_across_resumptions(
    build: Callable[..., Any], tmp_path: Path
) -> None:
    def run(out: str, world: World = ALONE, **changes: Any) -> None:
        Trainer(build(world=world, **changes), tmp_path / out, world).run()

    run("one")
    run("one, then two", steps=3)

    def in_two(world: World) -> None:
        shared = partial(run, world=world, **SHARDED)
        shared("two", sample_every=5)  # which must change nothing
        shared("halves", steps=3)
        if world.is_first:
            shutil.copytree(tmp_path / "halves", tmp_path / "two, then one")
        dist.barrier()
        shared("halves", save_async=True)
        shared("one, then two")

    in_processes(2, tmp_path, in_two)
    run("two, then one")
    one, two = learned(tmp_path / "one"), learned(tmp_path / "two")
    assert_close(two, one)
    assert_equal(learned(tmp_path / "halves"), two)
    assert_close(learned(tmp_path / "two, then one"), one)
    assert_close(learned(tmp_path / "one, then two"), one)
    start = learned_at_start(build, one)
    assert max(float((one[name] - start[name]).abs().max()) for name in start) > 1e-3, "it must have learned something"
    assert exported(tmp_path / "two").keys() == exported(tmp_path / "one").keys()
    for name, weights in exported(tmp_path / "one").items():
        torch.testing.assert_close(exported(tmp_path / "two")[name], weights, atol=1e-5, rtol=1e-5)
    alone, shared = (losses(tmp_path / name) for name in ("one", "two"))
    assert len(alone) == 5
    assert shared == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("build", ["rolling"], indirect=True)
def test_that_run_rolls_in_some_updates_of_each_role_and_not_in_others(build: Callable[..., Any]) -> None:
    settings = build().settings
    for role, steps in (("generator", (0, 2, 4)), ("fake_score", range(5))):
        courses = [draw_course(settings, Draw.at(SEED, role, step).shared) for step in steps]
        assert {any(step.is_exit for step in course.passes) for course in courses} == {True, False}, role


def losses(out: Path) -> list[float]:
    """The losses in a run's log, of the role that is updated at every step."""
    rows = JsonLines(out / "log.jsonl").rows()
    return [value for row in rows for name, value in row.items() if name in ("transformer/loss", "fake_score/loss")]


def learned_at_start(build: Callable[..., Any], one: dict[str, Any]) -> dict[str, torch.Tensor]:
    networks = build().networks()
    return {
        f"{role}.network.{name}": tensor
        for role, network in networks.items()
        for name, tensor in network.state_dict().items()
        if f"{role}.network.{name}" in one
    }


def exported(out: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    (file,) = (out / "final" / "transformer").glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize("build", ["flow_matching"], indirect=True)
def test_mixed_precision_shared_is_mixed_precision_alone(build: Callable[..., Any], tmp_path: Path) -> None:
    """To bfloat16's rounding: gradients of the two halves of the batch are rounded before they are averaged."""

    def run(out: str, world: World = ALONE, **changes: Any) -> None:
        Trainer(build(world=world, precision="bf16", **changes), tmp_path / out, world).run()

    run("one")
    in_processes(2, tmp_path, lambda world: run("two", world, **SHARDED))
    one, two = (part(learned(tmp_path / name), "transformer.network") for name in ("one", "two"))
    assert all(weights.dtype == torch.float32 for weights in two.values())
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights, atol=3e-4, rtol=1e-3)


@pytest.mark.parametrize("build", ["flow_matching"], indirect=True)
def test_a_non_finite_update_is_skipped_by_all_processes(
    build: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(world: World) -> None:
        stage = build(world=world, shard="full")
        original = stage.loss

        def loss(role: str, step: int, draw: Any) -> Any:
            value, metrics = original(role, step, draw)
            return value * (float("nan") if step == 2 and world.rank == 1 else 1.0), metrics

        monkeypatch.setattr(stage, "loss", loss)
        Trainer(stage, tmp_path / "run", world).run()

    in_processes(2, tmp_path, run)
    assert [row.get("skipped", 0) for row in JsonLines(tmp_path / "run" / "log.jsonl").rows()] == [0, 0, 1, 1, 1]
    assert learned(tmp_path / "run")["transformer.optimizer.proj_out.weight.step"].item() == 4
    assert all(t.isfinite().all() for t in part(learned(tmp_path / "run"), "transformer").values())
