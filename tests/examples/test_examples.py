"""Every example runs as its first lines say."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from laws.policies import Way, begin_alike, finish_once_and_in_order, hold_no_more, ignore_the_batch

from reward_forcing.cli.main import main
from reward_forcing.config import variant_class
from reward_forcing.rollout import SINKS, SWITCHES, CacheSettings, Sink, SwitchPolicy
from reward_forcing.streaming.pipeline import StreamingVideoPipeline
from reward_forcing.streaming.video_io import read_video

FOLDER = Path(__file__).parents[2] / "examples"
COMMANDS = {path.stem: re.findall(r"rforce (.+)", path.read_text(encoding="utf-8")) for path in FOLDER.glob("*.py")}


@pytest.mark.parametrize(
    ("name", "command"), [(name, line) for name, commands in sorted(COMMANDS.items()) for line in commands]
)
def test_an_examples_command_makes_a_video(
    name: str, command: str, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(FOLDER)
    out = str(tmp_path / f"{name}.mp4")
    with pytest.raises(SystemExit) as stop:
        main([*shlex.split(command), "--model", str(tiny_model_folder), "--seconds", "4", "--out", out])
    assert not stop.value.code
    assert len(read_video(out)[0]) == 64


def test_every_example_says_how_to_run_it() -> None:
    assert COMMANDS
    assert all(COMMANDS.values()), COMMANDS


def test_a_soft_cut_leaves_what_the_sink_holds(tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    settings = ["switch.kind=soft_cut:SoftCut"]
    pipeline = StreamingVideoPipeline.from_pretrained(tiny_model_folder, settings=settings, device="cpu")
    stream = pipeline.stream("a red ball bounces", at={1.0: "a blue ball slides"})
    seen = []
    for _ in range(5):
        next(stream)
        cache = stream.rollout.state.cache  # what the chunk was generated with
        seen.append((cache.sink_frames, cache.frames - cache.sink_frames))
    assert seen == [(0, 0), (2, 0), (2, 2), (2, 0), (2, 2)]


def test_an_anchored_sink_keeps_its_first_frame_and_holds_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    policy = variant_class("sink", "anchored_sink:AnchoredSink", Sink, SINKS)(frames=3)
    frames = torch.arange(8.0).view(1, 1, 8, 1, 1, 1)
    sink = policy.absorb(frames[:, :, :3], frames[:, :, 3:4], slot=0)
    assert sink.flatten().tolist() == [0, 2, 3]
    assert policy.absorb(sink, frames[:, :, 4:], slot=1).flatten().tolist() == [0, 6, 7]


def test_a_thrifty_schedule_leaves_out_the_second_step_after_the_first_chunk(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    with pytest.raises(SystemExit):
        main(["schedule", "reward", "--set", "schedule=thrifty:thrifty", "--chunks", "2"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:3]]
    assert rows == [
        ["0", "1000.0", "937.5", "833.3", "625.0", ".", ".", "."],
        ["1", ".", ".", ".", ".", "1000.0", "833.3", "625.0"],
    ]


@pytest.mark.parametrize(
    "policy", [{"schedule": "thrifty:thrifty"}, {"sink": "anchored_sink:AnchoredSink"}, {"switch": "soft_cut:SoftCut"}]
)
def test_examples_keep_the_laws_of_registered_policies(policy: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    sink = variant_class("sink", policy.get("sink", "static"), Sink, SINKS)(frames=3)
    switch = variant_class("switch policy", policy.get("switch", "keep"), SwitchPolicy, SWITCHES)()
    cache = CacheSettings(window_frames=8, chunk_frames=2, sink=sink)
    way = Way(policy.get("schedule", "chunkwise"), (1.0, 0.6, 0.3), cache, switch)
    finish_once_and_in_order(way, 8, {5})
    begin_alike(way, 8, 2, {5})
    ignore_the_batch(way, 8, {5})
    hold_no_more(way, every=3)
