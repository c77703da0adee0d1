"""The naive mode and the fast path are each other's oracle: the same chunks, past eviction, for every method."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from reward_forcing.benchmarks.naive import NaiveRollout, decode_at_end
from reward_forcing.benchmarks.naive_network import POSITIONS
from reward_forcing.models.denoiser import Denoiser
from reward_forcing.models.vae import StreamingVAE
from reward_forcing.models.wan_dit import WanDiT
from reward_forcing.rollout import (
    Blend,
    CacheSettings,
    EmaSink,
    KVCache,
    KVFlush,
    NoSink,
    Recache,
    RollingSink,
    Rollout,
    SeededNoise,
    StaticSink,
    chunkwise,
)
from reward_forcing.streaming.methods import METHODS, Method

SHAPE = (4, 4, 6)
PRESETS: dict[str, Method] = {
    **METHODS,
    "self, everything": METHODS["self"].model_copy(update={"window_frames": None}),
    "self, window of 6": METHODS["self"].model_copy(update={"window_frames": 6}),
    "reward, fast sink": METHODS["reward"].model_copy(update={"sink": EmaSink(frames=3, alpha=0.5)}),
    "reward, odd sizes": METHODS["reward"].model_copy(
        update={"chunk_frames": 2, "window_frames": 8, "sink": EmaSink(frames=3, alpha=0.5)}
    ),
    "rolling, as published": METHODS["rolling"].model_copy(update={"clean_pass_sees_sink": False}),
    "rolling-sink, odd sizes": METHODS["rolling-sink"].model_copy(
        update={"chunk_frames": 2, "window_frames": 10, "sink": RollingSink(frames=5)}
    ),
    "noisy context": METHODS["reward"].model_copy(update={"context_noise": 0.05}),
    "reward, no clean pass": METHODS["reward"].model_copy(update={"clean_pass": False}),
    "rolling, no clean pass": METHODS["rolling"].model_copy(update={"clean_pass": False}),
}


def relative_error(ours: Tensor, reference: Tensor) -> float:
    return ((ours - reference).norm() / reference.norm()).item()


def both(method: Method, network: WanDiT, seeds: Sequence[int] = (3,)) -> tuple[Rollout, NaiveRollout]:
    network.requires_grad_(False)
    text = torch.randn(1, 8, network.config["text_dim"], generator=torch.Generator().manual_seed(1))
    noise = SeededNoise(tuple(seeds))
    how = {"context_noise": method.context_noise, "clean_pass": method.clean_pass, "switch": method.switch}
    context = network.encode_text(text.to(network.dtype)).expand(len(seeds))
    cache = KVCache.empty(method.cache)
    fast = Rollout(Denoiser(network), method.passes(), cache, noise, context, SHAPE, dtype=network.dtype, **how)
    return fast, NaiveRollout(network, method.passes(), method.cache, noise, text, SHAPE, **how)


def chunks_past_eviction(method: Method) -> int:
    """Enough for two evictions beyond the window, and for the sink to take in twice."""
    return (method.window_frames or 12) // method.chunk_frames + 3


@pytest.mark.parametrize("name", PRESETS)
@torch.no_grad()
def test_fast_equals_naive_in_float32(name: str, tiny_dit: Callable[..., WanDiT]) -> None:
    fast, naive = both(PRESETS[name], tiny_dit(), seeds=(3, 4))
    for _ in range(chunks_past_eviction(PRESETS[name])):
        ours, theirs = next(fast), next(naive)
        assert (ours.index, ours.start) == (theirs.index, theirs.start)
        assert relative_error(ours.latents, theirs.latents) < 1e-5


@pytest.mark.parametrize("mixed", [False, True], ids=["all bfloat16", "mixed"])
@pytest.mark.parametrize("name", PRESETS)
@torch.no_grad()
def test_fast_equals_naive_in_bfloat16(name: str, mixed: bool, tiny_dit: Callable[..., WanDiT]) -> None:
    network = tiny_dit()
    network = network.to_mixed(torch.bfloat16) if mixed else torch.nn.Module.to(network, torch.bfloat16)
    fast, naive = both(PRESETS[name], network)
    for _ in range(chunks_past_eviction(PRESETS[name])):
        assert relative_error(next(fast).latents, next(naive).latents) < 1e-2


SWITCHED: dict[str, Method] = {
    **{name: method for name, method in METHODS.items() if method.chunks_at_once == 1},
    "recache, no clean pass": METHODS["longlive"].model_copy(update={"clean_pass": False}),
    "flush, EMA sink": PRESETS["reward, odd sizes"].model_copy(update={"switch": KVFlush(frames=2)}),
    "flush, rolling sink": PRESETS["rolling-sink, odd sizes"].model_copy(update={"switch": KVFlush()}),
    "flush, absolute positions": METHODS["self"].model_copy(update={"window_frames": 6, "switch": KVFlush()}),
    "flush, no window": METHODS["self"].model_copy(update={"window_frames": None, "switch": KVFlush(frames=4)}),
}


@pytest.mark.parametrize("name", SWITCHED)
@torch.no_grad()
def test_fast_equals_naive_after_new_prompts(name: str, tiny_dit: Callable[..., WanDiT]) -> None:
    """One prompt is switched while the window fills, one after evictions; the window fills up again after each."""
    method, network = SWITCHED[name], tiny_dit()
    fast, naive = both(method, network, seeds=(3, 4))
    chunks = chunks_past_eviction(method)
    generator = torch.Generator().manual_seed(2)
    for number in range(2 * chunks):
        if number in (2, chunks - 1):
            text = torch.randn(1, 8, network.config["text_dim"], generator=generator)
            naive.set_text(text)
            fast.text = network.encode_text(text).expand(2)
        assert relative_error(next(fast).latents, next(naive).latents) < 1e-5


@torch.no_grad()
def test_the_naive_cache_is_another_one_and_its_sink_has_moved(tiny_dit: Callable[..., WanDiT]) -> None:
    """The comparison is none of a thing with itself: a wrong alpha on one side is seen."""
    method = PRESETS["reward, fast sink"]
    fast, _ = both(method, tiny_dit())
    _, wrong = both(method.model_copy(update={"sink": EmaSink(frames=3, alpha=0.6)}), tiny_dit())
    errors = [relative_error(next(fast).latents, next(wrong).latents) for _ in range(5)]
    assert max(errors[:3]) < 1e-5
    assert min(errors[3:]) > 1e-4


@torch.no_grad()
def test_given_latents_and_snapshots_go_on_as_the_fast_path_does(tiny_dit: Callable[..., WanDiT]) -> None:
    method = METHODS["reward"]
    fast, naive = both(method, tiny_dit())
    given = torch.randn(1, 9, *SHAPE, generator=torch.Generator().manual_seed(5))
    fast.prime(given)
    naive.prime(given)
    branch = naive.snapshot(method.passes())
    first = next(branch)
    assert relative_error(next(naive).latents, first.latents) == 0.0
    for reference in (first, next(branch)):
        assert relative_error(next(fast).latents, reference.latents) < 1e-5


@torch.no_grad()
def test_absolute_positions_end_where_the_published_table_ends(tiny_dit: Callable[..., WanDiT]) -> None:
    method = Method(denoising_steps=(1000,), chunk_frames=3, window_frames=6, sink=NoSink(), positions="absolute")
    _, naive = both(method, tiny_dit())
    naive.start = POSITIONS - 1
    with pytest.raises(ValueError, match="1024 positions"):
        next(naive)


def test_frames_decoded_at_the_end_are_those_decoded_chunk_by_chunk(tiny_model_folder: Path) -> None:
    vae = StreamingVAE.from_pretrained(tiny_model_folder / "vae", torch.float32)
    latents = torch.randn(1, 6, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    frames, state = vae.decode(latents[:, :2])
    later, _ = vae.decode(latents[:, 2:], state)
    at_end = decode_at_end(vae.vae, latents)
    assert at_end.shape == (1, 21, 3, 32, 32)
    torch.testing.assert_close(at_end, torch.cat([frames, later], dim=1), atol=1e-5, rtol=0)


def test_what_the_naive_mode_does_not_repeat_is_refused(tiny_dit: Callable[..., WanDiT]) -> None:
    network, noise, text = tiny_dit(), SeededNoise((0,)), torch.zeros(1, 8, 12)
    for settings, switch in (
        (CacheSettings(sink=StaticSink()), Blend()),
        (CacheSettings(sink=EmaSink()), Recache()),
        (CacheSettings(sink=RollingSink()), Recache()),
        (CacheSettings(sink=StaticSink()), Recache(order="causal")),
    ):
        with pytest.raises(ValueError, match="switch policies keep, flush and"):
            NaiveRollout(network, chunkwise((1.0,)), settings, noise, text, SHAPE, switch=switch)
