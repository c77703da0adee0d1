"""Law: rolling windows over a cache value compute what Rolling Forcing's published slot arithmetic computes."""

from dataclasses import dataclass

import pytest
import torch
from rollout.toy import SHAPE, joined, tiny_denoiser, tiny_text, tiny_wan
from torch import Tensor

from reward_forcing.flow import add_noise
from reward_forcing.models.attention import KV, Past, TextContext
from reward_forcing.models.denoiser import Denoiser
from reward_forcing.rollout import CacheSettings, KVCache, Rollout, SeededNoise, StaticSink, rolling

NOISE = SeededNoise((5,))


@dataclass(frozen=True)
class Published:
    """What the published code makes of each chunk in the end, and what it predicts of it in a window with gradient."""

    out: Tensor
    tiles: Tensor | None


def in_slots(
    denoiser: Denoiser,
    text: TextContext,
    sigmas: list[float],
    chunks: int,
    f: int,
    attended: int,
    exit_window: int | None = None,
    stale: bool = False,
) -> Published:
    """Latents of `chunks` chunks of f frames, computed with slots and absolute positions as the published code does.

    The first chunk is the sink, at its own positions or just before the past. Every window's oldest chunk occupies the
    last slots and has a clean pass there, after the first windows too, when chunk 0 is still far from final. stale:
    writing without gradient leaves a slot the graph of what was written there with gradient, under new values.
    """
    steps, capacity = len(sigmas), attended + f
    slots: list[KV] = []  # one frame each
    written = 0
    noisy = {chunk: NOISE(chunk, 0, (f, *SHAPE)) for chunk in range(chunks)}
    out: dict[int, Tensor] = {}
    tiles: dict[int, Tensor] = {}
    graphs: dict[int, KV] = {}

    def past(shown: list[KV], positions: list[int], start: int, frames: int) -> Past | None:
        if not shown:
            return None
        seen = joined(*shown)
        return Past(seen.keys, seen.values, torch.tensor(positions), torch.arange(start, start + frames))

    for window in range(chunks + steps - 1):
        inside = range(max(0, window - steps + 1), min(chunks - 1, window) + 1)
        start, frames = inside[0] * f, len(inside) * f
        if start + f > written:
            over = max(0, f + len(slots) - capacity)
            del slots[f : f + over]
            before, written = list(slots), start + f
        else:
            before = slots[:-f]
        local = before[f:][-(attended - frames - f) :] if attended > frames + f else []
        sink_at = start - len(local) - f
        places = [*range(sink_at, sink_at + f), *range(start - len(local), start)]
        seen = past([*before[:f], *local], places, start, frames) if inside[0] else None
        sigma = torch.tensor([sigmas[window - chunk] for chunk in inside]).repeat_interleave(f)
        is_exit = window % steps == exit_window
        with torch.set_grad_enabled(is_exit):
            x = torch.cat([noisy[chunk] for chunk in inside], dim=1)
            prediction = denoiser(x, sigma, text, seen, want_kv=True)
        assert prediction.kv is not None
        if is_exit:
            tiles |= zip(inside, prediction.x0.split(f, dim=1), strict=True)
            graphs[inside[0]] = prediction.kv.map(lambda layer: layer[:, :f])
        for chunk, clean in zip(inside, prediction.x0.detach().split(f, dim=1), strict=True):
            out[chunk] = clean
            step = window - chunk + 1
            if step < steps:
                noisy[chunk] = add_noise(clean, NOISE(chunk, step, (f, *SHAPE)), sigmas[step])
        shown = before[-(attended - f) :] if attended > f else []
        positions = [*range(start - len(shown), start)]
        with torch.no_grad():
            kv = denoiser(out[inside[0]], torch.zeros(f), text, past(shown, positions, start, f), want_kv=True).kv
        assert kv is not None
        if stale and inside[0] in graphs:
            graph = graphs[inside[0]]
            pairs = ((kv.keys, graph.keys), (kv.values, graph.values))
            kv = KV(*(tuple(clean + old - old.detach() for clean, old in zip(*pair, strict=True)) for pair in pairs))
        own = [kv.map(lambda layer, i=i: layer[:, i : i + 1]) for i in range(f)]
        slots = [*before, *own]
    whole = [torch.cat([made[chunk] for chunk in range(chunks)], dim=1) for made in (out, tiles) if made]
    return Published(whole[0], whole[1] if tiles else None)


@pytest.mark.parametrize(
    ("f", "steps", "chunks", "more"),
    [(1, 3, 9, 0), (1, 3, 9, 2), (2, 2, 8, 2), (3, 2, 6, 3), (2, 4, 3, 2), (2, 3, 1, 0), (1, 1, 6, 1)],
)
@torch.no_grad()
def test_rolling_windows_equal_the_published_slot_arithmetic(f, steps, chunks, more):
    """more: frames of the past that a full window sees beside the sink."""
    denoiser = tiny_denoiser()
    text = tiny_text(denoiser.network)
    sigmas = [1.0 - step / (steps + 1) for step in range(steps)]
    attended = f * steps + f + more
    settings = CacheSettings(
        window_frames=attended, chunk_frames=f, sink=StaticSink(frames=f), clean_pass_sees_sink=False
    )
    rollout = Rollout(denoiser, rolling(sigmas, chunks=chunks), KVCache.empty(settings), NOISE, text, SHAPE)
    ours = torch.cat([chunk.latents for chunk in rollout], dim=1)
    published = in_slots(denoiser, text, sigmas, chunks, f, attended).out
    torch.testing.assert_close(ours, published, rtol=1e-4, atol=1e-4)
    assert published.abs().mean() > 0.1


@pytest.mark.parametrize(("f", "steps", "chunks"), [(1, 3, 8), (2, 2, 5), (2, 4, 3)])
@pytest.mark.parametrize("kv_grad", ["none", "stale"])
def test_tiles_and_their_gradients_equal_the_published_slot_arithmetic(f, steps, chunks, kv_grad):
    """For every exit; with more chunks than steps, and with fewer."""
    network = tiny_wan()
    denoiser, weights = Denoiser(network), list(network.parameters())
    sigmas = [1.0 - step / (steps + 1) for step in range(steps)]
    attended = f * steps + 2 * f
    settings = CacheSettings(
        window_frames=attended, chunk_frames=f, sink=StaticSink(frames=f), clean_pass_sees_sink=False
    )
    probe = torch.randn(1, chunks * f, *SHAPE, generator=torch.Generator().manual_seed(0))

    def gradient(made: Tensor) -> Tensor:
        gradients = torch.autograd.grad((made * probe).mean(), weights, materialize_grads=True)
        return torch.cat([gradient.flatten() for gradient in gradients])

    for exit_window in range(steps):
        text = tiny_text(network)
        schedule = rolling(sigmas, exit_window, chunks=chunks)
        rollout = Rollout(denoiser, schedule, KVCache.empty(settings), NOISE, text, SHAPE, kv_grad=kv_grad)
        tiles = [chunk.at_exit for chunk in rollout]
        tiles += [chunk.at_exit for chunk in rollout.state.noisy if chunk.at_exit is not None]
        ours = torch.cat(tiles, dim=1)
        published = in_slots(
            denoiser, tiny_text(network), sigmas, chunks, f, attended, exit_window, stale=kv_grad == "stale"
        )
        assert published.tiles is not None
        torch.testing.assert_close(ours, published.tiles, rtol=1e-4, atol=1e-4)
        expected = gradient(published.tiles)
        assert (gradient(ours) - expected).norm() < 1e-4 * expected.norm()
