"""`rforce eval run`, `drift` and `compare` as a user calls them."""

import json
from pathlib import Path

import commands
import numpy as np
import pytest
import torch
from evaluation.tiny_pipelines import write_pipeline

from reward_forcing.evaluation import set_scores
from reward_forcing.evaluation.drift import video_drift
from reward_forcing.evaluation.metrics import METRICS, Rhythm
from reward_forcing.evaluation.results import EvalResults, read_results, write_results
from reward_forcing.streaming.pipeline import StreamingVideoPipeline
from reward_forcing.streaming.video_io import open_writer, read_video

PROMPTS = ("a red ball", "a blue ball", "a green square")


def rforce(*arguments: object) -> int:
    """The exit code of `rforce eval *arguments`."""
    return commands.rforce("eval", *arguments)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_scores, "RESAMPLES", 100)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of prompts."""
    folder = tmp_path_factory.mktemp("eval")
    lines = [json.dumps({"prompt": prompt, "seconds": 1}) for prompt in PROMPTS]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def evaluation(place: Path, tiny_model_folder: Path) -> Path:
    """An evaluation of three clips of a second."""
    out = place / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(set_scores, "RESAMPLES", 100)
        assert rforce("run", "--suite", place / "prompts.jsonl", "--model", tiny_model_folder, "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of 12 seconds whose contrast falls, and one that lasts 2 seconds."""
    folder = tmp_path_factory.mktemp("videos")
    bars = (torch.arange(32) // 4 % 2).float().expand(3, 32, 32)
    for name, frames in (("a.mp4", 192), ("b.mp4", 192), ("c.webm", 32)):
        fade = torch.linspace(0.5, 0.2 if name == "a.mp4" else 0.3, frames)[:, None, None, None]
        with open_writer(folder / name, 16, (32, 32), title=name) as writer:
            writer.write(0.5 + fade * (bars - 0.5))
    return folder


def test_a_run_prints_main_scores_with_intervals_and_the_path(
    place: Path, evaluation: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rforce("run", "--suite", place / "prompts.jsonl", "--model", tiny_model_folder, "--out", evaluation) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1s: 3 clips of 3 prompts, 1 s"
    assert lines[-2:] == [str(evaluation / "results.json"), str(evaluation / "report.html")]
    assert (evaluation / "report.html").is_file()
    table = {line.split()[0]: line for line in lines[1:-1]}
    score = read_results(evaluation).sets[0].scores["flicker"]
    assert f"{score.value:.4g}   [{score.low:.4g}, {score.high:.4g}]" in table["flicker"]
    assert table["flicker"].endswith("levels")
    assert " % " in table["flow_moves"]
    assert table["flow_moves"].endswith("of 3 clips")


def test_a_run_takes_a_diffusers_pipeline_in_place_of_a_model(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_pipeline(tmp_path / "wan", "WanPipeline")
    how = [f"--set={one}" for one in ("num_inference_steps=1", "height=32", "width=32", "max_sequence_length=16")]
    arguments = ("--suite", place / "prompts.jsonl", "--pipeline", f"tiny={folder}", *how, "--out", tmp_path / "out")
    assert rforce("run", *arguments, "--prompts", 2, "--size", "16x16", "--fps", 8) == 0
    assert capsys.readouterr().out.startswith("1s: 2 clips of 2 prompts, 1 s\n")
    origin = read_results(tmp_path / "out").provenance
    assert (origin.model, origin.streaming["pipeline"]) == ("tiny", "WanPipeline")
    assert str(origin.form) == "16x16 at 8"


def test_a_run_with_a_tiny_decoder_says_so_wherever_it_tells_of_it(
    place: Path,
    evaluation: Path,
    tmp_path: Path,
    tiny_model_folder: Path,
    tiny_decoder_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ("--suite", place / "prompts.jsonl", "--model", tiny_model_folder, "--decoder", tiny_decoder_file)
    assert rforce("run", *arguments, "--out", tmp_path) == 0
    assert "taetiny.pth: frames of a tiny decoder, not the VAE's" in capsys.readouterr().out
    plain, tiny = read_results(evaluation), read_results(tmp_path)
    assert (plain.provenance.decoder, tiny.provenance.decoder) == (None, "taetiny.pth")
    assert "frames are those of the tiny decoder taetiny.pth" in (tmp_path / "report.html").read_text()
    assert "tiny decoder taetiny.pth" not in (evaluation / "report.html").read_text()
    assert plain.samples[0].scores != tiny.samples[0].scores
    assert rforce("run", *arguments, "--out", evaluation) == 2
    assert "decoder: None -> taetiny.pth" in capsys.readouterr().err


def test_switches_are_judged_with_a_tiny_decoder_too(
    tmp_path: Path, tiny_model_folder: Path, tiny_decoder_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--model", tiny_model_folder, "--prompts", 1, "--sheet", 0, "--out", tmp_path)
    assert rforce("switches", *arguments, "--decoder", tiny_decoder_file) == 0
    assert "taetiny.pth: frames of a tiny decoder, not the VAE's" in capsys.readouterr().out
    assert json.loads((tmp_path / "results.json").read_text())["decoder"] == "taetiny.pth"


def test_switches_are_judged_with_changed_numbers(tmp_path: Path, tiny_model_folder: Path) -> None:
    arguments = ("--model", tiny_model_folder, "--prompts", 1, "--sheet", 0, "--out", tmp_path)
    assert rforce("switches", *arguments, "--set", "denoising_steps=[1000]") == 0
    assert json.loads((tmp_path / "results.json").read_text())["streaming"]["denoising_steps"] == [1000]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pipeline", "a=b", "--model", "mini"], "leave the others out"),
        (["--pipeline", "a=b", "--decoder", "c.pth"], "leave the others out"),
        (["--pipeline", "a=b", "--folder", "c=d"], "leave the others out"),
        (["--folder", "theirs=d", "--set", "fps=8"], "leave the others out"),
        (["--folder", "theirs=nowhere"], "No such file or directory: nowhere"),
        (["--pipeline", "nowhere"], "no file, folder or bundled model 'nowhere'"),
        (["--size", "64x64"], "give --size and --fps together"),
    ],
)
def test_sources_that_exclude_each_other_are_refused(
    place: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rforce("run", "--suite", place / "prompts.jsonl", "--out", tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_as_json_is_the_results_without_the_clips(
    place: Path, evaluation: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--suite", place / "prompts.jsonl", "--model", tiny_model_folder, "--out", evaluation, "--json")
    assert rforce("run", *arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["results"] == str(evaluation / "results.json")
    assert found["sets"] == json.loads((evaluation / "results.json").read_text())["sets"]
    assert "samples" not in found


def test_seeds_prompts_settings_and_shares_are_taken(
    place: Path, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    what = ("--suite", place / "prompts.jsonl", "--model", tiny_model_folder, "--out", tmp_path, "--batch", 2)
    how = ("--prompts", 2, "--seeds", 2, "--seed", 40, "--set", "sink.alpha=0.5", "--method", "reward")
    assert rforce("run", *what, *how, "--share", "1/2") == 0
    assert capsys.readouterr().out == "share 1/2 is done; the results come with the last of 2 shares\n"
    assert rforce("run", *what, *how, "--share", "0/2", "--json") == 0
    results = read_results(tmp_path)
    assert [(sample.prompt, sample.seed) for sample in results.samples] == [
        (PROMPTS[0], 40), (PROMPTS[0], 100_040), (PROMPTS[1], 41), (PROMPTS[1], 100_041),
    ]  # fmt: skip
    assert results.provenance.streaming["sink"]["alpha"] == 0.5
    assert results.provenance.model == str(tiny_model_folder)


def test_a_folder_of_videos_needs_no_model(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.webm").write_bytes((videos / "c.webm").read_bytes())
    (folder / "prompts.txt").write_text("a.webm: bars\nb.webm: more bars")
    assert rforce("run", "--suite", folder, "--out", tmp_path / "out") == 0
    assert "2s: 2 clips of 2 prompts, 2 s" in capsys.readouterr().out
    assert read_results(tmp_path / "out").samples[0].file == "../videos/a.webm"
    assert not read_results(tmp_path / "out").provenance.quick
    assert rforce("run", "--suite", folder, "--out", tmp_path / "quick", "--quick") == 0
    assert read_results(tmp_path / "quick").provenance.quick
    capsys.readouterr()
    assert rforce("run", "--suite", folder, "--out", tmp_path / "out", "--method", "self") == 2
    assert "nothing is generated; leave model, settings and seed out" in capsys.readouterr().err


BAD = [
    (["--suite", "minni"], "no suite 'minni'"),
    (["--suite", "empty.txt"], "holds no prompts"),
    (["--suite", "mini", "--model", "no-such-model"], "no file, folder or bundled model 'no-such-model'"),
    (["--suite", "mini", "--method", "selff"], "unknown method 'selff'; did you mean 'self'?"),
    (["--suite", "mini", "--set", "sink.alpa=0.9"], "unknown setting 'alpa'; did you mean 'alpha'?"),
    (["--suite", "mini", "--share", "2/2"], "--share must be i/n with 0 <= i < n"),
    (["--suite", "mini", "--prompts", "1"], "--prompts"),
    (["--suite", "mini", "--out", "empty.txt"], "empty.txt"),
    (["--suite", "mini", "--out", "other"], "holds a results.json of something else"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_ends_with_2_before_any_weights_load(
    arguments: list[str],
    message: str,
    tiny_model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("weights were about to be read")

    monkeypatch.setattr(StreamingVideoPipeline, "load", refuse)
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("\n")
    Path("other").mkdir()
    Path("other/results.json").write_text("{}")
    given = {"--model": str(tiny_model_folder), "--out": "out"}
    given |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert rforce("run", *[word for pair in given.items() for word in pair]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not Path("out").exists()


def test_the_drift_of_videos_is_that_of_their_frames(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracks = []
    for name in ("a.mp4", "b.mp4"):
        frames, fps = read_video(videos / name)
        values = METRICS["contrast"].function(frames.permute(0, 2, 3, 1).numpy(), Rhythm(fps)).values
        tracks.append(video_drift(values, fps, 3))
    arguments = ("--metric", "contrast", "--segment", 3, "--json")
    assert rforce("drift", videos / "a.mp4", videos / "b.mp4", *arguments) == 0
    found = json.loads(capsys.readouterr().out)["sets"]["videos"]
    assert found["drift"] == pytest.approx(sum(track.drift for track in tracks) / 2)
    assert found["slope"]["value"] == pytest.approx(sum(track.slope for track in tracks) / 2)
    assert found["slope"]["low"] <= found["slope"]["value"] <= found["slope"]["high"] < 0
    assert [seconds for seconds, _ in found["curve"]] == [1.5, 4.5, 7.5, 10.5]


def test_the_drift_of_one_video_has_no_interval_and_a_falling_curve(
    videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rforce("drift", videos / "a.mp4", "--metric", "contrast") == 0
    text = capsys.readouterr().out
    assert "one video, no interval" in text
    marks = [line.index("o", 20) for line in text.splitlines()[4:]]
    assert len(marks) == 6
    assert marks == sorted(marks, reverse=True)
    assert marks[0] > marks[-1]


def test_the_drift_of_an_evaluation_is_the_recorded_one(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rforce("run", "--suite", _folder_of_long(videos, tmp_path), "--out", tmp_path / "out") == 0
    results = read_results(tmp_path / "out")
    assert [one.name for one in results.sets] == ["12s"]
    capsys.readouterr()
    assert rforce("drift", tmp_path / "out", "--metric", "contrast", "--json") == 0
    recorded = json.loads(capsys.readouterr().out)["sets"]["12s"]
    assert recorded == results.sets[0].drift["contrast"].model_dump(mode="json")
    assert rforce("drift", tmp_path / "videos", "--metric", "contrast", "--json") == 0
    measured = json.loads(capsys.readouterr().out)["sets"]["videos"]
    assert (recorded["drift"], recorded["change"]) == pytest.approx((measured["drift"], measured["change"]))
    assert np.array(recorded["curve"]) == pytest.approx(np.array(measured["curve"]))
    assert rforce("drift", tmp_path / "out", "--segment", 3) == 2
    assert "an evaluation holds curves in segments of 2 s" in capsys.readouterr().err


def _folder_of_long(videos: Path, place: Path) -> Path:
    folder = place / "videos"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (folder / name).write_bytes((videos / name).read_bytes())
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.mp4", "--metric", "flicker"], "unknown metric of single frames 'flicker'"),
        (["a.mp4", "--segment", "0"], "--segment must be a positive number"),
        (["a.mp4", "--segment", "12"], "drift needs at least 2 segments"),
        (["nothing.mp4"], "nothing.mp4 does not exist"),
        (["a.mp4", "slow.mp4"], "has 8 frames per second, the first video 16"),
    ],
)
def test_drift_refuses_what_it_cannot_measure(
    videos: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(videos)
    with open_writer("slow.mp4", 8, (32, 32), overwrite=True) as writer:
        writer.write(torch.zeros(64, 3, 32, 32))
    assert rforce("drift", *arguments) == 2
    assert message in capsys.readouterr().err


def _changed(evaluation: Path, out: Path, **by: float) -> Path:
    """An evaluation like another whose scores differ by so much."""
    results = read_results(evaluation)
    samples = [
        sample.model_copy(update={"scores": sample.scores | {name: sample.scores[name] + d for name, d in by.items()}})
        for sample in results.samples
    ]
    out.mkdir()
    write_results(EvalResults.model_validate(results.model_dump() | {"samples": samples}), out)
    return out


def test_a_comparison_tells_difference_wins_and_p(
    evaluation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = _changed(evaluation, tmp_path / "other", flicker=2.0, contrast=-1.0)
    assert rforce("compare", evaluation, other, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["measures"]
    found = {row["measure"]: row for row in rows if row["set"] == "1s"}
    flicker, contrast = found["flicker"], found["contrast"]
    assert flicker["difference"]["value"] == pytest.approx(-2)
    assert (flicker["better"], flicker["win_rate"], contrast["win_rate"]) == ("lower", 1, None)
    assert flicker["p_value"] == pytest.approx(2 / 2**3)
    assert contrast["difference"]["value"] == pytest.approx(1)
    assert found["saturation"]["difference"]["value"] == 0
    assert rforce("compare", evaluation, other, "--set", "1s") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["flicker"])
    assert line.split()[1] == "-2"
    assert "100 %" in line


def test_a_comparison_of_other_seeds_or_sets_is_refused(
    evaluation: Path, place: Path, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    what = ("--suite", place / "prompts.jsonl", "--model", tiny_model_folder, "--out", tmp_path)
    assert rforce("run", *what, "--seed", 3) == 0
    assert rforce("compare", evaluation, tmp_path) == 2
    assert "share fewer than two prompts with the same set and seed" in capsys.readouterr().err
    assert rforce("compare", evaluation, tmp_path, "--set", "short") == 2
    assert "no set 'short' in these results" in capsys.readouterr().err
    assert rforce("compare", evaluation, tmp_path / "nowhere") == 2
    assert "make it with rforce eval run" in capsys.readouterr().err
