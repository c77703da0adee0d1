"""The VideoAlign (VideoReward) reward: a vision-language model that rates visual quality, motion and text alignment.

Qwen2-VL-2B with LoRA and a linear head, read at three special tokens of a fixed text ("Improving Video Generation with
Human Feedback", 2025). Reward Forcing weights its loss by the motion rating.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor

from reward_forcing.rewards.base import Rater, Reward
from reward_forcing.rewards.videoalign_frames import (
    Patches,
    Patching,
    fitted_size,
    patchify,
    resized,
    resized_levels,
    sampled_frames,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from reward_forcing.rewards.videoalign_checkpoint import RewardConfig
    from reward_forcing.rewards.videoalign_network import RewardNetwork

Rating = Literal["visual", "motion", "text"]
RATINGS: tuple[Rating, ...] = get_args(Rating)
"""The ratings in the order in which the text asks for them."""

_PROMPT_FIELD = "{text_prompt}"
_BEFORE = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|><|video_pad|>"
_AFTER = "<|im_end|>\n<|im_start|>assistant\n"


class VideoAlignReward(Reward):
    """One rating of VideoAlign, or all three.

    path: folder with model_config.json and checkpoint-N. step: N, None for the last. base: folder or hub id of the
    Qwen2-VL it was trained from. part: visual (VQ), motion (MQ, Reward Forcing's), text (TA), or overall: their sum for
    sampled frames, their mean for all frames, as the published interfaces differ. The ratings come normalised by the
    constants of model_config.json, so `mean` and `std` stay 0 and 1.

    frames: `sampled` takes 2 a second on 8-bit levels, as the model was trained (`min_pixels` is Qwen2-VL's smallest
    frame; the largest is in model_config.json). `all` takes every frame at `size` (height, width), as Reward Forcing
    does: for 81 frames, 8 times as many tokens. paper_compat: Reward Forcing's published code gives the model pixels
    in [-1, 1] instead of [0, 1]; True does the same and needs `all`.

    batch: clips rated at once. dtype: None takes bfloat16 on a GPU and float32 elsewhere.
    """

    kind: Literal["videoalign"] = "videoalign"  # pyright: ignore[reportIncompatibleVariableOverride]
    path: Path
    step: PositiveInt | None = None
    base: str = "Qwen/Qwen2-VL-2B-Instruct"
    part: Literal["visual", "motion", "text", "overall"] = "motion"
    frames: Literal["sampled", "all"] = "sampled"
    size: tuple[PositiveInt, PositiveInt] = (336, 588)
    min_pixels: PositiveInt = 128 * 28 * 28
    paper_compat: bool = False
    batch: PositiveInt = 1
    dtype: Literal["float32", "bfloat16", "float16"] | None = None

    @model_validator(mode="after")
    def _the_slip_is_in_one_interface(self) -> VideoAlignReward:
        if self.paper_compat and self.frames != "all":
            raise ValueError("paper_compat repeats what Reward Forcing does with all frames; set frames to all")
        return self

    def load(self, device: torch.device) -> Rater:
        """The rater. Raises FileNotFoundError for missing files, ValueError for files and sizes that do not fit."""
        from reward_forcing.rewards.videoalign_checkpoint import open_checkpoint  # transformers takes seconds to import

        checkpoint = open_checkpoint(self.path, self.step, self.base)
        vision = checkpoint.qwen.visual.config
        patching = Patching(vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size)  # pyright: ignore[reportArgumentType]
        if self.frames == "all" and any(side % patching.multiple for side in self.size):
            raise ValueError(f"size must be in multiples of {patching.multiple}, got {self.size[0]} x {self.size[1]}")
        dtype = self.dtype or ("bfloat16" if device.type == "cuda" else "float32")
        network = checkpoint.load(device, getattr(torch, dtype))
        return VideoAlignRater(self, checkpoint.config, network, checkpoint.tokenizer, patching)


class VideoAlignRater:
    """A loaded VideoAlign. The ratings read so far never see what the text says after them: attention is causal."""

    def __init__(
        self,
        settings: VideoAlignReward,
        config: RewardConfig,
        network: RewardNetwork,
        tokenizer: Tokenizer,
        patching: Patching,
    ) -> None:
        self.settings = settings
        self.config = config
        self.network = network
        self.tokenizer = tokenizer
        self.patching = patching

    def __call__(self, frames: Tensor, prompts: Sequence[str], fps: float) -> Tensor:
        """The settings' part, [B], of clips [B, T, 3, H, W] in [0, 1]. Raises as `ratings` does.

        The text ends at the last token that the part reads, so visual and motion quality do not depend on the prompt.
        """
        part = self.settings.part
        if part == "overall":
            overall = self.ratings(frames, prompts, fps)
            return overall.mean(1) if self.settings.frames == "all" else overall.sum(1)
        return self.ratings(frames, prompts, fps, part)[:, -1]

    def ratings(self, frames: Tensor, prompts: Sequence[str], fps: float, until: Rating = "text") -> Tensor:
        """Normalised visual, motion and text ratings up to `until`, [B, 1 to 3] float32, of clips [B, T, 3, H, W].

        Raises ValueError for a prompt that holds one of the model's own tokens, and for clips too short to sample.
        """
        ids = [self.token_ids(prompt, until) for prompt in prompts]
        logits = []
        for start in range(0, len(frames), self.settings.batch):
            clips = slice(start, start + self.settings.batch)
            patches = self.patches(frames[clips].to(self.network.head.device), fps)
            t, h, w = patches.grid
            tokens = t * h * w // self.patching.merge**2
            logits.append(self.network.logits([self._with_video(row, tokens) for row in ids[clips]], patches))
        return self.config.inference_config.normalised(torch.cat(logits))

    def patches(self, frames: Tensor, fps: float) -> Patches:
        """The patches of clips [B, T, 3, H, W] in [0, 1] under the settings' frames, size and range."""
        settings, data = self.settings, self.config.data_config
        if settings.frames == "all":
            return patchify(resized(2 * frames - 1 if settings.paper_compat else frames, settings.size), self.patching)
        frames = frames[:, list(sampled_frames(frames.shape[1], fps, data.fps))]
        height, width = frames.shape[-2:]
        bounds = (settings.min_pixels, data.max_frame_pixels)
        return patchify(
            resized_levels(frames, fitted_size(height, width, self.patching.multiple, *bounds)), self.patching
        )

    def token_ids(self, prompt: str, until: Rating = "text") -> list[int]:
        """Ids of the text up to the token of the rating `until`, with one placeholder for the whole video.

        Raises ValueError for a prompt that holds one of the model's own tokens, such as `<|MQ_reward|>`.
        """
        for token in self.tokenizer.get_added_tokens_decoder().values():
            if token.special and token.content in prompt:
                raise ValueError(f"a prompt may not hold VideoAlign's token {token.content}; remove it from '{prompt}'")
        ids = self.tokenizer.encode(chat_text(prompt), add_special_tokens=False).ids
        return ids[: ids.index(self.network.reward_tokens[RATINGS.index(until)]) + 1]

    def _with_video(self, ids: Sequence[int], tokens: int) -> list[int]:
        place = ids.index(self.network.video_token)
        return [*ids[:place], *[self.network.video_token] * tokens, *ids[place + 1 :]]


def chat_text(prompt: str) -> str:
    """What VideoAlign was trained to read about a clip made for `prompt`, in Qwen2-VL's chat form, as text."""
    return f"{_BEFORE}<|vision_end|>{_template().replace(_PROMPT_FIELD, prompt)}{_AFTER}"


@cache
def _template() -> str:
    return resources.files("reward_forcing.rewards").joinpath("videoalign_prompt.txt").read_text(encoding="utf-8")
