"""The laws that every registered sink, switch policy, schedule and method keeps, with any of the others beside it.

A new policy is tried by being in its registry; the laws themselves stand in `policies`.
"""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from laws.policies import (
    EVERY,
    PERIOD,
    Way,
    begin_alike,
    finish_once_and_in_order,
    hold_no_more,
    ignore_the_batch,
    text,
    video,
    ways,
)
from laws.policies import network as tiny
from torch import Tensor

from reward_forcing.rollout import CacheSettings, Keep, KVCache, Pass, Sink, StaticSink, SwitchPolicy
from reward_forcing.rollout.switch import Clean
from reward_forcing.streaming.methods import METHODS

every_policy = pytest.mark.parametrize(("what", "name"), EVERY, ids=[f"{what} {name}" for what, name in EVERY])
full = st.integers(0, 5)
"""Windows that fill."""
WHOLE = 9
"""Chunks after which the window of every method is full."""


def tries(what: str, examples: int):
    """A law tried on several ways with a policy; on the only one there is with a method."""
    return settings(
        max_examples=1 if what == "method" else examples,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


@every_policy
def test_every_chunk_finishes_once_and_in_order(what: str, name: str) -> None:
    @tries(what, 10)
    @given(st.data())
    def law(data: st.DataObject) -> None:
        way, chunks = data.draw(ways(what, name)), WHOLE if what == "method" else data.draw(st.integers(1, 8))
        finish_once_and_in_order(way, chunks, changes=data.draw(st.sets(st.integers(1, chunks))))

    law()


@every_policy
def test_an_endless_rollout_begins_with_the_finite_one(what: str, name: str) -> None:
    @tries(what, 4)
    @given(st.data())
    def law(data: st.DataObject) -> None:
        way, chunks = data.draw(ways(what, name)), WHOLE if what == "method" else data.draw(st.integers(2, 7))
        changes = {WHOLE - 4} if what == "method" else data.draw(st.sets(st.integers(1, chunks - 1), max_size=2))
        begin_alike(way, chunks, data.draw(st.integers(1, 3)), changes)

    law()


@every_policy
def test_a_sample_does_not_depend_on_its_batch(what: str, name: str) -> None:
    @tries(what, 4)
    @given(st.data())
    def law(data: st.DataObject) -> None:
        way, chunks = data.draw(ways(what, name)), WHOLE if what == "method" else data.draw(st.integers(2, 7))
        changes = {WHOLE - 2} if what == "method" else data.draw(st.sets(st.integers(1, chunks - 1), max_size=2))
        ignore_the_batch(way, chunks, changes)

    law()


@every_policy
def test_memory_is_flat_once_the_window_is_full(what: str, name: str) -> None:
    @tries(what, 5)
    @given(st.data())
    def law(data: st.DataObject) -> None:
        hold_no_more(data.draw(ways(what, name, windows=full)), every=data.draw(st.sampled_from([1, 3, 4, PERIOD])))

    law()


class Neighbourly(Sink):
    """A sink that breaks a law: samples share what leaves the window."""

    def absorb(self, sink: Tensor, evicted: Tensor, slot: int) -> Tensor:
        return sink + evicted.float().mean(dim=(1, 2), keepdim=True)


class Hoarding(SwitchPolicy):
    """A switch policy that breaks a law: every prompt makes the cache longer."""

    def cache(self, cache: KVCache, recent: tuple[Tensor, ...], clean: Clean) -> KVCache:
        return cache.cut(1).commit(clean(recent[-1], cache)) if recent else cache

    def recall_frames(self, settings: CacheSettings) -> int | None:
        return None


def hasty(sigmas, *, chunks=None):
    """A schedule that breaks a law: the last chunk has a pass less."""
    for chunk in range(99 if chunks is None else chunks):
        own = sigmas[:-1] if chunk + 1 == chunks and len(sigmas) > 1 else sigmas
        for sigma, after in zip(own, (*own[1:], None), strict=True):
            yield Pass((chunk,), (sigma,), (after,))


def unordered(sigmas, *, chunks=None):
    """A schedule that breaks a law: the first chunk is skipped."""
    yield Pass((1,), (1.0,), (None,))


WINDOW = CacheSettings(window_frames=6, chunk_frames=2, sink=StaticSink(frames=2))


def test_the_laws_are_broken_by_what_breaks_them() -> None:
    """Otherwise they would say nothing of the policies that keep them."""
    keeping = Way("chunkwise", (1.0, 0.5), WINDOW, Keep())
    neighbours = WINDOW.model_copy(update={"sink": Neighbourly(frames=2)})
    with pytest.raises(AssertionError):
        ignore_the_batch(Way("chunkwise", (1.0, 0.5), neighbours, Keep()), 7, {5})
    with pytest.raises(AssertionError):
        hold_no_more(Way("chunkwise", (1.0,), WINDOW, Hoarding()), every=3)
    with pytest.raises(AssertionError):
        begin_alike(Way(f"{__name__}:hasty", (1.0, 0.5), WINDOW, Keep()), 4, 1, set())
    with pytest.raises(AssertionError):
        finish_once_and_in_order(Way(f"{__name__}:unordered", (1.0,), WINDOW, Keep()), 4, set())
    ignore_the_batch(keeping, 7, {5})
    hold_no_more(keeping, every=3)
    begin_alike(keeping, 4, 1, set())
    finish_once_and_in_order(keeping, 4, set())


@pytest.mark.parametrize("name", ["rolling-sink", "deep-forcing", "infinity-rope"])
def test_the_later_methods_are_self_forcing_until_a_frame_is_evicted_and_then_are_not(name: str) -> None:
    """Their window is its window, and relative positions change no difference in it."""
    videos = []
    for method in (METHODS["self"], METHODS[name]):
        way = Way(method.schedule, (1.0, 0.5), method.cache, method.switch)
        videos.append(video(way.rollout(tiny(), text(1)), 9))
    plain, ours = videos
    torch.testing.assert_close(ours[:, :21], plain[:, :21], rtol=1e-4, atol=1e-5)
    assert (ours - plain)[:, 21:].abs().amax(dim=(0, 2, 3, 4)).min() > 1e-4
