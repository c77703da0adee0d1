"""The motion reward is 0 for a still, rises with even motion, and falls with defects that could pass for motion."""

import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from reward_forcing.optical_flow import Array, Pixels
from reward_forcing.rewards.base import rate
from reward_forcing.rewards.motion import MotionReward, MotionTerms, motion_terms

FRAMES, HEIGHT, WIDTH = 17, 64, 64


def texture(x: Array, y: Array) -> Array:
    """Smooth colours at x [T, W] and y [T, H], in shorter sides, exact between pixels: [T, H, W, 3] in levels."""
    rng = np.random.default_rng(0)
    total = np.zeros((len(x), y.shape[1], x.shape[1], 3))
    for _ in range(24):
        angle, waves, phase = rng.uniform(0, np.pi), rng.uniform(2, 9), rng.uniform(0, 2 * np.pi, 3)
        place = np.cos(angle) * x[:, None, :, None] + np.sin(angle) * y[:, :, None, None]
        total += np.cos(2 * np.pi * waves * place + phase)
    return (128 + 16 * total).clip(0, 255)


def pan(speed: float, frames: int = FRAMES, size: tuple[int, int] = (HEIGHT, WIDTH), fps: float = 16) -> Pixels:
    """A camera that moves to the right by `speed` shorter sides a second."""
    height, width = size
    side, travel = min(size), speed * np.arange(frames)[:, None] / fps
    x = np.arange(width) / side + travel
    y = np.broadcast_to(np.arange(height) / side, (frames, height))
    return texture(x, y).round().astype(np.uint8)


def disc(speed: float, radius: float = 0.18, until: int = FRAMES) -> Pixels:
    """An orange disc that moves to the right over grey, and is gone from frame `until` on."""
    x, y = np.meshgrid(np.arange(WIDTH) / WIDTH, np.arange(HEIGHT) / HEIGHT)
    travel = 0.25 + speed * np.arange(FRAMES)[:, None, None] / 16
    inner = ((radius - np.hypot(x - travel, y - 0.5)) * WIDTH + 0.5).clip(0, 1)
    inner[until:] = 0
    return (96 + inner[..., None] * (np.array([240, 140, 30]) - 96)).round().astype(np.uint8)


def score(frames: Pixels, fps: float = 16) -> float:
    return MotionReward().score(motion_terms(frames, fps))


def tensor(*clips: Pixels) -> Tensor:
    return torch.from_numpy(np.stack(clips)).permute(0, 1, 4, 2, 3).float() / 255


def flicker(frames: Pixels) -> Pixels:
    signs = np.where(np.arange(len(frames)) % 2, 6, -6)[:, None, None, None]
    return (frames + signs).clip(0, 255).astype(np.uint8)


def jitter(frames: Pixels) -> Pixels:
    return np.stack([np.roll(frame, 2 * (t % 2), axis=1) for t, frame in enumerate(frames)])


def shake(frames: Pixels) -> Pixels:
    moves = np.random.default_rng(0).integers(-2, 3, (len(frames), 2))
    return np.stack([np.roll(frame, tuple(move), (0, 1)) for frame, move in zip(frames, moves, strict=True)])


def noise(frames: Pixels) -> Pixels:
    drawn = np.random.default_rng(0).normal(0, 6, frames.shape)
    return (frames + drawn).round().clip(0, 255).astype(np.uint8)


def morph(frames: Pixels) -> Pixels:
    weights = np.linspace(0, 1, len(frames))[:, None, None, None]
    return ((1 - weights) * frames + weights * frames[..., ::-1]).round().astype(np.uint8)


def freeze(frames: Pixels) -> Pixels:
    return frames[np.minimum(np.arange(len(frames)), len(frames) // 2)]


def show_the_first_frame_again(frames: Pixels) -> Pixels:
    out = frames.copy()
    out[9] = frames[0]
    return out


def blur(frames: Pixels) -> Pixels:
    out = frames.astype(float)
    for _ in range(3):
        for axis in (1, 2):
            out = (np.roll(out, 1, axis) + 2 * out + np.roll(out, -1, axis)) / 4
    return out.round().astype(np.uint8)


DEFECTS = [flicker, jitter, shake, noise, morph, freeze, show_the_first_frame_again]


def test_a_still_scores_nothing_and_less_than_any_motion() -> None:
    assert score(pan(0)) == 0
    assert score(pan(0.05)) > 0


@pytest.mark.parametrize("clip", [pan, disc])
def test_the_score_rises_with_the_speed(clip: Callable[[float], Pixels]) -> None:
    scores = [score(clip(speed)) for speed in (0, 0.1, 0.2, 0.4)]
    assert scores == sorted(scores)
    assert min(np.diff(scores)) > 0.05


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("clip", [pan, disc])
def test_a_defect_lowers_the_score(clip: Callable[[float], Pixels], defect: Callable[[Pixels], Pixels]) -> None:
    clean = clip(0.25)
    assert score(defect(clean)) < score(clean) - 0.03


@pytest.mark.parametrize("defect", [flicker, jitter, shake, noise])
def test_a_defect_of_a_still_is_not_taken_for_motion(defect: Callable[[Pixels], Pixels]) -> None:
    assert score(defect(disc(0))) < 0.3 * score(disc(0.25))


@pytest.mark.parametrize("size", [(32, 48), (64, 64), (240, 416)])
@pytest.mark.parametrize("fps", [8, 16])
def test_speed_is_read_right_at_any_size_and_rate(size: tuple[int, int], fps: float) -> None:
    terms = motion_terms(pan(0.25, 9, size, fps), fps)
    assert terms.speed == pytest.approx(np.full(4, 0.25), rel=0.2)
    assert terms.jitter.max() < 0.05


def test_frames_beyond_the_taken_rate_are_passed_over() -> None:
    twice = motion_terms(pan(0.25, 17, fps=32), 32)
    assert twice.speed == pytest.approx(motion_terms(pan(0.25, 9, fps=16), 16).speed, rel=1e-6)


def test_each_defect_raises_its_own_term() -> None:
    clean = motion_terms(pan(0.25), 16)
    assert motion_terms(flicker(pan(0.25)), 16).flicker.min() > clean.flicker.max() + 4
    assert motion_terms(jitter(pan(0.25)), 16).jitter.min() > clean.jitter.max() + 0.1
    assert motion_terms(blur(pan(0.25)), 16).softness.mean() > clean.softness.mean()
    assert motion_terms(morph(pan(0.25)), 16).morphing.min() > clean.morphing.max() + 4


def test_an_object_that_vanishes_is_seen_while_it_does() -> None:
    clean, gone = motion_terms(disc(0.25), 16), motion_terms(disc(0.25, until=10), 16)
    assert gone.appearing.max() > clean.appearing.max() + 2
    assert gone.speed[-1] < 0.01


def test_a_steady_change_of_light_is_no_flicker() -> None:
    brighter = (pan(0) * 0.6 + 40).astype(np.uint8) + np.arange(FRAMES, dtype=np.uint8)[:, None, None, None]
    assert motion_terms(brighter, 16).flicker.max() == pytest.approx(0, abs=1e-3)
    assert score(brighter) == pytest.approx(0, abs=0.01)


def test_three_frames_are_enough_and_cannot_be_followed() -> None:
    terms = motion_terms(pan(0.25, 3), 16)
    assert (len(terms.speed), terms.morphing.tolist(), terms.appearing.tolist()) == (1, [0], [0])


def test_penalties_divide_by_what_exceeds_the_tolerance() -> None:
    reward = MotionReward(speed_scale=0.5, flicker=1, tolerated_flicker=2)
    calm, softness = np.zeros(1), np.ones(1)
    for level, share in ((1.0, 1.0), (3.0, 0.5)):
        terms = MotionTerms(np.ones(1), np.full(1, 0.5), softness, np.full(1, level), calm, calm)
        assert reward.score(terms) == pytest.approx(share * (1 - np.exp(-1)))
    tolerant = MotionReward(speed_scale=0.5, softness=1, tolerated_softness=1.5)
    for level, share in ((1.2, 1.0), (2.5, 0.5)):
        terms = MotionTerms(np.ones(1), np.full(1, 0.5), np.full(1, level), calm, calm, calm)
        assert tolerant.score(terms) == pytest.approx(share * (1 - np.exp(-1)))


def test_clips_of_a_batch_are_scored_as_if_alone() -> None:
    rater = MotionReward().load(torch.device("cpu"))
    clips = [pan(0.25), disc(0.25), flicker(pan(0.1))]
    together = rater(tensor(*clips), [""] * 3, 16)
    assert together.dtype == torch.float32
    assert together.tolist() == [rater(tensor(clip), [""], 16).item() for clip in clips]


def test_rated_scores_are_normalised() -> None:
    reward = MotionReward(mean=0.2, std=0.5)
    rated = rate(reward, reward.load(torch.device("cpu")), tensor(disc(0.25)), [""], 16)
    assert rated.item() == pytest.approx((score(disc(0.25)) - 0.2) / 0.5)


@pytest.mark.parametrize(("fps", "least"), [(8, 3), (16, 3), (32, 5)])
def test_too_short_a_clip_is_refused(fps: float, least: int) -> None:
    with pytest.raises(ValueError, match=f"needs at least {least} frames at {fps} fps, got {least - 1}"):
        motion_terms(pan(0.25, least - 1), fps)


def test_small_frames_and_a_rate_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 16 pixels high and wide"):
        motion_terms(pan(0.25)[:, :8], 16)
    with pytest.raises(ValueError, match="fps must be positive"):
        motion_terms(pan(0.25), 0)


def test_without_opencv_loading_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r"-e '.\[eval\]'"):
        MotionReward().load(torch.device("cpu"))
