"""The trainer's laws: resumed = uninterrupted, accumulated = one batch, and a bad update harms nothing."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import build, config, learned, part

from reward_forcing.logs import JsonLines
from reward_forcing.training.checkpoint import Checkpoints
from reward_forcing.training.trainer import Outcome, Trainer


def run(out: Path, **changes: Any) -> Outcome:
    return Trainer(build(**changes), out).run()


def assert_identical(a: Any, b: Any, where: str = "") -> None:
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_identical(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_identical(x, y, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("stop_in", [0, 3])
def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_one(tmp_path, monkeypatch, optimizer, stop_in):
    schedule = {"warm_up_steps": 2, "decay": "cosine", "decay_fraction": 0.5}
    settings: dict[str, Any] = {"optimizer": optimizer, "learning_rate": schedule}
    run(tmp_path / "whole", **settings)
    monkeypatch.setenv("TOY_KILL", f"student {stop_in}")
    assert run(tmp_path / "halves", **settings) == Outcome(stop_in + 1, signal.SIGTERM)
    assert run(tmp_path / "halves", **settings) == Outcome(6)
    assert_identical(learned(tmp_path / "halves"), learned(tmp_path / "whole"))
    exported = [torch.load(tmp_path / name / "final" / "student.pt") for name in ("whole", "halves")]
    assert_identical(*exported)


def test_a_longer_run_continues_a_finished_one_as_if_it_had_never_ended(tmp_path):
    run(tmp_path / "whole", steps=8)
    run(tmp_path / "parts", steps=4)
    run(tmp_path / "parts", steps=8, log_every=1, save_every=3)
    assert_identical(learned(tmp_path / "parts"), learned(tmp_path / "whole"))


def test_the_interrupting_signal_saves_and_gives_the_old_handlers_back(tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    monkeypatch.setenv("TOY_KILL", "student 3")
    monkeypatch.setenv("TOY_SIGNAL", str(int(signal.SIGINT)))
    assert run(tmp_path, save_every=None) == Outcome(4, signal.SIGINT)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [4]
    assert not (tmp_path / "final").exists()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_finished_run_says_so_and_trains_no_more(tmp_path, capsys):
    run(tmp_path)
    newest = Checkpoints(tmp_path / "checkpoints").path(6)
    written = newest.stat().st_mtime_ns
    assert run(tmp_path) == Outcome(6)
    assert newest.stat().st_mtime_ns == written
    assert len(JsonLines(tmp_path / "log.jsonl").rows()) == 3


def test_a_run_killed_before_its_export_exports_when_started_again(tmp_path):
    run(tmp_path, steps=4)
    run(tmp_path, steps=6)
    exported = (tmp_path / "final" / "student.pt").read_bytes()
    (tmp_path / "final" / "student.pt").write_bytes(b"of the shorter run")
    (tmp_path / "finished.json").write_text(json.dumps({"steps": 4}))
    assert run(tmp_path, steps=6) == Outcome(6)
    assert (tmp_path / "final" / "student.pt").read_bytes() == exported


def test_the_export_holds_the_averaged_weights_and_training_goes_on_with_its_own(tmp_path):
    run(tmp_path, sample_every=2)
    state = learned(tmp_path)
    exported = torch.load(tmp_path / "final" / "student.pt")
    for name, average in part(state, "student.average").items():
        assert torch.equal(exported[name], average)
        assert name == "unused" or not torch.equal(exported[name], state[f"student.network.{name}"])
    run(tmp_path.with_name("plain"), sample_every=None)
    assert_identical(learned(tmp_path), learned(tmp_path.with_name("plain")))


def test_accumulating_shards_equals_one_big_batch(tmp_path):
    run(tmp_path / "one", optimizer="adamw", accumulate=1)
    run(tmp_path / "four", optimizer="adamw", accumulate=4)
    one, four = (part(learned(tmp_path / name), "student.network") for name in ("one", "four"))
    for name in one:
        torch.testing.assert_close(one[name], four[name], atol=1e-5, rtol=1e-4)
    losses = [[row["student/loss"] for row in JsonLines(tmp_path / n / "log.jsonl").rows()] for n in ("one", "four")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_batch_that_the_shards_do_not_divide_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="batch size 8 does not divide into 3 shards"):
        run(tmp_path, accumulate=3)


def test_training_lowers_the_loss_in_both_precisions(tmp_path):
    for precision in ("fp32", "bf16"):
        out = tmp_path / precision
        run(out, steps=60, log_every=10, save_every=None, precision=precision)
        rows = JsonLines(out / "log.jsonl").rows()
        assert rows[-1]["student/loss"] < 0.5 * rows[0]["student/loss"]
        assert all(t.dtype == torch.float32 for t in part(learned(out), "student.network").values())


def test_other_settings_in_the_same_folder_are_an_error_naming_the_keys(tmp_path):
    run(tmp_path)
    with pytest.raises(ValueError, match=r"train.clip_norm: 1.0 there, 2.0 here"):
        run(tmp_path, clip_norm=2.0)
    with pytest.raises(ValueError, match=r"batch_size: 8 there, 16 here"):
        run(tmp_path, batch_size=16, steps=10)


def test_a_run_from_before_a_setting_existed_continues_with_its_default(tmp_path):
    run(tmp_path, steps=3)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    values = checkpoints.read(checkpoints.path(3))
    del values["settings"]["nan_until"]
    checkpoints.save(3, {k: v for k, v in learned(tmp_path).items() if k != "counts"}, values)
    assert run(tmp_path, steps=6) == Outcome(6)


def test_a_non_finite_update_is_skipped_and_counted(tmp_path):
    run(tmp_path, nan_from=2, nan_until=4, log_every=1)
    rows = JsonLines(tmp_path / "log.jsonl").rows()
    assert [row.get("skipped", 0) for row in rows] == [0, 0, 1, 2, 2, 2]
    assert "student/loss" not in rows[2]
    assert all(t.isfinite().all() for t in part(learned(tmp_path), "student.network").values())
    assert part(learned(tmp_path), "student.optimizer.2.weight").keys() == {"momentum"}


def test_a_skipped_update_leaves_weights_optimizer_and_average_alone(tmp_path):
    run(tmp_path, steps=3)
    before = learned(tmp_path)
    run(tmp_path.with_name("bad"), steps=5, nan_from=3)
    after = learned(tmp_path.with_name("bad"))
    assert after["counts"]["student"] == before["counts"]["student"] | {"skipped": 2}
    assert_identical(part(before, "student"), part(after, "student"))


def test_too_many_non_finite_updates_in_a_row_end_the_run_with_a_clear_error(tmp_path):
    with pytest.raises(
        ValueError, match=r"student met 3 non-finite updates in a row up to step 4.*gradient of 0\.weight"
    ):
        run(tmp_path, nan_from=2, nonfinite_limit=3)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [2, 4]


def test_roles_are_updated_when_the_stage_says_so(tmp_path):
    run(tmp_path, steps=5)
    state = learned(tmp_path)
    steps = {role: state[f"{role}.optimizer.0.weight.step"].item() for role in ("student", "critic")}
    assert steps == {"student": 5, "critic": 3}


def test_a_parameter_that_no_loss_uses_stays_as_it_is(tmp_path):
    run(tmp_path)
    assert learned(tmp_path)["student.network.unused"].tolist() == [1.0, 1.0]


def test_the_log_of_an_interrupted_run_has_each_step_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_KILL", "student 4")
    run(tmp_path, log_every=1)
    shutil.rmtree(Checkpoints(tmp_path / "checkpoints").path(5))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "torn')
    monkeypatch.delenv("TOY_KILL")
    run(tmp_path, log_every=1)
    assert [row["step"] for row in JsonLines(tmp_path / "log.jsonl").rows()] == [1, 2, 3, 4, 5, 6]


def test_the_log_has_losses_rates_norms_and_the_time_of_each_part(tmp_path):
    run(tmp_path, steps=2)
    (row,) = JsonLines(tmp_path / "log.jsonl").rows()
    expected = {"step", "wall", "cpu", "steps_per_second", "student/lr", "student/loss", "student/grad_norm"}
    times = {f"time/{part}" for part in ("data", "forward", "backward", "optimizer", "communication")}
    assert expected | times | {"student/shift", "critic/loss"} <= row.keys()


def test_samples_are_grids_with_a_clip_per_row(tmp_path):
    from PIL import Image

    run(tmp_path, sample_every=3)
    names = sorted(p.name for p in (tmp_path / "samples").iterdir())
    assert names == ["step_00000003_clips.png", "step_00000006_clips.png"]
    assert Image.open(tmp_path / "samples" / names[0]).size == (3 * 5, 2 * 4)
    validation = [row for row in JsonLines(tmp_path / "log.jsonl").rows() if "validation/weight" in row]
    assert [row["step"] for row in validation] == [3, 6]


@pytest.mark.parametrize(
    ("key", "role", "message"),
    [("optimizers", "studnt", "did you mean 'student'"), ("ema", "teacher", "unknown role 'teacher'")],
)
def test_settings_for_a_role_that_does_not_exist_are_an_error(tmp_path, key, role, message):
    value = config()["train"][key]
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **{key: value | {role: next(iter(value.values()))}})


def test_a_role_without_an_optimizer_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no entry for role 'critic'"):
        run(tmp_path, optimizers={"student": {"kind": "adamw", "lr": 0.1}})
