"""Laws of the switch policies, over every registered policy, sink and window, with a real network."""

import io
from collections.abc import Iterator
from functools import cache as once
from itertools import count, islice

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rollout.toy import SHAPE, ToyDenoiser, tiny_denoiser, tiny_text, toy_text
from torch import Tensor

from reward_forcing.models.attention import TextContext, TextMix
from reward_forcing.models.denoiser import Denoiser
from reward_forcing.rollout import (
    SINKS,
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
NUMBERS = {
    "blend": st.builds(Blend, chunks=st.integers(1, 3)),
    "recache": st.one_of(
        st.builds(Recache, global_sink=st.booleans(), order=st.sampled_from(["joint", "causal"])),
        st.builds(Recache, global_sink=st.just(False), frames=st.integers(1, 12)),
    ),
}
"""How to draw the numbers of the policies that have any."""
windows = st.one_of(st.none(), st.integers(0, 5))
"""Frames beyond sink and chunk, None for no window."""
policies = st.sampled_from(sorted(SWITCHES)).flatmap(lambda kind: NUMBERS.get(kind, st.just(SWITCHES[kind]())))


@st.composite
def caches(draw, windows: st.SearchStrategy[int | None] = windows) -> CacheSettings:
    """Cache settings of any sink, window and chunk."""
    kind = draw(st.sampled_from(sorted(SINKS)))
    sink = SINKS[kind]() if kind == "none" else SINKS[kind](frames=draw(st.integers(1, 4)))
    chunk, more = draw(st.integers(1, 3)), draw(windows)
    return CacheSettings(
        window_frames=None if more is None else sink.frames + chunk + more,
        chunk_frames=chunk,
        sink=sink,
        positions=draw(st.sampled_from(["relative", "absolute"])),
    )


def rolling(sigmas: tuple[float, ...]) -> Iterator[Pass]:
    """As many chunks at once as there are sigmas, each noisier than the one before."""
    after = (*sigmas[1:], None)
    for index in count():
        chunks = tuple(range(max(0, index - len(sigmas) + 1), index + 1))
        steps = [index - chunk for chunk in chunks]
        yield Pass(chunks, tuple(sigmas[step] for step in steps), tuple(after[step] for step in steps))


@once
def network() -> Denoiser:
    return tiny_denoiser(layers=1)


def text(seed: int, batch: int = 1) -> TextContext:
    return tiny_text(network().network, seed, batch)


def roll(cache: CacheSettings, switch: SwitchPolicy, seeds: tuple[int, ...] = (3,), schedule=chunkwise) -> Rollout:
    noise, first = SeededNoise(seeds), text(1, len(seeds))
    return Rollout(network(), schedule(SIGMAS), KVCache.empty(cache), noise, first, SHAPE, switch=switch)


def video(rollout: Rollout, chunks: int, changes: dict[int, TextContext] | None = None) -> Tensor:
    """Latents of the next chunks; changes: texts by the number, among these, of the chunk they begin with."""
    out = []
    for number in range(chunks):
        if changes and number in changes:
            rollout.text = changes[number]
        out.append(next(rollout).latents)
    return torch.cat(out, dim=1)


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
@given(caches(), policies, st.integers(1, 5))
def test_no_policy_changes_what_was_shown_before(cache, policy, at):
    assert torch.equal(video(roll(cache, policy), at + 1, {at: text(2)})[:, : at * cache.chunk_frames],
                       video(roll(cache, Keep()), at))  # fmt: skip


@pytest.mark.parametrize("kind", SWITCHES)
def test_every_policy_brings_the_new_prompt_into_the_next_chunk(kind):
    cache = CacheSettings(window_frames=6, chunk_frames=2, sink=EmaSink(frames=2, alpha=0.7))
    kept, changed = (video(roll(cache, SWITCHES[kind]()), 5, change) for change in ({}, {4: text(2)}))
    assert (kept - changed)[:, 8:].abs().max() > 1e-3


@few
@given(caches(), policies, st.integers(1, 4))
def test_a_sample_does_not_depend_on_its_batch_across_a_switch(cache, policy, at):
    change = {at: TextContext(*(torch.cat([getattr(text(seed), name) for seed in (2, 4)], dim=1)
                                for name in ("keys", "values"))), at + 1: text(5, 2)}  # fmt: skip
    batch = video(roll(cache, policy, seeds=(3, 8)), at + 3, change)
    for sample, (seed, second) in enumerate([(3, 2), (8, 4)]):
        alone = video(roll(cache, policy, seeds=(seed,)), at + 3, {at: text(second), at + 1: text(5)})
        torch.testing.assert_close(batch[sample : sample + 1], alone, rtol=1e-4, atol=1e-5)


def saved(state: RolloutState) -> RolloutState:
    """The state after a process ended and another read it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@few
@given(caches(), policies, st.sampled_from([chunkwise, rolling]), st.data())
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


def held(state: RolloutState) -> int:
    """Bytes that a state keeps alive, but for the current text."""
    kvs = [kv for kv in (state.cache.context, state.cache.sink) if kv is not None]
    tensors = [tensor for kv in kvs for tensor in (kv.keys, kv.values)]
    tensors += [*state.recent, *(text.keys for _, text in state.earlier), *(chunk.latents for chunk in state.noisy)]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


@few
@given(caches(windows=st.integers(0, 5)), policies, st.sampled_from([1, 2, 15]))
def test_memory_is_flat_however_often_prompts_change(cache, policy, every):
    """Within a period of the switches the state may breathe; its greatest size does not grow from one to the next."""
    denoiser = ToyDenoiser()
    rollout = Rollout(denoiser, chunkwise((1.0,)), KVCache.empty(cache), SeededNoise((0,)), toy_text(), SHAPE,
                      switch=policy)  # fmt: skip
    sizes = []
    for chunk in islice(rollout, 60):
        denoiser.calls.clear()
        if chunk.index % every == every - 1:
            rollout.text = toy_text(chunk.index / 60)
        sizes.append(held(rollout.state))
    assert max(sizes[30:45]) == max(sizes[45:])


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
