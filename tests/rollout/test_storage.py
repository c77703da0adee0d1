"""How a cache stores its local past: lean changes no bit, int8 little, and a stored frame is never rounded twice."""

import io
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws.policies import caches
from rollout.toy import SHAPE, SIGMAS, tiny_denoiser, tiny_text
from torch import Tensor

from reward_forcing.benchmarks.work import held_bytes
from reward_forcing.models.attention import KV
from reward_forcing.rollout import CacheSettings, EmaSink, KVCache, Rollout, SeededNoise, Storage, chunkwise
from reward_forcing.rollout.storage import from_int8, to_int8
from reward_forcing.streaming.methods import METHODS

SETTINGS = CacheSettings(window_frames=8, chunk_frames=2, sink=EmaSink(frames=2, alpha=0.5))


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def roll(storage: Storage, settings: CacheSettings = SETTINGS) -> Rollout:
    denoiser, noise = tiny_denoiser(), SeededNoise((3, 4))
    text = tiny_text(denoiser.network, batch=2)
    return Rollout(denoiser, chunkwise(SIGMAS), KVCache.empty(settings, storage), noise, text, SHAPE)


def take(rollout: Rollout, chunks: int) -> Tensor:
    return torch.cat([chunk.latents for chunk in islice(rollout, chunks)], dim=1)


def kv(frames: int, seed: int, dtype: torch.dtype = torch.float32) -> KV:
    numbers = torch.randn(2, 3, 2, frames, 4, 2, 6, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return KV(*(layers.unbind() for layers in numbers))


def difference(made: Tensor, exact: Tensor) -> float:
    return ((made - exact).norm() / exact.norm()).item()


@given(caches(), st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 4), st.booleans())
def test_a_lean_cache_shows_what_the_exact_one_shows(chosen, pieces, dropped, with_sink):
    exact, lean = (KVCache.empty(chosen, storage) for storage in ("exact", "lean"))
    for number, frames in enumerate(pieces):
        new = kv(frames, number, torch.bfloat16)
        exact, lean = exact.commit(new), lean.commit(new)
        for ours, theirs in (
            (lean, exact),
            (lean.rewound(dropped), exact.rewound(dropped)),
            (lean.flushed(dropped), exact.flushed(dropped)),
        ):
            assert (ours.frames, ours.sink_frames, ours.batch) == (theirs.frames, theirs.sink_frames, theirs.batch)
            shown, expected = (cache.past(chosen.chunk_frames, with_sink) for cache in (ours, theirs))
            if expected is None:
                assert shown is None
                continue
            assert shown is not None
            for made, stored in zip((*shown.keys, *shown.values), (*expected.keys, *expected.values), strict=True):
                assert made.dtype == torch.bfloat16
                assert torch.equal(made, stored)


@pytest.mark.parametrize("name", METHODS)
def test_a_lean_cache_changes_no_video_of_any_method_and_int8_a_little(name):
    method = METHODS[name]
    videos = []
    for storage in get_args(Storage):
        denoiser = tiny_denoiser(layers=1)
        text = tiny_text(denoiser.network)
        passes, cache = method.passes(), KVCache.empty(method.cache, storage)
        rollout = Rollout(denoiser, passes, cache, SeededNoise((3,)), text, SHAPE, switch=method.switch)
        before = take(rollout, 5)
        rollout.text = tiny_text(denoiser.network, seed=9)
        videos.append(torch.cat([before, take(rollout, 4)], dim=1))
        assert rollout.cache.storage == storage
    exact, lean, int8 = videos
    assert torch.equal(lean, exact)
    assert 0 < difference(int8, exact) < 0.05


@given(st.integers(0, 99), st.sampled_from([1e-30, 1e-3, 1.0, 1e4]), st.sampled_from([torch.float32, torch.bfloat16]))
def test_int8_is_off_by_half_a_step_at_most_and_holds_zeros(seed, scale, dtype):
    x = (scale * torch.randn(1, 2, 3, 2, 6, generator=torch.Generator().manual_seed(seed))).to(dtype)
    x[..., 0] = 0
    stored = to_int8(x)
    assert (stored.dtype, stored.shape) == (torch.int8, (1, 2, 3 + 4, 2, 6))
    step = x.double().abs().amax(dim=2, keepdim=True) / 127
    error = (from_int8(stored, torch.float64) - x.double()).abs()
    assert (error <= 0.5001 * step).all()
    assert from_int8(stored, dtype).dtype == dtype


def test_an_int8_cache_holds_a_byte_for_each_number_of_the_local_past_and_the_sink_in_float32():
    exact, lean, int8 = (roll(storage) for storage in ("exact", "lean", "int8"))
    for rollout in (exact, lean, int8):
        take(rollout, 6)
    layers, tokens, heads, width, batch = 2, 6, 2, 12, 2
    head = 2 * layers * batch * tokens * heads  # keys and values, of one frame
    sink, local = 2 * head * width * 4, 4 * head * width * 4
    assert held_bytes(exact.cache) == sink + (sink + local)
    assert held_bytes(lean.cache) == sink + local
    assert held_bytes(int8.cache) == sink + 4 * (head // tokens) * (tokens + 4) * width


def test_frames_stay_as_they_were_first_rounded():
    cache = KVCache.empty(SETTINGS, "int8").commit(kv(2, 0)).commit(kv(2, 1))
    assert cache.context is not None
    first = [layer.clone() for layer in cache.context.keys]
    cache = cache.commit(kv(2, 2))
    assert cache.context is not None
    assert all(torch.equal(layer[:, :2], before) for layer, before in zip(cache.context.keys, first, strict=True))


@pytest.mark.parametrize("storage", ["lean", "int8"])
def test_a_saved_state_goes_on_exactly_and_a_snapshot_stays_valid(storage):
    whole = take(roll(storage), 8)
    rollout = roll(storage)
    take(rollout, 5)
    state, file = rollout.state, io.BytesIO()
    torch.save(state, file)
    take(rollout, 2)
    file.seek(0)
    again = roll("exact")
    again.resume(torch.load(file, weights_only=False), chunkwise(SIGMAS))
    rollout.resume(state, chunkwise(SIGMAS))
    assert torch.equal(take(again, 3), whole[:, 10:])
    assert torch.equal(take(rollout, 3), whole[:, 10:])


def test_the_default_is_exact_and_states_from_before_there_was_a_choice_are():
    assert KVCache.empty(SETTINGS).storage == "exact"
    rollout = roll("exact")
    take(rollout, 5)
    old = replace(rollout.cache)
    for name in ("storage", "dtype"):
        del old.__dict__[name]
    assert old.storage == "exact"
    assert old.past(2) is not None


@pytest.mark.parametrize("storage", get_args(Storage))
def test_an_emptied_cache_stores_as_before(storage):
    assert KVCache.empty(SETTINGS, storage).commit(kv(2, 0)).emptied() == KVCache.empty(SETTINGS, storage)
