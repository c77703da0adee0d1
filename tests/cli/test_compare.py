"""`rforce compare` as a user calls it."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import rforce
from evaluation.tiny_pipelines import write_pipeline

from reward_forcing.cli.sources import form_of, parse_named
from reward_forcing.evaluation.diffusers_source import PipelineSource, open_pipeline
from reward_forcing.evaluation.side_by_side import comparison
from reward_forcing.streaming.methods import METHODS
from reward_forcing.streaming.pipeline import StreamingVideoPipeline
from reward_forcing.streaming.video_io import open_writer, read_metadata, read_video

PROMPT = "a red ball bounces"
FAST = ("num_inference_steps=2", "height=32", "width=32", "max_sequence_length=16")


pytestmark = pytest.mark.usefixtures("workplace")


@pytest.fixture
def tiny(tiny_model_folder: Path) -> tuple[str, ...]:
    return ("--models", f"tiny={tiny_model_folder}", "--seconds", "1", "--seed", "3")


@pytest.fixture(scope="module")
def every_method(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of every method there is."""
    out = tmp_path_factory.mktemp("compare") / "all"
    models = ("--models", f"tiny={tiny_model_folder}")
    assert rforce("compare", PROMPT, *models, "--seconds", 1, "--seed", 3, "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipeline(tmp_path_factory.mktemp("pipelines") / "wan", "WanPipeline")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two videos of 48x32 at 24 frames per second, one of them of the prompt, for half a second."""
    folder = tmp_path_factory.mktemp("videos")
    for name, title in (("a.mp4", "another prompt"), ("b.mp4", f"A {PROMPT[2:]} ")):
        with open_writer(folder / name, 24, (32, 48), title=title) as writer:
            writer.write(torch.rand(12, 3, 32, 48, generator=torch.Generator().manual_seed(0)))
    return folder


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What weights are read of, from now on."""
    read: list[object] = []
    load = StreamingVideoPipeline.load

    def spy(folder: object, **more: bool) -> StreamingVideoPipeline:
        read.append(folder)
        return load(folder, **more)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(StreamingVideoPipeline, "load", spy)
    return read


def results(out: Path) -> dict[str, Any]:
    """The columns of a comparison, by name."""
    return {column["name"]: column for column in json.loads((out / "results.json").read_text())["columns"]}


def test_every_method_is_a_column_of_the_video_and_of_the_table(every_method: Path) -> None:
    assert list(results(every_method)) == list(METHODS)
    names = {"clips", "samples", "recipe.json", "results.json", "side_by_side.mp4", "sheet.png", "table.md"}
    assert {path.name for path in every_method.iterdir()} == names
    frames, fps = read_video(every_method / "side_by_side.mp4")
    assert (len(frames), fps) == (16, 16)
    assert frames.shape[3] > len(METHODS) * 384 or frames.shape[2] > 2 * 384
    lines = (every_method / "table.md").read_text().splitlines()
    assert f'"{PROMPT}": 1 s, seed 3, measured at 32x32 at 16 frames per second.' in lines
    assert f"|  | unit | {' | '.join(METHODS)} |" in lines
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in lines if line.startswith("|")}
    assert [float(cell) for cell in rows["speed"][1:]] == pytest.approx(
        [column["speed"]["fps"] for column in results(every_method).values()], abs=0.06
    )  # fmt: skip
    assert {"length", "speed", "first frames after", "flicker", "drift of sharpness", "aligned"} <= rows.keys()
    assert all(cell.strip() != "-" for cell in rows["aligned"])
    assert lines[-1].startswith("`rforce")  # with what was typed, which a test in this process has not been


def test_methods_see_the_same_noise_and_make_what_generate_makes(every_method: Path, tiny_model_folder: Path) -> None:
    clips = {name: read_video(every_method / "clips" / f"{name}.mp4")[0] for name in ("reward", "self", "longlive")}
    first = clips["self"][:5]  # of the first chunk, which has no past
    assert all(clip[:5].equal(first) for clip in clips.values())
    settings = {name: column["made_with"]["settings"] for name, column in results(every_method).items()}
    assert {name: one["method"] for name, one in settings.items()} == {name: name for name in METHODS}
    generate = ("generate", PROMPT, "--model", tiny_model_folder, "--seconds", 1, "--seed", 3, "--method", "self")
    assert rforce(*generate, "--out", "self.mp4") == 0
    assert read_video("self.mp4")[0].equal(clips["self"])
    assert read_metadata(every_method / "clips" / "self.mp4")["title"] == PROMPT


def test_the_same_command_keeps_what_is_made_and_makes_what_is_not(
    every_method: Path, tiny: tuple[str, ...], loads: list[object], workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(every_method, "out")
    kept = {path: path.stat().st_mtime_ns for path in (workplace / "out" / "clips").iterdir()}
    assert rforce("compare", PROMPT, *tiny, "--out", "out") == 0
    assert loads == []
    assert results(workplace / "out") == results(every_method)
    (workplace / "out" / "clips" / "self.mp4").unlink()
    (workplace / "out" / "samples" / "longlive.json").unlink()
    assert rforce("compare", PROMPT, *tiny, "--out", "out") == 0
    assert len(loads) == 1  # methods of one model share its weights
    changed = {path.stem for path, time in kept.items() if path.stat().st_mtime_ns != time}
    assert changed == {"self", "longlive"}
    capsys.readouterr()
    more = ("--methods", "self,wide=self", "--set", "wide.window_frames=30", "--json")
    assert rforce("compare", PROMPT, *tiny, "--out", "out", *more) == 0
    told = json.loads(capsys.readouterr().out)
    assert [column["name"] for column in told["columns"]] == ["self", "wide"]
    assert told["columns"][1]["made_with"]["settings"]["window_frames"] == 30
    assert len(loads) == 2


def test_an_interrupted_comparison_goes_on(
    every_method: Path, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, workplace: Path
) -> None:
    measure = comparison.measure_column
    measured: list[int] = []

    def stop(*arguments: object) -> object:
        if measured:
            raise KeyboardInterrupt
        measured.append(1)
        return measure(*arguments)  # pyright: ignore[reportArgumentType]

    with monkeypatch.context() as stopped:
        stopped.setattr(comparison, "measure_column", stop)
        assert rforce("compare", PROMPT, *tiny, "--out", "out") == 130
    assert not (workplace / "out" / "results.json").exists()
    assert [path.stem for path in (workplace / "out" / "samples").iterdir()] == [next(iter(METHODS))]
    assert rforce("compare", PROMPT, *tiny, "--out", "out") == 0
    for name, column in results(workplace / "out").items():
        assert column["measures"] == results(every_method)[name]["measures"]


def test_a_pipeline_and_a_folder_of_videos_stand_beside_methods(
    tiny: tuple[str, ...], wan: Path, videos: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [part for setting in FAST for part in ("--set", f"wan.{setting}")]
    others = ("--pipeline", f"wan={wan}", *own, "--folder", f"theirs={videos}")
    assert rforce("compare", PROMPT, *tiny, "--methods", "self", *others, "--out", "out") == 0
    columns = results(workplace / "out")
    assert list(columns) == ["self", "wan", "theirs"]
    assert columns["theirs"]["speed"] is None
    assert (columns["theirs"]["frames"], columns["theirs"]["fps"], columns["theirs"]["width"]) == (12, 24, 48)
    assert (workplace / "out" / str(columns["theirs"]["file"])).resolve() == (videos / "b.mp4").resolve()
    assert columns["wan"]["made_with"]["settings"]["call"]["num_inference_steps"] == 2
    source = open_pipeline(wan, FAST)
    (chunk,) = source.chunks(source.load(), [PROMPT], [3], 1)
    clip = read_video(workplace / "out" / "clips" / "wan.mp4")[0]
    assert len(clip) == chunk.frames.shape[1] == 16
    middle = clip[:, :, 6::12, 6::12].float() / 255
    assert (middle - chunk.frames[0]).abs().mean() < 0.05
    text = capsys.readouterr().out
    speeds = next(line for line in text.splitlines() if line.startswith("speed")).split()
    assert speeds[-1] == "-"
    assert float(speeds[-2]) > 0
    assert len(read_video("out/side_by_side.mp4")[0]) == 16


def test_a_folder_without_the_prompt_is_left_out_and_told(
    tiny: tuple[str, ...], videos: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = ("--methods", "self", "--folder", f"theirs={videos}", "--out", "out")
    assert rforce("compare", "a blue ball", *tiny, *how) == 0
    captured = capsys.readouterr()
    assert "theirs is left out: no video of this prompt" in captured.err
    assert "theirs is left out: no video of this prompt" in captured.out
    assert list(results(workplace / "out")) == ["self"]


def test_a_prompt_changes_in_every_column(tiny: tuple[str, ...], every_method: Path, workplace: Path) -> None:
    assert rforce("compare", PROMPT, *tiny, "--at", "0.5s: a blue square slides", "--out", "out") == 0
    for name in METHODS:
        switched, same = (read_video(out / "clips" / f"{name}.mp4")[0] for out in (workplace / "out", every_method))
        assert switched[:8].equal(same[:8])
        assert not switched[13:].equal(same[13:])
    assert 'then "a blue square slides" at 0.5 s' in (workplace / "out" / "table.md").read_text()


def test_several_models_are_told_apart_and_brought_to_the_first_ones_form(
    tiny: tuple[str, ...], tiny_model_folder: Path, workplace: Path
) -> None:
    models = ("--models", f"a={tiny_model_folder},b={tiny_model_folder}", "--methods", "self")
    big = ("--set", "b-self.height=48", "--seconds", "1", "--out", "out")
    assert rforce("compare", PROMPT, *models, *big) == 0
    columns = results(workplace / "out")
    assert {name: (one["height"], one["width"]) for name, one in columns.items()} == {
        "a-self": (32, 32),
        "b-self": (48, 32),
    }
    assert json.loads((workplace / "out" / "recipe.json").read_text())["form"]["height"] == 32


def test_a_model_stands_beside_itself_with_a_tiny_decoder(
    tiny_model_folder: Path, tiny_decoder_file: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = ("--models", f"full={tiny_model_folder},fast={tiny_model_folder}", "--methods", "self", "--seconds", "1")
    assert rforce("compare", PROMPT, *models, "--decoder", f"fast={tiny_decoder_file}", "--out", "out") == 0
    assert "fast-self: frames of the tiny decoder taetiny.pth, not the VAE's" in capsys.readouterr().out
    made_with = {name: one["made_with"] for name, one in results(workplace / "out").items()}
    assert made_with["fast-self"]["decoder"] == "taetiny.pth"
    assert "decoder" not in made_with["full-self"]
    clips = [read_video(f"out/clips/{name}.mp4")[0] for name in ("full-self", "fast-self")]
    assert clips[0].shape == clips[1].shape
    assert not clips[0].equal(clips[1])


def test_a_column_without_clean_passes_is_called_so(
    tiny_model_folder: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = ("--models", f"a={tiny_model_folder}", "--methods", "plain=self,quick=self", "--seconds", "1")
    assert rforce("compare", PROMPT, *methods, "--set", "quick.clean_pass=false", "--out", "out") == 0
    said = capsys.readouterr().out
    assert "quick: streamed without clean passes" in said
    assert "plain: streamed without clean passes" not in said


BAD = [
    (["  "], "the prompt must say something"),
    ([PROMPT, "--seconds", "0"], "--seconds must be positive and finite, got 0"),
    ([PROMPT, "--seconds", "nan"], "--seconds must be positive and finite, got nan"),
    ([PROMPT, "--methods", "self,rewards"], "unknown method 'rewards'; did you mean 'reward'?"),
    ([PROMPT, "--methods", "self,self"], "two columns are called 'self'"),
    ([PROMPT, "--methods", "self,a b=self"], "--methods must be NAME=PLACE"),
    ([PROMPT, "--methods", ""], "nothing to compare"),
    ([PROMPT, "--models", "no-such-model"], "no file, folder or bundled model 'no-such-model'"),
    ([PROMPT, "--weights", "tinny=a.pt"], "unknown model 'tinny'; did you mean 'tiny'?"),
    ([PROMPT, "--decoder", "tinny=a.pth"], "unknown model 'tinny'; did you mean 'tiny'?"),
    ([PROMPT, "--decoder", "tiny=nowhere.pth"], "no file, folder or bundled model 'nowhere.pth'"),
    ([PROMPT, "--pipeline", "wan=nowhere"], "no file, folder or bundled model 'nowhere'"),
    ([PROMPT, "--folder", "theirs=nowhere"], "No such file or directory: nowhere"),
    ([PROMPT, "--folder", "theirs=empty"], "holds no videos"),
    ([PROMPT, "--set", "sel.window_frames=9"], "unknown column 'sel'; did you mean 'self'?"),
    ([PROMPT, "--set", "window_frames"], "--set must be COLUMN.setting=value"),
    ([PROMPT, "--set", "self.window_frame=9"], "unknown setting 'window_frame'; did you mean 'window_frames'?"),
    ([PROMPT, "--at", "a ball"], "expected TIME: PROMPT"),
    ([PROMPT, "--at", "9s: a blue ball"], "would never be shown"),
    ([PROMPT, "--at", "0.5s: a blue ball", "--folder", "theirs=VIDEOS"], "leave --at out, or theirs"),
    ([PROMPT, "--size", "64"], "give --size and --fps together"),
    ([PROMPT, "--size", "64x", "--fps", "16"], "--size must be WIDTHxHEIGHT"),
    ([PROMPT, "--size", "64x64", "--fps", "-1"], "greater than 0"),
    ([PROMPT, "--out", "evaluated"], "'evaluated' holds something else than this command makes"),
    ([PROMPT, "--out", "made", "--seed", "4"], "another recipe (seed: 3 -> 4)"),
    (
        [PROMPT, "--out", "made", "--set", "self.window_frames=9"],
        "made otherwise (settings.window_frames: 21 -> 9)",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_is_one_line_before_any_weights_load(
    tiny: tuple[str, ...], every_method: Path, videos: Path, workplace: Path, arguments: list[str], message: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def no_weights(*_: object) -> None:
        raise AssertionError("weights were about to be read")

    monkeypatch.setattr(StreamingVideoPipeline, "load", no_weights)
    monkeypatch.setattr(PipelineSource, "load", no_weights)
    (workplace / "empty").mkdir()
    (workplace / "evaluated").mkdir()
    (workplace / "evaluated" / "recipe.json").write_text('{"suite": "mini"}')
    if "made" in arguments:
        shutil.copytree(every_method, "made")
    out = () if "--out" in arguments else ("--out", "out")
    assert rforce("compare", *tiny, *(one.replace("VIDEOS", str(videos)) for one in arguments), *out) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert not (workplace / "out").exists()


def test_names_come_from_the_place_where_none_is_given() -> None:
    assert parse_named("a=b/c", "--pipeline") == ("a", "b/c")
    assert parse_named("Lightricks/LTX-Video", "--pipeline") == ("LTX-Video", "Lightricks/LTX-Video")
    assert parse_named("models/Wan2.1-T2V/", "--pipeline") == ("Wan2-1-T2V", "models/Wan2.1-T2V/")
    for wrong in ("a=", "=b", "", "a/b=c"):
        with pytest.raises(ValueError, match="--pipeline must be NAME=PLACE"):
            parse_named(wrong, "--pipeline")


def test_a_form_is_written_width_first() -> None:
    form = form_of("832x480", 16)
    assert form is not None
    assert (form.height, form.width, str(form)) == (480, 832, "832x480 at 16")
    assert form_of(None, None) is None
    assert np.prod(form.size) == 832 * 480
