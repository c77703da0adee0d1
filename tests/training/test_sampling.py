"""A causal teacher's ODE, solved by the rollout over its cache, is what masked forwards and plain loops compute."""

from collections.abc import Callable, Sequence
from itertools import islice, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from reward_forcing.flow import ode_sigmas
from reward_forcing.models import layers
from reward_forcing.models.attention import AttentionPattern, TextContext
from reward_forcing.models.denoiser import Denoiser
from reward_forcing.models.masks import teacher_forcing
from reward_forcing.models.wan_dit import WanDiT
from reward_forcing.rollout import CacheSettings, EmaSink, KVCache, NoSink, Rollout, SeededNoise, chunkwise
from reward_forcing.training.sampling import causal_trajectory

FRAMES, CHUNK, SHAPE = 6, 2, (4, 4, 4)
SIGMAS = ode_sigmas(4, 5.0)
NOISE = SeededNoise((1, 2))(0, 0, (FRAMES, *SHAPE))


@pytest.fixture
def network(tiny_dit: Callable[..., WanDiT]) -> WanDiT:
    return tiny_dit().requires_grad_(False)


def texts(network: WanDiT) -> tuple[TextContext, TextContext]:
    """Two prompts, and the empty prompt twice."""
    prompts, null = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(0)).split([2, 1])
    return network.encode_text(prompts), network.encode_text(null).expand(2)


def cache(window: int | None = None, **changes: Any) -> CacheSettings:
    return CacheSettings(**{"window_frames": window, "chunk_frames": CHUNK, "sink": NoSink()} | changes)


def dense_attention(query: Tensor, key: Tensor, value: Tensor, pattern: AttentionPattern) -> Tensor:
    """What `attend_pattern` computes, with a boolean mask over all tokens."""
    flat = (tensor.flatten(1, 2).transpose(1, 2) for tensor in (query, key, value))
    out = scaled_dot_product_attention(*flat, attn_mask=pattern.dense(query.shape[2]))
    return out.transpose(1, 2).unflatten(1, query.shape[1:3])


def reference(network: WanDiT, guidance: float, window: int | None, context: Tensor | None) -> Tensor:
    """Chunk by chunk, step by step, each branch a masked forward over [all clean frames | all noisy frames]."""
    text, null = texts(network)
    pattern = teacher_forcing(FRAMES, CHUNK, window)
    clean = torch.zeros_like(NOISE) if context is None else context
    points = [NOISE.clone() for _ in SIGMAS]
    for start in range(0, FRAMES, CHUNK):
        own = slice(start, start + CHUNK)
        for step, (sigma, after) in enumerate(pairwise(SIGMAS)):
            x = points[step]
            timestep = 1000 * torch.cat([torch.zeros(2, FRAMES), sigma.expand(2, FRAMES)], dim=1)
            both = torch.cat([clean, x], dim=1)
            c, u = (network(both, timestep, branch, pattern=pattern)[0] for branch in (text, null))
            velocity = (u + guidance * (c - u))[:, FRAMES:]
            points[step + 1][:, own] = (x + (after - sigma) * velocity)[:, own]
        if context is None:
            clean[:, own] = points[-1][:, own]
    return torch.stack(points, dim=1)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("given", [False, True], ids=["its own chunks", "data"])
def test_a_causal_trajectory_is_that_of_masked_forwards_over_clean_and_noisy_frames(
    network: WanDiT, monkeypatch: pytest.MonkeyPatch, guidance: float, window: int | None, given: bool
) -> None:
    context = torch.randn(NOISE.shape, generator=torch.Generator().manual_seed(5)) if given else None
    kept = range(len(SIGMAS))
    ours = causal_trajectory(Denoiser(network), NOISE, *texts(network), SIGMAS, guidance, cache(window), kept, context)
    monkeypatch.setattr(layers, "attend_pattern", dense_attention)
    expected = reference(network, guidance, window, context)
    assert torch.equal(ours[:, 0], NOISE)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)
    assert (expected[:, -1] - expected[:, 0]).abs().mean() > 0.1


def test_a_causal_trajectory_ends_where_a_rollout_of_many_steps_streams(network: WanDiT) -> None:
    """With a sink and a window that evict: the cache's rules are those of streaming."""
    settings, (text, null) = cache(4, sink=EmaSink(frames=2, alpha=0.5)), texts(network)
    found = causal_trajectory(Denoiser(network), NOISE, text, null, SIGMAS, 1.0, settings, (0, 2, -1))

    def noise(chunk: int, draw: int, shape: Sequence[int]) -> Tensor:
        return NOISE[:, chunk * CHUNK : (chunk + 1) * CHUNK]

    schedule = chunkwise(SIGMAS[:-1].tolist(), fresh_noise=False)
    rollout = Rollout(Denoiser(network), schedule, KVCache.empty(settings), noise, text, SHAPE)
    streamed = torch.cat([chunk.latents for chunk in islice(rollout, FRAMES // CHUNK)], dim=1)
    assert rollout.cache.sink_updates == 2
    assert found.shape == (2, 3, FRAMES, *SHAPE)
    torch.testing.assert_close(found[:, -1], streamed, rtol=0, atol=0)


def test_a_negative_prompt_that_is_the_prompt_guides_nowhere(network: WanDiT) -> None:
    text, null = texts(network)

    def end(null: TextContext, guidance: float) -> Tensor:
        return causal_trajectory(Denoiser(network), NOISE, text, null, SIGMAS, guidance, cache())

    torch.testing.assert_close(end(text, 3.0), end(null, 1.0), rtol=1e-3, atol=1e-4)
    assert (end(null, 3.0) - end(null, 1.0)).abs().max() > 0.1


def test_frames_that_are_no_whole_chunks_are_refused(network: WanDiT) -> None:
    with pytest.raises(ValueError, match="whole chunks of 2 frames, got 5 frames"):
        causal_trajectory(Denoiser(network), NOISE[:, :5], *texts(network), SIGMAS, 1.0, cache())
