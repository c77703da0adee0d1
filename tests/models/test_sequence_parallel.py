"""Several processes compute of a forward what one computes, whatever heads and tokens do not divide by."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from processes import in_processes
from torch import Tensor

from reward_forcing.models.attention import KV
from reward_forcing.models.denoiser import Denoiser
from reward_forcing.models.sequence_parallel import Ulysses, shares
from reward_forcing.models.wan_dit import WanDiT
from reward_forcing.processes import World
from reward_forcing.rollout import CacheSettings, KVCache, NoSink
from reward_forcing.training.distributed import gather

HEADS, SIZE = 5, (10, 14)  # 5 x 7 = 35 tokens: 18 and 17 for two processes, 12, 12 and 11 for three
Make = Callable[..., WanDiT]


def predict(network: WanDiT, past: KVCache, want_kv: bool | str) -> tuple[Tensor, KV]:
    """Velocities and keys and values of two frames at two noise levels, under two prompts."""
    generator = torch.Generator().manual_seed(0)
    text = network.encode_text(torch.randn(2, 6, 12, generator=generator))
    x = torch.randn(2, 2, 4, *SIZE, generator=generator).to(network.patch_embedding.weight.dtype)
    prediction = Denoiser(network)(x, torch.tensor([0.9, 0.4]), text, past.past(2), want_kv=want_kv)  # pyright: ignore[reportArgumentType]
    assert prediction.kv is not None
    return prediction.velocity, prediction.kv


def twice(network: WanDiT) -> tuple[Tensor, Tensor, Tensor]:
    """Velocities that see a past, and keys and values of all their frames."""
    cache = KVCache.empty(CacheSettings(window_frames=4, chunk_frames=2, sink=NoSink()))
    with torch.inference_mode():
        cache = cache.commit(predict(network, cache, "only")[1])
        velocity, kv = predict(network, cache, True)
        assert cache.context is not None
        keys, values = (torch.cat(pair, dim=2) for pair in zip(cache.context.stacked(), kv.stacked(), strict=True))
    return velocity, keys, values


def assert_close(ours: Tensor, theirs: Tensor, error: float) -> None:
    assert (ours - theirs).norm() <= error * theirs.norm()


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_a_forward_is_the_same_and_each_process_returns_its_heads_of_all_tokens(
    tiny_dit: Make, tmp_path: Path, processes: int, dtype: torch.dtype, error: float
) -> None:
    network = tiny_dit(num_attention_heads=HEADS).requires_grad_(False).to_mixed(dtype)
    velocity, keys, values = twice(network)

    def check(world: World) -> None:
        network.compute_only(Ulysses(world, HEADS))
        shared = twice(network)
        assert_close(shared[0], velocity, error)
        assert all(torch.equal(other, shared[0]) for other in gather(shared[0], world))
        counts = shares(HEADS, world.size)
        for ours, theirs in zip(shared[1:], (keys, values), strict=True):
            assert_close(ours, theirs.split(counts, dim=4)[world.rank], error)

    in_processes(processes, tmp_path, check)


def test_gradients_are_refused_rather_than_lost(tiny_dit: Make, tmp_path: Path) -> None:
    network = tiny_dit()

    def check(world: World) -> None:
        network.compute_only(Ulysses(world, 2))
        text = network.encode_text(torch.zeros(1, 3, 12))
        with pytest.raises(AssertionError, match="gradients do not travel"):
            network(torch.zeros(1, 1, 4, *SIZE), torch.tensor([500.0]), text)

    in_processes(2, tmp_path, check)


def test_shares_are_as_even_as_can_be() -> None:
    assert [shares(12, processes) for processes in (1, 2, 4, 5, 8)] == [
        [12],
        [6, 6],
        [3, 3, 3, 3],
        [3, 3, 2, 2, 2],
        [2, 2, 2, 2, 1, 1, 1, 1],
    ]
    assert all(sum(shares(1560, processes)) == 1560 for processes in range(1, 17))


def test_more_processes_than_heads_or_tokens_are_refused() -> None:
    world = World(0, 3, torch.device("cpu"))
    with pytest.raises(ValueError, match="2 heads cannot be shared by 3 processes; start at most 2"):
        Ulysses(world, 2)
    with pytest.raises(ValueError, match="2 tokens per latent frame cannot be shared by 3 processes"):
        Ulysses(world, 3).split(torch.zeros(1, 1, 2, 8))
