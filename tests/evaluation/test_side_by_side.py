"""The parts of a comparison: where panels stand, what is written above them, and what is measured."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reward_forcing.data.scenes import Scene, render
from reward_forcing.evaluation.matching import Form
from reward_forcing.evaluation.metrics import METRICS, Rhythm
from reward_forcing.evaluation.side_by_side.columns import Wanted
from reward_forcing.evaluation.side_by_side.measures import measure_column, truths_of
from reward_forcing.evaluation.side_by_side.panels import STRIP, Grid, write_side_by_side
from reward_forcing.streaming.video_io import open_writer, read_video

FORM = Form(height=64, width=64, fps=16)
RED = Scene("slide", colour="red", direction="right", background="blue")
SAID = "a red ball moves to the right on a blue background"
BLUE = "a green ball moves to the right on a blue background"


def wanted(seconds: float = 1, **changes: object) -> Wanted:
    return Wanted.model_validate({"prompt": SAID, "seconds": seconds, "seed": 0, "form": FORM, **changes})


@pytest.mark.parametrize(
    ("count", "size", "places"),
    [
        (1, (384, 384), (1, 1)),
        (2, (384, 384), (1, 2)),
        (3, (384, 384), (1, 3)),
        (4, (384, 384), (2, 2)),
        (5, (384, 384), (2, 3)),
        (9, (384, 384), (2, 5)),
        (4, (480, 832), (2, 2)),
        (3, (832, 480), (1, 3)),
    ],
)
def test_panels_stand_in_a_grid_near_sixteen_to_nine(
    count: int, size: tuple[int, int], places: tuple[int, int]
) -> None:
    grid = Grid.of(count, *size)
    assert (grid.rows, grid.columns) == places
    corners = [grid.place(number) for number in range(count)]
    height, width = grid.size
    taken = np.zeros((height, width), int)
    for top, left in corners:
        taken[top - STRIP : top + size[0], left : left + size[1]] += 1
    assert taken.sum() == count * (size[0] + STRIP) * size[1], "a panel or its strip is cut"
    assert taken.max() == 1, "panels overlap"


def flat(path: Path, level: float, frames: int) -> Path:
    """A clip of one grey."""
    with open_writer(path, 16, (64, 64)) as writer:
        writer.write(torch.full((frames, 3, 64, 64), level))
    return path


def test_every_clip_stands_under_its_name_and_a_shorter_one_turns_dark(tmp_path: Path) -> None:
    clips = [("one", flat(tmp_path / "a.mp4", 0.8, 16)), ("a longer name", flat(tmp_path / "b.mp4", 0.4, 8))]
    write_side_by_side(tmp_path / "all.mp4", tmp_path / "sheet.png", clips, wanted())
    frames, fps = read_video(tmp_path / "all.mp4")
    grid = Grid.of(2, 384, 384)
    assert (frames.shape, fps) == ((16, 3, *grid.size), 16)
    pixels = frames.permute(0, 2, 3, 1).numpy().astype(int)
    for number, levels in ((0, (204, 204)), (1, (102, 102 * 0.35))):
        top, left = grid.place(number)
        inside = pixels[:, top + 8 : top + 376, left + 8 : left + 376]
        for frame, level in zip((inside[0], inside[-1]), levels, strict=True):
            assert abs(frame.mean() - level) < 3
        strip = pixels[0, top - STRIP : top, left : left + 384]
        assert strip.max() > 200, "no name is written"
        assert strip[:, 300:].max() < 100, "a short name reaches the end of its strip"
    widths = [np.flatnonzero(pixels[0, t - STRIP : t, le : le + 384].max((0, 2)) > 150)[-1] for t, le in
              (grid.place(0), grid.place(1))]  # fmt: skip
    assert widths[1] > 2 * widths[0]
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape[1] >= 2 * grid.size[1]


def test_names_and_prompts_of_any_length_stay_within_their_strips(tmp_path: Path) -> None:
    clips = [("x" * 400, flat(tmp_path / "a.mp4", 0.0, 16))]
    write_side_by_side(tmp_path / "all.mp4", tmp_path / "sheet.png", clips, wanted(prompt="a very red ball " * 40))
    frame = read_video(tmp_path / "all.mp4")[0][0].permute(1, 2, 0).numpy()
    assert frame[:, -7:].max() < 60
    assert frame[:STRIP, :-60].max() > 150
    assert frame[STRIP : 2 * STRIP].max() > 200


def test_a_later_prompt_is_shown_from_its_time_on(tmp_path: Path) -> None:
    clips = [("one", flat(tmp_path / "a.mp4", 0.5, 32))]
    write_side_by_side(tmp_path / "all.mp4", tmp_path / "sheet.png", clips, wanted(2, at=((1.5, BLUE),)))
    head = read_video(tmp_path / "all.mp4")[0][:, :, :STRIP, :300].int()
    assert (head[23] - head[16]).abs().float().mean() < 1
    assert (head[24] - head[23]).abs().float().mean() > 2


def test_a_clip_that_shows_what_its_prompt_names_is_aligned_and_moves() -> None:
    clip = render(RED, 80)
    measures = measure_column(clip, Rhythm(), wanted(5))
    (judged,) = measures.judged
    assert all(judged.right.values())
    assert {"colour", "direction", "background"} <= judged.right.keys()
    assert judged.motion == pytest.approx(1, abs=0.1)
    assert measures.scores["flicker"] == METRICS["flicker"].function(clip, Rhythm()).score
    still = measure_column(np.repeat(clip[:1], 80, axis=0), Rhythm(), wanted(5))
    assert not still.judged[0].right["moves"]
    assert still.judged[0].motion < 0.1
    assert still.scores["flow_dynamic_degree"] < 0.1 * measures.scores["flow_dynamic_degree"]


def test_each_prompt_is_judged_on_frames_of_its_own() -> None:
    before, after = render(RED, 80), render(replace(RED, colour="green"), 80, start=80)
    late = np.concatenate([before, render(RED, 32, start=80), after[32:]])  # followed two seconds late
    for clip, right in ((np.concatenate([before, after]), True), (late, True), (np.concatenate([before] * 2), False)):
        first, second = measure_column(clip, Rhythm(), wanted(10, at=((5.0, BLUE),))).judged
        assert first.right["colour"]
        assert second.right["colour"] == right


def test_drift_is_measured_where_there_are_two_segments() -> None:
    clip = render(RED, 80)
    faded = np.stack([(frame * (1 - n / 160)).astype(np.uint8) for n, frame in enumerate(clip)])
    measures = measure_column(faded, Rhythm(), wanted(5))
    assert measures.drift["contrast"].slope < -50
    assert measures.drift["contrast"].drift > 1
    assert measure_column(clip[:20], Rhythm(), wanted(1.25)).drift == {}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompt": "two people in love"}, "names no scene of the world"),
        ({"at": ((1.0, "two people in love"),)}, "names no scene of the world"),
        ({"form": Form(height=64, width=96, fps=16)}, "square clips at 16 frames per second alone, not at 96x64 at 16"),
        ({"form": Form(height=64, width=64, fps=24)}, "square clips at 16 frames per second alone"),
    ],
)
def test_what_cannot_be_judged_says_why(changes: dict[str, object], reason: str) -> None:
    told = truths_of(wanted(2, **changes))
    assert isinstance(told, str)
    assert reason in told
