"""Laws of the switch policies, over every registered policy, sink and window, with a real network.

What they have in common with all other policies stands in `test_policies`.
"""

import io
from collections.abc import Iterator
from itertools import count

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from laws.policies import caches, network, switches, text, video
from rollout.toy import SHAPE, tiny_denoiser, tiny_text

from reward_forcing.models.attention import TextMix
from reward_forcing.rollout import (
    SWITCHES,
    Blend,
    CacheSettings,
    EmaSink,
    Keep,
    KVCache,
    Pass,
    Recache,
    Rollout,
    RolloutState,
    SeededNoise,
    SwitchPolicy,
    chunkwise,
)

SIGMAS = (1.0, 0.6)
few = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def rolling(sigmas: tuple[float, ...]) -> Iterator[Pass]:
    """As many chunks at once as there are sigmas, each noisier than the one before."""
    after = (*sigmas[1:], None)
    for index in count():
        chunks = tuple(range(max(0, index - len(sigmas) + 1), index + 1))
        steps = [index - chunk for chunk in chunks]
        yield Pass(chunks, tuple(sigmas[step] for step in steps), tuple(after[step] for step in steps))


def roll(cache: CacheSettings, switch: SwitchPolicy, seeds: tuple[int, ...] = (3,), schedule=chunkwise) -> Rollout:
    noise, first = SeededNoise(seeds), text(*(1 for _ in seeds))
    return Rollout(network(), schedule(SIGMAS), KVCache.empty(cache), noise, first, SHAPE, switch=switch)


@few
@given(caches(), st.integers(1, 5))
def test_keep_and_the_same_prompt_change_nothing(cache, at):
    assert torch.equal(video(roll(cache, Keep()), 7, {at: text(1)}), video(roll(cache, Keep()), 7))


@few
@given(caches(), st.integers(1, 3), st.integers(1, 5))
def test_a_blend_into_the_same_prompt_changes_nothing(cache, chunks, at):
    blended = video(roll(cache, Blend(chunks=chunks)), 7, {at: text(1)})
    torch.testing.assert_close(blended, video(roll(cache, Keep()), 7), rtol=1e-4, atol=1e-5)


@few
@given(caches(), st.booleans(), st.data())
def test_a_causal_recache_under_the_same_prompt_changes_nothing_while_the_window_holds_the_video(cache, sink, data):
    longest = 5 if cache.window_frames is None else min(5, cache.window_frames // cache.chunk_frames)
    at = data.draw(st.integers(1, longest))
    recached = video(roll(cache, Recache(order="causal", global_sink=sink)), at + 2, {at: text(1)})
    torch.testing.assert_close(recached, video(roll(cache, Keep()), at + 2), rtol=1e-4, atol=1e-5)


@few
@given(caches(windows=st.integers(0, 5)), st.integers(1, 6))
def test_a_causal_recache_without_a_global_sink_is_a_video_that_begins_with_the_window(cache, at):
    """As if the window's latents had been given, under the new prompt, to a rollout that knows nothing else."""
    recached = roll(cache, Recache(order="causal", global_sink=False))
    before = video(recached, at)
    recached.text = text(2)
    assert cache.window_frames is not None
    window = before[:, -cache.window_frames :]
    first = window.shape[1] % cache.chunk_frames or cache.chunk_frames
    primed = roll(cache, Keep())
    primed.text = text(2)
    primed.prime(window[:, :first])
    if window.shape[1] > first:
        primed.prime(window[:, first:])
    for name in ("keys", "values"):
        ours, theirs = (getattr(rollout.cache.context, name) for rollout in (recached, primed))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@few
@given(caches(), switches, st.integers(1, 5))
def test_no_policy_changes_what_was_shown_before(cache, policy, at):
    assert torch.equal(video(roll(cache, policy), at + 1, {at: text(2)})[:, : at * cache.chunk_frames],
                       video(roll(cache, Keep()), at))  # fmt: skip


@pytest.mark.parametrize("kind", SWITCHES)
def test_every_policy_brings_the_new_prompt_into_the_next_chunk(kind):
    cache = CacheSettings(window_frames=6, chunk_frames=2, sink=EmaSink(frames=2, alpha=0.7))
    kept, changed = (video(roll(cache, SWITCHES[kind]()), 5, change) for change in ({}, {4: text(2)}))
    assert (kept - changed)[:, 8:].abs().max() > 1e-3


def saved(state: RolloutState) -> RolloutState:
    """The state after a process ended and another read it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@few
@given(caches(), switches, st.sampled_from([chunkwise, rolling]), st.data())
def test_a_stream_killed_anywhere_resumes_exactly(cache, policy, schedule, data):
    """Also right after a switch, before any chunk has read the new prompt, and within a blend."""
    if schedule is rolling and cache.window_frames is not None:
        cache = cache.model_copy(update={"window_frames": cache.window_frames + cache.chunk_frames})
    changes = {at: text(at) for at in data.draw(st.sets(st.integers(1, 6), min_size=1, max_size=3))}
    killed = data.draw(st.integers(1, 7))
    whole = video(roll(cache, policy, schedule=schedule), 9, changes)
    first = roll(cache, policy, schedule=schedule)
    before = video(first, killed, changes)
    if told := data.draw(st.booleans()) and killed in changes:
        first.text = changes[killed]
    again = roll(cache, policy, schedule=schedule)
    again.resume(saved(first.state), schedule(SIGMAS))
    left = {at - killed: change for at, change in changes.items() if at >= killed + told}
    assert torch.equal(torch.cat([before, video(again, 9 - killed, left)], dim=1), whole)


def test_the_sink_is_updated_as_often_with_a_recache_as_without():
    cache = CacheSettings(window_frames=6, chunk_frames=2, sink=EmaSink(frames=2, alpha=0.7))
    rollout = roll(cache, Recache())
    for chunk in range(9):
        assert rollout.cache.sink_updates == max(0, chunk + 1 - 3)
        if chunk in (2, 5, 6):
            rollout.text = text(chunk)
        next(rollout)


def test_a_mix_of_a_prompt_with_itself_is_that_prompt():
    denoiser = tiny_denoiser()
    one = tiny_text(denoiser.network)
    x, sigma = torch.randn(1, 2, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 0.5])
    mixed = denoiser(x, sigma, TextMix(((0.25, one), (0.75, one))))
    torch.testing.assert_close(mixed.x0, denoiser(x, sigma, one).x0, rtol=1e-5, atol=1e-5)


def test_a_mix_moves_from_one_prompt_to_the_other():
    """Without a jump: the nearer the weight, the nearer the prediction, from end to end."""
    denoiser = tiny_denoiser()
    x, sigma = torch.randn(1, 2, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 0.5])
    old, new = (tiny_text(denoiser.network, seed) for seed in (1, 2))
    ends = [denoiser(x, sigma, end).x0 for end in (old, new)]
    away = [(denoiser(x, sigma, TextMix(((1 - weight, old), (weight, new)))).x0 - ends[0]).norm().item()
            for weight in (1e-6, 0.25, 0.5, 0.75, 1 - 1e-6)]  # fmt: skip
    assert away[0] == pytest.approx(0, abs=1e-4)
    assert away == sorted(away)
    assert away[-1] == pytest.approx((ends[1] - ends[0]).norm().item(), rel=1e-4)
