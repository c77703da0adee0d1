"""The VideoAlign reward against the published code: from raw video to normalised ratings, on tiny networks."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
import torch
from rewards.videoalign_folder import write_folder
from safetensors.torch import load_file

from reward_forcing.rewards.videoalign import VideoAlignReward, chat_text
from reward_forcing.rewards.videoalign_frames import (
    PIXEL_MEAN,
    PIXEL_STD,
    Patches,
    Patching,
    fitted_size,
    patchify,
    resized_levels,
    sampled_frames,
)

LOGITS = 1e-4
PATCHES = 1e-5
RATINGS = ("VQ", "MQ", "TA")
CPU = torch.device("cpu")


def assert_near(ours, reference, tolerance=LOGITS):
    torch.testing.assert_close(ours, torch.as_tensor(reference, dtype=ours.dtype), atol=tolerance, rtol=0)


def network_config(sidecar):
    config = dict(sidecar["config"])
    vision = config.pop("vision")
    return {name: value for name, value in config.items() if "vocab_size" not in name} | {"vision_config": vision}


def folder_of(sidecar, tensors, folder):
    """Settings of the case's checkpoint, written in the published layout."""
    ids = sidecar["other_token_ids"] | sidecar["reward_token_ids"]
    settings = write_folder(
        folder,
        {name.removeprefix("ckpt."): tensor for name, tensor in tensors.items() if name.startswith("ckpt.")},
        network_config(sidecar),
        special=sorted(ids, key=lambda token: ids[token]),
        norm=sidecar["norm"],
        lora=(sidecar["lora"]["r"], sidecar["lora"]["alpha"]),
        max_pixels=sidecar["max_pixels"],
    )
    return settings | {"min_pixels": sidecar["min_pixels"]}


def rater_of(case, folder, **settings):
    return VideoAlignReward(**folder_of(case.sidecar, case.tensors, folder), **settings).load(CPU)


def other_case(case, field):
    """Sidecar and tensors of the file that the sidecar's `field` names."""
    (name,) = set(re.findall(r"[\w.]+\.safetensors", case.sidecar[field]))
    path = case.path.parent / name
    return json.loads(path.with_suffix(".json").read_text()), load_file(path)


def videos(case):
    names = sorted(name for name in case.tensors if re.fullmatch(r"video_\d+_uint8_TCHW", name))
    return [case.tensors[name] for name in names]


def token_rows(case):
    masks = case.tensors["attention_mask"].bool()
    return [ids[mask].tolist() for ids, mask in zip(case.tensors["input_ids"], masks, strict=True)]


def patches_of(tensors):
    """The reference's patches of each clip."""
    grids = tensors["video_grid_thw"].tolist()
    values = tensors["pixel_values_videos"].split([t * h * w for t, h, w in grids])
    return [Patches(value, tuple(grid)) for value, grid in zip(values, grids, strict=True)]


def expanded_ids(rater, prompt, grid):
    """Ids of the whole text, with as many placeholders as a clip of that grid has visual tokens."""
    ids, video = rater.tokenizer.encode(chat_text(prompt), add_special_tokens=False).ids, rater.network.video_token
    tokens = grid[0] * grid[1] * grid[2] // rater.patching.merge**2
    return [token for id in ids for token in [id] * (tokens if id == video else 1)]


@pytest.mark.golden("reward_videoalign*")
def test_frames_and_patches_equal_the_reference(case):
    sidecar, vision, values = case.sidecar, case.sidecar["config"]["vision"], []
    patching = Patching(vision["patch_size"], vision["temporal_patch_size"], vision["spatial_merge_size"])
    assert (list(PIXEL_MEAN), list(PIXEL_STD)) == (sidecar["image_mean"], sidecar["image_std"])
    for number, (video, fps) in enumerate(zip(videos(case), sidecar["fps"], strict=True)):
        chosen = sampled_frames(len(video), fps, sidecar["sampling_fps"])
        assert list(chosen) == sidecar["frame_indices"][number]
        reference = case.tensors[f"frames_{number}_resized_TCHW"]
        bounds = (sidecar["min_pixels"], sidecar["max_pixels"])
        size = fitted_size(*video.shape[-2:], patching.multiple, *bounds)
        assert size == reference.shape[-2:]
        levels = 255 * resized_levels(video[list(chosen)] / 255, size)
        assert_near(levels, reference, 1 + 1e-3)
        patches = patchify(reference[None] / 255, patching)
        assert list(patches.grid) == case.tensors["video_grid_thw"][number].tolist()
        values.append(patches.values)
    assert_near(torch.cat(values), case.tensors["pixel_values_videos"], PATCHES)


@pytest.mark.golden("reward_videoalign*")
def test_texts_and_token_ids_equal_the_reference(case, tmp_path):
    sidecar, rater = case.sidecar, rater_of(case, tmp_path)
    digests = [hashlib.sha256(chat_text(prompt).encode()).hexdigest() for prompt in sidecar["prompts"]]
    assert digests == sidecar["chat_texts_before_video_pad_expansion_sha256"]
    grids = case.tensors["video_grid_thw"].tolist()
    rows = [expanded_ids(rater, prompt, grid) for prompt, grid in zip(sidecar["prompts"], grids, strict=True)]
    assert rows == token_rows(case)


@pytest.mark.golden("reward_videoalign*")
@torch.no_grad()
def test_logits_equal_the_reference_and_not_those_of_real_positions(case, tmp_path):
    network, tensors = rater_of(case, tmp_path).network, case.tensors
    vision = network.qwen.visual(tensors["pixel_values_videos"], grid_thw=tensors["video_grid_thw"])
    assert_near(vision.pooler_output, tensors["vision_embeds"])
    clips = zip(token_rows(case), patches_of(tensors), strict=True)
    logits = torch.cat([network.logits([ids], patches) for ids, patches in clips])
    assert_near(logits, tensors["logits_raw"])
    control = tensors["logits_with_real_mrope_positions_NEGATIVE_CONTROL"]
    assert (logits - control).abs().max() > 10 * LOGITS


@pytest.mark.golden("reward_videoalign*")
@pytest.mark.parametrize("part", ["visual", "motion", "text", "overall"])
def test_ratings_of_videos_equal_the_reference(case, tmp_path, part):
    sidecar, rater = case.sidecar, rater_of(case, tmp_path, part=part, frames="sampled")
    name = {"visual": "VQ", "motion": "MQ", "text": "TA", "overall": "Overall"}[part]
    clips = zip(videos(case), sidecar["prompts"], sidecar["fps"], strict=True)
    ours = torch.cat([rater(video[None] / 255, [prompt], fps) for video, prompt, fps in clips])
    assert_near(ours, [ratings[name] for ratings in sidecar["normalised"]])


@pytest.mark.golden("reward_two_prompts*")
def test_only_text_alignment_depends_on_the_prompt(case, tmp_path):
    sidecar, tensors = other_case(case, "weights_and_pixels_from")
    network = VideoAlignReward(**folder_of(sidecar, tensors, tmp_path)).load(CPU).network
    patches = patches_of(tensors)[0]
    rows = [case.tensors[f"input_ids_{number}"][0].tolist() for number in range(len(case.sidecar["prompts"]))]
    logits = torch.cat([network.logits([row], patches) for row in rows])
    assert_near(logits, case.tensors["logits_raw"])
    assert_near(logits[1:, :2], logits[:-1, :2], 1e-5)
    assert (logits[1:, 2] - logits[:-1, 2]).abs().min() > 10 * LOGITS


@pytest.mark.golden("reward_rf_frames*")
@pytest.mark.parametrize(("result", "paper_compat"), [("as_shipped_minus255_to_255", True), ("zero_to_255", False)])
def test_ratings_of_all_frames_equal_reward_forcing(case, tmp_path, result, paper_compat):
    sidecar, tensors = other_case(case, "weights_from")
    expected, size = case.sidecar["results"][result], case.sidecar["facts"]["resize_hw"]
    form = {"frames": "all", "size": size, "paper_compat": paper_compat, "part": "overall"}
    rater = VideoAlignReward(**folder_of(sidecar, tensors, tmp_path), **form).load(CPU)
    frames = (case.tensors["pixels_TCHW_minus1_1"][None] + 1) / 2
    patches = rater.patches(frames, fps=1.0)
    assert [list(patches.grid)] == expected["grid"]
    assert expanded_ids(rater, case.sidecar["prompt"], patches.grid) == case.tensors["input_ids"][0].tolist()
    low, high, mean = (expected[f"pixel_values_{name}"] for name in ("min", "max", "mean"))
    values = patches.values
    assert_near(torch.stack([values.min(), values.max(), values.mean()]), [low, high, mean], PATCHES)
    ratings = rater.ratings(frames, [case.sidecar["prompt"]], fps=1.0)[0]
    mean, std = (torch.tensor([sidecar["norm"][f"{name}_{what}"] for name in RATINGS]) for what in ("mean", "std"))
    assert_near(ratings * std + mean, expected["logits"])
    assert_near(ratings, [expected[name] for name in RATINGS])
    assert_near(rater(frames, [case.sidecar["prompt"]], fps=1.0), [expected["Overall"]])
