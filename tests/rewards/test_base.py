"""What every reward must give, sums of rewards, and the documentation's example of one from outside."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from reward_forcing.config import Settings
from reward_forcing.rewards import REWARDS, CombinedReward, Rater, Reward, RewardSettings, rate

DOCS = Path(__file__).parents[2] / "docs" / "training.md"


class Holder(Settings):
    reward: RewardSettings


class Constant(Reward):
    """The same for every clip; or what `gives` says."""

    value: float = 1.0

    def load(self, device: torch.device) -> Rater:
        def rater(frames: Tensor, prompts: Sequence[str], fps: float) -> Tensor:
            return torch.full((len(frames),), self.value, requires_grad=True)

        return rater


def scores(reward: Reward, clips: int = 2) -> Tensor:
    frames = torch.full((clips, 3, 3, 16, 16), 0.5)
    return rate(reward, reward.load(torch.device("cpu")), frames, ["a"] * clips, 16.0)


def test_scores_are_z_scored_and_have_no_graph() -> None:
    found = scores(Constant(value=5.0, mean=2.0, std=1.5))
    assert found.tolist() == [2.0, 2.0]
    assert not found.requires_grad


class Product(Reward):
    """A sum by a matrix product, which autocast would round."""

    def load(self, device: torch.device) -> Rater:
        return lambda frames, prompts, fps: (frames.flatten(1) @ torch.ones(frames[0].numel(), 1))[:, 0]


def test_a_reward_computes_in_its_own_precision_in_a_training_of_another() -> None:
    frames = torch.rand(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    rater = Product().load(torch.device("cpu"))
    alone = rate(Product(), rater, frames, ["a", "b"], 16.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(rater(frames, ["a", "b"], 16.0), alone), "a check that can fail"
        assert torch.equal(rate(Product(), rater, frames, ["a", "b"], 16.0), alone)


def test_a_sum_weights_the_normalised_scores_of_its_parts() -> None:
    parts = [
        {"reward": {"kind": f"{__name__}:Constant", "value": 4.0, "mean": 3.0}, "weight": 2.0},
        {"reward": {"kind": f"{__name__}:Constant", "value": 4.0, "std": 8.0}},
    ]
    reward = Holder.model_validate({"reward": {"kind": "combine", "parts": parts, "std": 2.0}}).reward
    assert isinstance(reward, CombinedReward)
    assert scores(reward).tolist() == pytest.approx([(2.0 * 1.0 + 0.5) / 2.0] * 2)


@pytest.mark.parametrize(
    ("frames", "prompts", "message"),
    [
        (torch.zeros(2, 3, 3, 16, 16), ["a"], r"expected frames \[B, T, 3, H, W\] and B prompts"),
        (torch.zeros(3, 3, 16, 16), ["a"], r"expected frames"),
        (torch.zeros(1, 3, 4, 16, 16), ["a"], r"expected frames"),
        (torch.full((1, 3, 3, 16, 16), -1.0), ["a"], r"takes frames in \[0, 1\], got \[-1, -1\]"),
        (torch.full((1, 3, 3, 16, 16), 255.0), ["a"], r"got \[255, 255\]"),
    ],
)
def test_other_frames_are_refused(frames: Tensor, prompts: list[str], message: str) -> None:
    reward = Constant()
    with pytest.raises(ValueError, match=message):
        rate(reward, reward.load(torch.device("cpu")), frames, prompts, 16.0)


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="must give a finite number for each of 2 clips"):
        scores(Constant(value=float("nan")))


def test_every_reward_says_its_own_kind() -> None:
    assert {kind: settings.model_fields["kind"].default for kind, settings in REWARDS.items()} == {
        k: k for k in REWARDS
    }


def test_the_documented_reward_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "rewards_of_mine.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    reward = Holder.model_validate({"reward": {"kind": "rewards_of_mine:Calm"}}).reward
    assert scores(reward).tolist() == [0.0, 0.0]
    moving = torch.rand(1, 3, 3, 16, 16)
    assert float(rate(reward, reward.load(torch.device("cpu")), moving, ["a"], 16.0)) < -0.1
    del sys.modules["rewards_of_mine"]
