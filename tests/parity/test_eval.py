"""VBench's arithmetic against the reference functions, run with stand-ins for the networks."""

import re

import numpy as np
import pytest

from reward_forcing.evaluation.drift import segment_drift
from reward_forcing.evaluation.vbench import (
    DIMENSIONS,
    aesthetic_quality,
    consistency,
    imaging_size,
    is_dynamic,
    middle_frames,
    motion_smoothness,
    motion_threshold,
    normalise,
    pairs_to_move,
    strongest_motion,
    temporal_flickering,
    vbench_scores,
)
from reward_forcing.evaluation.vbench_long import (
    FUSIONS,
    average_clips,
    clip_frames,
    fuse,
    map_between,
    split_into_clips,
    video_of_clip,
)
from reward_forcing.evaluation.vbench_objects import colour_score, frame_relation, object_frames, pair_relation

pytestmark = pytest.mark.golden("eval_vbench*")

EXACT = 1e-9
FLOAT32 = 2e-6
"""Agreement where the reference computed in float64, and where in float32."""


def near(value, tolerance=EXACT):
    return pytest.approx(value, abs=tolerance, rel=tolerance)


def numbered(case, pattern):
    """The case's tensors with names like `pattern`, as arrays in the order of the number in their names."""
    found = sorted((int(match[1]), name) for name in case.tensors if (match := re.fullmatch(pattern, name)))
    assert found, f"no tensor named like {pattern}"
    return {number: case.tensors[name].numpy() for number, name in found}


def underscored(by_dimension):
    return {name.replace(" ", "_"): value for name, value in by_dimension.items()}


@pytest.mark.parametrize("dimension", ["subject_consistency", "background_consistency"])
def test_consistency_pooled_over_frames_and_per_video(case, dimension):
    ours, expected = consistency(numbered(case, r"features_(\d+)").values()), case.sidecar[dimension]
    assert ours.pooled == near(expected["all"], FLOAT32)
    assert ours.per_video == near(expected["per_video"], FLOAT32)
    assert ours.mean == near(np.mean(expected["per_video"]), FLOAT32)


def test_flickering(case):
    ours, expected = numbered(case, r"flicker_video_(\d+)_THWC"), case.sidecar["temporal_flickering"]
    scores = [temporal_flickering(frames) for frames in ours.values()]
    assert scores == near(expected["per_video"], FLOAT32)
    assert np.mean(scores) == near(expected["all"], FLOAT32)


def test_smoothness(case):
    frames, expected = numbered(case, r"flicker_video_(\d+)_THWC"), case.sidecar["motion_smoothness"]
    interpolated = numbered(case, r"smooth_interp_(\d+)_THWC")
    scores = [motion_smoothness(frames[video], interpolated[video][1::2]) for video in expected["videos"]]
    assert scores == near(expected["per_video"])


def test_dynamic_degree(case):
    expected = case.sidecar["dynamic_degree"]
    for video in expected["cases"]:
        motions = [strongest_motion(flow) for flow in case.tensors[video["flow"]].numpy()]
        assert motions == near(video["scores"], FLOAT32)
        assert motion_threshold(*video["frame_hw"]) == video["params"]["thres"]
        assert pairs_to_move(video["frames"]) == video["params"]["count_num"]
        assert is_dynamic(motions, *video["frame_hw"]) is video["moved"]
        assert len(motions) + 1 == video["frames"]
    for frames, pairs in case.sidecar["count_num_table"].items():
        assert pairs_to_move(int(frames)) == pairs


def test_aesthetic_quality(case):
    features, weight, bias = (case.tensors[f"aesthetic_{name}"].numpy() for name in ("clip_features", "w", "b"))
    expected = case.sidecar["aesthetic_quality"]["score"]
    assert aesthetic_quality(features, weight, bias.item()) == near(expected, FLOAT32)


def test_sizes_at_which_imaging_quality_sees_frames(case):
    for sizes in case.sidecar["imaging_quality"]["resize"]:
        height, width = sizes["hw"]
        for mode in ("longer", "shorter", "shorter_centercrop"):
            assert imaging_size(height, width, mode) == tuple(sizes[mode]), (mode, sizes)


def test_middle_frames(case):
    for key, indices in case.sidecar["frame_indices"]["middle"].items():
        count, frames = map(int, key.split(","))
        assert middle_frames(frames, count) == tuple(indices), key


def test_spatial_relations(case):
    expected = case.sidecar["spatial_relationship"]
    for relation, a, b, score in expected["pairs"]:
        assert pair_relation(relation, a, b) == near(score), (relation, a, b)
    objects = (expected["key"]["object_a"], expected["key"]["object_b"])
    frames = [frame_relation(expected["key"]["relationship"], objects, frame) for frame in expected["frames"]]
    assert frames == near(expected["frame_scores"])


def test_colour(case):
    expected = case.sidecar["color"]
    coloured, hits = expected["object_frames_with_colour_word_and_hits"]
    assert colour_score(expected["frames"], expected["object"], expected["color"]) == near(hits / coloured)


def test_objects(case):
    one, several = case.sidecar["object_class"], case.sidecar["multiple_objects"]
    assert object_frames(one["frames"], {one["key"]}) == one["hits"]
    assert object_frames(one["frames"], several["key"].split(" and ")) == several["hits"]


def test_averages_over_clips(case):
    expected, clips = case.sidecar["long_reorganise"], {}
    for clip in expected["clips"]:
        clips.setdefault(video_of_clip(clip["video_path"]), []).append(clip["video_results"])
    ours = average_clips(clips)
    assert ours.official == near(expected["all"])
    assert ours.official == near(expected["mean_over_all_clips"])
    assert ours.videos == near(expected["mean_over_videos_of_clip_means"])
    assert {f"{name}.mp4" for name in ours.per_video} == {name for name, _ in expected["per_video"]}


def test_fusion_of_in_clip_and_clip_to_clip_scores(case):
    for dimension, expected in case.sidecar["long_fuse"].items():
        between = {video_of_clip(row["video_path"]): row["video_results"] for row in expected["clip2clip"]}
        in_clip = {video_of_clip(row["video_path"]): row["video_results"] for row in expected["inclip"]}
        fused = {
            setting: [fuse(dimension, score, between.get(name), fusion) for name, score in in_clip.items()]
            for setting, fusion in FUSIONS.items()
        }
        detail = expected["dev_flag_on"]["detail"]
        assert fused["dev"] == near([row["video_results"] for row in detail])
        assert np.mean(fused["dev"]) == near(expected["dev_flag_on"]["all"])
        assert np.mean(fused["default"]) == near(expected["dev_flag_off_all"])
        mapped = [map_between(dimension, row["clip2clip_score"]) for row in detail]
        assert mapped == near([row["mapped_clip2clip_score"] for row in detail])


def test_split_into_clips(case):
    for key, expected in case.sidecar["long_split_2s"].items():
        frames, fps = map(int, key.split("@"))
        ours = [[clip.start, clip.stop - 1, len(clip)] for clip in split_into_clips(frames, clip_frames(fps))]
        if isinstance(expected, list):
            assert ours == [span for _, *span in expected], key
        else:
            assert len(ours) == expected["clips"]
            assert [ours[0], ours[-2], ours[-1]] == [expected[name] for name in ("first", "before_last", "last")]


def test_ranges_and_weights_of_dimensions(case):
    expected = case.sidecar["aggregation"]
    assert {name: {"Min": d.low, "Max": d.high} for name, d in DIMENSIONS.items()} == underscored(expected["normalise"])
    assert {name: d.weight for name, d in DIMENSIONS.items()} == underscored(expected["weights"])


def test_quality_semantic_and_total(case):
    for row in case.sidecar["aggregation"]["rows"].values():
        raw = underscored(row["dimensions"])
        ours = vbench_scores(raw)
        assert (ours.quality, ours.semantic, ours.total) == near((row["quality"], row["semantic"], row["total"]))
        for name, value in underscored(row.get("normalised_times_weight", {})).items():
            assert DIMENSIONS[name].weight * normalise(name, raw[name]) == near(value), name


def test_drift(case):
    expected = case.sidecar["drift"]
    ours = [segment_drift(means) for means in expected["segment_scores_0_100"]]
    assert ours == near(expected["per_video_std_ddof1"])
    assert np.mean(ours) == near(expected["drift"])
