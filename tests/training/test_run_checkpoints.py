"""Checkpoints survive crashes and damage, and know whose settings they are."""

import os
import signal
from pathlib import Path

import pytest
import torch

from reward_forcing.training import checkpoint
from reward_forcing.training.checkpoint import Checkpoints, check_same_settings, only_writer


def state(value: float) -> dict[str, object]:
    return {"step": int(value), "weights": torch.full((1000,), float(value)), "nested": [{"lr": 0.1, "none": None}]}


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(3, state(3))
    found = checkpoints.newest()
    assert found is not None
    path, loaded = found
    assert path == checkpoints.path(3)
    assert torch.equal(loaded.pop("weights"), torch.full((1000,), 3.0))
    assert loaded == {"step": 3, "nested": [{"lr": 0.1, "none": None}]}


def test_the_newest_and_the_milestones_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, keep_every=4)
    for step in range(1, 11):
        checkpoints.save(step, state(step))
    assert checkpoints.steps() == [4, 8, 9, 10]
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"step_{n:08d}.pt" for n in (4, 8, 9, 10)]


@pytest.mark.parametrize("moment", ["halfway through writing", "before the rename", "after the rename"])
def test_kill_9_during_a_save_leaves_a_usable_run(tmp_path, monkeypatch, moment):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, state(1))
    child = os.fork()
    if child == 0:
        die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
        if moment == "halfway through writing":
            monkeypatch.setattr(torch, "save", lambda _, path: (Path(path).write_bytes(b"half"), die()))
        elif moment == "before the rename":
            monkeypatch.setattr(os, "replace", die)
        else:
            monkeypatch.setattr(Path, "unlink", die)
        try:
            checkpoints.save(2, state(2))
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    found = checkpoints.newest()
    assert found is not None
    assert found[1]["step"] == (2 if moment == "after the rename" else 1)
    checkpoints.save(3, state(3))
    assert [p.name for p in tmp_path.glob("*.pt")] == ["step_00000003.pt"]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_with_a_warning(tmp_path, capsys, damage):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, state(step))
    path = checkpoints.path(2)
    data = bytearray(path.read_bytes())
    middle = data.index(torch.full((1000,), 2.0).numpy().tobytes()) + 2000
    data[middle] ^= 1
    path.write_bytes({"cut": data[:middle], "flip": data, "empty": b"", "text": b"not a checkpoint"}[damage])
    checkpoint.console.cache_clear()
    found = checkpoints.newest()
    assert found is not None
    assert found[1]["step"] == 1
    assert "step_00000002.pt is damaged" in capsys.readouterr().err
    assert checkpoints.steps() == [1]


def test_a_run_whose_every_checkpoint_is_damaged_does_not_start_over(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1))
    checkpoints.path(1).write_bytes(b"")
    with pytest.raises(ValueError, match="every checkpoint"):
        checkpoints.newest()


def test_pickled_code_in_a_checkpoint_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    torch.save({"bad": Path("x")}, checkpoints.path(1))
    with pytest.raises(ValueError, match="damaged"):
        checkpoints.load(checkpoints.path(1))


def test_other_settings_are_named_and_harmless_ones_pass():
    saved = {"seed": 0, "train": {"steps": 10, "clip_norm": 1.0}, "size": [1, 2]}
    check_same_settings(
        saved, saved | {"train": {"steps": 20, "clip_norm": 1.0}}, frozenset({"train.steps"}), Path("run")
    )
    changed = {"seed": 0, "train": {"steps": 10, "clip_norm": 2.0}, "size": [1, 3], "new": 1}
    with pytest.raises(ValueError, match=r"new: \(absent\) there, 1 here") as error:
        check_same_settings(saved, changed, frozenset(), Path("run"))
    assert "train.clip_norm: 1.0 there, 2.0 here" in str(error.value)
    assert "size: [1, 2] there, [1, 3] here" in str(error.value)
    assert "train.steps" not in str(error.value)


def test_two_trainings_cannot_write_to_one_run(tmp_path):
    with only_writer(tmp_path), pytest.raises(ValueError, match="another training"), only_writer(tmp_path):
        pass
    with only_writer(tmp_path):
        pass
