"""A pipeline of several processes streams what one does: the first has the frames, the others their shapes."""

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from processes import in_processes

from reward_forcing.processes import ALONE, World, computed_by_first
from reward_forcing.streaming.pipeline import StreamingVideoPipeline
from reward_forcing.streaming.processes import in_step
from reward_forcing.streaming.stream import VideoChunk, VideoStream

PROMPT, OTHER = "a red ball bounces", "a blue square slides"


def load(folder: Path, world: World = ALONE, **options) -> StreamingVideoPipeline:
    where = {"device": "cpu", "dtype": torch.float32, "world": world}
    return StreamingVideoPipeline.from_pretrained(folder, **where, **options)


def frames_of(stream: VideoStream, chunks: int) -> torch.Tensor:
    return torch.cat([chunk.frames for chunk in itertools.islice(stream, chunks)], dim=1)


def assert_first_has(frames: torch.Tensor, expected: torch.Tensor, world: World) -> None:
    assert frames.shape == expected.shape
    assert frames.is_meta == (not world.is_first)
    if world.is_first:
        torch.testing.assert_close(frames, expected)


def test_a_prompt_set_in_the_first_process_reaches_all_at_the_same_chunk(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    alone = frames_of(load(tiny_model_folder).stream(PROMPT, at={0.5: OTHER}, seed=3), 4)

    def check(world: World) -> None:
        stream = load(tiny_model_folder, world).stream(PROMPT, seed=3)
        before = frames_of(stream, 2)
        if world.is_first:
            stream.prompt = OTHER
        after = frames_of(stream, 2)
        assert stream.prompt == OTHER
        assert_first_has(torch.cat([before, after], dim=1), alone, world)

    in_processes(2, tmp_path, check)


def test_given_frames_and_clips_that_repeat_frames_are_encoded_once_for_all(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    clips = {"clips": {"frames": 6, "overlap_frames": 2}}
    picture = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    alone = load(tiny_model_folder, settings=clips).generate(PROMPT, 1.6, image=picture)

    def check(world: World) -> None:
        pipeline = load(tiny_model_folder, world, settings=clips)
        assert_first_has(pipeline.generate(PROMPT, 1.6, image=picture), alone, world)
        assert pipeline.vae.vae.device.type == ("cpu" if world.is_first else "meta")

    in_processes(2, tmp_path, check)


def test_only_the_first_process_computes_what_all_are_to_have(tmp_path: Path) -> None:
    def check(world: World) -> None:
        assert computed_by_first(lambda: torch.tensor([1.0 / (1 - world.rank)]), world).tolist() == [1.0]

    in_processes(2, tmp_path, check)


def test_more_processes_than_heads_are_refused_before_weights_are_read(tiny_model_folder: Path) -> None:
    with pytest.raises(ValueError, match="2 attention heads cannot be shared by 3 processes; start at most 2"):
        load(tiny_model_folder, World(0, 3, torch.device("cpu")))


def test_ctrl_c_in_the_first_process_ends_all_after_the_same_chunk(tmp_path: Path) -> None:
    def chunks(world: World) -> Iterator[VideoChunk]:
        for index in itertools.count():
            if index == 2 and world.is_first:
                os.kill(os.getpid(), signal.SIGINT)
            yield VideoChunk(index, torch.zeros(1, 1, 3, 2, 2), index, float(index), (PROMPT,), {})

    def check(world: World) -> None:
        seen = []
        with pytest.raises(KeyboardInterrupt):
            seen.extend(chunk.index for chunk in in_step(chunks(world), world))
        assert seen == [0, 1, 2]

    in_processes(3, tmp_path, check)
