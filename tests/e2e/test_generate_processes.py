"""`torchrun -m reward_forcing generate`, and a decoder on a device of its own, as a user calls them."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from commands import rforce
from processes import as_torchrun_starts

from reward_forcing.cli.main import main
from reward_forcing.streaming.acceleration import Acceleration
from reward_forcing.streaming.video_io import read_metadata, read_video

PROMPT = "a red ball bounces"

pytestmark = pytest.mark.usefixtures("workplace")


@pytest.fixture
def wanted(tiny_model_folder: Path) -> list[str]:
    at = ["--at", "0.5s: a blue ball", "--switch", "recache"]
    return ["generate", PROMPT, "--model", str(tiny_model_folder), "--seconds", "1.2", *at, "--scale", "1", "--json"]


def test_two_processes_write_one_file_the_video_of_one(wanted: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    def run() -> None:
        main(wanted)

    assert as_torchrun_starts(2, run) == [0, 0]
    sys.stdout.flush()
    report = json.loads(capfd.readouterr().out)  # one process speaks
    assert [path.name for path in Path().iterdir()] == [report["path"]]
    assert rforce(*wanted, "--seed", report["seed"], "--out", "alone.mp4") == 0
    together, alone = (read_video(path)[0].float() for path in (report["path"], "alone.mp4"))
    assert together.shape == alone.shape
    # of 255, after H.264; another seed is at 40. Some CPUs round a token's part otherwise than the whole (3 was seen).
    assert (together - alone).abs().mean() < 10
    assert read_metadata(report["path"])["comment"].endswith(f"seed {report['seed']}")


def test_the_first_process_plans_for_all(wanted: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the memory that is free had been enough for the first one only, or had changed between two looks at it."""
    planned = Acceleration(offload_blocks=1, decode_frames=1)

    def plan(*_: object) -> Acceleration:
        assert os.environ["RANK"] == "0"
        return planned

    def load(_: Path, how: Acceleration, **__: object) -> None:
        Path(f"{os.environ['RANK']}.json").write_text(how.model_dump_json())
        dist.barrier()
        raise SystemExit(0)

    monkeypatch.setattr("reward_forcing.cli.memory.acceleration_for", plan)
    monkeypatch.setattr("reward_forcing.streaming.pipeline.load_accelerated", load)
    assert as_torchrun_starts(2, lambda: main(wanted)) == [0, 0]
    assert {Path(f"{rank}.json").read_text() for rank in range(2)} == {planned.model_dump_json()}


def test_what_ends_the_first_process_ends_the_others(wanted: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    Path("there.mp4").touch()

    def run() -> None:
        main([*wanted, "--out", "there.mp4"])

    first, other = as_torchrun_starts(2, run)
    assert first == 2
    assert other == 1
    assert "there.mp4" in capfd.readouterr().err


def test_a_decoder_on_a_device_of_its_own_makes_the_same_video(wanted: list[str]) -> None:
    for out, options in (("a", ()), ("b", ("--decoder-device", "cpu"))):
        assert rforce(*wanted, "--seed", "1", "--out", out, *options) == 0
    assert read_video("a")[0].equal(read_video("b")[0])


def test_a_device_that_is_not_there_is_refused(wanted: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert rforce(*wanted, "--decoder-device", "cuda:99") == 2
    assert "unknown device 'cuda:99'" in capsys.readouterr().err
