"""`rforce generate` and `rforce schedule` as a user calls them."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import rforce
from PIL import Image

from reward_forcing.cli.generate import parse_size
from reward_forcing.rollout import SWITCHES
from reward_forcing.streaming import pipeline as pipeline_module
from reward_forcing.streaming.methods import METHODS
from reward_forcing.streaming.video_io import read_metadata, read_video

PROMPT = "a red ball bounces"


pytestmark = pytest.mark.usefixtures("workplace")


@pytest.fixture
def tiny(tiny_model_folder: Path) -> tuple[str, ...]:
    return ("--model", str(tiny_model_folder))


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm", "clip.gif", "clip"])
def test_a_prompt_becomes_a_video_in_every_format(
    tiny: tuple[str, ...], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rforce("generate", PROMPT, *tiny, "--seconds", "0.5", "--seed", "7", "--out", name, "--scale", "2") == 0
    frames, fps = read_video(name)
    assert frames.shape == (8, 3, 64, 64)
    assert fps == pytest.approx(16, abs=0.7)  # a .gif counts in hundredths of a second
    text = capsys.readouterr().out
    assert text.startswith(name)
    for part in ("8 frames", "seed 7", "32x32, enlarged 2 times", "fps", "text encoding", "VAE decoding"):
        assert part in text


def test_json_is_one_object_and_nothing_else(tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    at = ("--at", "0.5s: a blue ball", "--at", "0.3s: a green ball")
    assert rforce("generate", PROMPT, *tiny, "--seconds", "1", *at, "--seed", "3", "--out", "a.mp4", "--json") == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert (report["path"], report["seed"], report["frames"], report["seconds"]) == ("a.mp4", 3, 16, 1.0)
    assert report["prompts"] == [
        {"at": 0.0, "prompt": PROMPT},
        {"at": 0.3, "prompt": "a green ball"},
        {"at": 0.5, "prompt": "a blue ball"},
    ]
    assert report["scale"] == 12
    assert report["speed"]["fps"] > 0
    assert report["speed"]["stage_seconds"].keys() == {"text", "dit", "commit", "decode"}


def test_a_tiny_decoder_makes_other_frames_and_is_named_wherever_the_video_is_told_of(
    tiny: tuple[str, ...], tiny_decoder_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = ("generate", PROMPT, *tiny, "--seconds", "0.5", "--seed", "7", "--out")
    decoder = ("--decoder", str(tiny_decoder_file))
    assert rforce(*how, "a.mp4") == 0
    assert "tiny decoder" not in capsys.readouterr().out
    assert rforce(*how, "b.mp4", *decoder) == 0
    assert "frames of a tiny decoder, not the VAE's" in capsys.readouterr().out
    assert not read_video("a.mp4")[0].equal(read_video("b.mp4")[0])
    assert read_metadata("b.mp4")["comment"].endswith("seed 7, tiny decoder taetiny.pth")
    assert rforce(*how, "c.mp4", *decoder, "--json") == 0
    assert json.loads(capsys.readouterr().out)["decoder"] == str(tiny_decoder_file)


def test_a_seed_is_drawn_and_told_and_repeats_the_video(
    tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert rforce("generate", PROMPT, *tiny, "--seconds", "0.3", "--json") == 0
    first = json.loads(capsys.readouterr().out)
    assert first["path"] == f"a-red-ball-bounces-{first['seed']}.mp4"
    assert rforce("generate", PROMPT, *tiny, "--seconds", "0.3", "--json", "--seed", str(first["seed"])) == 0
    second = json.loads(capsys.readouterr().out)
    assert second["path"] == f"a-red-ball-bounces-{first['seed']}-2.mp4"
    assert read_video(first["path"])[0].equal(read_video(second["path"])[0])
    assert read_metadata(first["path"])["title"] == PROMPT
    assert f"seed {first['seed']}" in read_metadata(first["path"])["comment"]


def test_a_size_can_be_asked_for(tiny: tuple[str, ...]) -> None:
    assert rforce("generate", PROMPT, *tiny, "--seconds", "0.3", "--size", "64x48", "--scale", "1", "--out", "a") == 0
    assert read_video("a")[0].shape == (5, 3, 48, 64)


def test_unknown_words_bring_a_note_and_still_a_video(
    tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert rforce("generate", "a red dragon", *tiny, "--seconds", "0.3", "--out", "a.mp4", "--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["frames"] == 5
    assert "note: this model does not know 'dragon'" in captured.err
    assert "It can show balls and squares" in captured.err


README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for line in README.splitlines() if line.startswith("rforce generate") and not line.endswith("\\")]


@pytest.mark.parametrize("line", [line for line in COMMANDS if "--endless" not in line])
def test_the_readmes_videos_can_be_made(line: str, tiny: tuple[str, ...], workplace: Path) -> None:
    Image.new("RGB", (96, 64), "red").save("photo.png")
    assert rforce(*shlex.split(line, comments=True)[1:], *tiny, "--out", "readme.mp4") == 0
    assert len(read_video("readme.mp4")[0]) >= 80


def test_the_readmes_own_sink_policy_runs(tiny: tuple[str, ...], workplace: Path) -> None:
    code, command = re.search(r"```python\n(# newest\.py:  rforce (.+?)\n.+?)```", README, re.DOTALL).groups()  # pyright: ignore[reportOptionalMemberAccess]
    (workplace / "newest.py").write_text(code)
    arguments = [*shlex.split(command), *tiny, "--set", "sink.frames=1", "--seconds", "3", "--out", "a.mp4"]
    assert rforce(*arguments) == 0
    assert len(read_video("a.mp4")[0]) == 48


@pytest.mark.parametrize(
    "changes",
    [
        ("--switch", "recache"),
        ("--switch", "blend", "--set", "switch.chunks=2"),
        ("--set", "switch={kind: reset}"),
        ("--switch", "flush"),
        ("--switch", "cut", "--set", "switch.frames=4"),
    ],
    ids=" ".join,
)
def test_a_switch_policy_can_be_asked_for(tiny: tuple[str, ...], changes: tuple[str, ...]) -> None:
    common = ("generate", PROMPT, *tiny, "--seconds", "1.3", "--seed", "3", "--at", "0.5s: a blue square slides")
    assert rforce(*common, "--out", "kept", "--switch", "keep") == 0
    assert rforce(*common, "--out", "changed", *changes) == 0
    kept, changed = read_video("kept")[0], read_video("changed")[0]
    assert kept[:13].equal(changed[:13])
    assert not kept[13:].equal(changed[13:])


BAD = [
    (["  "], "the prompt must say something"),
    ([PROMPT, "--seconds", "0"], "--seconds must be positive and finite, got 0"),
    ([PROMPT, "--seconds", "-2"], "--seconds must be positive and finite, got -2"),
    ([PROMPT, "--seconds", "nan"], "--seconds must be positive and finite, got nan"),
    ([PROMPT, "--seconds", "inf"], "use --endless"),
    ([PROMPT, "--seconds", "2", "--endless"], "give either --seconds or --endless"),
    ([PROMPT, "--at", "a blue ball"], "expected TIME: PROMPT, such as '5s: a blue ball'"),
    ([PROMPT, "--at", "0s: a blue ball"], "positive time in seconds"),
    ([PROMPT, "--at", "9s: a blue ball"], "would never be shown"),
    ([PROMPT, "--at", "1s: a ball", "--at", "1: a square"], "two prompts are to begin at 1 s"),
    ([PROMPT, "--seed", "-1"], "seeds must be"),
    ([PROMPT, "--size", "64"], "--size must be WIDTHxHEIGHT"),
    ([PROMPT, "--size", "64x50"], "height must be a positive multiple of 16, got 50; nearest: 48 or 64"),
    ([PROMPT, "--size", "0x32"], "width must be a positive multiple of 16, got 0"),
    ([PROMPT, "--scale", "0"], "--scale must be a whole number of at least 1"),
    ([PROMPT, "--method", "selff"], "unknown method 'selff'; did you mean 'self'?"),
    ([PROMPT, "--set", "sink.alpa=0.9"], "unknown setting 'alpa'; did you mean 'alpha'?"),
    ([PROMPT, "--set", "sink"], "override 'sink' must have the form group.name=value"),
    ([PROMPT, "--set", "sink.kind=nowhere:Sink"], "cannot import the sink 'nowhere:Sink'"),
    ([PROMPT, "--switch", "recash"], "unknown switch policy 'recash'; did you mean 'recache'?"),
    ([PROMPT, "--switch", "reset", "--set", "switch.chunks=2"], "unknown setting 'chunks'"),
    ([PROMPT, "--set", "window_frames=1"], "window_frames=1 cannot hold"),
    ([PROMPT, "--model", "no-such-model"], "no file, folder or bundled model 'no-such-model'"),
    ([PROMPT, "--model", "./nowhere/at/all"], "no file, folder or bundled model"),
    ([PROMPT, "--out", "clip.mp5"], "unknown video format '.mp5'; did you mean '.mp4'?"),
    ([PROMPT, "--out", "there.mp4"], "there.mp4 exists; choose another name, such as there-2.mp4"),
    ([PROMPT, "--out", "there.mp4/clip.mp4"], "is not a folder"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_is_one_line_before_any_weights_load(
    tiny: tuple[str, ...],
    workplace: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_weights(*_: object) -> None:
        raise AssertionError("weights were about to be read")

    monkeypatch.setattr(pipeline_module.StreamingVideoPipeline, "load", no_weights)
    (workplace / "there.mp4").write_bytes(b"kept")
    model = () if "--model" in arguments else tiny
    assert rforce("generate", *arguments, *model) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert (workplace / "there.mp4").read_bytes() == b"kept"
    assert [path.name for path in workplace.iterdir()] == ["there.mp4"]


@pytest.mark.parametrize(
    "part", ["model_index.json", "vae/config.json", "transformer/diffusion_pytorch_model.safetensors"]
)
def test_a_folder_that_is_not_whole_is_bad_input(
    tiny_model_folder: Path, workplace: Path, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_model_folder, workplace / "copy")
    (workplace / "copy" / part).unlink()
    assert rforce("generate", PROMPT, "--model", "copy") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "copy" in error


def start(*arguments: str) -> "subprocess.Popen[str]":
    """The command in a process of its own."""
    # a test run in the background ignores Ctrl-C, and its children would inherit that
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from reward_forcing.cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "generate", PROMPT, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def wait_for_bytes(path: Path, count: int, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 300
    while not (path.exists() and path.stat().st_size >= count):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "nothing was written"
        time.sleep(0.05)


def test_an_endless_video_stops_at_ctrl_c_and_plays(tiny: tuple[str, ...], workplace: Path) -> None:
    process = start(*tiny, "--endless", "--out", "endless.mp4", "--json")
    wait_for_bytes(workplace / "endless.mp4", 50_000, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    report = json.loads(out)
    assert report["interrupted"]
    assert len(read_video("endless.mp4")[0]) == report["frames"] > 16


def test_a_killed_video_plays(tiny: tuple[str, ...], workplace: Path) -> None:
    process = start(*tiny, "--endless", "--out", "killed.mp4")
    wait_for_bytes(workplace / "killed.mp4", 50_000, process)
    process.kill()
    process.communicate()
    assert len(read_video("killed.mp4")[0]) >= 8


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        ("reward", ["937.5", "ema of 3 latent frames, alpha 0.999", "relative", "9 latent frames"]),
        ("self", ["none", "absolute", "21 latent frames"]),
        ("longlive", ["static of 3 latent frames", "12 latent frames", "recache, global_sink True, order joint"]),
        ("longlive-infinity", ["static of 3 latent frames", "12 latent frames", "relative"]),
        ("rolling", ["5 chunks denoised together", "static of 3 latent frames", "21 latent frames, sink and chunks"]),
        ("causvid", ["21 latent frames, each repeating the last 3", "none", "521.7", "chunk included"]),
        ("rolling-sink", ["rolling of 15 latent frames", "21 latent frames", "relative"]),
        ("deep-forcing", ["static of 10 latent frames", "21 latent frames", "relative"]),
        ("infinity-rope", ["static of 1 latent frames", "relative", "flush, frames 1"]),
    ],
)
def test_a_schedule_is_drawn_with_what_attention_sees(
    method: str, parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert rforce("schedule", method, "--chunks", "2") == 0
    text = capsys.readouterr().out
    assert all(part in text for part in parts)


@pytest.mark.parametrize(
    ("method", "row"),
    [
        ("reward", ["1", ".", ".", ".", ".", "1000.0", "937.5", "833.3", "625.0"]),
        ("rolling", ["1", ".", "1000.0", "952.4", "882.4", "769.2", "555.6"]),
    ],
)
def test_a_schedule_draws_its_chunks_from_first_to_last_pass(
    method: str, row: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert rforce("schedule", method, "--chunks", "2") == 0
    assert capsys.readouterr().out.splitlines()[2].split() == row


@pytest.mark.parametrize("method", ["rolling", "causvid", "rolling-sink", "deep-forcing", "infinity-rope"])
def test_a_method_that_the_weights_do_not_know_streams_with_a_note(
    tiny: tuple[str, ...], method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rforce("generate", PROMPT, *tiny, "--method", method, "--seconds", "1", "--out", "a.mp4", "--json") == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert (report["method"], report["frames"]) == (method, 16)
    note = f"note: this model's weights were trained for the method 'reward', not for '{method}'"
    assert captured.err.splitlines() == [note]


def test_a_video_without_clean_passes_is_called_so(tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (*tiny, "--seconds", "1", "--set", "clean_pass=false", "--out", "a.mp4")
    assert rforce("generate", PROMPT, *arguments) == 0
    captured = capsys.readouterr()
    assert "method reward without clean passes, seed" in captured.out
    assert "note: clean_pass=false: finished chunks enter the cache as their last denoising pass" in captured.err
    assert read_metadata("a.mp4")["comment"].endswith("without clean passes")
    assert rforce("schedule", "--set", "clean_pass=false") == 0
    assert "the last fills the cache: no clean pass" in capsys.readouterr().out


def test_every_method_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert rforce("schedule", "--list") == 0
    *lines, blank, policies = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(METHODS)
    assert (blank, policies) == ("", f"switch policies: {', '.join(SWITCHES)}")
    assert lines[0].endswith(
        "4 steps; window 9; sink ema of 3 latent frames, alpha 0.999; positions relative; switch keep"
    )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["rewards"], "did you mean 'reward'?"),
        (["reward", "--set", "schedule=roling"], "schedule: unknown schedule 'roling'; did you mean 'rolling'?"),
        (["reward", "--set", "schedule=os:getcwd"], "schedule: 'os:getcwd' is not a schedule; write it as"),
        (["reward", "--set", "window_frames=4"], "window_frames=4 cannot hold 3 sink frames and a chunk of 3"),
    ],
)
def test_an_unknown_schedule_is_bad_input(asked: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert rforce("schedule", *asked) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_size_is_written_width_first() -> None:
    assert parse_size("832x480") == (480, 832)
