"""Laws of the rollout with a real network: one loop for training and inference, endless and exact.

What every registered policy has to keep stands in `test_policies`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from laws.policies import ways
from rollout.toy import SHAPE, SIGMAS, ToyDenoiser, tiny_denoiser, tiny_text, tiny_wan, toy_text
from torch import Tensor

from reward_forcing.models.attention import KV, Past, Prediction, TextContext, WantKV
from reward_forcing.models.denoiser import Denoiser
from reward_forcing.models.masks import block_causal
from reward_forcing.rollout import SWITCHES, CacheSettings, EmaSink, KVCache, NoSink, Rollout, SeededNoise, StaticSink
from reward_forcing.rollout.rollout import KV_GRADS, KVGrad
from reward_forcing.rollout.schedule import SCHEDULES, Pass, chunkwise, rolling

SMALL = CacheSettings(window_frames=6, chunk_frames=2, sink=EmaSink(frames=2, alpha=0.7))


def roll(denoiser: Denoiser, cache: CacheSettings = SMALL, seeds: tuple[int, ...] = (3,), **options) -> Rollout:
    schedule = options.pop("schedule", None) or chunkwise(SIGMAS)
    text = tiny_text(denoiser.network, batch=len(seeds))
    return Rollout(denoiser, schedule, KVCache.empty(cache), SeededNoise(seeds), text, SHAPE, **options)


def video(rollout: Rollout, chunks: int) -> Tensor:
    return torch.cat([chunk.latents for chunk in islice(rollout, chunks)], dim=1)


@dataclass
class Recorder:
    """A denoiser that keeps its predictions, whole ones."""

    denoiser: Denoiser
    predictions: list[Prediction] = field(default_factory=list)

    def __call__(self, *arguments, want_kv: WantKV = False, **options) -> Prediction:
        self.predictions.append(self.denoiser(*arguments, want_kv=bool(want_kv), **options))
        return self.predictions[-1]

    def rotate(self, *arguments):
        return self.denoiser.rotate(*arguments)


@pytest.mark.parametrize("positions", ["absolute", "relative"])
@pytest.mark.parametrize(("frames", "first"), [(8, None), (7, 1)])
@pytest.mark.parametrize("window", [None, 6, 4])
def test_cached_clean_passes_equal_the_masked_forward(positions, frames, first, window):
    recorder = Recorder(tiny_denoiser())
    network = recorder.denoiser.network
    latents = torch.randn(1, frames, *SHAPE, generator=torch.Generator().manual_seed(0))
    cache = CacheSettings(window_frames=window, chunk_frames=2, sink=NoSink(), positions=positions)
    text = tiny_text(network)
    rollout = Rollout(recorder, chunkwise(SIGMAS), KVCache.empty(cache), SeededNoise((0,)), text, SHAPE)
    rollout.prime(latents)
    pattern = block_causal(frames, chunk=2, window=window, first_chunk=first)
    expected = recorder.denoiser(latents, torch.zeros(frames), text, want_kv=True, pattern=pattern)
    cached = torch.cat([prediction.velocity for prediction in recorder.predictions], dim=1)
    torch.testing.assert_close(cached, expected.velocity, rtol=1e-4, atol=1e-5)
    kvs = [prediction.kv for prediction in recorder.predictions]
    assert expected.kv is not None
    for name in ("keys", "values"):
        stored = tuple(torch.cat(layer, dim=1) for layer in zip(*(getattr(kv, name) for kv in kvs), strict=True))
        torch.testing.assert_close(stored, getattr(expected.kv, name), rtol=1e-4, atol=1e-5)


@dataclass
class Certain:
    """A denoiser that predicts the same clean latents whatever it is shown; keys and values are the network's."""

    denoiser: Denoiser

    def __call__(self, *arguments, **options) -> Prediction:
        prediction = self.denoiser(*arguments, **options)
        return replace(prediction, x0=torch.full_like(prediction.x0, 0.4))

    def rotate(self, *arguments):
        return self.denoiser.rotate(*arguments)


@pytest.mark.parametrize("seen", [False, True], ids=["the same noise level", "another"])
def test_a_last_pass_at_the_context_noise_is_a_clean_pass(seen):
    """Where its input is that of the clean pass, too: the cache then holds the same, through evictions."""
    text = tiny_text(tiny_wan())

    def noise(chunk: int, draw: int, shape: Sequence[int]) -> Tensor:
        return SeededNoise((3,))(chunk, min(draw, 1), shape)

    def rollout(**how) -> Rollout:
        denoiser = Certain(tiny_denoiser())
        return Rollout(denoiser, chunkwise(SIGMAS), KVCache.empty(SMALL), noise, text, SHAPE, **how)

    ours = rollout(clean_pass=False)
    clean = rollout(context_noise=SIGMAS[-1] - 0.1 * seen)
    for _ in range(6):
        next(ours), next(clean)
    assert ours.cache.sink_updates > 1
    for mine, theirs in ((ours.cache.context, clean.cache.context), (ours.cache.sink, clean.cache.sink)):
        assert mine is not None
        assert theirs is not None
        assert (torch.equal(mine.keys, theirs.keys) and torch.equal(mine.values, theirs.values)) != seen


@pytest.mark.parametrize("name", ["chunkwise", "rolling"])
@pytest.mark.parametrize("kind", SWITCHES)
def test_without_clean_passes_a_resumed_rollout_goes_on_as_if_never_stopped(name, kind):
    denoiser, schedule = tiny_denoiser(), SCHEDULES[name]

    def fresh() -> Rollout:
        how = {"schedule": schedule(SIGMAS), "clean_pass": False, "switch": SWITCHES[kind]()}
        rollout = roll(denoiser, WIDE, **how)
        rollout.prime(torch.randn(1, 3, *SHAPE, generator=torch.Generator().manual_seed(0)))
        return rollout

    def rest(rollout: Rollout) -> Tensor:
        before = video(rollout, 1)
        rollout.text = tiny_text(denoiser.network, seed=9)
        return torch.cat([before, video(rollout, 4)], dim=1)

    whole = fresh()
    video(whole, 3)
    saved = whole.state
    expected = rest(whole)
    for resumed in (whole, fresh()):
        resumed.resume(saved, schedule(SIGMAS))
        assert torch.equal(rest(resumed), expected)


def test_training_rollout_equals_inference_rollout():
    denoiser = Denoiser(tiny_wan())
    training = video(roll(denoiser, schedule=chunkwise(SIGMAS, grad_from=0), kv_grad="clean"), 5)
    inference = video(roll(denoiser), 5)
    assert training.requires_grad
    assert not inference.requires_grad
    torch.testing.assert_close(training.detach(), inference, rtol=0, atol=1e-6)


@pytest.mark.parametrize("exit_window", range(3))
def test_a_rolling_training_rollout_finishes_the_chunks_of_inference(exit_window):
    denoiser = Denoiser(tiny_wan())
    schedule = rolling(SIGMAS, exit_window, chunks=7)
    training = [chunk.latents for chunk in roll(denoiser, WIDE, schedule=schedule, kv_grad="clean")]
    assert len(training) >= 5
    inference = video(roll(denoiser, WIDE, schedule=rolling(SIGMAS, chunks=7)), len(training))
    torch.testing.assert_close(torch.cat(training, dim=1).detach(), inference, rtol=0, atol=1e-6)


WIDE = SMALL.model_copy(update={"window_frames": 10})
"""Room for the sink, one chunk of the past and three chunks denoised together."""


def test_the_last_chunks_of_a_finite_rolling_rollout_miss_what_would_follow_them():
    denoiser = tiny_denoiser()
    finite = video(roll(denoiser, WIDE, schedule=rolling(SIGMAS, chunks=4)), 4)
    endless = video(roll(denoiser, WIDE, schedule=rolling(SIGMAS)), 4)
    assert (finite[:, 4:] - endless[:, 4:]).abs().max() > 1e-3


def test_switching_to_the_same_prompt_changes_nothing():
    denoiser = tiny_denoiser()
    rollout = roll(denoiser)
    before = video(rollout, 3)
    rollout.text = tiny_text(denoiser.network)
    assert torch.equal(torch.cat([before, video(rollout, 3)], dim=1), video(roll(denoiser), 6))


def test_switching_to_another_prompt_changes_what_follows_only():
    denoiser = tiny_denoiser()
    rollout, plain = roll(denoiser), video(roll(denoiser), 4)
    before = video(rollout, 2)
    rollout.text = tiny_text(denoiser.network, seed=9)
    assert torch.equal(before, plain[:, :4])
    assert (next(rollout).latents - plain[:, 4:6]).abs().max() > 1e-3


def test_ema_with_alpha_one_equals_the_static_sink():
    denoiser = tiny_denoiser()
    ema = SMALL.model_copy(update={"sink": EmaSink(frames=2, alpha=1.0)})
    static = SMALL.model_copy(update={"sink": StaticSink(frames=2)})
    assert torch.equal(video(roll(denoiser, ema), 6), video(roll(denoiser, static), 6))


def test_relative_positions_equal_absolute_ones_until_something_is_evicted():
    denoiser = tiny_denoiser()
    cache = CacheSettings(window_frames=8, chunk_frames=2, sink=StaticSink(frames=2))
    relative = video(roll(denoiser, cache), 6)
    absolute = video(roll(denoiser, cache.model_copy(update={"positions": "absolute"})), 6)
    torch.testing.assert_close(relative[:, :8], absolute[:, :8], rtol=1e-4, atol=1e-5)
    assert (relative[:, 8:] - absolute[:, 8:]).abs().max() > 1e-4


def test_without_a_sink_positions_do_not_matter():
    denoiser = tiny_denoiser()
    cache = CacheSettings(window_frames=6, chunk_frames=2, sink=NoSink())
    absolute = cache.model_copy(update={"positions": "absolute"})
    torch.testing.assert_close(
        video(roll(denoiser, cache), 6), video(roll(denoiser, absolute), 6), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("window", [4, 6, 8])
def test_the_sink_is_updated_once_per_chunk_after_the_window_is_full(window):
    rollout = roll(tiny_denoiser(), SMALL.model_copy(update={"window_frames": window}))
    for chunk in range(7):
        assert rollout.cache.sink_updates == max(0, chunk + 1 - window // 2)  # what chunk number `chunk` will see
        next(rollout)


@pytest.mark.parametrize(
    ("schedule", "cache", "kept", "in_flight"),
    [
        (chunkwise((1.0,)), SMALL, 4, 0),
        (rolling(SIGMAS), WIDE, 8, 2),
        (rolling(SIGMAS), WIDE.model_copy(update={"clean_pass_sees_sink": False}), 10, 2),
    ],
    ids=["chunkwise", "rolling", "rolling as published"],
)
def test_memory_is_flat_over_five_hundred_chunks(schedule, cache, kept, in_flight):
    rollout = Rollout(ToyDenoiser(), schedule, KVCache.empty(cache), SeededNoise((0,)), toy_text(), SHAPE)
    sizes = set()
    for chunk in islice(rollout, 500):
        rollout._denoiser.calls.clear()  # pyright: ignore[reportAttributeAccessIssue]
        if chunk.index >= 5:
            sizes.add(tuple(tensor.untyped_storage().nbytes() for tensor in held(rollout)))
    frame = 4 * 4 * 6 * 4
    assert sizes == {(kept * frame, kept * frame, 2 * frame, 2 * frame, *[2 * frame] * (1 + in_flight))}


def held(rollout: Rollout) -> list[Tensor]:
    """Every tensor that a rollout's state keeps alive."""
    state = rollout.state
    assert state.cache.context is not None
    assert state.cache.sink is not None
    assert state.pending is not None
    pairs: list[KV] = [state.cache.context, state.cache.sink]
    latents = [state.pending.latents, *(chunk.latents for chunk in state.noisy)]
    return [tensor for kv in pairs for tensor in (*kv.keys, *kv.values)] + latents


grids = st.tuples(st.just(4), *(st.integers(1, 3).map(lambda half: 2 * half) for _ in range(2)))
"""Sizes of a latent frame: channels, rows and columns."""


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(sorted(SCHEDULES)).flatmap(partial(ways, "schedule")), grids, st.integers(1, 6), st.integers(0, 5)
)
def test_every_geometry_runs(way, shape, chunks, given_frames):
    """With any number of chunks, after any number of given frames; all chunks come, finite, once and in order."""
    cache, denoiser = way.cache, tiny_denoiser(layers=1)
    text, passes = tiny_text(denoiser.network, batch=2), SCHEDULES[way.schedule](way.sigmas, chunks=chunks)
    rollout = Rollout(denoiser, passes, KVCache.empty(cache), SeededNoise((0, 1)), text, shape)
    if given_frames:
        rollout.prime(torch.randn(2, given_frames, *shape, generator=torch.Generator().manual_seed(0)))
    made = list(rollout)
    assert [chunk.start for chunk in made] == [given_frames + number * cache.chunk_frames for number in range(chunks)]
    out = torch.cat([chunk.latents for chunk in made], dim=1)
    assert out.shape == (2, chunks * cache.chunk_frames, *shape)
    assert out.isfinite().all()
    assert rollout.cache.committed == given_frames + chunks * cache.chunk_frames
    assert not rollout.state.noisy


def predicted(rollout: Rollout) -> Tensor:
    """What the exits of a finite schedule predict, of all chunks in turn."""
    finished = [chunk.at_exit for chunk in rollout]
    in_flight = [chunk.at_exit for chunk in rollout.state.noisy if chunk.at_exit is not None]
    return torch.cat([*finished, *in_flight], dim=1)


def trained(schedule: str, chunks: int, sigmas: tuple[float, ...] = SIGMAS, grad_from: int = 0) -> Iterator[Pass]:
    """A training schedule: of the rolling ones, that whose last window finishes nothing."""
    if schedule == "rolling":
        return rolling(sigmas, 1 % len(sigmas), grad_from, chunks=chunks)
    return chunkwise(sigmas, grad_from, chunks=chunks)


def gradients(checkpointing: bool, cache: CacheSettings, schedule: str, kv_grad: KVGrad) -> dict[str, Tensor]:
    network = tiny_wan()
    if checkpointing:
        network.enable_gradient_checkpointing()
    rollout = roll(Denoiser(network), cache, schedule=trained(schedule, 5, grad_from=1), kv_grad=kv_grad)
    out = predicted(rollout)
    probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
    (out * probe).mean().backward()
    return {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("schedule", ["chunkwise", "rolling"])
@pytest.mark.parametrize("kv_grad", KV_GRADS)
@pytest.mark.parametrize("sink", [EmaSink(frames=2, alpha=0.7), NoSink()], ids=lambda sink: sink.kind)
def test_checkpointed_gradients_equal_plain_ones(sink, kv_grad, schedule):
    cache = (SMALL if schedule == "chunkwise" else WIDE).model_copy(update={"sink": sink})
    plain, checkpointed = (gradients(choice, cache, schedule, kv_grad) for choice in (False, True))
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        assert gradient.abs().max() > 0 or gradient.numel() == 0, name
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-4, atol=1e-7, msg=name)


@dataclass
class Replayed:
    """A denoiser that sees the inputs of its first life again, those that depended on no weights by the method.

    These are the inputs of denoising passes, and of clean passes over chunks that a pass without gradient finished.
    """

    denoiser: Denoiser
    inputs: list[Tensor | None] = field(default_factory=list)
    asked: int = 0

    def __call__(self, x: Tensor, sigma: Tensor, text: TextContext, past: Past | None = None, want_kv: bool = False):
        if self.asked == len(self.inputs):
            self.inputs.append(None if x.requires_grad else x)
        first, self.asked = self.inputs[self.asked], self.asked + 1
        x = x if first is None else first
        return self.denoiser(x, sigma, text, past, want_kv)

    def rotate(self, past: Past, latent_size: tuple[int, int]) -> Past:
        return self.denoiser.rotate(past, latent_size)


@pytest.mark.parametrize(
    ("schedule", "sigmas", "window"),
    [("chunkwise", (1.0,), 4), ("chunkwise", (1.0,), 6), ("chunkwise", SIGMAS, 4), ("chunkwise", SIGMAS, 6),
     ("rolling", SIGMAS[:2], 7), ("rolling", SIGMAS, 9)],
)  # fmt: skip
@pytest.mark.parametrize("sink", [EmaSink(frames=2, alpha=0.7), EmaSink(frames=3, alpha=0.7), NoSink()], ids=repr)
def test_gradients_through_a_clean_cache_match_finite_differences(schedule, sigmas, window, sink):
    """In float64 and through several evictions, along random directions and in the keys and values alone.

    A pass's input is no function of the weights, by the method: it is the same on both sides of a difference.
    """
    cache = CacheSettings(window_frames=max(window, sink.frames + 2), chunk_frames=2, sink=sink)
    chunks = 6 if schedule == "chunkwise" else 9
    network = tiny_wan().double()
    replayed = Replayed(Denoiser(network))
    embeddings = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(1)).double()

    def loss() -> Tensor:
        replayed.asked = 0
        passes, text = trained(schedule, chunks, sigmas), network.encode_text(embeddings)
        rollout = Rollout(replayed, passes, KVCache.empty(cache), SeededNoise((3,)), text, SHAPE,
                          dtype=torch.float64, kv_grad="clean")  # fmt: skip
        out = predicted(rollout)
        assert out.shape[1] == 2 * chunks
        assert rollout.state.cache.sink_updates >= (2 if sink.frames else 0)
        assert rollout.state.cache.evicted >= 4
        return (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(0))).mean()

    parameters = dict(network.named_parameters())
    gradients = dict(zip(parameters, torch.autograd.grad(loss(), list(parameters.values())), strict=True))
    cached = [name for name in parameters if "attn1.to_k" in name or "attn1.to_v" in name]
    for seed, names in enumerate([list(parameters), list(parameters), cached]):
        generator = torch.Generator().manual_seed(seed)
        along = {name: torch.randn(parameters[name].shape, generator=generator).double() for name in names}

        @torch.no_grad()
        def moved(step: float, along: dict[str, Tensor] = along) -> float:
            for name, direction in along.items():
                parameters[name].add_(step * direction)
            value = loss().item()
            for name, direction in along.items():
                parameters[name].sub_(step * direction)
            return value

        difference = (moved(1e-5) - moved(-1e-5)) / 2e-5
        slope = sum((gradients[name] * direction).sum().item() for name, direction in along.items())
        assert slope == pytest.approx(difference, rel=1e-6)
