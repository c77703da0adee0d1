"""VideoAlign: what the model sees of a clip, what it reads, and which files it accepts."""

from __future__ import annotations

import json
import os

import pytest
import torch
from pydantic import ValidationError
from rewards.videoalign_folder import ALPHA, CONFIG, NORM, OTHERS, RANK, REWARDS, random_weights, write_folder
from safetensors.torch import save_file

from reward_forcing.rewards.base import rate
from reward_forcing.rewards.videoalign import RATINGS, VideoAlignReward, chat_text
from reward_forcing.rewards.videoalign_checkpoint import network_name, open_checkpoint
from reward_forcing.rewards.videoalign_frames import (
    Patching,
    fitted_size,
    patchify,
    resized,
    resized_levels,
    sampled_frames,
)

CPU = torch.device("cpu")
PROMPTS = ["A cat.", "A volcano at night, seen from a plane that turns."]
PREFIX = "base_model.model."


@pytest.fixture(scope="module")
def weights():
    return random_weights()


@pytest.fixture
def clips():
    return torch.rand(2, 9, 3, 40, 64, generator=torch.Generator().manual_seed(3))


def ratings(folder, weights, clips, **settings):
    """All ratings [B, 3] of `weights`, written to `folder`."""
    return VideoAlignReward(**write_folder(folder, weights), **settings).load(CPU).ratings(clips, PROMPTS, 8.0)


def renamed(weights, change):
    return {change(name): tensor for name, tensor in weights.items()}


# what the model sees


@pytest.mark.parametrize(
    ("frames", "fps", "count"),
    [(81, 16, 10), (20, 16, 4), (33, 8, 8), (240, 24, 20), (5, 30, 4), (3, 16, 2), (2, 16, 2)],
)
def test_frames_are_sampled_twice_a_second(frames, fps, count):
    chosen = sampled_frames(frames, fps, 2.0)
    assert (len(chosen), chosen[0], chosen[-1]) == (count, 0, frames - 1)
    assert sorted(set(chosen)) == list(chosen)


def test_sampled_frames_are_the_nearest_to_even_spacing():
    assert sampled_frames(81, 16, 2.0) == (0, 9, 18, 27, 36, 44, 53, 62, 71, 80)
    assert len(sampled_frames(100_000, 24, 2.0)) == 768


@pytest.mark.parametrize(("frames", "fps"), [(1, 16), (81, 0)])
def test_clips_that_cannot_be_sampled_are_named(frames, fps):
    with pytest.raises(ValueError, match=f"got {frames} at {fps} fps"):
        sampled_frames(frames, fps, 2.0)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 832), (336, 588)), ((720, 1280), (336, 588)), ((336, 588), (336, 588)), ((240, 320), (280, 392))],
)
def test_sizes_are_multiples_of_28_within_the_pixel_bounds(size, expected):
    assert fitted_size(*size, 28, 100352, 200704) == expected


def test_a_strip_is_refused():
    with pytest.raises(ValueError, match="got 10 x 2001"):
        fitted_size(10, 2001, 28, 100352, 200704)


def test_levels_are_whole_before_and_after_resizing():
    frames = torch.rand(2, 3, 30, 44, generator=torch.Generator().manual_seed(0))
    levels = 255 * resized_levels(frames, (28, 56))
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    of_rounded = resized((255 * frames).round(), (28, 56)).clamp(0, 255).round()
    torch.testing.assert_close(levels, of_rounded, atol=1e-4, rtol=0)
    assert resized(frames[None], (28, 56)).shape == (1, 2, 3, 28, 56)


def test_patches_that_merge_stand_together_and_hold_channels_then_frames():
    frames = torch.arange(2 * 4 * 3 * 56 * 84).view(2, 4, 3, 56, 84).double() / 1e5
    patches = patchify(frames, Patching())
    t, h, w = patches.grid
    assert ((t, h, w), patches.values.shape) == ((2, 4, 6), (2 * 48, 3 * 2 * 14 * 14))
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    seen = patches.values.view(2, t, h // 2, w // 2, 2, 2, 3, 2, 14, 14)
    for clip, time, row, column, below, right in [(0, 0, 0, 0, 0, 1), (1, 1, 1, 2, 1, 0), (1, 0, 0, 1, 1, 1)]:
        top, left = 28 * row + 14 * below, 28 * column + 14 * right
        pixels = frames[clip, 2 * time : 2 * time + 2, :, top : top + 14, left : left + 14]
        expected = ((pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)).transpose(0, 1)
        torch.testing.assert_close(seen[clip, time, row, column, below, right], expected)


def test_an_odd_clip_is_filled_up_with_its_last_frame():
    frames = torch.rand(1, 3, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    filled = torch.cat([frames, frames[:, -1:]], 1)
    odd, even = patchify(frames, Patching()), patchify(filled, Patching())
    assert odd.grid == even.grid == (2, 2, 2)
    assert torch.equal(odd.values, even.values)


def test_the_published_slip_shows_the_model_pixels_from_minus_one(tmp_path, weights, clips):
    folder = write_folder(tmp_path, weights)
    form = {"frames": "all", "size": (28, 56)}
    right, slipped = (VideoAlignReward(**folder, **form, paper_compat=slip).load(CPU) for slip in (False, True))
    expected = patchify(2 * resized(clips, (28, 56)) - 1, Patching()).values
    torch.testing.assert_close(slipped.patches(clips, 16.0).values, expected, atol=1e-5, rtol=0)
    assert (slipped(clips, PROMPTS, 16.0) - right(clips, PROMPTS, 16.0)).abs().max() > 1e-2


def test_the_published_slip_needs_all_frames(tmp_path):
    with pytest.raises(ValidationError, match="set frames to all"):
        VideoAlignReward(path=tmp_path, paper_compat=True)


# what the model reads


def test_the_text_asks_for_three_ratings_in_order_and_ends_with_the_turn_of_the_model():
    text = chat_text("A {text} with braces.")
    places = [text.index(token) for token in REWARDS]
    assert places == sorted(places)
    assert places[1] < text.index("Textual prompt - A {text} with braces.\n") < places[2]
    assert text.endswith("<|TA_reward|>\nEND\n<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("rows", [1, 3])
def test_the_text_may_end_at_the_token_that_is_read(tmp_path, clips, rows):
    rater = VideoAlignReward(**write_folder(tmp_path, random_weights(rows))).load(CPU)
    whole = rater.ratings(clips, PROMPTS, 8.0)
    for number, part in enumerate(RATINGS):
        cut = rater.ratings(clips, PROMPTS, 8.0, part)
        assert cut.shape == (2, number + 1)
        torch.testing.assert_close(cut, whole[:, : number + 1], atol=1e-5, rtol=0)
    assert len(rater.token_ids(PROMPTS[0], "motion")) < len(rater.token_ids(PROMPTS[0], "text"))


def test_a_head_of_three_rows_reads_each_rating_with_its_own_row(tmp_path, clips):
    weights = random_weights(rows=3)
    head = f"{PREFIX}rm_head.weight"
    together = ratings(tmp_path / "three", weights, clips)
    alone = [ratings(tmp_path / str(n), weights | {head: weights[head][n : n + 1]}, clips)[:, n] for n in range(3)]
    torch.testing.assert_close(together, torch.stack(alone, 1), atol=1e-5, rtol=0)


def test_only_the_text_rating_depends_on_the_prompt(tmp_path, weights, clips):
    rater = VideoAlignReward(**write_folder(tmp_path, weights)).load(CPU)
    first, second = (rater.ratings(clips[:1], [prompt], 8.0)[0] for prompt in PROMPTS)
    torch.testing.assert_close(first[:2], second[:2], atol=1e-5, rtol=0)
    assert (first[2] - second[2]).abs() > 1e-3


@pytest.mark.parametrize("part", ["motion", "overall"])
def test_a_rating_does_not_depend_on_the_batch(tmp_path, weights, clips, part):
    folder = write_folder(tmp_path, weights)
    together, apart = (VideoAlignReward(**folder, part=part, batch=batch).load(CPU) for batch in (2, 1))
    single = [apart(clips[n : n + 1], PROMPTS[n : n + 1], 8.0) for n in range(2)]
    torch.testing.assert_close(together(clips, PROMPTS, 8.0), torch.cat(single), atol=1e-5, rtol=0)
    torch.testing.assert_close(apart(clips, PROMPTS, 8.0), torch.cat(single), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("frames", "divisor"), [("sampled", 1), ("all", 3)])
def test_overall_is_the_sum_for_sampled_frames_and_the_mean_for_all(tmp_path, weights, clips, frames, divisor):
    form = {"frames": frames, "size": (56, 84), "part": "overall"}
    rater = VideoAlignReward(**write_folder(tmp_path, weights), **form).load(CPU)
    expected = rater.ratings(clips, PROMPTS, 8.0).sum(1) / divisor
    torch.testing.assert_close(rater(clips, PROMPTS, 8.0), expected)


def test_ratings_are_normalised_by_the_checkpoint(tmp_path, weights, clips):
    raw = {name: float(name.endswith("std")) for name in NORM}
    folder = write_folder(tmp_path / "raw", weights, norm=raw)
    logits = VideoAlignReward(**folder).load(CPU).ratings(clips, PROMPTS, 8.0)
    mean, std = (torch.tensor([NORM[f"{name}_{what}"] for name in ("VQ", "MQ", "TA")]) for what in ("mean", "std"))
    torch.testing.assert_close(ratings(tmp_path / "own", weights, clips), (logits - mean) / std)


def test_a_rating_is_a_reward_without_a_graph(tmp_path, weights, clips):
    reward = VideoAlignReward(**write_folder(tmp_path, weights))
    scores = rate(reward, reward.load(CPU), clips.requires_grad_(), PROMPTS, 8.0)
    assert (scores.shape, scores.dtype, scores.requires_grad) == ((2,), torch.float32, False)


@pytest.mark.parametrize("token", [*REWARDS, "<|video_pad|>", "<|im_end|>"])
def test_a_prompt_with_a_token_of_the_model_is_refused(tmp_path, weights, clips, token):
    rater = VideoAlignReward(**write_folder(tmp_path, weights)).load(CPU)
    with pytest.raises(ValueError, match="remove it from 'A cat") as error:
        rater(clips[:1], [f"A cat {token}"], 8.0)
    assert token in str(error.value)


# which files it accepts


def whole_safetensors(checkpoint, weights):
    (checkpoint / "model.pth").unlink()
    save_file(weights, checkpoint / "model.safetensors")


def new_names(checkpoint, weights):
    def new(name):
        name = name.replace(f"{PREFIX}visual.", f"{PREFIX}model.visual.")
        return name.replace(f"{PREFIX}model.layers.", f"{PREFIX}model.language_model.layers.")

    torch.save(renamed(weights, new), checkpoint / "model.pth")


def adapter(checkpoint, weights):
    """LoRA without the adapter's name, what was trained whole, and a base with spare rows in its table."""
    (checkpoint / "model.pth").unlink()
    lora = {name.replace(".default.", "."): tensor for name, tensor in weights.items() if ".lora_" in name}
    trained = {name: tensor for name, tensor in weights.items() if "visual.merger." in name or "rm_head" in name}
    rest = {name: tensor for name, tensor in weights.items() if name not in trained and ".lora_" not in name}
    base = renamed(rest, lambda name: name.removeprefix(PREFIX).replace(".base_layer.", "."))
    table = base["model.embed_tokens.weight"]
    base["model.embed_tokens.weight"] = torch.cat([table, torch.zeros(5, table.shape[1])])
    base |= {
        name.removeprefix(PREFIX): torch.zeros_like(tensor) for name, tensor in trained.items() if "visual" in name
    }
    names = sorted(base)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: base[name] for name in part}, checkpoint.parent / "base" / f"model-{number}.safetensors")
    save_file(lora, checkpoint / "adapter_model.safetensors")
    torch.save(trained, checkpoint / "non_lora_state_dict.pth")


def merged(checkpoint, weights):
    whole = {name.replace(".base_layer.", "."): tensor for name, tensor in weights.items() if ".lora_" not in name}
    for name, down in weights.items():
        if ".lora_A." in name:
            target = name.replace(".lora_A.default.", ".")
            update = weights[name.replace(".lora_A.", ".lora_B.")] @ down
            whole[target] = whole[target] + ALPHA / RANK * update
    torch.save(whole, checkpoint / "model.pth")


@pytest.mark.parametrize("form", [whole_safetensors, new_names, adapter, merged])
def test_every_form_of_a_checkpoint_is_the_same_model(tmp_path, weights, clips, form):
    expected = ratings(tmp_path / "published", weights, clips)
    folder = write_folder(tmp_path / "other", weights)
    form(folder["path"] / "checkpoint-7", weights)
    ours = VideoAlignReward(**folder).load(CPU).ratings(clips, PROMPTS, 8.0)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_a_rank_stabilised_lora_is_scaled_by_the_root_of_its_rank(tmp_path, weights):
    folder = write_folder(tmp_path, weights)["path"]
    values = json.loads((folder / "model_config.json").read_text())
    values["peft_lora_config"]["use_rslora"] = True
    (folder / "model_config.json").write_text(json.dumps(values))
    parameters = open_checkpoint(folder, None, str(folder / "base")).parameters
    scales = {parameter.scale for parameter in parameters.values() if parameter.up is not None}
    assert scales == {ALPHA / RANK**0.5}


def test_the_tokenizer_of_the_base_gets_the_reward_tokens(tmp_path, weights, clips):
    expected = ratings(tmp_path / "own", weights, clips)
    folder = write_folder(tmp_path / "base", weights, special=OTHERS)
    checkpoint = folder["path"] / "checkpoint-7"
    (checkpoint / "tokenizer" / "tokenizer.json").rename(folder["path"] / "base" / "tokenizer.json")
    ours = VideoAlignReward(**folder).load(CPU).ratings(clips, PROMPTS, 8.0)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


def test_the_last_step_is_taken_unless_one_is_named(tmp_path, weights, clips):
    write_folder(tmp_path, random_weights(seed=1), step=9)
    folder = write_folder(tmp_path, weights, step=10)
    first, last, named = (
        VideoAlignReward(**folder, step=step).load(CPU)(clips, PROMPTS, 8.0) for step in (9, None, 10)
    )
    assert torch.equal(last, named)
    assert not torch.allclose(first, last)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint-8 .* there are steps 9, 10"):
        VideoAlignReward(**folder, step=8).load(CPU)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_rates_nearly_as_float32(tmp_path, clips, dtype):
    quiet = random_weights(spread=0.1)  # bfloat16 moves the ratings of a louder random network by one
    exact, rough = (ratings(tmp_path / name, quiet, clips, dtype=name) for name in ("float32", dtype))
    assert rough.dtype == torch.float32
    assert 0 < (exact - rough).abs().max() < 0.1


@pytest.mark.parametrize(
    ("name", "network"),
    [
        (f"{PREFIX}model.layers.3.self_attn.q_proj.base_layer.bias", "language_model.layers.3.self_attn.q_proj.bias"),
        (
            f"{PREFIX}model.language_model.layers.3.mlp.up_proj.lora_A.default.weight",
            "language_model.layers.3.mlp.up_proj.lora_A.weight",
        ),
        (f"{PREFIX}visual.merger.mlp.0.weight", "visual.merger.mlp.0.weight"),
        ("model.visual.blocks.0.norm1.bias", "visual.blocks.0.norm1.bias"),
        ("model.norm.weight", "language_model.norm.weight"),
        (f"{PREFIX}rm_head.weight", "rm_head.weight"),
    ],
)
def test_names_of_both_layouts_become_those_of_the_network(name, network):
    assert network_name(name) == network
    assert network_name(network) == network


NORM1 = f"{PREFIX}model.layers.1.input_layernorm.weight"
LORA = f"{PREFIX}model.layers.0.mlp.up_proj.lora_A.default.weight"
TABLE = f"{PREFIX}model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {NORM1: None},
            "1 of .* parameters are missing, the first is 'language_model.layers.1.input_layernorm.weight'",
        ),
        ({NORM1: torch.ones(31)}, r"'language_model.layers.1.input_layernorm.weight' is \[31\]; expected \[32\]"),
        (
            {f"{PREFIX}model.layers.2.x": torch.ones(1)},
            "no place in the base model, the first is 'language_model.layers.2.x'",
        ),
        ({f"{PREFIX}rm_head.weight": None}, r"rm_head.weight must be \[1, 32\] or \[3, 32\], found none"),
        ({f"{PREFIX}rm_head.weight": torch.ones(2, 32)}, r"found \[2, 32\]"),
        ({LORA: None}, "up_proj.lora_B.weight' has no other half"),
        ({LORA: torch.ones(3, 32)}, "the LoRA of 'language_model.layers.0.mlp.up_proj.weight'"),
        ({TABLE: torch.ones(264, 32)}, "do tokenizer and checkpoint belong together"),
    ],
)
def test_weights_that_do_not_fit_are_named_before_any_is_loaded(tmp_path, weights, change, message):
    changed = {name: tensor for name, tensor in (weights | change).items() if tensor is not None}
    folder = write_folder(tmp_path, changed)
    with pytest.raises(ValueError, match=message) as error:
        open_checkpoint(folder["path"], None, folder["base"])
    assert "\n" not in str(error.value)
    assert str(folder["path"] / "checkpoint-7") in str(error.value)


class Harmful:
    """A value whose unpickling would run code."""

    def __reduce__(self):
        return os.getcwd, ()


@pytest.mark.parametrize(
    ("content", "message"),
    [({"x": Harmful()}, "could run code"), ([torch.ones(1)], "is no state dict"), ({"x": "text"}, "is no state dict")],
)
def test_files_that_are_no_weights_are_not_read(tmp_path, weights, content, message):
    folder = write_folder(tmp_path, weights)
    torch.save(content, tmp_path / "checkpoint-7" / "model.pth")
    with pytest.raises(ValueError, match=message):
        VideoAlignReward(**folder).load(CPU)


@pytest.mark.parametrize("name", ["model.pth", "tokenizer/tokenizer.json"])
def test_a_cut_off_file_is_named(tmp_path, weights, name):
    folder = write_folder(tmp_path, weights)
    file = tmp_path / "checkpoint-7" / name
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=file.name) as error:
        VideoAlignReward(**folder).load(CPU)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("model_config.json", "give the folder of a VideoAlign model"),
        ("checkpoint-7", "no checkpoint-N"),
        ("checkpoint-7/model.pth", "of an adapter no adapter_model.safetensors"),
        ("base/config.json", "no config.json in the base model's folder"),
        ("checkpoint-7/tokenizer/tokenizer.json", "no tokenizer.json in the base model's folder"),
    ],
)
def test_a_missing_part_is_named(tmp_path, weights, missing, message):
    folder = write_folder(tmp_path, weights)
    (tmp_path / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=message):
        VideoAlignReward(**folder).load(CPU)


@pytest.mark.parametrize(
    ("group", "values", "message"),
    [
        ("data_config", {"prompt_template_type": "simple"}, "data_config.prompt_template_type"),
        ("data_config", {"sample_type": "multi_pts"}, "data_config.sample_type"),
        ("inference_config", {}, "inference_config.VQ_mean"),
        ("inference_config", NORM | {"MQ_std": 0}, "inference_config.MQ_std"),
    ],
)
def test_another_training_than_the_published_is_refused(tmp_path, weights, group, values, message):
    folder = write_folder(tmp_path, weights)
    config = json.loads((tmp_path / "model_config.json").read_text())
    (tmp_path / "model_config.json").write_text(json.dumps(config | {group: values}))
    with pytest.raises(ValueError, match=message):
        VideoAlignReward(**folder).load(CPU)


def test_another_base_is_refused(tmp_path, weights):
    folder = write_folder(tmp_path, weights, CONFIG | {"model_type": "qwen2_5_vl"})
    with pytest.raises(ValueError, match="is of the type qwen2_5_vl; VideoAlign's base is a qwen2_vl"):
        VideoAlignReward(**folder).load(CPU)


def test_a_size_that_patches_do_not_fill_is_refused(tmp_path, weights):
    folder = write_folder(tmp_path, weights)
    with pytest.raises(ValueError, match="multiples of 28, got 480 x 832"):
        VideoAlignReward(**folder, frames="all", size=(480, 832)).load(CPU)
