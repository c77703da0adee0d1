"""Gates that need no clock: FLOPs, host syncs, float64 and complex operators, allocations and memory of a stream."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

import pytest
import torch
from benchmarks.test_naive import PRESETS, SHAPE, both, chunks_past_eviction
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

from reward_forcing.benchmarks.naive import NaiveRollout
from reward_forcing.benchmarks.work import Operations, chunk_flops, count_flops, held_bytes
from reward_forcing.checkpoints.hub import bundled
from reward_forcing.models.sizes import WAN_1_3B, WAN_14B, Size
from reward_forcing.models.tiny_vae import TinyDecoder, TinyVAE
from reward_forcing.models.vae import FrameDecoder, StreamingVAE
from reward_forcing.models.wan_dit import WanDiT
from reward_forcing.rollout import NoSink, Rollout
from reward_forcing.streaming.methods import METHODS, Method
from reward_forcing.training.plan_costs import Shape

BOUNDED = {name: method for name, method in PRESETS.items() if method.window_frames is not None}


@torch.no_grad()
def steady(rollout: Rollout | NaiveRollout, method: Method) -> Rollout | NaiveRollout:
    """The rollout with its window full, and with every chunk of a joint schedule in flight."""
    for _ in range(chunks_past_eviction(method)):
        next(rollout)
    if isinstance(rollout, Rollout):
        _ = rollout.cache
    return rollout


@torch.no_grad()
def one_chunk(rollout: Rollout | NaiveRollout) -> None:
    """All passes of a chunk and its clean pass."""
    next(rollout)
    if isinstance(rollout, Rollout):
        _ = rollout.cache


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["reward", "self", "longlive", "rolling", "reward, odd sizes",
                                  "reward, no clean pass", "rolling, no clean pass"])  # fmt: skip
def test_counted_flops_equal_the_formula(name: str, dtype: torch.dtype, tiny_dit: Callable[..., WanDiT]) -> None:
    network = torch.nn.Module.to(tiny_dit(), dtype)
    shape = Shape.of(network, SHAPE[1:])
    for rollout in both(PRESETS[name], network):
        published = isinstance(rollout, NaiveRollout)
        steady(rollout, PRESETS[name])
        formula = chunk_flops(shape, PRESETS[name], text_tokens=8, published=published)
        assert count_flops(lambda rollout=rollout: one_chunk(rollout)) == pytest.approx(formula, rel=0.01)


@pytest.mark.parametrize(
    ("size", "latents", "window", "tera"),
    [
        (WAN_1_3B, (60, 104), 9, 121.3),
        (WAN_1_3B, (60, 104), 21, 202.0),
        (WAN_1_3B, (90, 160), 9, 462.7),
        (WAN_14B, (60, 104), 9, 838),
    ],
)
def test_the_formula_gives_the_known_counts_of_real_chunks(
    size: Size, latents: tuple[int, int], window: int, tera: float
) -> None:
    with torch.device("meta"):
        network = WanDiT(**size)
    method = METHODS["reward"].model_copy(update={"window_frames": window})
    flops = chunk_flops(Shape.of(network, latents), method, 512, published=True)
    assert flops / 1e12 == pytest.approx(tera, rel=2e-3)


def test_the_miniatures_own_vae_computes_less_than_a_tiny_decoder_of_the_published_size() -> None:
    with torch.device("meta"):
        own = AutoencoderKLWan.from_config(AutoencoderKLWan.load_config(bundled()["mini"] / "vae"))
        latents, counts = torch.empty(1, 3, 16, 8, 8), []
        for decoder in (StreamingVAE(own), TinyDecoder(TinyVAE())):
            _, state = decoder.decode(latents)
            counts.append(count_flops(partial(decoder.decode, latents, state)) / 1e9)
    assert counts == pytest.approx([3.73, 16.21], abs=0.005)


@pytest.mark.parametrize(
    ("make", "teraflops", "mebibytes"),
    [
        (lambda: StreamingVAE(AutoencoderKLWan().bfloat16()), 40.65, 1801),
        (lambda: TinyDecoder(TinyVAE().bfloat16()), 1.58, 64),
    ],
    ids=["Wan VAE", "TAEHV"],
)
def test_decoders_compute_and_hold_what_is_documented_at_832x480(
    make: Callable[[], FrameDecoder], teraflops: float, mebibytes: float
) -> None:
    with torch.device("meta"):
        decoder, latents = make(), torch.empty(1, 3, 16, 60, 104)
        _, state = decoder.decode(latents)
        assert count_flops(lambda: decoder.decode(latents, state)) / 1e12 == pytest.approx(teraflops, abs=0.005)
    assert held_bytes(state) / 2**20 == pytest.approx(mebibytes, abs=0.5)


@pytest.mark.parametrize("name", BOUNDED)
def test_a_steady_chunk_waits_for_nothing_and_computes_in_no_wide_type(
    name: str, tiny_dit: Callable[..., WanDiT]
) -> None:
    fast, _ = both(BOUNDED[name], tiny_dit())
    steady(fast, BOUNDED[name])
    with Operations() as seen:
        one_chunk(fast)
    assert not seen.syncs
    assert not seen.complexes
    assert not seen.doubles
    assert seen.counts["mm"] + seen.counts["addmm"] > 0


def test_the_detector_sees_what_the_naive_mode_does(tiny_dit: Callable[..., WanDiT]) -> None:
    method = METHODS["reward"]
    _, naive = both(method, tiny_dit())
    steady(naive, method)
    with Operations() as seen:
        one_chunk(naive)
    layers, passes = 2, 5
    assert seen.syncs["naive_network.py:_rotate"] >= 3 * layers * passes
    assert seen.syncs["naive_cache.py:attend_to"] >= 2 * layers * passes
    assert seen.complexes["naive_network.py:_rotate"] > 0
    assert seen.doubles["naive_network.py:_rotate"] > 0
    assert seen.doubles["naive.py:_pass"] > 0


@pytest.mark.parametrize("name", BOUNDED)
def test_every_steady_chunk_does_and_allocates_the_same(name: str, tiny_dit: Callable[..., WanDiT]) -> None:
    """An EMA sink may take evicted frames in two pieces, so that its chunks repeat with the sink's length."""
    method = BOUNDED[name]
    fast, _ = both(method, tiny_dit())
    steady(fast, method)
    period = max(1, method.sink.frames) if method.chunk_frames != method.sink.frames else 1
    allocated = []
    for _ in range(2 * period):
        with Operations() as seen:
            one_chunk(fast)
        allocated.append((seen.allocated, seen.counts))
    assert allocated[:period] == allocated[period:]


def test_growing_allocation_is_seen_without_a_window(tiny_dit: Callable[..., WanDiT]) -> None:
    method = Method(denoising_steps=(1000, 500), window_frames=None, sink=NoSink())
    fast, _ = both(method, tiny_dit())
    sizes = []
    for _ in range(3):
        with Operations() as seen:
            one_chunk(fast)
        sizes.append(seen.allocated)
    assert sizes[0] < sizes[1] < sizes[2]


@pytest.mark.parametrize("name", ["reward", "self", "longlive-infinity", "rolling"])
def test_memory_after_chunk_300_equals_memory_after_chunk_20(name: str, tiny_dit: Callable[..., WanDiT]) -> None:
    method = METHODS[name].model_copy(update={"denoising_steps": METHODS[name].denoising_steps[::3]})
    fast, _ = both(method, tiny_dit(num_layers=1))
    held: Iterator[int] = ((next(fast), held_bytes(fast.state))[1] for _ in range(300))
    with torch.no_grad():
        sizes = list(islice(held, 300))
    assert sizes[299] == sizes[19]
    assert max(sizes[20:]) == min(sizes[20:])
    assert sizes[0] < sizes[19]
