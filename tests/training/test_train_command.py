"""`rforce train` as a process: two processes equal one, signals save, kill -9 costs at most the last steps."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from commands import rforce
from toy import build, config, learned, part

from reward_forcing.logs import JsonLines
from reward_forcing.training.checkpoint import Checkpoints
from reward_forcing.training.text_encoder import TextEncoderStage
from reward_forcing.training.trainer import Trainer


@pytest.fixture
def train(tmp_path):
    """A function that runs the command on the toy stage in a process of its own; returns what it printed."""

    def run(out: str, *words: str, expect: int = 0, environment: dict[str, str] | None = None, **changes: Any) -> str:
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config(**changes)))
        here = Path(__file__).parent
        paths = [str(here), *filter(None, [os.environ.get("PYTHONPATH")])]
        done = subprocess.run(
            [sys.executable, here / "run_toy.py", tmp_path / "config.yaml", *words, "--out", tmp_path / out],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"} | (environment or {}),
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.fixture
def one_step(tmp_path):
    """The configuration of a text encoder's training of one step."""
    sizes = {"d_model": 8, "d_kv": 4, "num_heads": 2, "d_ff": 8, "num_layers": 1}
    train = {"steps": 1, "optimizers": {"text_encoder": {"kind": "adamw", "lr": 0.001}}}
    settings = {"stage": "text_encoder", "batch": 2, "model": sizes, "train": train}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "config.yaml"


def test_a_text_encoder_is_written_without_a_progress_bar(one_step, tmp_path, capfd):
    transformers.utils.logging.enable_progress_bar()
    assert rforce("train", one_step, "--out", tmp_path / "run") == 0
    assert (tmp_path / "run/final/text_encoder/model.safetensors").is_file()
    assert "shards" not in capfd.readouterr().err


def test_subnormal_numbers_are_zero_in_training_and_kept_after_it(one_step, tmp_path, monkeypatch):
    loss, seen = TextEncoderStage.loss, []

    def noted(*given):
        seen.append(float(torch.tensor([1e-39]) * 1))
        return loss(*given)

    monkeypatch.setattr(TextEncoderStage, "loss", noted)
    assert rforce("train", one_step, "--out", tmp_path / "run") == 0
    assert seen == [0.0]
    assert float(torch.tensor([1e-39]) * 1) > 0


def test_a_finished_run_and_other_settings_are_told_before_a_network_is_built(one_step, tmp_path, monkeypatch, capfd):
    command = ("train", one_step, "--out", tmp_path / "run")
    assert rforce(*command) == 0
    monkeypatch.setattr(TextEncoderStage, "__init__", lambda *given: pytest.fail("was built"))
    capfd.readouterr()
    assert rforce(*command) == 0
    assert "is finished: 1 steps, weights in" in capfd.readouterr().err
    assert rforce(*command[:2], "batch=4", *command[2:]) == 2
    assert "batch: 2 there, 4 here" in capfd.readouterr().err


def test_an_error_that_can_be_fixed_is_one_line_with_several_processes_too(tmp_path, capfd):
    config = Path(__file__).parents[2] / "configs/train/mini/7_dmd.yaml"
    assert rforce("train", config, "vae=nowhere", "--out", tmp_path / "run", "--processes", "2") == 2
    error = capfd.readouterr().err
    assert "no VAE in 'nowhere'" in error
    assert "Traceback" not in error


def test_two_processes_equal_one_even_when_stopped_by_a_signal_in_between(train, tmp_path):
    Trainer(build(optimizer="adamw"), tmp_path / "one").run()
    stop = {"TOY_KILL": "student 2"}
    printed = train("two", "--processes", "2", expect=128 + signal.SIGTERM, environment=stop, optimizer="adamw")
    assert "the same command continues" in printed
    assert "Traceback" not in printed
    assert Checkpoints(tmp_path / "two" / "checkpoints").steps()[-1] in (3, 4)
    train("two", "--processes", "2", optimizer="adamw")
    one, two = learned(tmp_path / "one"), learned(tmp_path / "two")
    for kind in ("student.network", "student.average"):
        for name, expected in part(one, kind).items():
            torch.testing.assert_close(part(two, kind)[name], expected, atol=1e-5, rtol=1e-4)
    rows = [JsonLines(tmp_path / name / "log.jsonl").rows() for name in ("one", "two")]
    assert rows[0][-1]["student/loss"] == pytest.approx(rows[1][-1]["student/loss"], rel=1e-4)


def test_a_killed_run_continues_to_the_same_end(train, tmp_path):
    Trainer(build(), tmp_path / "whole").run()
    kill = {"TOY_KILL": "student 5", "TOY_SIGNAL": str(int(signal.SIGKILL))}
    train("killed", expect=-signal.SIGKILL, environment=kill)
    assert Checkpoints(tmp_path / "killed" / "checkpoints").steps() == [2, 4]
    assert "continuing after step 4" in train("killed")
    for name, weights in part(learned(tmp_path / "whole"), "student").items():
        assert torch.equal(learned(tmp_path / "killed")[f"student.{name}"], weights), name


def test_sigterm_saves_and_says_how_to_continue(train, tmp_path):
    printed = train("run", expect=128 + signal.SIGTERM, environment={"TOY_KILL": "student 0"}, save_every=None)
    assert "stopped after step 1 and saved; the same command continues from there" in printed
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [1]


def test_a_mistyped_override_is_named_before_any_process_starts(train):
    printed = train("run", "train.stepz=3", "--processes", "2", expect=1)
    assert "did you mean 'steps'" in printed


def test_an_error_in_one_of_several_processes_ends_the_command(train):
    printed = train("run", "nan_from=0", "train.nonfinite_limit=2", "--processes", "2", expect=1)
    assert "2 non-finite updates in a row" in printed
