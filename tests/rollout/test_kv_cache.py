"""What a cache shows, evicts and keeps. Frames are told apart by their content: frame n holds the number n."""

import pytest
import torch

from reward_forcing.config import load_settings
from reward_forcing.models.attention import KV, Past
from reward_forcing.rollout.kv_cache import CacheSettings, KVCache
from reward_forcing.rollout.sinks import EmaSink, NoSink, StaticSink


def numbered(start: int, count: int, dtype: torch.dtype = torch.float32) -> KV:
    """Keys that hold the frame's number, values that hold its negative, of two layers; [1, count, 4, 1, 3]."""
    keys = torch.arange(start, start + count, dtype=dtype).view(1, -1, 1, 1, 1).repeat(1, 1, 4, 1, 3)
    return KV((keys, keys), (-keys, -keys))


def fill(settings: CacheSettings, chunks: int, dtype: torch.dtype = torch.float32) -> KVCache:
    cache = KVCache.empty(settings)
    for chunk in range(chunks):
        cache = cache.commit(numbered(chunk * settings.chunk_frames, settings.chunk_frames, dtype))
    return cache


def shown(past: Past | None) -> list[float]:
    assert past is not None
    assert all(torch.equal(value, -key) for key, value in zip(past.keys, past.values, strict=True))
    return past.keys[0][0, :, 0, 0, 0].tolist()


def positions(past: Past | None) -> tuple[list[int], list[int]]:
    assert past is not None
    return past.key_positions.tolist(), past.query_positions.tolist()


def test_an_empty_cache_shows_nothing():
    assert KVCache.empty(CacheSettings()).past(3) is None


def test_window_holds_sink_local_past_and_the_next_chunk():
    cache = fill(CacheSettings(window_frames=9, chunk_frames=3, sink=StaticSink(frames=3)), chunks=5)
    assert shown(cache.past(3)) == [0, 1, 2, 12, 13, 14]
    assert (cache.committed, cache.evicted, cache.sink_updates) == (15, 9, 3)


def test_plain_window_without_sink_shows_the_newest_frames():
    cache = fill(CacheSettings(window_frames=9, chunk_frames=3, sink=NoSink()), chunks=5)
    assert shown(cache.past(3)) == [9, 10, 11, 12, 13, 14]
    assert positions(cache.past(3)) == ([0, 1, 2, 3, 4, 5], [6, 7, 8])
    assert cache.sink_updates == 0


@pytest.mark.parametrize("unlimited", [None, -1])
def test_unlimited_window_evicts_nothing(unlimited):
    settings = CacheSettings(window_frames=unlimited, chunk_frames=3, sink=NoSink(), positions="absolute")
    assert settings.window_frames is None
    cache = fill(settings, chunks=7)
    assert shown(cache.past(3)) == list(range(21))
    assert positions(cache.past(3)) == (list(range(21)), [21, 22, 23])


def test_absolute_positions_are_the_frames_numbers():
    settings = CacheSettings(window_frames=9, chunk_frames=3, sink=StaticSink(frames=3), positions="absolute")
    assert positions(fill(settings, chunks=5).past(3)) == ([0, 1, 2, 12, 13, 14], [15, 16, 17])


def test_sink_fills_over_several_chunks_and_only_filled_frames_are_shown():
    settings = CacheSettings(window_frames=8, chunk_frames=2, sink=EmaSink(frames=3, alpha=0.5))
    cache = fill(settings, chunks=1)
    assert (cache.sink_frames, shown(cache.past(2))) == (2, [0, 1])
    assert positions(cache.past(2)) == ([0, 1], [2, 3])
    cache = cache.commit(numbered(2, 2))
    assert (cache.sink_frames, shown(cache.past(2))) == (3, [0, 1, 2, 3])
    assert cache.evicted == 0


def test_chunk_larger_than_the_sink_fills_it_with_its_first_frames():
    settings = CacheSettings(window_frames=7, chunk_frames=3, sink=StaticSink(frames=1))
    assert fill(settings, chunks=1).sink_frames == 1
    assert shown(fill(settings, chunks=3).past(3)) == [0, 6, 7, 8]


def test_the_tightest_window_evicts_within_the_first_commit():
    settings = CacheSettings(window_frames=4, chunk_frames=3, sink=EmaSink(frames=1, alpha=0.5))
    cache = fill(settings, chunks=1)
    assert (cache.evicted, cache.sink_updates) == (2, 1)
    assert shown(cache.past(3)) == [0.25 * 0 + 0.25 * 1 + 0.5 * 2]


def test_a_window_of_one_chunk_shows_nothing():
    assert fill(CacheSettings(window_frames=3, chunk_frames=3, sink=NoSink()), chunks=4).past(3) is None


def test_ema_sink_absorbs_the_oldest_local_frames_first():
    settings = CacheSettings(window_frames=9, chunk_frames=3, sink=EmaSink(frames=3, alpha=0.5))
    cache = fill(settings, chunks=3)
    assert shown(cache.past(3)) == [(0 + 3) / 2, (1 + 4) / 2, (2 + 5) / 2, 6, 7, 8]


def test_wider_passes_see_less_of_the_local_past():
    settings = CacheSettings(window_frames=12, chunk_frames=3, sink=StaticSink(frames=3))
    cache = fill(settings, chunks=4)
    assert shown(cache.past(3)) == [0, 1, 2, 6, 7, 8, 9, 10, 11]
    assert shown(cache.past(6)) == [0, 1, 2, 9, 10, 11]
    assert positions(cache.past(6)) == ([0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11])
    assert shown(cache.past(9)) == [0, 1, 2]
    with pytest.raises(ValueError, match=r"10 frames .* window of 12 .* use window_frames >= 13"):
        cache.past(10)


def test_without_the_sink_the_newest_frames_take_its_room():
    settings = CacheSettings(window_frames=9, chunk_frames=3, sink=StaticSink(frames=3), clean_pass_sees_sink=False)
    assert shown(fill(settings, chunks=2).past(3, with_sink=False)) == [0, 1, 2, 3, 4, 5]
    assert shown(fill(settings, chunks=3).past(3, with_sink=False)) == [3, 4, 5, 6, 7, 8]
    cache = fill(settings, chunks=5)
    assert shown(cache.past(3, with_sink=False)) == [9, 10, 11, 12, 13, 14]
    assert positions(cache.past(3, with_sink=False)) == ([0, 1, 2, 3, 4, 5], [6, 7, 8])
    assert shown(cache.past(3)) == [0, 1, 2, 12, 13, 14]
    assert (cache.frames, cache.evicted) == (9, 6)


def test_commit_leaves_the_old_cache_as_it_was():
    settings = CacheSettings(window_frames=9, chunk_frames=3, sink=EmaSink(alpha=0.5))
    before = fill(settings, chunks=3)
    seen = shown(before.past(3))
    before.commit(numbered(9, 3))
    assert shown(before.past(3)) == seen
    assert before.committed == 9


def test_sink_stays_float32_beside_a_bfloat16_context():
    cache = fill(CacheSettings(sink=EmaSink(alpha=0.999)), chunks=6, dtype=torch.bfloat16)
    assert cache.sink is not None
    past = cache.past(3)
    assert past is not None
    assert {layer.dtype for layer in (*cache.sink.keys, *cache.sink.values)} == {torch.float32}
    assert {layer.dtype for layer in (*past.keys, *past.values)} == {torch.bfloat16}


@pytest.mark.parametrize("sink", [NoSink(), StaticSink(), EmaSink()])
def test_every_tensor_owns_exactly_its_own_storage(sink):
    cache = fill(CacheSettings(sink=sink), chunks=6)
    assert cache.context is not None
    assert cache.sink is not None
    for tensor in (*cache.context.keys, *cache.context.values, *cache.sink.keys, *cache.sink.values):
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window_frames": 5}, "window_frames=5 cannot hold 3 sink frames and a chunk of 3; use at least 6"),
        ({"window_frames": 0}, "greater than 0"),
        ({"chunk_frames": 0}, "greater than 0"),
        ({"positions": "relatve"}, "'relative' or 'absolute'"),
    ],
)
def test_impossible_settings_are_rejected(changes, message):
    with pytest.raises(ValueError, match=message):
        CacheSettings.model_validate(changes)


def test_settings_come_from_names():
    overrides = ["window_frames=12", "sink={kind: static, frames: 2}", "positions=absolute"]
    expected = CacheSettings(window_frames=12, sink=StaticSink(frames=2), positions="absolute")
    assert load_settings(CacheSettings, None, overrides) == expected


def test_frames_of_another_batch_are_rejected():
    cache = fill(CacheSettings(), chunks=1)
    pair = numbered(3, 3).map(lambda layer: layer.repeat(2, 1, 1, 1, 1))
    with pytest.raises(
        ValueError, match=r"cache holds .* \[2, 1, 4, 1, 3\], the committed frames have \[2, 2, 4, 1, 3\]"
    ):
        cache.commit(pair)
