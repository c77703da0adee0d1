"""A video does not depend on how many processes make it: schedules, sinks and switches work on a share of heads."""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from processes import in_processes
from torch import Tensor

from reward_forcing.models.denoiser import Denoiser
from reward_forcing.models.sequence_parallel import Ulysses, shares
from reward_forcing.models.wan_dit import WanDiT
from reward_forcing.processes import World
from reward_forcing.rollout import (
    SWITCHES,
    CacheSettings,
    EmaSink,
    KVCache,
    Rollout,
    SeededNoise,
    StaticSink,
    chunkwise,
    rolling,
)
from reward_forcing.training.distributed import gather

HEADS, SHAPE = 5, (4, 10, 10)  # 25 tokens: neither two nor three processes divide them, or the heads, evenly
SIGMAS = (1.0, 0.5)
EMA = CacheSettings(window_frames=6, chunk_frames=2, sink=EmaSink(frames=2, alpha=0.5))
ROLLING = CacheSettings(window_frames=8, chunk_frames=2, sink=StaticSink(frames=2), positions="absolute")


def make(network: WanDiT, way: str) -> Rollout:
    """A rollout in a way: a switch policy with chunks one after the other, or the rolling schedule."""
    text = network.encode_text(torch.randn(2, 6, 12, generator=torch.Generator().manual_seed(0)))
    passes, settings = (rolling(SIGMAS), ROLLING) if way == "rolling" else (chunkwise(SIGMAS), EMA)
    switch = SWITCHES["keep" if way == "rolling" else way]()
    noise = SeededNoise((1, 2))
    return Rollout(Denoiser(network), passes, KVCache.empty(settings), noise, text, SHAPE, switch=switch)


def take(rollout: Rollout, chunks: int) -> Tensor:
    return torch.cat([chunk.latents for chunk in islice(rollout, chunks)], dim=1)


@torch.inference_mode()
def video(network: WanDiT, way: str) -> Tensor:
    """Seven chunks, past the first evictions, with another prompt after the fourth."""
    rollout = make(network, way)
    before = take(rollout, 4)
    rollout.text = network.encode_text(torch.randn(2, 6, 12, generator=torch.Generator().manual_seed(1)))
    return torch.cat([before, take(rollout, 3)], dim=1)


@pytest.mark.parametrize("processes", [2, 3])
def test_a_video_is_that_of_one_process_and_the_same_bits_in_all(
    tiny_dit: Callable[..., WanDiT], tmp_path: Path, processes: int
) -> None:
    network = tiny_dit(num_attention_heads=HEADS).requires_grad_(False)
    alone = {way: video(network, way) for way in ("recache", "blend", "rolling")}

    def check(world: World) -> None:
        network.compute_only(Ulysses(world, HEADS))
        for way, expected in alone.items():
            latents = video(network, way)
            assert (latents - expected).norm() <= 1e-5 * expected.norm(), way
            assert all(torch.equal(other, latents) for other in gather(latents, world)), way

    in_processes(processes, tmp_path, check)


def test_a_process_keeps_its_heads_of_the_cache_and_goes_on_from_its_own_snapshot(
    tiny_dit: Callable[..., WanDiT], tmp_path: Path
) -> None:
    network = tiny_dit(num_attention_heads=HEADS).requires_grad_(False)
    with torch.inference_mode():
        whole = make(network, "keep")
        take(whole, 5)
        cache = whole.cache
    assert cache.sink is not None

    def check(world: World) -> None:
        network.compute_only(Ulysses(world, HEADS))
        with torch.inference_mode():
            rollout = make(network, "keep")
            take(rollout, 5)
            kept, state = rollout.cache, rollout.state
            assert kept.sink is not None
            for ours, whole_layer in zip(kept.sink.keys, cache.sink.keys, strict=True):
                torch.testing.assert_close(ours, whole_layer.split(shares(HEADS, world.size), dim=3)[world.rank])
            torch.save(state, tmp_path / f"{world.rank}.pt")
            after = take(rollout, 2)
            again = make(network, "keep")
            again.resume(torch.load(tmp_path / f"{world.rank}.pt", weights_only=False), chunkwise(SIGMAS))
            assert torch.equal(take(again, 2), after)
            again.resume(replace(state, cache=kept.rewound(2)), chunkwise(SIGMAS))
            assert not torch.allclose(take(again, 1), after[:, :2], atol=1e-3)

    in_processes(3, tmp_path, check)
