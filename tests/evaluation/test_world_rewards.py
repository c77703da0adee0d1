"""Alignment with the prompt as a reward: right clips score high, wrong ones lower."""

from pathlib import Path

import pytest
import torch

from reward_forcing.config import Settings
from reward_forcing.data.captions import TRAITS
from reward_forcing.data.dataset import clip, wording, world_scene
from reward_forcing.evaluation.world_distance import BUNDLED
from reward_forcing.evaluation.world_rewards import (
    WorldAlignment,
    WorldMotion,
    WorldReading,
    _rate_reading,  # pyright: ignore[reportPrivateUsage]
    prompt_of,
)
from reward_forcing.evaluation.world_suite import held_out_prompts
from reward_forcing.models.video_features import VideoFeatures
from reward_forcing.rewards import Rater, Reward, rate
from reward_forcing.rewards.base import RewardSettings


class Holder(Settings):
    reward: RewardSettings


def own_and_others(reward: Reward, rater: Rater) -> tuple[torch.Tensor, torch.Tensor]:
    """The scores of 12 rendered clips for their own prompts, and for each other's."""
    prompts = [wording(i, "validation") for i in range(12)]
    frames = torch.stack([clip(world_scene(i, "validation"), 81) for i in range(12)])
    own = rate(reward, rater, frames, prompts, 16.0)
    return own, rate(reward, rater, frames, [*prompts[1:], prompts[0]], 16.0)


def test_clips_of_their_own_prompts_score_higher_than_of_others() -> None:
    kind = "reward_forcing.evaluation.world_rewards:WorldAlignment"
    reward = Holder.model_validate({"reward": {"kind": kind}}).reward
    assert isinstance(reward, WorldAlignment)
    rater = reward.load(torch.device("cpu"))
    own, others = own_and_others(reward, rater)
    assert float(own.mean()) > 0.97
    assert float(others.mean()) < 0.7
    assert bool((own >= others).all())


def test_a_reader_is_surer_of_clips_of_their_own_prompts(tmp_path: Path) -> None:
    kind = "reward_forcing.evaluation.world_rewards:WorldReading"
    reward = Holder.model_validate({"reward": {"kind": kind, "network": str(BUNDLED)}}).reward
    rater = reward.load(torch.device("cpu"))
    own, others = own_and_others(reward, rater)
    assert float(own.mean()) > 0.9
    assert float(others.mean()) < 0.7
    with pytest.raises(FileNotFoundError, match="no VideoFeatures network in"):
        WorldReading(network=tmp_path).load(torch.device("cpu"))
    VideoFeatures({"kind": 3}, (4, 4, 4, 4), 4, 16, 5).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="reads other traits"):
        WorldReading(network=tmp_path).load(torch.device("cpu"))


def test_a_reader_counts_what_the_prompt_names(monkeypatch: pytest.MonkeyPatch) -> None:
    network = VideoFeatures({trait: len(values) for trait, values in TRAITS.items()}, (4, 4, 4, 4), 4, 16, 5)
    sure = {trait: torch.full((1, len(values)), -30.0) for trait, values in TRAITS.items()}
    for trait, value in (("kind", "slide"), ("colour", "red"), ("shape", "square"), ("direction", "left")):
        sure[trait][0, TRAITS[trait].index(value)] = 30.0
    monkeypatch.setattr(network, "logits", lambda features: sure)
    frames = torch.zeros(1, 5, 3, 16, 16)

    def score(text: str) -> float:
        return float(_rate_reading(network, frames, [text], 16.0))

    assert score("a red ball moves to the left") == pytest.approx(3 / 4)
    assert score("a red square moves to the left") == pytest.approx(1.0)
    assert score("a blue square moves to the right") == pytest.approx(2 / 4)


def test_motion_that_is_meant_scores_high_and_a_still_clip_nothing() -> None:
    rater = WorldMotion().load(torch.device("cpu"))
    indices = [i for i in range(40) if world_scene(i, "validation").speed == "normal"][:6]
    prompts = [wording(i, "validation") for i in indices]
    frames = torch.stack([clip(world_scene(i, "validation").usual, 81) for i in indices])
    moving = rate(WorldMotion(), rater, frames, prompts, 16.0)
    assert 0.7 < float(moving.min()) <= float(moving.max()) < 1.4
    assert float(rate(WorldMotion(), rater, frames[:, :1].expand_as(frames), prompts, 16.0).max()) < 0.01


def test_a_prompt_read_is_the_prompt_meant() -> None:
    for prompt in held_out_prompts(60):
        read = prompt_of(prompt.text)
        assert read.says == prompt.says
        for name in ("kind", "shape", "direction", "second"):
            if prompt.says.get(name, "unsaid") != "unsaid" or name == "second":
                assert getattr(read.scene, name) == getattr(prompt.scene, name), prompt.text
