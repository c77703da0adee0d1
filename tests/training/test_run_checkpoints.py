"""Checkpoints survive crashes and damage, fit any number of processes, and know whose settings they are."""

import os
import pickle
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import in_processes
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from reward_forcing.processes import World
from reward_forcing.training import checkpoint
from reward_forcing.training.checkpoint import MANIFEST, Checkpoints, check_same_settings, only_writer
from reward_forcing.training.stored_tensors import INDEX


def tensors(step: int) -> dict[str, Tensor]:
    return {"a.weights": torch.full((1000,), float(step)), "a.step": torch.tensor(step)}


def values(step: int) -> dict[str, Any]:
    return {"step": step, "nested": [{"lr": 0.1, "none": None}], "third": 1 / 3}


def save(checkpoints: Checkpoints, step: int) -> None:
    checkpoints.save(step, tensors(step), values(step))


def loaded(checkpoints: Checkpoints) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The newest checkpoint's values and whole tensors."""
    found = checkpoints.newest()
    assert found is not None
    room = {name: torch.zeros_like(tensor, device="cpu") for name, tensor in checkpoints.stored(found[0]).items()}
    checkpoints.load(found[0], room)
    return found[1], room


@pytest.mark.parametrize("background", [False, True])
def test_a_checkpoint_comes_back_as_it_was_when_it_was_saved(tmp_path, background):
    checkpoints = Checkpoints(tmp_path / "checkpoints", background=background)
    kept = tensors(3)
    checkpoints.save(3, kept, values(3))
    if background:
        kept["a.weights"].zero_()  # training goes on
    checkpoints.wait()
    found, stored = loaded(checkpoints)
    assert found == values(3)
    assert stored.keys() == tensors(3).keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in tensors(3).items())
    assert checkpoints.steps() == [3]


def test_the_newest_and_the_milestones_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, keep_every=4)
    for step in range(1, 11):
        save(checkpoints, step)
    assert checkpoints.steps() == [4, 8, 9, 10]
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"step_{n:08d}" for n in (4, 8, 9, 10)]


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize(
    "moment", ["among the tensors", "before the manifest", "before the rename", "after the rename"]
)
def test_kill_9_during_a_save_leaves_a_usable_run(tmp_path, monkeypatch, moment, background):
    save(Checkpoints(tmp_path), 1)
    child = os.fork()
    if child == 0:
        checkpoints = Checkpoints(tmp_path, keep=1, background=background)
        die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
        if moment == "among the tensors":
            monkeypatch.setattr(
                checkpoint, "write_tensors", lambda to, *_: ((to / "__0_0.distcp").write_bytes(b"h"), die())
            )
        elif moment == "before the manifest":
            monkeypatch.setattr(checkpoint, "_write_sealed", die)
        elif moment == "before the rename":
            monkeypatch.setattr(os, "rename", die)
        else:
            monkeypatch.setattr(shutil, "rmtree", die)
        try:
            save(checkpoints, 2)
            checkpoints.wait()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    checkpoints = Checkpoints(tmp_path, keep=1)
    survivor = 2 if moment == "after the rename" else 1
    found, stored = loaded(checkpoints)
    assert found["step"] == survivor
    assert torch.equal(stored["a.weights"], torch.full((1000,), float(survivor)))
    save(checkpoints, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000003"]


def test_kill_9_of_one_of_two_saving_processes_leaves_a_usable_run(tmp_path, monkeypatch):
    def save_and_die(world: World) -> None:
        checkpoints = Checkpoints(tmp_path / "run", world=world, background=True)
        save(checkpoints, 1)
        checkpoints.wait()
        if world.rank == 1:
            monkeypatch.setattr(checkpoint, "files_hash", lambda _: os.kill(os.getpid(), signal.SIGKILL))
        save(checkpoints, 2)
        checkpoints.wait()

    with pytest.raises(AssertionError, match=rf"\[1, -{int(signal.SIGKILL)}\]"):
        in_processes(2, tmp_path, save_and_die)
    found, stored = loaded(Checkpoints(tmp_path / "run"))
    assert found["step"] == 1
    assert torch.equal(stored["a.weights"], torch.full((1000,), 1.0))


def test_training_goes_on_while_a_checkpoint_is_written_and_the_next_one_waits(tmp_path, monkeypatch):
    may_write, written = threading.Event(), []
    original = checkpoint.write_tensors
    monkeypatch.setattr(
        checkpoint, "write_tensors", lambda to, *rest: (may_write.wait(), original(to, *rest), written.append(to.name))
    )
    checkpoints = Checkpoints(tmp_path, background=True)
    save(checkpoints, 1)
    assert checkpoints.steps() == []
    threading.Timer(0.2, may_write.set).start()
    save(checkpoints, 2)
    assert checkpoints.steps()[0] == 1
    checkpoints.wait()
    assert written == [".step_00000001.tmp", ".step_00000002.tmp"]


def test_what_goes_wrong_in_the_background_is_told(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, background=True)
    monkeypatch.setattr(checkpoint, "files_hash", lambda _: 1 / 0)
    save(checkpoints, 1)
    with pytest.raises(ZeroDivisionError):
        save(checkpoints, 2)


def damage(path: Path, kind: str) -> None:
    """Harm a checkpoint whose tensors are those of step 2."""
    (file,) = path.glob("*.distcp")
    data = bytearray(file.read_bytes())
    middle = data.index(torch.full((1000,), 2.0).numpy().tobytes()) + 2000
    data[middle] ^= 1
    match kind:
        case "cut":
            file.write_bytes(data[:middle])
        case "flip":
            file.write_bytes(data)
        case "missing":
            file.unlink()
        case "index":
            (path / INDEX).write_bytes((path / INDEX).read_bytes()[:-1] + b"?")
        case "values":
            (path / MANIFEST).write_text((path / MANIFEST).read_text().replace('"step": 2', '"step": 3'))
        case "text":
            (path / MANIFEST).write_bytes(b"\xff")


@pytest.mark.parametrize("kind", ["cut", "flip", "missing", "index", "values", "text"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_with_a_warning(tmp_path, capsys, kind):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        save(checkpoints, step)
    damage(checkpoints.path(2), kind)
    checkpoint.console.cache_clear()
    assert loaded(checkpoints)[0]["step"] == 1
    assert "step_00000002 is damaged" in capsys.readouterr().err
    assert checkpoints.steps() == [1]


def test_a_run_whose_every_checkpoint_is_damaged_does_not_start_over(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    (checkpoints.path(1) / MANIFEST).write_bytes(b"")
    with pytest.raises(ValueError, match="every checkpoint"):
        checkpoints.newest()


def test_a_run_of_an_older_version_does_not_start_over(tmp_path):
    (tmp_path / "step_00000100.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="of an older version"):
        Checkpoints(tmp_path).newest()


def test_code_in_an_index_of_tensors_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return os.system, ("touch harmed",)

    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    (checkpoints.path(1) / INDEX).write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(pickle.UnpicklingError, match="may not hold"):
        checkpoints.stored(checkpoints.path(1))


@pytest.mark.parametrize("background", [False, True])
def test_what_some_processes_saved_others_load(tmp_path, background):
    """Rows of an odd matrix are shared by two processes, then by three, then held by one."""
    whole = torch.arange(15.0).view(5, 3)

    def shared(world: World, content: Tensor) -> dict[str, Tensor]:
        mesh = init_device_mesh("cpu", (world.size,))
        return {"a.whole": content.clone(), "a.rows": distribute_tensor(content, mesh, [Shard(0)])}

    def write(world: World) -> None:
        checkpoints = Checkpoints(tmp_path / "run", world=world, background=background)
        checkpoints.save(7, shared(world, whole), {"step": 7})
        checkpoints.wait()

    def read(world: World) -> None:
        checkpoints = Checkpoints(tmp_path / "run", world=world)
        room = shared(world, torch.zeros(5, 3))
        checkpoints.load(checkpoints.path(7), room)
        rows = room["a.rows"]
        assert isinstance(rows, DTensor)
        assert torch.equal(rows.full_tensor(), whole)
        assert torch.equal(room["a.whole"], whole)

    in_processes(2, tmp_path, write)
    in_processes(3, tmp_path, read)
    found, stored = loaded(Checkpoints(tmp_path / "run"))
    assert found == {"step": 7}
    assert torch.equal(stored["a.rows"], whole)
    size = sum(file.stat().st_size for file in (tmp_path / "run/step_00000007").glob("*.distcp"))
    assert size < 6000, "each number is stored once"


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
