"""A folder of videos under a suite's prompts and seeds, so that it pairs with what a model makes of them."""

import re
from pathlib import Path

import pytest
import torch

from reward_forcing.evaluation import set_scores
from reward_forcing.evaluation.matching import Form
from reward_forcing.evaluation.paired import pair
from reward_forcing.evaluation.run import evaluate
from reward_forcing.evaluation.sources import StreamedSource
from reward_forcing.evaluation.suites import PromptSet, Suite
from reward_forcing.evaluation.video_source import VideoSource, videos_for
from reward_forcing.streaming.model_folder import open_model_folder
from reward_forcing.streaming.video_io import open_writer

PROMPTS = ("a red ball", "a blue ball")
SUITE = Suite("file", (PromptSet("0.5s", PROMPTS, 0.5), PromptSet("1s", PROMPTS, 1.0)))


def write(file: Path, frames: int, fps: float, level: float, title: str) -> None:
    with open_writer(file, fps, (32, 48), title=title) as writer:
        writer.write(torch.full((frames, 3, 32, 48), level))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two videos of each prompt, one of them short, and one that nobody asks for."""
    place = tmp_path / "theirs"
    place.mkdir()
    for number, prompt in enumerate(("A red  ball", "a blue ball")):
        write(place / f"{number}-a.mp4", 24, 24, 0.2 + 0.1 * number, prompt)
        write(place / f"{number}-b.mp4", 12, 24, 0.6 + 0.1 * number, prompt)
    write(place / "other.mp4", 3, 8, 0.5, "a green square")
    return place


def level(source: VideoSource, prompt: str, seed: int, seconds: float) -> float:
    (chunk,) = source.chunks(None, [prompt], [seed], seconds)
    assert chunk.frames.shape == (1, round(24 * seconds), 3, 32, 48)
    return chunk.frames.float().mean().item() / 255


def test_a_prompts_clips_are_its_videos_that_last_long_enough(folder: Path) -> None:
    source = videos_for(SUITE, folder)
    assert source.fps == 24
    assert level(source, PROMPTS[0], 5, 0.5) == pytest.approx(0.6, abs=0.02)
    assert level(source, PROMPTS[0], 5, 1.0) == pytest.approx(0.2, abs=0.02)
    assert level(source, PROMPTS[1], 6, 1.0) == pytest.approx(0.3, abs=0.02)


def test_further_seeds_are_further_videos(folder: Path) -> None:
    several = PromptSet("0.5s", PROMPTS, 0.5, seeds=2)
    source = videos_for(Suite("file", (several,)), folder)
    levels = [level(source, PROMPTS[1], seed, 0.5) for seed in several.seeds_of(1, 7)]
    assert levels == pytest.approx([0.7, 0.3], abs=0.02)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ((PromptSet("1s", ("a red ball", "a pink ball"), 1),), "has 0 videos of at least 1 s of the prompt 'a pink"),
        ((PromptSet("1s", PROMPTS, 1, seeds=2),), "of the prompt 'a red ball'; set '1s' needs 2"),
        ((PromptSet("s", ("a red ball", "a green square"), 0.3),), "other.mp4' has 8 frames per second"),
    ],
)
def test_what_is_missing_is_told_before_anything_is_measured(
    folder: Path, sets: tuple[PromptSet, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        videos_for(Suite("file", sets), folder)


def test_videos_pair_with_a_models_clips(
    folder: Path, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(set_scores, "RESAMPLES", 100)
    suite, form = Suite("file", SUITE.sets[:1]), Form(height=32, width=32, fps=16)
    how = {"seed": 3, "form": form, "quiet": True}
    theirs = evaluate(suite, tmp_path / "a", videos_for(suite, folder), **how)
    ours = evaluate(suite, tmp_path / "b", StreamedSource(open_model_folder(tiny_model_folder)), **how)
    assert theirs is not None
    assert ours is not None
    rows = {row.measure: row for row in pair(ours, theirs)}
    assert rows["sharpness"].clips == 2
    assert theirs.provenance.weights is None
    assert [sample.frames for sample in theirs.samples] == [12, 12]
