"""At which times frames are seen, and what a cut in time does to it."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws.policies import caches
from rollout.test_kv_cache import numbered, positions, shown

from reward_forcing.rollout import CacheSettings, KVCache, NoSink, RollingSink, StaticSink
from reward_forcing.rollout.positions import Cut, time_positions, with_cut, without_gone

STATIC = CacheSettings(window_frames=9, chunk_frames=2, sink=StaticSink(frames=3))
ABSOLUTE = STATIC.model_copy(update={"positions": "absolute"})


def committed(settings: CacheSettings, chunks: int, cuts: dict[int, int] | None = None) -> KVCache:
    """The cache after so many chunks; cuts: frames that time jumps before the chunk of that number."""
    cache = KVCache.empty(settings)
    for chunk in range(chunks):
        if cuts and chunk in cuts:
            cache = cache.cut(cuts[chunk])
        cache = cache.commit(numbered(chunk * settings.chunk_frames, settings.chunk_frames))
    return cache


@pytest.mark.parametrize("settings", [STATIC, ABSOLUTE], ids=["relative", "absolute"])
def test_after_a_cut_the_chunks_to_come_sit_later_and_what_was_seen_before_stays(settings):
    plain, cut = committed(settings, 3).past(2), committed(settings, 3).cut(10).past(2)
    assert positions(plain) == ([0, 1, 2, 3, 4, 5], [6, 7])
    assert positions(cut) == ([0, 1, 2, 3, 4, 5], [16, 17])
    assert shown(cut) == shown(plain)


def test_a_cut_separates_the_scenes_until_its_first_frame_leaves_the_window():
    caches = [committed(STATIC, chunks, {3: 10}) for chunks in (4, 5, 6)]
    assert [shown(cache.past(2))[3:] for cache in caches] == [[4, 5, 6, 7], [6, 7, 8, 9], [8, 9, 10, 11]]
    assert [positions(cache.past(2)) for cache in caches] == [
        ([0, 1, 2, 3, 4, 15, 16], [17, 18]),
        ([0, 1, 2, 13, 14, 15, 16], [17, 18]),
        ([0, 1, 2, 3, 4, 5, 6], [7, 8]),
    ]


def test_by_absolute_positions_a_cut_is_never_forgotten():
    cache = committed(ABSOLUTE, 8, {3: 10, 4: 5})
    assert positions(cache.past(2)) == ([0, 1, 2, 27, 28, 29, 30], [31, 32])


def test_a_cut_within_the_sink_stays_there():
    assert positions(committed(STATIC, 8, {1: 10}).past(2))[0][:3] == [0, 1, 12]


def test_a_cut_that_no_frame_has_followed_is_replaced():
    assert positions(committed(STATIC, 3).cut(10).cut(4).past(2)) == ([0, 1, 2, 3, 4, 5], [10, 11])


def test_nothing_is_cut_where_there_is_nothing_before():
    assert KVCache.empty(STATIC).cut(10) == KVCache.empty(STATIC)


@given(
    caches(windows=st.integers(0, 5)),
    st.dictionaries(st.integers(1, 14), st.integers(1, 9)),
    st.sampled_from(["relative", "absolute"]),
)
def test_cuts_of_frames_that_are_gone_are_remembered_as_one(settings, jumps, kind):
    """Nothing that is seen tells the difference, however many there were."""
    settings = settings.model_copy(update={"positions": kind})
    cache, every = KVCache.empty(settings), ()
    for chunk in range(15):
        if chunk in jumps:
            every = with_cut(every, Cut(cache.committed, jumps[chunk]))
            cache = cache.cut(jumps[chunk])
        cache = cache.commit(numbered(chunk * settings.chunk_frames, settings.chunk_frames))
        frames = settings.chunk_frames
        ours, all_kept = cache.past(frames), replace(cache, cuts=every).past(frames)
        assert positions(ours) == positions(all_kept) if ours else all_kept is None
    assert len(cache.cuts) <= cache.frames + 2


def test_cuts_are_merged_in_order():
    cuts = tuple(Cut(at, 1) for at in (2, 5, 7, 9, 12))
    assert without_gone(cuts, sink=3, oldest=9) == (Cut(2, 1), Cut(7, 2), Cut(9, 1), Cut(12, 1))
    assert without_gone(cuts, sink=0, oldest=0) == cuts


def test_positions_without_a_cut_are_numbers():
    assert time_positions("absolute", 2, range(7, 10), ()).tolist() == [0, 1, 7, 8, 9]
    assert time_positions("relative", 2, range(7, 10), ()).tolist() == [0, 1, 2, 3, 4]


def test_a_flushed_cache_holds_the_sink_and_the_newest_frames():
    cache = committed(STATIC, 6)
    assert shown(cache.past(2)) == [0, 1, 2, 8, 9, 10, 11]
    flushed = cache.flushed(1)
    assert shown(flushed.past(2)) == [0, 1, 2, 11]
    assert positions(flushed.past(2)) == ([0, 1, 2, 3], [4, 5])
    assert (flushed.committed, flushed.evicted, flushed.sink_updates) == (12, cache.evicted, cache.sink_updates)
    assert shown(flushed.commit(numbered(12, 2)).past(2)) == [0, 1, 2, 11, 12, 13]
    assert cache.flushed(4) == cache
    assert KVCache.empty(STATIC).flushed(1) == KVCache.empty(STATIC)


def test_a_flushed_cache_knows_the_numbers_of_its_frames_and_owns_their_storage():
    flushed = committed(ABSOLUTE, 6).flushed(1)
    assert positions(flushed.past(2)) == ([0, 1, 2, 11], [12, 13])
    assert flushed.context is not None
    assert all(layer.untyped_storage().nbytes() == layer.numel() * 4 for layer in flushed.context.keys)


def test_without_a_sink_a_flushed_cache_holds_the_newest_frames_alone():
    cache = committed(CacheSettings(window_frames=8, chunk_frames=2, sink=NoSink()), 5)
    assert shown(cache.flushed(3).past(2)) == [7, 8, 9]


def test_a_rolling_sink_slides_with_the_window_round_and_round():
    settings = CacheSettings(window_frames=7, chunk_frames=2, sink=RollingSink(frames=3))
    seen = [shown(committed(settings, chunks).past(2)) for chunks in range(2, 7)]
    assert seen == [
        [0, 1, 2, 3],
        [1, 2, 0, 4, 5],
        [0, 1, 2, 6, 7],
        [2, 0, 1, 8, 9],
        [1, 2, 0, 10, 11],
    ]


def test_what_a_rolling_sink_holds_does_not_change():
    settings = CacheSettings(window_frames=7, chunk_frames=2, sink=RollingSink(frames=3))
    sink = committed(settings, 6).sink
    assert sink is not None
    assert sink.keys[0][0, :, 0, 0, 0].tolist() == [0, 1, 2]
    assert torch.equal(sink.values[0], -sink.keys[0])
