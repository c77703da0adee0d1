"""The Re-DMD stage: DMD whose gradient is weighted, sample by sample, by exp(reward / beta).

    grad = E [ exp(r(x) / beta) / Z(c)  *  grad_DMD(x) ]        Reward Forcing, Eqs. 9-11

The reward rates the decoded rollout and is never differentiated; only the generator's loss is weighted.

Where the rollouts' distribution equals the teacher's that gradient is zero, whatever the weights: they change the way
there, not the place. `weighted: critic` moves the place. The critic then learns the score of the rollouts weighted by
exp(-r / beta), and the gradient of plain DMD is zero where q exp(-r / beta) is in proportion to the teacher's p, that
is, where q is the optimum p exp(r / beta) / Z(c) of Eq. 9.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from reward_forcing.logs import console
from reward_forcing.rewards import RewardSettings, rate
from reward_forcing.rewards.alarm import alarm
from reward_forcing.rewards.weighting import effective_share, reward_weights
from reward_forcing.training.distributed import sum_over_processes
from reward_forcing.training.dmd import DmdSettings, DmdStage, Rolled, check_levels, is_between, mean_rewards

LEAST_SHARE = 0.25
"""Below this share of effective samples the stage warns: most of what is rolled out is wasted."""
TRAINED = "trained"


class ReDmdSettings(DmdSettings):
    """Settings of the Re-DMD stage: those of DMD, and

    reward: what weights the samples; for rollouts that the prompt is switched in, by the second prompt. beta: the
    paper's, 1/2 there. weighted: whose loss: the generator's by exp(r / beta), as in the paper, or the critic's by
    exp(-r / beta), see above. weighted_range: the noise levels at which the loss is weighted; at others all samples
    count alike. Where noise hides nothing of what the reward rates, the best critic of weighted samples is that of
    unweighted ones, and weights only make its gradient noisier. group: rollouts of each prompt in that one's batch,
    over which the weights are normalised (Z(c)); 1 normalises nothing, as the paper does. running: z-score rewards by
    their running mean and deviation, which move by this share per update, in place of the reward's own constants; of
    groups the deviation is that within them, for what lies between prompts weighs nothing there. weight_clip: the
    largest weight. rated_in: precision in which the VAE decodes what is rated for weights; bf16 takes half the time and
    adds a level or two of noise. The trained reward is watched with the others, and an alarm tells if it rose while one
    of them fell.
    """

    stage: Literal["re_dmd"] = "re_dmd"  # pyright: ignore[reportIncompatibleVariableOverride]
    reward: RewardSettings
    beta: PositiveFloat = 0.5
    weighted: Literal["generator", "critic"] = "generator"
    weighted_range: tuple[float, float] = (0.0, 1.0)
    group: PositiveInt = 1
    running: float | None = Field(None, gt=0, lt=1)
    weight_clip: PositiveFloat | None = None
    rated_in: Literal["fp32", "bf16"] = "fp32"

    def check_shards(self, shards: int) -> None:
        """Also raise ValueError unless every shard holds whole groups."""
        super().check_shards(shards)
        if self.batch // shards % self.group:
            raise ValueError(
                f"{self.batch // shards} samples, a batch of {self.batch} in {shards} shards, are no whole groups of "
                f"{self.group}; use a larger batch, or fewer processes or accumulated parts"
            )

    @model_validator(mode="after")
    def _some_noise_is_weighted(self) -> Self:
        check_levels("weighted_range", self.weighted_range)
        return self

    @model_validator(mode="after")
    def _groups_fill_the_batch(self) -> Self:
        if self.batch % self.group:
            raise ValueError(f"batch={self.batch} does not divide into groups of {self.group}")
        if TRAINED in self.watched:
            raise ValueError(f"a watched reward cannot be called '{TRAINED}', which is the trained one's name")
        return self


class ReDmdStage(DmdStage[ReDmdSettings]):
    """Trains roles `generator` and `fake_score`, as DMD does, with weighted samples."""

    settings_class = ReDmdSettings

    def __init__(self, settings: ReDmdSettings, seed: int, rank: int, world_size: int, device: torch.device) -> None:
        super().__init__(settings, seed, rank, world_size, device)
        self.rater = settings.reward.load(device)
        self.raters = {TRAINED: (settings.reward, self.rater), **self.raters}
        self.running = RunningScale(settings.running, settings.group)
        self._decoded_in = torch.bfloat16 if settings.rated_in == "bf16" else torch.float32
        self.at_start: dict[str, list[float]] = {}
        self._told_of_share = False
        self.weighted_role = {"generator": "generator", "critic": "fake_score"}[settings.weighted]

    def group(self, role: str) -> int:
        return self.settings.group if role == self.weighted_role else 1

    def weight(
        self, role: str, rolled: Rolled, captions: Sequence[Sequence[str]], again: bool = False
    ) -> tuple[Tensor | None, dict[str, Tensor | float]]:
        """exp(r / beta) of each sample, or exp(-r / beta) for the critic, over Z(c) where groups are rolled out."""
        if role != self.weighted_role:
            return None, {}
        with self.clock("reward"):
            if not bool(rolled.clip.isfinite().all()):  # no reward rates that; the update is skipped
                return rolled.clip.new_full((len(rolled.clip),), torch.nan), {}
            frames = self.pixels(rolled.clip, self._decoded_in)
            reward = rate(self.settings.reward, self.rater, frames, captions[-1], self.settings.fps)
        reward = reward.to(rolled.clip.device)
        if not again:
            self.running.add(reward)
        scaled = self.running.scaled(reward, again)
        better = scaled if role == "generator" else -scaled
        weight = reward_weights(better, self.settings.beta, self.settings.group, self.settings.weight_clip)
        metrics = {"reward": reward.mean(), "weight": weight.mean(), "weight_square": weight.square().mean()}
        return weight, {**metrics, "weight_largest": weight.amax()}

    def weight_at(self, weight: Tensor | None, sigma: Tensor) -> Tensor | None:
        """The weights [B] at noise levels of `weighted_range`, 1 at others, but what cannot be rated stays so."""
        if weight is None:
            return None
        return torch.where(is_between(sigma, *self.settings.weighted_range) | weight.isnan(), weight, 1.0)

    def updated(self, role: str, step: int) -> None:
        """Move the running scale, by the rewards of all processes, once for each rollout."""
        if role == self.weighted_role and self.rolled_at(role, step) == step:
            self.running.move(self.device)

    def derived(self, means: Mapping[str, float]) -> dict[str, float]:
        """The share of samples that count, over what was logged; warns once where it is small."""
        role = self.weighted_role
        if f"{role}/weight_square" not in means:
            return {}
        share = effective_share(means[f"{role}/weight"], means[f"{role}/weight_square"])
        if share < LEAST_SHARE and not self._told_of_share:
            self._told_of_share = True
            console().print(
                f"only {100 * share:.0f} % of the samples count: their weights exp(reward / beta) differ too much; "
                "raise beta, set weight_clip, or normalise by group or running",
                markup=False,
                soft_wrap=True,
            )
        return {f"{role}/effective_share": share}

    @torch.no_grad()
    def metrics(self, step: int) -> dict[str, Tensor | float]:
        """Mean rewards of clips of validation prompts, always the same prompts and noise; tells of alarms."""
        scores = self.watch()
        self.at_start = {**scores, **self.at_start}
        fallen = alarm(self.at_start, scores, TRAINED)
        if fallen and self.rank == 0:
            console().print(
                f"alarm at step {step}: the trained reward rises while {', '.join(fallen)} falls; look at the samples",
                markup=False,
                soft_wrap=True,
            )
        return {**mean_rewards(scores), "reward/alarms": float(len(fallen))}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides the networks."""
        return {**super().state_dict(), "running": self.running.state_dict(), "at_start": self.at_start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        super().load_state_dict(state)
        self.running.load_state_dict(state["running"])
        self.at_start = state.get("at_start", {})


class RunningScale:
    """A running mean and deviation of rewards, the same in all processes: rewards count in after their update.

    share: by how much one update moves it; None leaves rewards as they are. group: so many consecutive rewards are of
    one prompt; of more than one, the deviation is that within prompts, and no mean is taken off. Until the first update
    has been counted in, a batch is scaled by nothing.
    """

    def __init__(self, share: float | None, group: int = 1) -> None:
        self.share = share
        self.group = group
        self.moments: list[float] | None = None
        """Mean and mean square."""
        self.before: list[float] | None = None
        """Those before the last update."""
        self._sums = torch.zeros(3, dtype=torch.float64)

    def add(self, reward: Tensor) -> None:
        """Remember the rewards [B] of this process until the update is done."""
        if self.share is not None:
            values = self._varying(reward.detach().double().cpu())
            self._sums += torch.stack([torch.tensor(float(len(values))).double(), values.sum(), values.square().sum()])

    def move(self, device: torch.device) -> None:
        """Count in what all processes have added."""
        if self.share is None:
            return
        count, total, squares = sum_over_processes(self._sums.to(device)).tolist()
        self._sums.zero_()
        if not count:
            return  # nothing could be rated
        new = [total / count, squares / count]
        old = self.moments or new
        self.before = self.moments
        self.moments = [(1 - self.share) * a + self.share * b for a, b in zip(old, new, strict=True)]

    def scaled(self, reward: Tensor, again: bool = False) -> Tensor:
        """(reward - mean) / deviation; of groups reward / deviation. again: as before the last update."""
        moments = self.before if again else self.moments
        if moments is None:
            return reward
        mean, square = moments
        return (reward - mean) / max(1e-6, square - mean * mean) ** 0.5

    def _varying(self, reward: Tensor) -> Tensor:
        """What of rewards [B] the deviation is of; within groups the mean square is their variance without bias."""
        if self.group == 1:
            return reward
        groups = reward.view(-1, self.group)
        return ((groups - groups.mean(dim=1, keepdim=True)) * (self.group / (self.group - 1)) ** 0.5).flatten()

    def state_dict(self) -> dict[str, list[float] | None]:
        """The moments, and those before the last update."""
        return {"moments": self.moments, "before": self.before}

    def load_state_dict(self, state: Mapping[str, list[float] | None]) -> None:
        """Continue from `state_dict`."""
        self.moments, self.before = state["moments"], state["before"]
