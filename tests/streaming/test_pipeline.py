"""What a stream yields: its law is that a sample's frames depend on nothing but prompts, seed and model."""

import gc
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from reward_forcing.models.denoiser import Denoiser
from reward_forcing.rollout import SWITCHES, Blend, KVCache, Recache, Rollout, SeededNoise, chunkwise
from reward_forcing.streaming.methods import METHODS
from reward_forcing.streaming.pipeline import EMBEDDINGS_KEPT, StreamingVideoPipeline
from reward_forcing.streaming.stream import STAGES, VideoChunk, VideoStream, one_ahead

PROMPT = "a red ball bounces"
CHUNKS = [5, 8, 8, 8]  # frames: the first latent frame is one, the others four each


@pytest.fixture(scope="module")
def pipeline(tiny_model_folder: Path) -> StreamingVideoPipeline:
    return StreamingVideoPipeline.from_pretrained(tiny_model_folder, device="cpu", dtype=torch.float32)


def frames_of(stream: VideoStream, chunks: int) -> torch.Tensor:
    return torch.cat([chunk.frames for chunk in itertools.islice(stream, chunks)], dim=1)


def test_chunks_follow_each_other_in_the_video(pipeline: StreamingVideoPipeline) -> None:
    chunks = list(itertools.islice(pipeline.stream(PROMPT), 4))
    assert [chunk.index for chunk in chunks] == [0, 1, 2, 3]
    assert [chunk.frames.shape for chunk in chunks] == [(1, frames, 3, 32, 32) for frames in CHUNKS]
    assert [chunk.start_frame for chunk in chunks] == [0, 5, 13, 21]
    assert [chunk.start_time for chunk in chunks] == [frame / 16 for frame in (0, 5, 13, 21)]
    assert all(chunk.frames.min() >= 0 and chunk.frames.max() <= 1 for chunk in chunks)


def test_frames_are_ordinary_tensors(pipeline: StreamingVideoPipeline) -> None:
    next(pipeline.stream(PROMPT)).frames.mul_(0.5)


def test_the_stream_is_the_rollout_decoded(pipeline: StreamingVideoPipeline) -> None:
    settings = pipeline.settings
    noise, cache = SeededNoise((3,)), KVCache.empty(settings.cache)
    with torch.no_grad():
        text = pipeline.transformer.encode_text(pipeline.text_encoder([PROMPT]))
        rollout = Rollout(Denoiser(pipeline.transformer), chunkwise(settings.sigmas), cache, noise, text, (4, 4, 4))
        latents = torch.cat([chunk.latents for chunk in itertools.islice(rollout, 5)], dim=1)
        expected, _ = pipeline.vae.decode(latents)
    torch.testing.assert_close(frames_of(pipeline.stream(PROMPT, seed=3), 5), expected)


def test_the_same_seed_makes_the_same_frames_and_another_does_not(pipeline: StreamingVideoPipeline) -> None:
    one, same, other = (frames_of(pipeline.stream(PROMPT, seed=seed), 2) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other, atol=1e-3)


def test_a_video_begins_an_endless_stream(pipeline: StreamingVideoPipeline) -> None:
    endless = frames_of(pipeline.stream(PROMPT, seed=1), 4)
    assert torch.equal(pipeline.generate(PROMPT, seconds=1.0, seed=1), endless[:, :16])


def test_a_decoder_with_a_place_of_its_own_gives_the_same_frames(
    pipeline: StreamingVideoPipeline, tiny_model_folder: Path
) -> None:
    apart = StreamingVideoPipeline.from_pretrained(
        tiny_model_folder, device="cpu", dtype=torch.float32, vae_device="cpu"
    )
    assert torch.equal(frames_of(apart.stream(PROMPT, seed=1), 3), frames_of(pipeline.stream(PROMPT, seed=1), 3))


def test_a_video_is_fetched_a_chunk_behind_what_is_computed(pipeline: StreamingVideoPipeline) -> None:
    order: list[tuple[str, int]] = []

    def told() -> Iterator[VideoChunk]:
        for chunk in itertools.islice(pipeline.stream(PROMPT), 3):
            order.append(("computed", chunk.index))
            yield chunk

    for chunk in one_ahead(told()):
        order.append(("fetched", chunk.index))
    assert order == [(what, i) for i in (0, 1, 2, 3) for what, i in (("computed", i), ("fetched", i - 1)) if 0 <= i < 3]


@pytest.mark.parametrize(("seconds", "frames"), [(1 / 16, 1), (5 / 16, 5), (6 / 16, 6), (1.0, 16), (0.99, 16)])
def test_a_video_has_exactly_the_frames_asked_for(
    pipeline: StreamingVideoPipeline, seconds: float, frames: int
) -> None:
    assert pipeline.generate(PROMPT, seconds).shape == (1, frames, 3, 32, 32)


def test_samples_do_not_depend_on_the_batch(pipeline: StreamingVideoPipeline) -> None:
    prompts = [PROMPT, "a blue square slides"]
    batch = frames_of(pipeline.stream(prompts, seeds=[5, 6]), 3)
    for sample, (prompt, seed) in enumerate(zip(prompts, (5, 6), strict=True)):
        torch.testing.assert_close(batch[sample : sample + 1], frames_of(pipeline.stream(prompt, seed=seed), 3))


def test_one_prompt_serves_many_seeds_and_one_seed_many_prompts(pipeline: StreamingVideoPipeline) -> None:
    assert next(pipeline.stream(PROMPT, seeds=[1, 2, 3])).frames.shape[0] == 3
    assert next(pipeline.stream([PROMPT, "a blue ball"], seed=1)).frames.shape[0] == 2


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (["a", "b"], {"seeds": [1, 2, 3]}, r"as many prompts as seeds, or a single one; got \[2, 3\]"),
        ("a", {"seed": 1, "seeds": [1]}, "either seed"),
        ("a", {"seed": -1}, "seeds must be"),
        ("a", {"seeds": []}, "seeds must be"),
        ("a", {"height": 40}, "height must be a positive multiple of 16, got 40; nearest: 32 or 48"),
        ("a", {"width": 0}, "width must be a positive multiple of 16, got 0"),
        ("", {}, "the prompt must say something"),
    ],
)
def test_bad_arguments_are_refused(pipeline: StreamingVideoPipeline, prompt: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline.stream(prompt, **options)


def test_another_size_can_be_asked_for(pipeline: StreamingVideoPipeline) -> None:
    assert next(pipeline.stream(PROMPT, height=48, width=64)).frames.shape == (1, 5, 3, 48, 64)


def test_a_prompt_switch_takes_effect_at_the_first_chunk_at_or_after_its_time(pipeline: StreamingVideoPipeline) -> None:
    plain = list(itertools.islice(pipeline.stream(PROMPT), 4))
    changed = list(itertools.islice(pipeline.stream(PROMPT, at={0.5: "a blue square slides"}), 4))
    assert [chunk.prompt for chunk in changed] == [PROMPT, PROMPT, *["a blue square slides"] * 2]
    equal = [torch.equal(a.frames, b.frames) for a, b in zip(plain, changed, strict=True)]
    assert equal == [True, True, False, False]


def test_a_switch_keeps_the_cache_and_replaces_the_text(pipeline: StreamingVideoPipeline) -> None:
    stream = pipeline.stream(PROMPT)
    next(stream)
    cache, text = stream.rollout.cache, stream.rollout.text
    stream.prompt = "a blue ball"
    chunk = next(stream)
    assert stream.prompt == chunk.prompt == "a blue ball"
    assert stream.rollout.text is not text
    after = stream.rollout.cache.context
    assert cache.context is not None
    assert after is not None
    torch.testing.assert_close(after.keys[0][:, :2], cache.context.keys[0])  # what was committed under the old prompt


@pytest.mark.parametrize("kind", SWITCHES)
def test_a_stream_switches_as_its_settings_or_its_argument_say(
    pipeline: StreamingVideoPipeline, tiny_model_folder: Path, kind: str
) -> None:
    at = {0.5: "a blue square slides"}
    asked = frames_of(pipeline.stream(PROMPT, at=at, switch=SWITCHES[kind]()), 4)
    settings = [f"switch.kind={kind}"]
    of_settings = StreamingVideoPipeline.from_pretrained(
        tiny_model_folder, settings=settings, device="cpu", dtype=torch.float32
    )
    assert torch.equal(frames_of(of_settings.stream(PROMPT, at=at), 4), asked)
    kept = frames_of(pipeline.stream(PROMPT, at=at), 4)
    assert torch.equal(asked[:, :13], kept[:, :13])
    assert torch.equal(asked, kept) == (kind == "keep")


@pytest.mark.parametrize("kind", SWITCHES)
def test_a_stream_goes_on_in_another_process_in_the_middle_of_a_switch(
    pipeline: StreamingVideoPipeline, kind: str, tmp_path: Path
) -> None:
    stream = pipeline.stream(PROMPT, at={0.5: "a blue square slides"}, switch=SWITCHES[kind]())
    list(itertools.islice(stream, 3))
    torch.save((stream.rollout.state, stream.vae_state, stream.prompt), tmp_path / "stream.pt")
    state, vae_state, prompt = torch.load(tmp_path / "stream.pt", weights_only=False)
    again = pipeline.stream(prompt, switch=SWITCHES[kind]())
    again.rollout.resume(state, chunkwise(pipeline.settings.sigmas))
    again.vae_state = vae_state
    assert torch.equal(frames_of(again, 3), frames_of(stream, 3))


def test_a_video_takes_a_switch_policy_too(pipeline: StreamingVideoPipeline) -> None:
    at = {0.5: "a blue square slides"}
    stream = pipeline.stream(PROMPT, at=at, switch=Recache())
    assert torch.equal(pipeline.generate(PROMPT, 21 / 16, at=at, switch=Recache()), frames_of(stream, 3))


def test_what_a_recache_computes_counts_as_commit(
    pipeline: StreamingVideoPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = pipeline.stream(PROMPT, at={0.5: "a blue ball"}, switch=Recache())
    stages: list[str] = []
    passes: list[str] = []
    measure = stream._measure
    monkeypatch.setattr(stream, "_measure", lambda stage: stages.append(stage) or measure(stage))
    clean = Rollout._clean
    monkeypatch.setattr(Rollout, "_clean", lambda *given: passes.append(stages[-1]) or clean(*given))
    list(itertools.islice(stream, 3))
    assert passes == ["commit"] * 3, "two chunks' clean passes and the window's"


@pytest.mark.parametrize("kind", SWITCHES)
def test_a_live_change_equals_a_timed_one(pipeline: StreamingVideoPipeline, kind: str) -> None:
    timed = frames_of(pipeline.stream(PROMPT, at={0.5: "a blue ball"}, switch=SWITCHES[kind]()), 4)
    stream = pipeline.stream(PROMPT, switch=SWITCHES[kind]())
    before = frames_of(stream, 2)
    stream.prompt = "a blue ball"
    assert torch.equal(torch.cat([before, frames_of(stream, 2)], dim=1), timed)


def test_setting_the_same_prompt_changes_nothing(pipeline: StreamingVideoPipeline) -> None:
    stream = pipeline.stream(PROMPT)
    before = frames_of(stream, 2)
    stream.prompt = PROMPT
    assert torch.equal(torch.cat([before, frames_of(stream, 2)], dim=1), frames_of(pipeline.stream(PROMPT), 4))


def test_a_live_prompt_must_say_something_and_fit_the_batch(pipeline: StreamingVideoPipeline) -> None:
    stream = pipeline.stream(PROMPT, seeds=[1, 2])
    with pytest.raises(ValueError, match="must say something"):
        stream.prompt = " "
    with pytest.raises(ValueError, match="one prompt or one for each of 2 samples, got 3"):
        stream.prompt = ["a", "b", "c"]  # pyright: ignore[reportAttributeAccessIssue]
    assert stream.prompt == PROMPT


def test_a_change_that_is_never_shown_is_refused(pipeline: StreamingVideoPipeline) -> None:
    with pytest.raises(ValueError, match="would never be shown"):
        pipeline.generate(PROMPT, 1.0, at=[(0.9, "a blue ball")])


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_video_needs_a_length(pipeline: StreamingVideoPipeline, seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds must be positive and finite"):
        pipeline.generate(PROMPT, seconds)


def test_a_prompt_set_before_the_first_chunk_replaces_the_first_prompt(pipeline: StreamingVideoPipeline) -> None:
    stream = pipeline.stream(PROMPT)
    stream.prompt = "a blue ball"
    assert torch.equal(frames_of(stream, 2), frames_of(pipeline.stream("a blue ball"), 2))


def test_streams_run_side_by_side(pipeline: StreamingVideoPipeline) -> None:
    one, two = pipeline.stream(PROMPT, seed=1), pipeline.stream("a blue ball", seed=2)
    woven = [next(stream).frames for _ in range(3) for stream in (one, two)]
    assert torch.equal(torch.cat(woven[::2], dim=1), frames_of(pipeline.stream(PROMPT, seed=1), 3))


def test_a_chunk_tells_where_its_time_went(pipeline: StreamingVideoPipeline) -> None:
    first, second = itertools.islice(pipeline.stream(PROMPT), 2)
    assert tuple(first.seconds) == tuple(second.seconds) == STAGES
    assert first.seconds["text"] > 0
    assert second.seconds["text"] == 0
    assert second.seconds["commit"] > 0
    assert all(chunk.seconds["dit"] > 0 and chunk.seconds["decode"] > 0 for chunk in (first, second))


def test_a_prompt_is_encoded_once(pipeline: StreamingVideoPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    encoder = pipeline.text_encoder
    monkeypatch.setattr(type(encoder), "__call__", lambda self, prompts: seen.extend(prompts) or torch.zeros(1, 8, 32))
    for _ in range(2):
        stream = pipeline.stream("green", at={0.3: "green square", 0.8: "green"})
        list(itertools.islice(stream, 4))
    assert seen == ["green", "green square"]
    for number in range(EMBEDDINGS_KEPT + 1):
        pipeline.encode((f"green {number}",))
    assert len(pipeline._embeddings) == EMBEDDINGS_KEPT
    pipeline._embeddings.clear()


def live_bytes() -> int:
    gc.collect()
    tensors = {id(item): item for item in gc.get_objects() if issubclass(type(item), torch.Tensor)}
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors.values()}.values())


@pytest.mark.parametrize(("method", "switch"), [*((method, None) for method in METHODS), ("reward", Blend(chunks=3))])
def test_memory_stays_flat_once_the_window_is_full(tiny_model_folder: Path, method: str, switch: Blend | None) -> None:
    pipeline = StreamingVideoPipeline.from_pretrained(tiny_model_folder, method=method, device="cpu")
    stream = pipeline.stream(PROMPT, switch=switch)

    def run(chunks: int) -> int:
        for number in range(chunks):
            stream.prompt = ("a red ball", "a blue ball")[number % 2]
            next(stream)
        return live_bytes()

    # every window is full by then; of the clips of 10, 9, 9, .. chunks the second and the fourth are equally far
    assert run(12) == run(18)


@pytest.mark.parametrize("method", METHODS)
def test_every_methods_video_begins_its_endless_stream(tiny_model_folder: Path, method: str) -> None:
    pipeline = StreamingVideoPipeline.from_pretrained(tiny_model_folder, method=method, device="cpu")
    endless = frames_of(pipeline.stream(PROMPT, seed=1), 4)
    assert torch.equal(pipeline.generate(PROMPT, seconds=1.5, seed=1), endless[:, :24])


@pytest.mark.parametrize(("method", "messages"), [("reward", 0), (None, 0), ("rolling", 1)])
def test_weights_of_another_method_are_told(
    tiny_model_folder: Path, method: str | None, messages: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        StreamingVideoPipeline.from_pretrained(tiny_model_folder, method=method, device="cpu")
    assert (
        caplog.messages == ["this model's weights were trained for the method 'reward', not for 'rolling'"] * messages
    )


def test_nothing_is_said_of_weights_that_nobody_knows(
    tiny_model_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = tiny_model_folder / "transformer"
    with caplog.at_level(logging.WARNING):
        StreamingVideoPipeline.from_pretrained(tiny_model_folder, method="rolling", weights=weights, device="cpu")
    assert not caplog.messages


def test_unknown_words_are_named_with_what_the_model_can_show(
    pipeline: StreamingVideoPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        chunk = next(pipeline.stream("a red dragon bouncs"))
    assert chunk.frames.shape[1] == 5
    assert caplog.messages == [
        "this model does not know 'dragon', 'bouncs' (did you mean 'bounces'?) and makes a video of the rest. "
        "It can show balls and squares that bounce or slide."
    ]
    assert pipeline.explain_unknown_words(PROMPT) is None


def test_a_live_prompt_is_checked_for_unknown_words(
    pipeline: StreamingVideoPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    stream = pipeline.stream(PROMPT)
    with caplog.at_level(logging.WARNING):
        stream.prompt = "a dragon"
    assert "'dragon'" in caplog.text


def test_a_stream_whose_decoder_failed_does_not_go_on_as_if_it_began(
    pipeline: StreamingVideoPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = pipeline.stream(PROMPT)
    next(stream)

    def fail(*_: object) -> NoReturn:
        raise MemoryError("no room for frames")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.vae, "decode", fail)
        with pytest.raises(MemoryError):
            next(stream)
    with pytest.raises(RuntimeError, match="MemoryError: no room for frames") as refused:
        next(stream)
    assert isinstance(refused.value.__cause__, MemoryError)
