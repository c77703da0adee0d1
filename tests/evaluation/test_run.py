"""Making and measuring an evaluation: the same numbers however it was stopped, shared out or continued."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from reward_forcing.evaluation import run, set_scores
from reward_forcing.evaluation.clip_scores import measure_clip
from reward_forcing.evaluation.metrics import METRICS, Rhythm
from reward_forcing.evaluation.recipe import claim, read_recipe
from reward_forcing.evaluation.results import EvalResults, read_results
from reward_forcing.evaluation.run import evaluate, plan
from reward_forcing.evaluation.sources import StreamedSource
from reward_forcing.evaluation.suites import PromptSet, Suite, suite_of_folder
from reward_forcing.evaluation.world_suite import held_out_prompts
from reward_forcing.streaming.model_folder import ModelFolder, open_model_folder
from reward_forcing.streaming.pipeline import StreamingVideoPipeline
from reward_forcing.streaming.video_io import VideoWriter, open_writer, read_metadata, read_video

PROMPTS = ("a red ball", "a blue ball", "a green square", "a red square slides")
SUITE = Suite("file", (PromptSet("1s", PROMPTS, 1.0),))


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_scores, "RESAMPLES", 100)


@pytest.fixture(scope="module")
def tiny(tiny_model_folder: Path) -> ModelFolder:
    return open_model_folder(tiny_model_folder)


@pytest.fixture(scope="module")
def whole(tiny: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of 4 clips in blocks of 2 that nothing stopped."""
    out = tmp_path_factory.mktemp("evaluations") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(set_scores, "RESAMPLES", 100)
        assert evaluate(
            SUITE, out, StreamedSource(tiny), name="tiny", seed=5, batch=2, command="rforce eval run", quiet=True
        )
    return out


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("weights were about to be read")

    monkeypatch.setattr(StreamingVideoPipeline, "load", refuse)


def again(out: Path, model: ModelFolder | None, suite: Suite = SUITE, **changes: Any) -> EvalResults | None:
    source = None if model is None else StreamedSource(model)
    return evaluate(suite, out, source, **{"seed": 5, "batch": 2, "quiet": True, **changes})


def records(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "samples").iterdir())}


def stop_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt when `count` records are written and the next one is about to be."""
    write: Callable[..., None] = run.write_settings

    def write_or_stop(path: Path, value: Any) -> None:
        if path.parent.name == "samples" and len(list(path.parent.glob("*.json"))) == count:
            raise KeyboardInterrupt
        write(path, value)

    monkeypatch.setattr(run, "write_settings", write_or_stop)


def test_every_clip_has_a_video_a_record_and_its_place_in_the_results(whole: Path, tiny: ModelFolder) -> None:
    results = read_results(whole)
    assert [sample.prompt for sample in results.samples] == list(PROMPTS)
    assert [sample.seed for sample in results.samples] == [5, 6, 7, 8]
    assert set(records(whole)) == {f"{sample.name}.json" for sample in results.samples}
    for sample in results.samples:
        assert (sample.frames, sample.seconds) == (16, 1)
        assert sample.scores.keys() == METRICS.keys()
        frames, fps = read_video(whole / sample.file)
        assert (frames.shape, fps) == ((16, 3, 32, 32), 16)
        assert read_metadata(whole / sample.file)["title"] == sample.prompt
    (scores,) = results.sets
    assert (scores.name, scores.prompts, scores.seeds_per_prompt, scores.seconds) == ("1s", 4, 1, 1)
    assert scores.scores.keys() == results.samples[0].scores.keys()
    assert {path.name for path in whole.iterdir()} == {"clips", "samples", "recipe.json", "runs.jsonl", "results.json"}


def test_numbers_come_from_the_raw_frames(whole: Path, tiny: ModelFolder) -> None:
    pipeline = StreamingVideoPipeline.load(tiny)
    made = pipeline.generate(PROMPTS[2:], 1.0, seeds=[7, 8])
    frames = (made.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).numpy()
    samples = read_results(whole).samples[2:]
    for clip, sample in zip(frames, samples, strict=True):
        assert sample.scores == measure_clip(clip, Rhythm.of(tiny.geometry)).scores
    decoded = read_video(whole / samples[0].file)[0].permute(0, 2, 3, 1).numpy()
    assert measure_clip(decoded, Rhythm.of(tiny.geometry)).scores != samples[0].scores


def test_the_provenance_tells_how_to_make_it_again(whole: Path, tiny: ModelFolder) -> None:
    origin = read_results(whole).provenance
    assert (origin.model, origin.seed, origin.command, origin.quick) == ("tiny", 5, "rforce eval run", False)
    assert origin.weights is not None
    assert len(origin.weights) == len(origin.prompts) == 64
    assert origin.streaming["sink"] == {"kind": "ema", "frames": 2, "alpha": 0.9}
    assert "torch" in origin.versions
    assert "cores" in origin.machine


@pytest.mark.parametrize("count", [0, 1, 3])
def test_an_interrupted_evaluation_goes_on_to_the_same_bytes(
    whole: Path, tiny: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    with monkeypatch.context() as stopped:
        stop_after(count, stopped)
        with pytest.raises(KeyboardInterrupt):
            again(tmp_path, tiny)
    assert len(records(tmp_path)) == count
    assert not (tmp_path / "results.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "clips").iterdir()}
    streamed: list[list[str]] = []
    stream = StreamingVideoPipeline.stream

    def spy(self: StreamingVideoPipeline, prompt: Any, **how: Any) -> Any:
        streamed.append(list(prompt))
        return stream(self, prompt, **how)

    monkeypatch.setattr(StreamingVideoPipeline, "stream", spy)
    results = again(tmp_path, tiny)
    assert records(tmp_path) == records(whole)
    assert results is not None
    assert (results.sets, results.samples) == (read_results(whole).sets, read_results(whole).samples)
    blocks = [list(PROMPTS[:2]), list(PROMPTS[2:])]
    assert streamed == (blocks if count < 2 else blocks[1:])  # a block that lacks one clip is made as a whole
    done = [tmp_path / sample.file for sample in results.samples[:count]]
    assert all(path.stat().st_mtime_ns == kept[path] for path in done)


def test_a_video_that_was_cut_short_is_made_again(
    whole: Path, tiny: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = VideoWriter.write

    def write_or_stop(self: VideoWriter, frames: torch.Tensor) -> None:
        if self.path.name == "1s-0003-seed8.mp4" and self.frames:
            raise KeyboardInterrupt
        write(self, frames)

    with monkeypatch.context() as stopped:
        stopped.setattr(VideoWriter, "write", write_or_stop)
        with pytest.raises(KeyboardInterrupt):
            again(tmp_path, tiny)
    cut = tmp_path / "clips" / "1s-0003-seed8.mp4"
    assert 0 < len(read_video(cut)[0]) < 16
    assert len(records(tmp_path)) == 2
    assert again(tmp_path, tiny)
    assert records(tmp_path) == records(whole)
    assert len(read_video(cut)[0]) == 16


@pytest.mark.usefixtures("no_weights")
def test_a_finished_evaluation_is_scored_anew_without_weights(whole: Path, tiny: ModelFolder, tmp_path: Path) -> None:
    out = shutil.copytree(whole, tmp_path / "copy")
    (out / "results.json").unlink()
    results = again(out, tiny)
    assert results is not None
    assert results.samples == read_results(whole).samples


def test_a_clip_whose_video_was_deleted_is_made_again(whole: Path, tiny: ModelFolder, tmp_path: Path) -> None:
    out = shutil.copytree(whole, tmp_path / "copy")
    video = next(iter(sorted((out / "clips").iterdir())))
    video.unlink()
    assert again(out, tiny)
    assert video.is_file()
    assert records(out) == records(whole)


def test_shares_add_up_to_the_whole(whole: Path, tiny: ModelFolder, tmp_path: Path) -> None:
    assert again(tmp_path, tiny, share=(1, 2)) is None
    assert sorted(records(tmp_path)) == sorted(records(whole))[2:]
    assert again(tmp_path, tiny, share=(0, 2)) is not None
    assert records(tmp_path) == records(whole)
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 2


OTHER_PROMPTS = Suite("file", (PromptSet("1s", ("a blue ball", *PROMPTS[1:]), 1.0),))
LONGER = Suite("file", (PromptSet("1s", PROMPTS, 1.5),))


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 6}, "seed: 5 -> 6"),
        ({"batch": 4}, "batch: 2 -> 4"),
        ({"suite": OTHER_PROMPTS}, r"prompts: \w{12}\.\.\. -> \w{12}\.\.\."),
        ({"suite": LONGER}, "sets.1s: 4 clips of 4 prompts, 1 s -> 4 clips of 4 prompts, 1.5 s"),
        ({"suite": SUITE.quick()}, "quick: False -> True"),
    ],
)
def test_another_recipe_is_refused_before_weights_load(
    whole: Path, tiny: ModelFolder, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=rf"an evaluation of another recipe \({message}\); use another folder"):
        again(whole, tiny, **changes)


def test_of_two_recipes_that_begin_in_one_folder_one_is_refused(
    tiny: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second begins while the first has made clips and recorded none."""
    generate, others = run.__dict__["_generated"], []

    def generate_late(*args: Any) -> Any:
        if not others:
            others.append(read_recipe(tmp_path, run.Recipe).model_copy(update={"seed": 6}))
            claim(tmp_path, others[0])
        return generate(*args)

    monkeypatch.setattr(run, "_generated", generate_late)
    results = again(tmp_path, tiny)
    assert results is not None
    assert min(sample.seed for sample in results.samples) == 5
    with pytest.raises(ValueError, match=r"another recipe \(seed: 5 -> 6\)"):
        claim(tmp_path, others[0])


@pytest.mark.usefixtures("no_weights")
def test_another_model_or_method_is_refused_by_name(whole: Path, tiny: ModelFolder, tmp_path: Path) -> None:
    changed = open_model_folder(tiny.path, changes=["sink.alpha=0.5"])
    with pytest.raises(ValueError, match=r"\(streaming.sink.alpha: 0.9 -> 0.5\)"):
        again(whole, changed)
    other = shutil.copytree(tiny.path, tmp_path / "other")
    weights = other / "transformer" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"\(weights: \w{12}\.\.\. -> \w{12}\.\.\.\)"):
        again(whole, open_model_folder(other))


def test_a_folder_with_other_results_is_left_alone(tiny: ModelFolder, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds a results.json of something else"):
        again(tmp_path, tiny)
    assert (tmp_path / "results.json").read_text() == "{}"


def test_blocks_hold_as_much_video_however_long_the_clips_are(tiny: ModelFolder) -> None:
    sets = [PromptSet(f"{length}s", ("a",) * 10, length, seeds=2) for length in (1, 5, 20, 60)]
    sizes = {one.name: [] for one in sets}
    for block in plan(Suite("file", tuple(sets)), StreamedSource(tiny), batch=8):
        sizes[block.prompts.name].append(len(block.samples))
    assert sizes == {"1s": [8, 8, 4], "5s": [8, 8, 4], "20s": [2] * 10, "60s": [1] * 20}


def test_prompts_with_a_known_scene_are_judged(tiny: ModelFolder, tmp_path: Path) -> None:
    truth = tuple(held_out_prompts(2))
    prompts = PromptSet("short", tuple(prompt.text for prompt in truth), 1.0, truth=truth)
    results = evaluate(Suite("mini", (prompts,)), tmp_path, StreamedSource(tiny), quiet=True)
    assert results is not None
    for sample in results.samples:
        assert {"motion", "moves", "aligned"} <= sample.right.keys()
        assert sample.right["aligned"] == all(right for name, right in sample.right.items() if name != "aligned")
        assert "kind" in sample.seen
    assert results.sets[0].scores["aligned"].kind == "rate"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two stills and a moving picture made elsewhere, of two prompts."""
    videos = tmp_path / "videos"
    for name, moving in (("a.mp4", False), ("b.mp4", True), ("c.gif", False)):
        frames = torch.zeros(32, 3, 32, 32)
        for t in range(32):
            frames[t, 0, 8:20, (t // 2 if moving else 4) : (t // 2 if moving else 4) + 12] = 1
        with open_writer(videos / name, 16, (32, 32)) as writer:
            writer.write(frames)
    (videos / "prompts.json").write_text(json.dumps({"a.mp4": "a still", "b.mp4": "it moves", "c.gif": "a still"}))
    return videos


@pytest.mark.usefixtures("no_weights")
def test_a_folder_of_videos_is_measured_where_it_lies(folder: Path, tmp_path: Path) -> None:
    results = evaluate(suite_of_folder(folder), tmp_path / "out", quiet=True)
    assert results is not None
    found = {Path(sample.file).name: sample for sample in results.samples}
    for name, moves in (("a.mp4", 0.0), ("b.mp4", 1.0), ("c.gif", 0.0)):
        assert (tmp_path / "out" / found[name].file).samefile(folder / name)
        assert found[name].scores["flow_moves"] == moves
        assert (found[name].frames, found[name].seconds) == (32, pytest.approx(2, abs=0.05))
    assert (found["c.gif"].prompt_index, found["c.gif"].seed) == (found["a.mp4"].prompt_index, 1)
    assert (results.provenance.weights, results.provenance.streaming) == (None, {})
    assert (results.sets[0].prompts, results.sets[0].seeds_per_prompt) == (2, 2)


def test_a_video_that_was_replaced_is_another_recipe(folder: Path, tmp_path: Path) -> None:
    assert evaluate(suite_of_folder(folder), tmp_path / "out", quiet=True)
    shutil.copy(folder / "b.mp4", folder / "a.mp4")
    with pytest.raises(ValueError, match=r"\(videos: \w{12}\.\.\. -> \w{12}\.\.\.\)"):
        evaluate(suite_of_folder(folder), tmp_path / "out", quiet=True)


def test_a_suite_gets_a_model_exactly_if_it_needs_one(folder: Path, tiny: ModelFolder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="takes no model"):
        evaluate(suite_of_folder(folder), tmp_path / "out", StreamedSource(tiny))
    with pytest.raises(ValueError, match="needs a model"):
        evaluate(SUITE, tmp_path / "out")
    with pytest.raises(ValueError, match="share i of n"):
        evaluate(SUITE, tmp_path / "out", StreamedSource(tiny), share=(2, 2))
    assert not (tmp_path / "out").exists()
