"""The regression's loss follows from the stored noise levels, and is logged for pairs that were never trained on."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ode_stores import constant_student, stage, write_lmdb, write_tars

from reward_forcing.models.wan_dit import WanDiT
from reward_forcing.training.ode_pairs import LmdbSettings
from reward_forcing.training.ode_regression import held_out
from reward_forcing.training.stage import Draw
from reward_forcing.training.trainer import Trainer

VELOCITY = 0.5
FRAMES = 6
SHAPE = (FRAMES, 4, 4, 4)


@pytest.fixture(scope="module")
def student(tiny_dit: Callable[..., WanDiT], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On latents that are all zero its error at noise level sigma is (sigma VELOCITY)^2."""
    return constant_student(tmp_path_factory.mktemp("student"), tiny_dit, VELOCITY)


def draw(shard: int = 0, shards: int = 1, step: int = 0) -> Draw:
    return Draw.at(1, "generator", step, shard, shards)


@pytest.mark.parametrize("timestep", [888.0, 250.0])
@pytest.mark.parametrize("clean_chunks", [True, False])
def test_the_loss_is_at_the_stored_timestep_and_clean_chunks_carry_none(
    student: Path, tiny_model_folder: Path, tmp_path: Path, timestep: float, clean_chunks: bool
) -> None:
    pairs = write_tars(tmp_path / "pairs", torch.zeros(3, 2, *SHAPE), (timestep, 0))
    loss, _ = stage(pairs, tiny_model_folder, student, clean_chunks=clean_chunks).loss("generator", 0, draw())
    assert loss.item() == pytest.approx((VELOCITY * timestep / 1000) ** 2, rel=1e-5)


@pytest.mark.parametrize("shift", [8.0, 5.0])
def test_an_lmdbs_shift_decides_the_losses(
    student: Path, tiny_model_folder: Path, tmp_path: Path, shift: float
) -> None:
    pairs = write_lmdb(tmp_path / "pairs", np.zeros((3, 3, *SHAPE)), ["a", "b", "c"])
    settings = LmdbSettings(shift=shift, denoising_steps=(1000, 500))
    found = stage(pairs, tiny_model_folder, student, lmdb=settings, validation=0.5).metrics(0)
    middle = shift / (shift + 1)  # the warp of 1/2
    expected = {"loss_1000": VELOCITY**2, f"loss_{1000 * middle:.0f}": (middle * VELOCITY) ** 2}
    expected["loss"] = sum(expected.values()) / 2
    assert {name: float(found[name]) for name in expected} == pytest.approx(expected, rel=1e-5)


def test_the_loss_does_not_depend_on_how_the_batch_is_cut(
    tiny_dit: Callable[..., WanDiT], tiny_model_folder: Path, tmp_path: Path
) -> None:
    tiny_dit(text_dim=32).save_pretrained(tmp_path / "student")
    trajectories = torch.randn(5, 4, *SHAPE, generator=torch.Generator().manual_seed(0))
    pairs = write_tars(tmp_path / "pairs", trajectories, (1000, 700, 300, 0))
    built = stage(pairs, tiny_model_folder, tmp_path / "student", chunk_frames=3)
    whole, _ = built.loss("generator", 0, draw())
    parts = [built.loss("generator", 0, draw(shard, 2))[0] for shard in range(2)]
    assert parts[0].item() != pytest.approx(parts[1].item(), rel=1e-3)
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_held_out_pairs_are_never_trained_on(student: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    trajectories = torch.zeros(5, 2, *SHAPE)
    trajectories[-2:] = torch.nan
    pairs = write_tars(tmp_path / "pairs", trajectories, (500, 0))
    built = stage(pairs, tiny_model_folder, student, validation=0.4)
    assert all(built.loss("generator", step, draw(step=step))[0].isfinite() for step in range(8))
    assert math.isnan(built.metrics(0)["loss"])
    assert stage(pairs, tiny_model_folder, student, validation=0).metrics(0) == {}


@pytest.mark.parametrize(("scale", "explained"), [(1.0, 1.0), (0.0, 0.0), (0.5, 0.75)])
def test_explained_tells_how_much_of_the_clean_latents_is_foreseen(
    tiny_dit: Callable[..., WanDiT], tiny_model_folder: Path, tmp_path: Path, scale: float, explained: float
) -> None:
    init = constant_student(tmp_path / "student", tiny_dit, 0.0)  # it takes every point for the clean end
    clean = torch.ones(4, 1, *SHAPE)
    clean[..., ::2] = -1
    pairs = write_tars(tmp_path / "pairs", torch.cat([scale * clean, scale * clean, clean], dim=1), (900, 400, 0))
    found = stage(pairs, tiny_model_folder, init, validation=0.5).metrics(0)
    assert float(found["explained"]) == pytest.approx(explained, abs=1e-6)
    assert float(found["loss"]) == pytest.approx((1 - scale) ** 2, abs=1e-6)


def test_with_a_clean_context_a_chunk_sees_clean_frames_and_no_other_noisy_ones(
    tiny_dit: Callable[..., WanDiT], tiny_model_folder: Path, tmp_path: Path
) -> None:
    """Chunk 1's error hangs on the clean chunk 0 and its own point, not on other points or later clean chunks."""
    tiny_dit(text_dim=32).save_pretrained(tmp_path / "student")
    trajectories = torch.randn(2, 3, *SHAPE, generator=torch.Generator().manual_seed(0))
    context = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))

    def errors(name: str, trajectories: torch.Tensor, context: torch.Tensor, **changes: object) -> torch.Tensor:
        pairs = write_tars(tmp_path / name, trajectories, (900, 400, 0), context)
        built = stage(pairs, tiny_model_folder, tmp_path / "student", chunk_frames=2, context="clean", **changes)
        with torch.no_grad():
            return built._errors(built._read([0, 1]), torch.zeros(2, FRAMES, dtype=torch.long))

    before = errors("before", trajectories, context)
    noisy, own, early, late = trajectories.clone(), trajectories.clone(), context.clone(), context.clone()
    noisy[:, 0, [0, 1, 4, 5]] += 1
    own[:, 0, 2:4] += 1
    early[:, :2] += 1
    late[:, 2:] += 1
    changed = {
        name: (errors(name, *these) - before)[:, 2:4].abs().max() > 1e-3
        for name, these in {"noisy": (noisy, context), "own": (own, context), "early": (trajectories, early),
                            "late": (trajectories, late)}.items()
    }  # fmt: skip
    assert changed == {"noisy": False, "own": True, "early": True, "late": False}
    narrow = errors("narrow", trajectories, early, window_frames=2)
    torch.testing.assert_close(narrow, errors("narrow_too", trajectories, context, window_frames=2))


@pytest.mark.parametrize("clean_chunks", [True, False])
def test_with_a_clean_context_every_chunk_is_drawn_noisy(
    student: Path, tiny_model_folder: Path, tmp_path: Path, clean_chunks: bool
) -> None:
    pairs = write_tars(tmp_path / "pairs", torch.zeros(3, 2, *SHAPE), (888, 0))
    built = stage(pairs, tiny_model_folder, student, context="clean", clean_chunks=clean_chunks)
    drawn = []
    built._errors = lambda batch, level: drawn.append(level) or torch.zeros(level.shape)  # type: ignore[method-assign]
    built.loss("generator", 0, draw())
    assert drawn[0].unique().tolist() == [0]


@pytest.mark.parametrize(
    ("cache", "changes", "says"),
    [
        ({"chunk_frames": 2, "window_frames": None}, {"chunk_frames": 3}, "made chunks of 2"),
        ({"chunk_frames": 2, "window_frames": 4, "sink": {"kind": "none"}}, {"chunk_frames": 2}, "window_frames=4"),
        ({"chunk_frames": 2, "window_frames": None}, {"chunk_frames": 2, "window_frames": 4}, "window_frames=6"),
        ({"chunk_frames": 2, "window_frames": 4, "sink": {"frames": 2, "kind": "ema"}}, {"chunk_frames": 2}, "a sink"),
        ({"chunk_frames": 2, "window_frames": 9, "sink": {"kind": "ema"}}, {"chunk_frames": 2}, None),
    ],
)
def test_a_student_must_see_what_its_causal_teacher_saw(
    student: Path, tiny_model_folder: Path, tmp_path: Path, cache: Any, changes: Any, says: str | None
) -> None:
    pairs = write_tars(tmp_path / "pairs", torch.zeros(3, 2, *SHAPE), (500, 0), causal={"cache": cache})
    stage(pairs, tiny_model_folder, student, **changes)
    if says is None:
        assert "; causal, chunks of 2" in stage(pairs, tiny_model_folder, student, context="clean", **changes).summary()
        return
    with pytest.raises(ValueError, match=says):
        stage(pairs, tiny_model_folder, student, context="clean", **changes)


def test_a_run_logs_the_validation_loss(student: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    pairs = write_tars(tmp_path / "pairs", torch.zeros(3, 3, *SHAPE), (900, 400, 0))
    built = stage(pairs, tiny_model_folder, student, clean_chunks=False)
    assert "3 pairs, 3 points of 6 x 4 x 4 x 4 at timesteps 900, 400, 0" in built.summary()
    assert built.summary().endswith("; 1 held out")
    Trainer(built, tmp_path / "run").run()
    rows = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    logged = {name: row[name] for row in rows for name in row if name.startswith("validation/")}
    assert logged.keys() == {f"validation/{name}" for name in ("loss", "explained", "loss_900", "loss_400")}
    assert 0 < logged["validation/loss"] < VELOCITY**2
    assert (tmp_path / "run/final/transformer/config.json").is_file()


def test_some_pairs_are_held_out_but_never_all() -> None:
    assert held_out(100, 0.05) == range(95, 100)
    assert held_out(8, 0.05) == range(7, 8)
    assert held_out(3, 0.0) == range(3, 3)
    with pytest.raises(ValueError, match="leave none to train on"):
        held_out(1, 0.05)


def test_pairs_of_other_channels_than_the_student_are_refused(
    student: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    pairs = write_tars(tmp_path / "pairs", torch.zeros(2, 2, 6, 3, 4, 4), (500, 0))
    with pytest.raises(ValueError, match="takes latents of 4 channels"):
        stage(pairs, tiny_model_folder, student)
