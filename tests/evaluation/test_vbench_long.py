"""How VBench-Long cuts videos, averages clips and fuses its two consistencies."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_forcing.evaluation.vbench_long import (
    FUSIONS,
    TABLES,
    Fusion,
    average_clips,
    clip_frames,
    clip_seconds,
    fuse,
    map_between,
    split_into_clips,
    video_of_clip,
)


@given(frames=st.integers(1, 2000), length=st.integers(1, 400))
def test_clips_cover_every_frame_and_have_one_length(frames, length):
    clips = split_into_clips(frames, length)
    assert {frame for clip in clips for frame in clip} == set(range(frames))
    assert {len(clip) for clip in clips} == {min(frames, length)}
    assert len(clips) == -(-frames // length)
    assert all(before.stop == after.start for before, after in pairwise(clips[:-1]))


@pytest.mark.parametrize("frames", [949, 957, 960])
def test_a_minute_at_16_fps_is_30_clips(frames):
    clips = split_into_clips(frames, clip_frames(16))
    assert len(clips) == 30
    assert clips[-1] == range(frames - 32, frames)


@pytest.mark.parametrize(("frames", "length"), [(0, 32), (32, 0)])
def test_an_empty_video_or_clip_is_refused(frames, length):
    with pytest.raises(ValueError, match="must be at least 1"):
        split_into_clips(frames, length)


def test_clip_lengths_count_whole_frames_per_second():
    assert [clip_frames(fps) for fps in (16, 23.976, 29.97)] == [32, 46, 58]
    assert clip_frames(8, clip_seconds("human_action", own_videos=False)) == 80
    assert clip_seconds("human_action") == clip_seconds("scene", own_videos=False) == 2
    with pytest.raises(ValueError, match="did you mean 'human_action'"):
        clip_seconds("human_actions")


def test_the_two_averages_agree_for_equal_clip_counts_only():
    equal = average_clips({"a": [0.2, 0.4], "b": [0.8, 1.0]})
    assert equal.videos == pytest.approx(equal.official) == pytest.approx(0.6)
    unequal = average_clips({"a": [0.2, 0.4, 0.6], "b": [1.0]})
    assert unequal.videos == pytest.approx(0.7)
    assert unequal.official == pytest.approx(0.55)
    assert unequal.per_video == pytest.approx({"a": 0.4, "b": 1.0})


@pytest.mark.parametrize("scores", [{}, {"a": [0.5], "b": []}])
def test_averages_need_clips(scores):
    with pytest.raises(ValueError, match="at least one clip of each"):
        average_clips(scores)


def test_clips_belong_to_the_name_before_the_first_underscore():
    assert video_of_clip("out/split_clip/a red ball-0/a red ball-0_012.mp4") == "a red ball-0"
    assert video_of_clip("a_b-0_000.mp4") == video_of_clip("a_c-0_000.mp4")


@pytest.mark.parametrize("dimension", ["subject_consistency", "background_consistency"])
def test_tables_rise_from_0_to_1_in_steps_of_a_hundredth(dimension):
    table = json.loads(TABLES.read_text(encoding="utf-8"))[dimension]
    assert table["keys"] == [step / 100 for step in range(101)]
    values = table["values"]
    assert (values[0], values[-1]) == (0, 1)
    assert all(low < high for low, high in pairwise(values))
    for key, value in zip(table["keys"], values, strict=True):
        assert map_between(dimension, key) == pytest.approx(value)
    assert map_between(dimension, 0.505) == pytest.approx((values[50] + values[51]) / 2)
    assert (map_between(dimension, -0.2), map_between(dimension, 1.1)) == (0, 1)


def test_fusion_weighs_in_clip_and_mapped_scores():
    mapped = map_between("subject_consistency", 0.8)
    assert fuse("subject_consistency", 0.9, 0.8) == 0.9
    assert fuse("subject_consistency", 0.9, 0.8, FUSIONS["dev"]) == pytest.approx((0.9 + mapped) / 2)
    assert fuse("subject_consistency", 0.9, 0.8, Fusion(0.25, 0.75)) == pytest.approx(0.225 + 0.75 * mapped)


@pytest.mark.parametrize("between", [None, 0.0, -0.1])
def test_without_a_clip_to_clip_score_the_in_clip_score_stands_alone(between):
    assert fuse("background_consistency", 0.9, between, FUSIONS["dev"]) == 0.9


def test_only_subject_and_background_have_a_table():
    with pytest.raises(ValueError, match="subject_consistency, background_consistency"):
        fuse("imaging_quality", 0.9, 0.8)
