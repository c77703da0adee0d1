"""Every example runs as its first lines say."""

import re
import shlex
from pathlib import Path

import pytest

from reward_forcing.cli.main import main
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
