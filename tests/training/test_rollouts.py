"""How the DMD stages roll out: what a batch draws together, and what rolling windows supervise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_stages import distilling
from torch import Tensor

from reward_forcing.models.attention import Past, Prediction, Text
from reward_forcing.models.denoiser import Denoiser
from reward_forcing.rollout import KVCache, Rollout, SeededNoise, rolling
from reward_forcing.streaming.methods import METHODS
from reward_forcing.training import dmd, load_stage_settings
from reward_forcing.training.dmd import DmdSettings
from reward_forcing.training.prompts import PromptTimeline
from reward_forcing.training.rollouts import Course, course_at, draw_course, streamed_course
from reward_forcing.training.stage import Draw

CONFIGS = Path(__file__).parents[2] / "configs" / "train"
CHUNK, STEPS = 2, 3
CACHE = {"window_frames": 10, "chunk_frames": CHUNK, "sink": {"kind": "ema", "frames": 2, "alpha": 0.5}}
"""Room for the sink, one chunk of the past and three chunks denoised together."""
Make = Callable[..., Any]


@pytest.fixture
def make(tiny_model_folder: Path) -> Make:
    """The DMD stage with rolling rollouts, on the tiny model."""
    rolls = {"rolling_share": 1.0, "frames": 10, "denoising_steps": [1000, 750, 500], "cache": CACHE}
    return partial(distilling, tiny_model_folder, **rolls)


@pytest.fixture
def settings(make: Make) -> Callable[..., DmdSettings]:
    return lambda **changes: make(**changes).settings


@dataclass
class Call:
    """A pass of the generator: noise levels [F], its text, its prediction, and what it is for."""

    sigma: Tensor
    text: Text
    x0: Tensor
    is_clean: bool
    grad: bool


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """The passes of the stage's denoisers."""
    calls: list[Call] = []

    class Watched(Denoiser):
        def __call__(
            self, x: Tensor, sigma: Tensor, text: Text, past: Past | None = None, want_kv: bool = False, **more: Any
        ) -> Prediction:
            prediction = super().__call__(x, sigma, text, past, want_kv, **more)
            calls.append(Call(sigma, text, prediction.x0, bool(want_kv), torch.is_grad_enabled()))
            return prediction

    monkeypatch.setattr(dmd, "Denoiser", Watched)
    return calls


def roll_out(stage: Any, course: Course, seeds: Sequence[int] = (5, 6)) -> Any:
    captions = [stage.source.prompts([(1, 1), (2, 2)])]
    if course.switch is not None:
        captions = stage.source.switched([(1, 1), (2, 2)])
    return stage._rollout(PromptTimeline(*map(stage.prompts, captions), switch=course.read_from), seeds, course)


@pytest.mark.parametrize("frames", [10, 4, 9])
@pytest.mark.parametrize("exit_step", range(STEPS))
def test_every_frame_is_supervised_once_at_the_noise_level_of_its_place(
    make: Make, calls: list[Call], exit_step: int, frames: int
) -> None:
    """Also with fewer chunks than steps, and with frames that do not fill the last chunk."""
    stage = make(frames=frames)
    rolled = roll_out(stage, course_at(stage.settings, frames, exit_step, rolls=True))
    supervised = [call for call in calls if call.grad]
    assert not any(call.is_clean for call in supervised)
    x0, sigma = torch.cat([call.x0 for call in supervised], dim=1), torch.cat([call.sigma for call in supervised])
    chunks = -(-frames // CHUNK)
    windows = [next(w for w in range(b, b + STEPS) if w % STEPS == exit_step) for b in range(chunks)]
    expected = [stage.settings.sigmas[w - b] for b, w in enumerate(windows) for _ in range(CHUNK)]
    assert sigma.tolist() == pytest.approx(expected)
    assert torch.equal(rolled.clip, x0[:, :frames])
    assert (rolled.first, rolled.mask) == (0, None)
    for frame in rolled.clip.unbind(dim=1):
        (gradient,) = torch.autograd.grad(frame.sum(), stage.generator.proj_out.weight, retain_graph=True)
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("exit_step", range(STEPS))
def test_of_a_longer_rollout_only_windows_with_a_scored_frame_are_supervised(
    make: Make, calls: list[Call], exit_step: int
) -> None:
    """The frames before are what their own windows predicted, not zeros: the first scored one is decoded after them."""
    stage = make(frames=6, longest_frames=14)
    decoded: list[Tensor] = []
    decode = stage.vae.decode
    stage.vae.decode = lambda latents: decoded.append(latents) or decode(latents)
    course = course_at(stage.settings, 14, exit_step, rolls=True)
    rolled = roll_out(stage, course)
    noisy = [call for call in calls if not call.is_clean]
    exits = [call for call, step in zip(noisy, course.passes, strict=True) if step.is_exit]
    ends = torch.tensor([call.x0.shape[1] for call in exits]).cumsum(0).tolist()
    assert [call.grad for call in exits] == [end > 14 - 6 for end in ends]
    whole = torch.cat([call.x0 for call in exits], dim=1)
    assert torch.equal(rolled.clip[:, 1:], whole[:, 9:])
    assert torch.equal(decoded[0], whole[:, :9])
    assert rolled.first == 8
    assert rolled.mask is not None
    assert rolled.mask[0].tolist() == [False] * CHUNK + [True] * 4


@pytest.mark.parametrize("rolls", [True, False])
def test_a_switched_prompt_is_scored_where_the_student_read_it(make: Make, calls: list[Call], rolls: bool) -> None:
    stage, seen = make(rolling_share=float(rolls), switch_share=1.0), set()
    for step in range(12):
        course = draw_course(stage.settings, Draw.at(3, "generator", step).shared)
        calls.clear()
        roll_out(stage, course)
        noisy = [call for call in calls if not call.is_clean]
        first = noisy[0].text
        for call, taken in zip(noisy, course.passes, strict=True):
            begins = taken.chunks[0] * CHUNK
            reads_second = course.switch is not None and begins >= course.switch
            assert (call.text is not first) == reads_second, "the student, from the switch on"
            if taken.is_exit or (taken.finishes and not rolls):
                assert reads_second == (course.read_from is not None and begins >= course.read_from), "the scores"
        seen.add((course.switch, course.read_from))
        if course.switch is not None:
            assert noisy[-1].text is not first, "somewhere the second prompt is scored"
    assert any(switch is not None and switch < read for switch, read in seen) == rolls
    assert any(switch is not None and switch == read for switch, read in seen)


def test_one_half_of_the_batches_roll_and_every_process_agrees(settings: Callable[..., DmdSettings]) -> None:
    chosen = settings(rolling_share=0.5, longest_frames=14, switch_share=0.5)
    courses = [draw_course(chosen, Draw.at(3, "generator", step).shared) for step in range(200)]
    for step in range(0, 200, 20):
        shards = [draw_course(chosen, Draw.at(3, "generator", step, shard, 4).shared) for shard in range(4)]
        assert shards == 4 * [courses[step]]
    rolls = [course for course in courses if any(step.is_exit for step in course.passes)]
    assert 70 < len(rolls) < 130
    exits = {next(w for w, step in enumerate(course.passes) if step.is_exit) for course in rolls}
    assert exits == set(range(STEPS))
    assert {course.frames for course in rolls} == {10, 12, 14}


def test_without_a_share_nothing_is_drawn_for_it(settings: Callable[..., DmdSettings]) -> None:
    """A run that began before there were rolling windows goes on bit for bit."""
    chosen = settings(rolling_share=0.0, longest_frames=14, switch_share=0.5)
    for step in range(20):
        shared = Draw.at(3, "generator", step).shared
        exit_step = int(torch.randint(STEPS, (), generator=shared))
        switch = None
        if float(torch.rand((), generator=shared)) < 0.5:
            switch = CHUNK * int(torch.randint(1, 5, (), generator=shared))
        frames = 10 + CHUNK * int(torch.randint(3, (), generator=shared))
        course = draw_course(chosen, Draw.at(3, "generator", step).shared)
        assert (course.frames, course.switch, course.read_from) == (frames, switch, switch)
        assert course.passes == course_at(chosen, frames, exit_step, rolls=False).passes


@pytest.mark.parametrize("exit_step", range(STEPS))
def test_evictions_of_a_rolling_rollout_update_the_sink(make: Make, exit_step: int) -> None:
    """Beside the sink the cache keeps three chunks of the past: from the fifth commit on each evicts one."""
    ema, static = make(), make(cache=CACHE | {"sink": {"kind": "static", "frames": 2}})
    course = course_at(ema.settings, 24, exit_step, rolls=True)
    finished = sum(step.finishes for step in course.passes)
    commits = finished - course.passes[-1].finishes
    averaged, kept = (roll_out(stage, course, seeds=(5, 6)) for stage in (ema, static))
    assert averaged.sink_updates == commits - 4 > 3
    # the fifth commit precedes the window that begins with chunk 5
    unmoved = min(step.chunks[0] for step in course.passes if step.is_exit and step.chunks[0] >= 5)
    first = 24 - averaged.clip.shape[1]
    difference = (averaged.clip - kept.clip).abs().amax(dim=(0, 2, 3, 4))[1:]
    moved = [number > 0 for number in difference.tolist()]
    assert moved == [frame >= unmoved * CHUNK for frame in range(first + 1, 24)]


@pytest.mark.parametrize("kv_grad", ["clean", "stale"])
def test_the_gradient_through_the_cache_is_a_choice_of_rolling_rollouts_too(make: Make, kv_grad: str) -> None:
    def step(choice: str) -> tuple[float, Tensor]:
        stage = make(kv_grad=choice, frames=14)
        loss, _ = stage.loss("generator", 0, Draw.at(3, "generator", 0))
        loss.backward()
        return loss.item(), torch.cat([block.attn1.to_v.weight.grad.flatten() for block in stage.generator.blocks])

    (loss, gradient), (other, reference) = step(kv_grad), step("none")
    assert loss == pytest.approx(other, rel=1e-6)
    assert (gradient - reference).norm() > 1e-3 * reference.norm()


def test_the_critic_learns_from_rolling_rollouts_without_a_gradient_in_them(make: Make, calls: list[Call]) -> None:
    stage = make()
    loss, _ = stage.loss("fake_score", 0, Draw.at(3, "fake_score", 0))
    *rollout, score = calls
    assert max(call.x0.shape[1] for call in rollout) == STEPS * CHUNK
    assert not any(call.grad for call in rollout)
    assert score.grad
    loss.backward()
    assert all(p.grad is None for p in stage.generator.parameters())


def test_samples_are_streamed_with_the_windows_they_will_have(make: Make) -> None:
    stage = make()
    text = stage.generator.encode_text(stage.prompts(stage.source.prompts([(1, 1), (2, 2)])))
    endless = Rollout(
        Denoiser(stage.generator),
        rolling(stage.settings.sigmas),
        KVCache.empty(stage.settings.cache),
        SeededNoise((5, 6)),
        text,
        stage.shape,
    )
    with torch.no_grad():
        expected = torch.cat([chunk.latents for chunk in islice(endless, 5)], dim=1)
        assert torch.equal(roll_out(stage, stage.streamed).clip, expected)
    chunkwise = streamed_course(make(rolling_share=0.0).settings)
    assert {len(step.chunks) for step in chunkwise.passes} == {1}
    assert [step.finishes for step in chunkwise.passes].count(True) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"cache": CACHE | {"window_frames": 6}},
            "rolling_share=1: 6 frames denoised together do not fit a window of 6",
        ),
        ({"rolling_share": 1.5}, "rolling_share"),
        ({"longest_frames": 8}, "longest_frames=8"),
        ({"denoising_steps": [500, 1000]}, "denoising"),
    ],
)
def test_bad_rollouts_are_refused(make: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_a_window_too_small_to_roll_in_is_no_fault_where_nothing_rolls(make: Make) -> None:
    assert make(cache=CACHE | {"window_frames": 6}, rolling_share=0.0)


@pytest.mark.parametrize("config", ["mini/rolling.yaml", "wan_1_3b/rolling_8gpu.yaml"])
def test_students_of_rolling_windows_are_trained_as_the_method_streams(config: str) -> None:
    trained, method = load_stage_settings(CONFIGS / config), METHODS["rolling"]
    assert isinstance(trained, DmdSettings)
    assert trained.rolling_share == 0.5
    assert (trained.cache, trained.denoising_steps, trained.sigmas) == (
        method.cache, method.denoising_steps, method.sigmas
    )  # fmt: skip
    assert list(trained.lengths) == [21, 24, 27]
