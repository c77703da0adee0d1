"""Laws of the cache, for any chunk, window, sink and number of commits."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from laws.policies import caches
from torch import Tensor

from reward_forcing.models.attention import KV
from reward_forcing.rollout.kv_cache import CacheSettings, KVCache
from reward_forcing.rollout.sinks import EmaSink, StaticSink

FRAMES = 2


def history(frames: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(frames)
    return torch.randn(2, 2, 2, frames, 2, 1, 3, generator=generator).unbind(0)


def committed(chosen: CacheSettings, keys: Tensor, values: Tensor, pieces: list[int]) -> KVCache:
    cache = KVCache.empty(chosen)
    for key, value in zip(keys.split(pieces, dim=FRAMES), values.split(pieces, dim=FRAMES), strict=True):
        cache = cache.commit(KV(key.unbind(), value.unbind()))
    return cache


def closed_form(first: Tensor, evicted: Tensor, sink: EmaSink) -> Tensor:
    """alpha^n S_0 + (1 - alpha) sum over m < n of alpha^(n - 1 - m) E_m for every sink frame, in float64."""
    out = []
    for slot in range(sink.frames):
        mine = evicted[:, :, slot :: sink.frames].double()
        n = mine.shape[FRAMES]
        weights = (1 - sink.alpha) * sink.alpha ** torch.arange(n - 1, -1, -1, dtype=torch.float64)
        out.append(sink.alpha**n * first[:, :, slot].double() + (mine * weights.view(-1, 1, 1, 1)).sum(dim=FRAMES))
    return torch.stack(out, dim=FRAMES)


@given(caches(sinks=st.builds(EmaSink, frames=st.integers(1, 5), alpha=st.floats(0.0, 1.0))), st.integers(4, 12))
def test_ema_sink_is_its_closed_form(chosen, chunks):
    assert isinstance(chosen.sink, EmaSink)
    frames = chunks * chosen.chunk_frames
    keys, values = history(max(frames, chosen.sink.frames))
    pieces = [chosen.chunk_frames] * (keys.shape[FRAMES] // chosen.chunk_frames)
    pieces += [keys.shape[FRAMES] - sum(pieces)] * (keys.shape[FRAMES] > sum(pieces))
    cache = committed(chosen, keys, values, pieces)
    assert cache.sink is not None
    for stored, every in zip(cache.sink.stacked(), (keys, values), strict=True):
        first, evicted = every[:, :, : chosen.sink.frames], every[:, :, chosen.sink.frames :][:, :, : cache.evicted]
        torch.testing.assert_close(stored.double(), closed_form(first, evicted, chosen.sink), rtol=1e-5, atol=1e-5)


@given(caches(), st.lists(st.integers(1, 5), min_size=1, max_size=8))
def test_what_is_shown_fits_the_window_and_ends_with_the_newest_frames(chosen, pieces):
    keys, values = history(sum(pieces))
    cache = committed(chosen, keys, values, pieces)
    filled = min(sum(pieces), chosen.sink.frames)
    room, most = chosen.local_frames(chosen.chunk_frames), chosen.kept_frames
    kept = sum(pieces) - filled if most is None else min(sum(pieces) - filled, most)
    assert cache.committed == sum(pieces)
    assert (cache.sink_frames, cache.frames, cache.evicted) == (filled, filled + kept, sum(pieces) - filled - kept)
    past = cache.past(chosen.chunk_frames)
    local = kept if room is None else min(kept, room)
    if filled + local == 0:
        assert past is None
        return
    assert past is not None
    for shown, every in zip(KV(past.keys, past.values).stacked(), (keys, values), strict=True):
        assert shown.shape[FRAMES] == filled + local
        assert torch.equal(shown[:, :, filled:], every[:, :, every.shape[FRAMES] - local :])
    seen = torch.stack(tuple(past.keys))
    if filled:
        assert cache.sink is not None
        assert torch.equal(seen[:, :, :filled], chosen.sink.show(cache.sink.stacked()[0], cache.evicted))
    if isinstance(chosen.sink, StaticSink):
        assert torch.equal(seen[:, :, :filled], keys[:, :, :filled])


@given(caches(), st.lists(st.integers(1, 5), min_size=1, max_size=8))
def test_positions_increase_and_end_with_the_query(chosen, pieces):
    past = committed(chosen, *history(sum(pieces)), pieces).past(chosen.chunk_frames)
    if past is None:
        return
    positions = torch.cat([past.key_positions, past.query_positions]).tolist()
    assert len(past.key_positions) == past.keys[0].shape[1] == past.frames
    assert len(past.query_positions) == chosen.chunk_frames
    if chosen.positions == "relative":
        assert positions == list(range(len(positions)))
    else:
        assert positions == sorted(set(positions))
        assert past.query_positions.tolist() == list(range(sum(pieces), sum(pieces) + chosen.chunk_frames))


@given(caches(), st.lists(st.integers(1, 5), min_size=1, max_size=8))
def test_without_the_sink_the_newest_frames_of_the_video_are_seen_where_they_are(chosen, pieces):
    chosen = chosen.model_copy(update={"clean_pass_sees_sink": False})
    total, chunk = sum(pieces), chosen.chunk_frames
    keys, values = history(total)
    past = committed(chosen, keys, values, pieces).past(chunk, with_sink=False)
    if chosen.window_frames is None or total <= chosen.window_frames - chunk:
        count = total
    else:
        count = min(chosen.window_frames - chunk, total - min(total, chosen.sink.frames))
    if count == 0:
        assert past is None
        return
    assert past is not None
    shown = KV(past.keys, past.values).stacked()
    assert torch.equal(shown[0], keys[:, :, total - count :])
    assert torch.equal(shown[1], values[:, :, total - count :])
    positions = torch.cat([past.key_positions, past.query_positions])
    assert (positions.diff() == 1).all()


@given(caches(), st.integers(2, 6))
def test_committing_chunks_together_or_apart_shows_the_same(chosen, chunks):
    keys, values = history(chunks * chosen.chunk_frames)
    apart = committed(chosen, keys, values, [chosen.chunk_frames] * chunks)
    together = committed(chosen, keys, values, [chunks * chosen.chunk_frames])
    assert apart.context is not None
    assert together.context is not None
    torch.testing.assert_close(apart.context.keys, together.context.keys, rtol=0, atol=0)
    torch.testing.assert_close(apart.context.values, together.context.values, rtol=0, atol=0)
    assert apart.evicted == together.evicted


@given(caches())
def test_memory_stops_growing_once_the_window_is_full(chosen):
    if chosen.window_frames is None:
        return
    frame = 2 * 2 * 1 * 3 * 4
    cache = KVCache.empty(chosen)
    beside = 0 if chosen.clean_pass_sees_sink else chosen.sink.frames
    limit = (chosen.window_frames - chosen.chunk_frames + beside) * frame
    for _ in range(20):
        cache = cache.commit(KV(*(every.unbind() for every in history(chosen.chunk_frames))))
        assert cache.context is not None
        assert cache.sink is not None
        held = (*cache.context.keys, *cache.context.values)
        assert all(tensor.untyped_storage().nbytes() <= limit for tensor in held)
        sink = (*cache.sink.keys, *cache.sink.values)
        assert all(tensor.untyped_storage().nbytes() == cache.sink_frames * frame for tensor in sink)
