"""The DMD and Re-DMD stages on a tiny random model: what they weight, what they roll out, and how they resume."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_rewards import BrightnessRater

from reward_forcing.logs import JsonLines
from reward_forcing.rewards.weighting import reward_weights
from reward_forcing.rollout.sinks import EmaSink
from reward_forcing.training.dmd import LOOK_BACK, DmdStage
from reward_forcing.training.prompts import PromptTimeline
from reward_forcing.training.re_dmd import ReDmdSettings, ReDmdStage, RunningScale
from reward_forcing.training.rollouts import course_at, draw_course
from reward_forcing.training.stage import Draw
from reward_forcing.training.trainer import Trainer

ADAM = {"kind": "adamw", "lr": 1e-3}
TRAIN = {"steps": 4, "log_every": 1, "optimizers": {"generator": ADAM, "fake_score": ADAM}}
BRIGHTNESS = {"kind": "toy_rewards:Brightness", "mean": 0.5, "std": 0.01}
Make = Callable[..., Any]


@pytest.fixture
def make(tiny_model_folder: Path) -> Make:
    """A stage on the tiny model, with changed settings."""

    def make(stage_class: type[DmdStage] = DmdStage, **changes: Any) -> Any:
        parts = {"generator": "transformer", "real_score": "transformer", "vae": "vae"}
        values: dict[str, Any] = {name: tiny_model_folder / part for name, part in parts.items()}
        values |= {"text": tiny_model_folder, "batch": 2, "frames": 10, "latent_size": [4, 4], "generator_every": 2}
        values["cache"] = {"window_frames": 6, "chunk_frames": 2, "sink": {"kind": "ema", "frames": 2, "alpha": 0.9}}
        values["train"] = dict(TRAIN)
        if "watched" in changes:
            values["train"]["sample_every"] = 2
        if stage_class is ReDmdStage:
            values["reward"] = BRIGHTNESS
        settings = stage_class.settings_class.model_validate(values | changes)
        return stage_class(settings, seed=3, rank=0, world_size=1, device=torch.device("cpu"))

    return make


def loss_of(stage: DmdStage, role: str = "generator", step: int = 0) -> tuple[Tensor, dict[str, Any]]:
    loss, metrics = stage.loss(role, step, Draw.at(3, role, step))
    return loss, dict(metrics)


def rolled_out(stage: DmdStage, role: str = "generator", step: int = 0) -> int:
    """The latent frames that `loss_of` rolls out."""
    return draw_course(stage.settings, Draw.at(3, role, step).shared).frames


def with_weights(stage: DmdStage, weights: list[float], role: str = "generator") -> float:
    """The role's loss with these weights of its samples."""
    stage.weight = lambda role, rolled, captions, again: (torch.tensor(weights), {})  # type: ignore[method-assign]
    return loss_of(stage, role)[0].item()


def layers(stage: DmdStage) -> int:
    return stage.generator.config["num_layers"]


@pytest.fixture
def gates(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Ones that a layer's evicted frames are multiplied with before its sink absorbs them, chunk by chunk in turn."""
    gates: list[Tensor] = []
    absorb = EmaSink.absorb

    def gated(self: EmaSink, sink: Tensor, evicted: Tensor, slot: int) -> Tensor:
        gates.append(torch.ones((), requires_grad=True))
        return absorb(self, sink, gates[-1] * evicted, slot)

    monkeypatch.setattr(EmaSink, "absorb", gated)
    return gates


@pytest.mark.parametrize("stage_class", [DmdStage, ReDmdStage])
@pytest.mark.parametrize("longest", [None, 16])
def test_a_training_step_evicts_and_updates_the_sink(
    make: Make, gates: list[Tensor], stage_class: type[DmdStage], longest: int | None
) -> None:
    """Chunks of 2 in a window of 6 with a sink of 2: the commits of all chunks from the third to the last but one."""
    stage, seen = make(stage_class, longest_frames=longest), set()
    for step, role in ((0, "generator"), (0, "fake_score"), (2, "generator"), (2, "fake_score")):
        gates.clear()
        _, metrics = loss_of(stage, role, step)
        chunks = rolled_out(stage, role, step) // 2
        assert len(gates) == 2 * layers(stage) * (chunks - 3), "counted where the sink absorbs"
        assert metrics.get("sink_updates", chunks - 3) == chunks - 3, "and as the log tells it"
        seen.add(chunks)
    assert seen == {5} if longest is None else max(seen) > 5


@pytest.mark.parametrize(("stage_class", "changes"), [(DmdStage, {}), (ReDmdStage, {"group": 2})])
@pytest.mark.parametrize("longest", [None, 16])
@pytest.mark.parametrize(("kv_grad", "reaches"), [("none", False), ("clean", True)])
def test_the_loss_reaches_early_chunks_through_the_sink_only_where_asked(
    make: Make,
    gates: list[Tensor],
    stage_class: type[DmdStage],
    changes: dict[str, Any],
    longest: int | None,
    kv_grad: str,
    reaches: bool,
) -> None:
    """The first gates are those of chunk 1, which has left the window when the last chunk is generated."""
    stage = make(stage_class, kv_grad=kv_grad, longest_frames=longest, **changes)
    loss_of(stage, step=1)[0].backward()
    assert len(gates) == layers(stage) * (rolled_out(stage, step=1) - 6) > layers(stage) * (4 if longest else 2)
    assert [gate.grad is not None and gate.grad.abs().item() > 1e-9 for gate in gates] == len(gates) * [reaches]


def test_a_run_logs_how_often_the_sink_changed(make: Make, tmp_path: Path) -> None:
    Trainer(make(longest_frames=16), tmp_path / "run").run()
    rows = JsonLines(tmp_path / "run/log.jsonl").rows()
    stage = make(longest_frames=16)
    logged = [row["generator/sink_updates"] for row in rows if "generator/sink_updates" in row]
    assert logged == [rolled_out(stage, step=step) // 2 - 3 for step in (0, 2)]


def test_re_dmd_weights_each_sample_by_its_own_reward(make: Make) -> None:
    of_first, of_second = with_weights(make(), [2.0, 0.0]), with_weights(make(), [0.0, 2.0])
    assert loss_of(make())[0].item() == pytest.approx((of_first + of_second) / 2, rel=1e-5)
    stage = make(ReDmdStage, beta=2.0)
    loss, metrics = loss_of(stage)
    (shape, _), *rest = stage.rater.asked
    assert (shape, rest) == ((2, 37, 3, 32, 32), [])
    rewards = rewards_of(stage)
    assert abs(rewards[0] - rewards[1]) > 0.05, "the samples must differ for the test to tell"
    weights = torch.exp(torch.tensor(rewards) / 2.0)
    expected = (weights[0] * of_first + weights[1] * of_second) / 2
    assert loss.item() == pytest.approx(float(expected), rel=1e-4)
    of_the_mean = weights.mean() * (of_first + of_second) / 2
    assert abs(loss.item() - float(of_the_mean)) > 1e-3 * loss.item(), "not the batch mean times the mean weight"
    assert float(metrics["weight"]) == pytest.approx(float(weights.mean()), rel=1e-4)


def test_a_weighted_critic_counts_bad_samples_more_and_leaves_the_generator_alone(make: Make) -> None:
    of_first, of_second = (with_weights(make(), weights, "fake_score") for weights in ([2.0, 0.0], [0.0, 2.0]))
    stage = make(ReDmdStage, beta=2.0, weighted="critic")
    assert loss_of(stage)[0].item() == loss_of(make())[0].item(), "the generator's loss is that of DMD"
    assert not stage.rater.asked
    loss, metrics = loss_of(stage, "fake_score")
    weights = torch.exp(-torch.tensor(rewards_of(stage, "fake_score")) / 2.0)
    assert abs(weights[0] - weights[1]) > 0.02, "the samples must differ for the test to tell"
    assert loss.item() == pytest.approx(float(weights[0] * of_first + weights[1] * of_second) / 2, rel=1e-4)
    assert stage.derived({f"fake_score/{name}": float(metrics[name]) for name in ("weight", "weight_square")})


def test_samples_are_weighted_within_the_range_of_noise_levels_only(make: Make) -> None:
    plain = loss_of(make(), "fake_score")[0].item()

    def weighted(*levels: float) -> float:
        settings = {"beta": 0.5, "weighted": "critic", "weighted_range": levels}
        return loss_of(make(ReDmdStage, **settings), "fake_score")[0].item()

    assert weighted(0.0, 1.0) != pytest.approx(plain, rel=1e-3), "weights must matter for the test to tell"
    assert weighted(0.01, 0.99) == pytest.approx(weighted(0.0, 1.0), rel=1e-6)
    assert weighted(0.99, 1.0) == pytest.approx(plain, rel=1e-6)
    stage = make(ReDmdStage, weighted_range=(0.8, 1.0))
    weights = stage.weight_at(torch.tensor([2.0, 3.0, 4.0, torch.nan]), torch.tensor([0.79, 0.8, 0.98, 0.1]))
    assert weights is not None
    torch.testing.assert_close(weights, torch.tensor([1.0, 3.0, 4.0, torch.nan]), equal_nan=True)
    assert stage.weight_at(None, torch.ones(2)) is None


def rewards_of(stage: ReDmdStage, role: str = "generator") -> list[float]:
    """The normalised rewards of the samples that the stage rolls out first."""
    seen: list[float] = []

    def weight(role: str, rolled: Any, captions: Any, again: bool) -> tuple[None, dict[str, Any]]:
        brightness = stage.pixels(rolled.clip).mean(dim=(1, 2, 3, 4))
        seen.extend(((brightness - 0.5) / 0.01).tolist())
        return None, {}

    stage.weight = weight  # type: ignore[method-assign]
    loss_of(stage, role)
    return seen


def test_the_reward_is_not_differentiated(make: Make) -> None:
    stage = make(ReDmdStage)
    loss_of(stage)[0].backward()
    assert not any(p.grad is not None for p in stage.vae.vae.parameters())
    assert all(p.grad is None or p.grad.isfinite().all() for p in stage.generator.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in stage.generator.parameters())


def test_a_group_shares_its_prompt_and_not_its_noise(make: Make) -> None:
    stage = make(ReDmdStage, batch=4, group=2)
    _, metrics = loss_of(stage)
    ((_, prompts),) = stage.rater.asked
    assert prompts[0] == prompts[1] != prompts[2] == prompts[3]
    seeds, _, _ = stage._samples_of("generator", Draw.at(3, "generator", 0))
    assert len(set(seeds)) == 4
    assert float(metrics["weight"]) == pytest.approx(1.0, rel=1e-5)
    scenes = stage._samples_of("fake_score", Draw.at(3, "fake_score", 0))[1]
    assert len(set(scenes)) == 4, "the critic sees as many prompts as it can"


def test_a_switched_rollout_is_rated_by_its_second_prompt(make: Make) -> None:
    stage = make(ReDmdStage, switch_share=1.0)
    captions: list[Any] = []
    original = stage.source.switched
    stage.source.switched = lambda items: captions.append(original(items)) or captions[-1]
    loss_of(stage)
    assert stage.rater.asked[0][1] == captions[0][1] != captions[0][0]


def test_prompts_come_from_a_file_whose_last_lines_are_kept(make: Make, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("".join(f"a {colour} ball\n" for colour in ("red", "blue", "green", "pink", "gray")))
    stage = make(ReDmdStage, prompts=file, validation_prompts=2, watch_clips=3)
    for step in range(6):
        loss_of(stage, step=step)
    seen = {prompt for _, prompts in stage.rater.asked for prompt in prompts}
    assert seen == {"a red ball", "a blue ball", "a green ball"}
    stage.rater.asked.clear()
    stage.metrics(1)
    assert stage.rater.asked[0][1] == ["a pink ball", "a gray ball", "a pink ball"]
    everything = make(ReDmdStage, prompts=file, validation_prompts=0)
    assert everything.source.validation(2) == ["a red ball", "a blue ball"]
    with pytest.raises(ValueError, match="holds 5 prompts, of which 5 are kept"):
        make(prompts=file, validation_prompts=5)
    with pytest.raises(FileNotFoundError, match="no file of prompts"):
        make(prompts=tmp_path / "none.txt")


def test_every_line_of_a_file_is_drawn_and_unknown_words_are_told(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("".join(f"a red ball {number}\n" for number in range(40)) + "a zeppelin\n")
    stage = make(prompts=file, validation_prompts=1, captions=3)
    drawn = {index for step in range(200) for index in stage._samples_of("generator", Draw.at(3, "generator", step))[1]}
    assert drawn == set(range(40)), "however many captions the world would give"
    assert "does not know: '0', '1'" in caplog.text
    assert "and 31 more" in caplog.text


def test_a_rollout_that_is_no_number_skips_the_update_as_without_a_reward(make: Make, tmp_path: Path) -> None:
    stage = make(ReDmdStage, running=0.3, group=2)
    scored, bad = stage._scored, {2}
    stage._scored = lambda x, *given: scored(x * (torch.nan if stage.clock_step in bad else 1.0), *given)
    updates, stage.clock_step = stage.updates, 0

    def at(step: int) -> tuple[str, ...]:
        stage.clock_step = step
        return updates(step)

    stage.updates = at
    assert Trainer(stage, tmp_path).run().steps == 4
    rows = JsonLines(tmp_path / "log.jsonl").rows()
    assert rows[-1]["skipped"] == 2, "the generator and the critic of step 2"
    assert stage.running.moments is not None


def test_a_longer_rollout_is_scored_at_its_end(make: Make) -> None:
    stage = make(longest_frames=16)
    lengths = {rolled_out(stage, step=step) for step in range(40)}
    assert lengths == {10, 12, 14, 16}
    with torch.no_grad():
        timeline = PromptTimeline(stage.prompts(stage.source.prompts([(1, 1), (2, 2)])))
        whole = make(frames=16)._rollout(timeline, (5, 6), make(frames=16).streamed).clip
    rolled = stage._rollout(timeline, (5, 6), course_at(stage.settings, 16, exit_step=3, rolls=False))
    assert (rolled.first, list(rolled.numbers())) == (6, list(range(6, 16)))
    torch.testing.assert_close(rolled.clip[:, 1:].detach(), whole[:, 7:])
    last = stage.vae.decode(whole[:, :7])[0][:, -1:].clamp(0, 1)
    torch.testing.assert_close(rolled.clip[:, :1].detach(), stage.vae.encode(last)[0])
    assert rolled.mask is not None
    assert rolled.mask.tolist() == 2 * [2 * [False] + 8 * [True]]


def test_the_frame_that_begins_a_scored_clip_is_seen_from_a_few_frames_before_it(make: Make) -> None:
    stage = make()
    x = torch.randn(2, 22, *stage.shape, generator=torch.Generator().manual_seed(1))
    rolled = stage._scored(x, 0, 2)
    assert rolled.first == 12
    last = stage.vae.decode(x[:, 12 - LOOK_BACK : 13])[0][:, -1:]
    assert torch.equal(rolled.clip[:, :1], stage.vae.encode(last)[0])


@pytest.mark.parametrize("kv_grad", ["none", "clean", "stale"])
def test_the_gradient_through_the_cache_is_a_choice(make: Make, kv_grad: str) -> None:
    stage = make(kv_grad=kv_grad)
    loss, _ = loss_of(stage)
    loss.backward()
    values = [p.grad for name, p in stage.generator.named_parameters() if name.endswith("blocks.0.attn1.to_v.weight")]
    assert values[0] is not None
    other = make(kv_grad="none")
    same, _ = loss_of(other)
    same.backward()
    reference = next(p.grad for n, p in other.generator.named_parameters() if n.endswith("blocks.0.attn1.to_v.weight"))
    assert loss.item() == pytest.approx(same.item(), rel=1e-6)
    difference = (values[0] - reference).norm() / reference.norm()
    assert (difference > 1e-3) == (kv_grad != "none")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"running": 0.3, "group": 2, "watched": {"dark": BRIGHTNESS | {"sign": -1.0}}},
        {"rolling_share": 1.0, "longest_frames": 16, "cache": {"window_frames": 11, "chunk_frames": 2}},
        {"running": 0.3, "group": 2, "weighted": "critic", "generator_every": 4, "critic_reuse": 4},
    ],
    ids=["plain", "watched", "rolling", "reused"],
)
def test_a_resumed_run_is_the_uninterrupted_one(make: Make, tmp_path: Path, changes: dict[str, Any]) -> None:
    def run(folder: Path, steps: int) -> ReDmdStage:
        stage = make(ReDmdStage, **changes)
        train = stage.settings.train.model_copy(update={"steps": steps, "sample_every": 2})
        stage.settings = stage.settings.model_copy(update={"train": train})
        Trainer(stage, tmp_path / folder).run()
        return stage

    whole = run(Path("whole"), 4)
    run(Path("parts"), 2)
    resumed = run(Path("parts"), 4)
    for name, value in whole.generator.state_dict().items():
        assert torch.equal(value, resumed.generator.state_dict()[name]), name
    assert whole.state_dict() == resumed.state_dict()
    assert (whole.running.moments is not None) == ("running" in changes)
    rows = list(JsonLines(tmp_path / "whole/log.jsonl").rows())
    role = "fake_score" if changes.get("weighted") == "critic" else "generator"
    assert {f"{role}/effective_share", f"{role}/reward"} <= {name for row in rows for name in row}
    watched = [row for row in rows if "validation/reward/trained" in row]
    assert len(watched) == 2
    assert all(("validation/reward/dark" in row) == ("watched" in changes) for row in watched)


def test_the_critic_learns_from_one_rollout_with_new_noise_until_the_generator_changes(make: Make) -> None:
    reward = {"reward": BRIGHTNESS, "weighted": "critic", "running": 0.3, "group": 2, "generator_every": 6}
    stage = make(ReDmdStage, **reward, critic_reuse=3)
    rolled, scored = [], []
    roll_out, critic_loss = stage._rollout, stage._critic_loss

    def counted(*arguments: Any) -> Any:
        rolled.append(roll_out(*arguments))
        return rolled[-1]

    def noted(rolled: Any, sigma: Tensor, noise: Tensor, prompts: Any, weight: Tensor) -> Tensor:
        scored.append((rolled.clip, sigma, noise, weight))
        return critic_loss(rolled, sigma, noise, prompts, weight)

    stage._rollout, stage._critic_loss = counted, noted
    rated = []
    for step in range(6):
        _, metrics = loss_of(stage, "fake_score", step)
        rated.append("reward" in metrics)
        stage.updated("fake_score", step)
    assert rated == [True, False, False, True, False, False]
    assert len(rolled) == 2
    for first in (0, 3):
        clips, sigmas, noises, weights = zip(*scored[first : first + 3], strict=True)
        assert all(clip is clips[0] for clip in clips)
        assert all(weight.equal(weights[0]) for weight in weights)
        assert len({float(sigma[0]) for sigma in sigmas}) == 3
        assert not torch.equal(noises[0], noises[1])
    assert not torch.equal(scored[0][0], scored[3][0])


def test_a_rollout_is_not_reused_once_the_generator_has_changed(make: Make) -> None:
    with pytest.raises(ValueError, match="critic_reuse=3 must divide generator_every=4"):
        make(generator_every=4, critic_reuse=3)


def test_plain_dmd_watches_the_clips_that_re_dmd_watches(make: Make) -> None:
    """The same prompts and noise for both, so that their curves compare; only Re-DMD has a trained reward."""
    watched = {"bright": BRIGHTNESS, "dark": BRIGHTNESS | {"sign": -1.0, "mean": -0.5}}
    plain, rewarded = make(watched=watched, watch_clips=3), make(ReDmdStage, watched=watched, watch_clips=3)
    scores = plain.watch()
    assert list(scores) == ["bright", "dark"]
    assert rewarded.watch() == {"trained": scores["bright"], **scores}
    means = plain.metrics(1)
    assert means["reward/bright"] == pytest.approx(sum(scores["bright"]) / 3)
    assert means["reward/dark"] == pytest.approx(-means["reward/bright"])
    assert make().metrics(1) == {}


def test_the_alarm_is_told(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    stage = make(ReDmdStage, watched={"dark": BRIGHTNESS | {"sign": -1.0, "mean": -0.5}}, watch_clips=4)
    assert stage.metrics(1)["reward/alarms"] == 0
    assert len(stage.at_start["dark"]) == 4
    stage.at_start = {
        "trained": [value - 1 - 0.1 * i for i, value in enumerate(stage.at_start["trained"])],
        "dark": [value + 1 + 0.1 * i for i, value in enumerate(stage.at_start["dark"])],
    }
    assert stage.metrics(2)["reward/alarms"] == 1
    assert "alarm at step 2: the trained reward rises while dark falls" in capsys.readouterr().err


def test_a_reward_that_is_away_stops_no_training(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    stage = make(ReDmdStage, watched={"dark": BRIGHTNESS | {"sign": -1.0}}, watch_clips=4)
    whole = stage.watch()
    reward, rater = stage.raters["dark"]

    def away(*_: object) -> torch.Tensor:
        raise ConnectionError("no server at this port")

    stage.raters["dark"] = reward, away
    assert stage.watch() == {"trained": whole["trained"]}
    assert "the reward 'dark' rates no samples this time: no server at this port" in caplog.text
    assert "reward/dark" not in stage.metrics(1)
    stage.raters |= {"dark": (reward, rater), "trained": (stage.raters["trained"][0], away)}
    assert stage.metrics(2)["reward/alarms"] == 0
    assert stage.at_start == whole


def test_too_few_effective_samples_are_told_once(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    stage = make(ReDmdStage)
    means = {"generator/weight": 1.0, "generator/weight_square": 10.0}
    assert stage.derived(means) == {"generator/effective_share": pytest.approx(0.1)}
    assert stage.derived({}) == {}
    stage.derived(means)
    assert capsys.readouterr().err.count("only 10 % of the samples count") == 1


def test_the_running_scale_follows_the_rewards() -> None:
    scale = RunningScale(0.5)
    assert torch.equal(scale.scaled(torch.tensor([1.0, 3.0])), torch.tensor([1.0, 3.0]))
    scale.add(torch.tensor([1.0, 3.0]))
    scale.move(torch.device("cpu"))
    torch.testing.assert_close(scale.scaled(torch.tensor([1.0, 2.0, 3.0])), torch.tensor([-1.0, 0.0, 1.0]))
    scale.add(torch.tensor([4.0]))
    scale.add(torch.tensor([8.0]))
    scale.move(torch.device("cpu"))
    assert scale.moments == [0.5 * 2 + 0.5 * 6, 0.5 * 5 + 0.5 * 40]


def test_the_running_scale_of_groups_is_the_deviation_within_prompts() -> None:
    scale = RunningScale(0.5, group=2)
    scale.add(torch.tensor([1.0, 3.0, 101.0, 103.0]))  # two prompts, far apart
    scale.move(torch.device("cpu"))
    assert scale.moments == pytest.approx([0.0, 2.0]), "the variance of 1, 3 and of 101, 103"
    apart = scale.scaled(torch.tensor([1.0, 3.0])).diff()
    assert float(apart) == pytest.approx(2.0 / 2.0**0.5)
    weights = reward_weights(scale.scaled(torch.tensor([1.0, 3.0, 101.0, 103.0])), beta=1.0, group=2)
    torch.testing.assert_close(weights[:2], weights[2:])


def test_the_teacher_is_guided_within_the_range_of_noise_levels_only(make: Make) -> None:
    guided, alone = loss_of(make())[0].item(), loss_of(make(guidance=1.0))[0].item()
    assert guided != pytest.approx(alone, rel=1e-4), "guidance must matter for the test to tell"
    assert loss_of(make(guidance_range=(0.01, 0.99)))[0].item() == pytest.approx(guided, rel=1e-6)
    assert loss_of(make(guidance_range=(0.99, 1.0)))[0].item() == pytest.approx(alone, rel=1e-6)
    weights = make(guidance=3.0, guidance_range=(0.2, 0.9))._guidance(torch.tensor([0.1, 0.2, 0.5, 0.9, 0.95]))
    assert weights.flatten().tolist() == [1.0, 3.0, 3.0, 3.0, 1.0]


@pytest.mark.parametrize(("rated_in", "exact"), [("fp32", True), ("bf16", False)])
def test_what_weights_samples_is_decoded_in_the_precision_asked_for(make: Make, rated_in: str, exact: bool) -> None:
    stage, seen = make(ReDmdStage, rated_in=rated_in), []
    stage.rater = lambda frames, prompts, fps: seen.append(frames) or frames.mean(dim=(1, 2, 3, 4))
    rolled: list[Any] = []
    scored = stage._scored
    stage._scored = lambda *given: rolled.append(scored(*given)) or rolled[-1]
    loss_of(stage)
    whole = stage.pixels(rolled[0].clip)
    assert seen[0].dtype == torch.float32
    assert torch.equal(seen[0], whole) == exact
    torch.testing.assert_close(seen[0], whole, atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": {"kind": "motoin"}}, "unknown reward 'motoin'"),
        ({"reward": {"kind": "toy_rewards:Nothing"}}, "cannot import the reward"),
        ({"batch": 3, "group": 2}, "batch=3 does not divide into groups of 2"),
        ({"watched": {"trained": BRIGHTNESS}}, "cannot be called 'trained'"),
        ({"beta": 0.0}, "beta"),
        ({"longest_frames": 8}, "longest_frames=8"),
        ({"weighted_range": [0.9, 0.2]}, "give the lower noise level first"),
        ({"guidance_range": [0.9, 0.2]}, "give the lower noise level first"),
        ({"score_range": [0.98, 0.02]}, "two noise levels, 0 < low < high <= 1"),
        ({"score_range": [0.02, 1.5]}, "two noise levels, 0 < low < high <= 1"),
        ({"watched": {"x": BRIGHTNESS}, "train": TRAIN}, "set train.sample_every"),
        ({"latent_size": [5, 4]}, "latent_size .* does not divide into patches"),
    ],
)
def test_bad_settings_are_refused(make: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(ReDmdStage, **changes)


def test_what_is_missing_is_told_before_any_network_is_read(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reward_forcing.training.dmd.place_transformer", lambda *given, **more: pytest.fail("was read"))
    with pytest.raises(FileNotFoundError, match="no VAE in"):
        make(vae="nowhere")
    with pytest.raises(ValueError, match="batch size 2 does not divide into 4 shards"):
        make(train=TRAIN | {"accumulate": 4})
    with pytest.raises(ValueError, match="1 samples, a batch of 2 in 2 shards, are no whole groups of 2"):
        make(ReDmdStage, group=2, train=TRAIN | {"accumulate": 2})


def test_a_broken_reward_is_refused(make: Make) -> None:
    with pytest.raises(ValueError, match="must give a finite number for each of 2 clips"):
        loss_of(make(ReDmdStage, reward={"kind": "toy_rewards:Broken"}))


def test_a_reward_from_outside_is_kept_in_the_settings(make: Make) -> None:
    stage = make(ReDmdStage)
    again = ReDmdSettings.model_validate(stage.settings.model_dump(mode="json"))
    assert again.reward == stage.settings.reward
    assert again.reward.kind == "toy_rewards:Brightness"
    assert isinstance(stage.rater, BrightnessRater)
