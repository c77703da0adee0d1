"""Rollouts against the reference code of CausVid, Self Forcing, LongLive, Reward Forcing and Rolling Forcing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from reward_forcing.flow import TIMESTEPS, nearest_sigma, sigma_table, warp_denoising_steps
from reward_forcing.models.attention import KV, Past, Prediction
from reward_forcing.models.denoiser import Denoiser
from reward_forcing.models.rope import rotate, rotation
from reward_forcing.models.wan_dit import WanDiT
from reward_forcing.rollout import (
    CacheSettings,
    EmaSink,
    Keep,
    KVCache,
    NoSink,
    Pass,
    Recache,
    Rollout,
    StaticSink,
    SwitchPolicy,
    chunkwise,
    rolling,
)

TOLERANCE = 2e-5
BLOCK = 1
"""The transformer block whose cache the cases record."""
PATCH = (2, 2)
"""Latent rows and columns of a token, in every published network."""


def assert_close(ours: Tensor, reference: Tensor) -> None:
    torch.testing.assert_close(ours, reference, atol=TOLERANCE, rtol=0)


@dataclass(frozen=True)
class RecordedNoise:
    """The reference run's own noise."""

    initial: Tensor  # [B, F, C, h, w]
    renoise: Tensor  # [chunk, step, B, f, C, h, w]

    def __call__(self, chunk: int, draw: int, shape: Sequence[int]) -> Tensor:
        frames = shape[0]
        return self.renoise[chunk, draw - 1] if draw else self.initial[:, chunk * frames : (chunk + 1) * frames]


@dataclass
class Recorder:
    """A denoiser that keeps the x0 of its noisy passes and the keys and values of its clean ones.

    told: the only timesteps that the network is told, the nearest each time, where the reference rounds them.
    """

    network: WanDiT
    told: Tensor | None = None
    x0: list[Tensor] = field(default_factory=list)
    clean: list[KV] = field(default_factory=list)

    def __call__(self, *arguments, want_kv: bool = False) -> Prediction:
        prediction = Denoiser(self._tell)(*arguments, want_kv=want_kv)
        if prediction.kv is None:
            self.x0.append(prediction.x0)
        else:
            self.clean.append(prediction.kv)
        return prediction

    def rotate(self, past: Past, latent_size: tuple[int, int]) -> Past:
        return self.network.rotate(past, latent_size)

    def _tell(self, x: Tensor, timestep: Tensor, *arguments, **options) -> tuple[Tensor, KV | None]:
        if self.told is not None:
            timestep = self.told[(timestep.unsqueeze(-1) - self.told).abs().argmin(dim=-1)]
        return self.network(x, timestep, *arguments, **options)


@dataclass(frozen=True)
class Run:
    """A whole case run through our rollout."""

    latents: Tensor
    x0_steps: Tensor
    """x0 after each pass: [chunk, step, B, f, C, h, w]."""
    seen: list[KVCache]
    """The cache that each chunk's last pass was over."""
    clean: list[KV]
    """Keys and values of each chunk's clean pass."""

    def first_frame(self, chunk: int) -> int:
        """The frame that the cache of a chunk counts as its first: not the video's where a switch began a new cache."""
        frames = self.latents.shape[1] // len(self.seen)
        return chunk * frames - self.seen[chunk].committed


def sigmas_of(case) -> tuple[float, ...]:
    if "denoising" in case.sidecar:  # rounded timesteps, whose sigmas the reference looks up in its table
        table = sigma_table(case.sidecar["timestep_shift"])
        return tuple(nearest_sigma(torch.tensor(case.sidecar["denoising"], dtype=torch.float32), table).tolist())
    return warp_denoising_steps(case.sidecar["nominal_steps"], case.sidecar["timestep_shift"])


def schedule_of(case) -> Iterator[Pass]:
    chunks = case.tensors["renoise"].shape[0]
    return (rolling if case.sidecar["reference"] == "roll" else chunkwise)(sigmas_of(case), chunks=chunks)


def settings_of(case) -> CacheSettings:
    """The published method as values: its sink, its window and its positions."""
    sidecar = case.sidecar
    chunk = sidecar["frames_per_chunk"]
    match sidecar["reference"]:
        case "roll":
            # `cache_frames` above the attended ones push the sink out of the clean passes' sight
            return CacheSettings(
                window_frames=sidecar["max_attention_frames"],
                chunk_frames=chunk,
                sink=StaticSink(frames=sidecar["sink_frames"]),
                positions="relative",
                clean_pass_sees_sink=sidecar["cache_frames"] <= sidecar["max_attention_frames"],
            )
        case "rf" | "sf" | "ll":
            frames = sidecar["sink_size"]
            if sidecar["ema_alpha"] is not None:
                sink = EmaSink(frames=frames, alpha=sidecar["ema_alpha"])
            else:
                sink = StaticSink(frames=frames) if frames else NoSink()
            return CacheSettings(
                window_frames=sidecar["local_attn_size"],
                chunk_frames=chunk,
                sink=sink,
                positions="relative" if sidecar["reference"] == "rf" else "absolute",
            )
        case _:  # CausVid
            return CacheSettings(window_frames=None, chunk_frames=chunk, sink=NoSink(), positions="absolute")


def switch_of(case) -> SwitchPolicy:
    recache = case.sidecar.get("recache")
    return Keep() if recache is None else Recache(global_sink=recache["global_sink"])


@torch.no_grad()
def run(case) -> Run:
    rounded = case.sidecar.get("denoising")
    recorder = Recorder(case.network(), None if rounded is None else torch.tensor([*rounded, 0.0]))
    noise = RecordedNoise(case.tensors["noise"], case.tensors["renoise"])
    rollout = Rollout(
        recorder,
        schedule_of(case),
        KVCache.empty(settings_of(case)),
        noise,
        recorder.network.encode_text(case.text()),
        noise.initial.shape[2:],
        context_noise=case.sidecar.get("context_noise", 0) / TIMESTEPS,
        switch=switch_of(case),
    )
    latents, seen = [], []
    for _ in range(noise.renoise.shape[0]):
        if rollout.cache.committed and rollout.state.start == case.sidecar.get("switch_frame"):
            rollout.text = recorder.network.encode_text(case.text("context2"))
            del recorder.clean[len(seen) :]  # the pass that computes the window anew
        seen.append(rollout.cache)
        latents.append(next(rollout).latents)
    assert rollout.cache.committed
    assert rollout.state.start == noise.initial.shape[1]
    steps: list[list[Tensor]] = [[] for _ in latents]
    for passed, x0 in zip(schedule_of(case), recorder.x0, strict=True):
        for chunk, piece in zip(passed.chunks, x0.split(case.sidecar["frames_per_chunk"], dim=1), strict=True):
            steps[chunk].append(piece)
    x0_steps = torch.stack([torch.stack(of_chunk) for of_chunk in steps])
    return Run(torch.cat(latents, dim=1), x0_steps, seen, recorder.clean)


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    """Every case is run once, however many tests look at it."""
    return {}


@pytest.fixture
def result(case, runs: dict[str, Run]) -> Run:
    if case.path.stem not in runs:
        runs[case.path.stem] = run(case)
    return runs[case.path.stem]


def as_stored(case, keys: Tensor, positions: Tensor) -> Tensor:
    """Un-rotated keys [N, B, F, S, H, D] as the reference stores them, [B, F S, H, D] of one block.

    Reward Forcing stores raw keys, the others keys rotated at their frames' numbers, but for Rolling Forcing's sink.
    """
    keys = keys[BLOCK]
    reference = case.sidecar["reference"]
    if reference != "rf":
        rows, columns = (size // patch for size, patch in zip(case.tensors["noise"].shape[3:], PATCH, strict=True))
        raw = keys[:, : settings_of(case).sink.frames if reference == "roll" else 0]
        turned = keys[:, raw.shape[1] :]
        by = rotation(positions[raw.shape[1] :], (rows, columns), keys.shape[-1])
        pairs = rotate(turned, by).unflatten(-1, (2, -1)).transpose(-1, -2)  # ours are halves
        keys = torch.cat([raw, pairs.flatten(-2)], dim=1)
    return keys.flatten(1, 2)


ROLLOUTS = ("b_*", "c_causvid_*", "c_longlive_*", "c_rolling_*", "c_selfforcing_*", "g_*")
CACHES = ("b_*", "c_longlive_*", "c_rolling_*", "c_selfforcing_*", "g_*")


@pytest.mark.golden(*CACHES)
def test_denoising_steps_equal_the_references(case):
    ours = TIMESTEPS * torch.tensor(sigmas_of(case), dtype=torch.float64)
    torch.testing.assert_close(ours.float(), case.tensors["denoising_steps"], atol=0, rtol=1e-7)


@pytest.mark.golden(*ROLLOUTS)
def test_latents_equal_the_references_chunk_by_chunk(case, result):
    frames = case.sidecar["frames_per_chunk"]
    references = case.tensors["latents"].split(frames, dim=1)
    for ours, reference in zip(result.latents.split(frames, dim=1), references, strict=True):
        assert_close(ours, reference)


@pytest.mark.golden(*ROLLOUTS)
def test_every_prediction_equals_the_references(case, result):
    """x0 after each pass. Where a case has no `x0_steps`, its latents are each chunk's last one."""
    if "x0_steps" in case.tensors:
        assert_close(result.x0_steps, case.tensors["x0_steps"])
    assert_close(torch.cat(list(result.x0_steps[:, -1]), dim=1), case.tensors["latents"])


@pytest.mark.golden("b_*", "c_longlive_*", "g_*")
@pytest.mark.parametrize("name", ["keys", "values"])
def test_the_sink_of_each_chunk_equals_the_references(case, result, name):
    """The reference updates the sink in a chunk's first pass and records it after the clean pass, which for us is the
    sink that the chunk was generated with, plus the chunk's own frames while the sink is being filled. It records the
    sink after a re-cache too, which is the one that the next chunk was generated with."""
    reference = case.tensors["sink_k" if name == "keys" else "sink_v"]
    frames = case.sidecar["sink_size"]
    recorded = iter(reference)
    for chunk, (cache, clean) in enumerate(zip(result.seen, result.clean, strict=True)):
        parts = [] if cache.sink is None else [stacked(cache.sink, name)]
        if case.sidecar["recache"] and chunk * case.sidecar["frames_per_chunk"] == case.sidecar["switch_frame"]:
            assert_sink(case, parts[0], result.first_frame(chunk), name, next(recorded))
        parts.append(stacked(clean, name)[:, :, : frames - cache.sink_frames])
        assert_sink(case, torch.cat(parts, dim=2), result.first_frame(chunk), name, next(recorded))
    assert next(recorded, None) is None


def stacked(kv: KV, name: str) -> Tensor:
    """Keys or values of all layers, [N, B, F, S, H, D]."""
    return torch.stack(getattr(kv, name))


def assert_sink(case, sink: Tensor, first: int, name: str, reference: Tensor) -> None:
    """Our sink [N, B, frames, S, H, D], whose first frame is the video's number `first`, against the recorded one."""
    numbers = torch.arange(first, first + sink.shape[2])
    stored = as_stored(case, sink, numbers) if name == "keys" else sink[BLOCK].flatten(1, 2)
    assert_close(stored, reference[:, : stored.shape[1]])


@pytest.mark.golden(*CACHES)
def test_the_final_cache_equals_the_references(case, result):
    """The reference evicts when the next chunk begins: its final cache is what the last chunk saw, and that chunk."""
    last, clean = result.seen[-1], result.clean[-1]
    chunk = clean.frames
    if last.context is None:
        keys, positions = stacked(clean, "keys"), torch.arange(chunk)
    else:
        keys = torch.cat([stacked(last.context, "keys"), stacked(clean, "keys")], dim=2)
        sink, local = last.sink_frames, last.frames - last.sink_frames
        positions = torch.cat([torch.arange(sink), torch.arange(last.committed - local, last.committed + chunk)])
    stored = as_stored(case, keys, positions + result.first_frame(len(result.seen) - 1))
    assert_close(stored, case.tensors["cache_k_final"][:, : case.tensors["local_end"].item()])
    assert case.tensors["global_end"].item() == result.latents.shape[1] * case.sidecar["tokens_per_frame"]
