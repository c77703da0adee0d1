"""Long videos as overlapping clips: what a clip repeats, and that nobody sees where it begins."""

import itertools
from pathlib import Path

import pytest
import torch

from reward_forcing.rollout import KVCache
from reward_forcing.streaming.pipeline import StreamingVideoPipeline
from reward_forcing.streaming.stream import VideoChunk, VideoStream

PROMPT = "a red ball bounces"
CLIPS = {"frames": 7, "overlap_frames": 3}
"""In chunks of 2: three chunks, and in every later clip the 3 repeated frames and two chunks."""


@pytest.fixture(scope="module")
def pipeline(tiny_model_folder: Path) -> StreamingVideoPipeline:
    settings = {"clips": CLIPS, "window_frames": 21, "sink": {"kind": "none"}, "positions": "absolute"}
    return StreamingVideoPipeline.from_pretrained(
        tiny_model_folder, settings=settings, device="cpu", dtype=torch.float32
    )


def chunks_of(stream: VideoStream, count: int) -> list[VideoChunk]:
    return list(itertools.islice(stream, count))


def test_repeated_frames_are_not_shown_again(pipeline: StreamingVideoPipeline) -> None:
    chunks = chunks_of(pipeline.stream(PROMPT), 8)
    assert [chunk.index for chunk in chunks] == list(range(8))
    assert [chunk.start_frame for chunk in chunks] == [0, 5, 13, 21, 29, 37, 45, 53]
    assert [chunk.frames.shape[1] for chunk in chunks] == [5, *[8] * 7]
    assert pipeline.generate(PROMPT, 2.5).shape[1] == 40


def test_a_clip_sees_nothing_before_what_it_repeats(pipeline: StreamingVideoPipeline) -> None:
    stream, committed = pipeline.stream(PROMPT), []
    for _ in range(8):
        next(stream)
        committed.append(stream.rollout.cache.committed)
    assert committed == [2, 4, 6, 5, 7, 5, 7, 5]


@torch.inference_mode()
def test_a_clip_begins_with_the_last_frames_as_the_beginning_of_a_video(pipeline: StreamingVideoPipeline) -> None:
    stream = pipeline.stream(PROMPT, seed=3)
    shown = torch.cat([chunk.frames for chunk in chunks_of(stream, 3)], dim=1)
    rollout = pipeline.stream(PROMPT, seed=3).rollout
    for _ in range(3):
        next(rollout)
    again, _ = pipeline.vae.encode(shown[:, -9:])
    rollout.cache = KVCache.empty(pipeline.settings.cache)
    rollout.prime(again)
    _, state = pipeline.vae.decode(again)
    expected, _ = pipeline.vae.decode(next(rollout).latents, state)
    assert again.shape[1] == 3
    torch.testing.assert_close(next(stream).frames, expected)


def test_clips_do_not_repeat_their_noise(pipeline: StreamingVideoPipeline) -> None:
    stream, asked = pipeline.stream(PROMPT), []
    noise = stream.rollout._noise

    def listen(chunk: int, draw: int, shape: tuple[int, ...]) -> torch.Tensor:
        asked.append((chunk, draw))
        return noise(chunk, draw, shape)

    stream.rollout._noise = listen
    chunks_of(stream, 8)
    assert len(asked) == len(set(asked)) == 8 * len(pipeline.settings.sigmas)


def test_a_sample_does_not_depend_on_its_batch_beyond_a_clip(pipeline: StreamingVideoPipeline) -> None:
    batch = torch.cat([chunk.frames for chunk in chunks_of(pipeline.stream(PROMPT, seeds=[1, 2]), 5)], dim=1)
    alone = torch.cat([chunk.frames for chunk in chunks_of(pipeline.stream(PROMPT, seed=2), 5)], dim=1)
    torch.testing.assert_close(batch[1:], alone)
    assert not torch.allclose(batch[0], batch[1], atol=1e-3)


def test_a_prompt_switched_where_a_clip_begins_counts_from_there(pipeline: StreamingVideoPipeline) -> None:
    plain = chunks_of(pipeline.stream(PROMPT), 5)
    at = {plain[3].start_time: "a blue ball"}
    changed = chunks_of(pipeline.stream(PROMPT, at=at), 5)
    assert [chunk.prompt for chunk in changed] == [PROMPT] * 3 + ["a blue ball"] * 2
    assert [torch.equal(a.frames, b.frames) for a, b in zip(plain, changed, strict=True)] == [True] * 3 + [False] * 2


def test_a_given_past_longer_than_a_clip_ends_its_clip_with_the_first_chunk(pipeline: StreamingVideoPipeline) -> None:
    stream = pipeline.stream(PROMPT)
    stream.rollout.prime(torch.randn(1, 9, 4, 4, 4, generator=torch.Generator().manual_seed(0)))
    chunks = chunks_of(stream, 4)
    assert [chunk.frames.shape[1] for chunk in chunks] == [5, 8, 8, 8]
    assert stream.rollout.state.start == 9 + 2 + 2 + 4 + 3 + 2, "2 latent frames of the 5 made are repeated, then 3"
    assert all(chunk.frames.isfinite().all() for chunk in chunks)
