"""Graphed passes equal plain ones whatever a stream does, read what is new, and leave nothing in their own memory."""

import logging
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from threading import Thread

import pytest
import torch
from models.tape import Tapes
from torch import Tensor

from reward_forcing.models import cuda_graphs
from reward_forcing.models.attention import Past, TextContext, TextMix
from reward_forcing.models.cuda_graphs import GraphedForward, Outputs, Run
from reward_forcing.models.denoiser import Denoiser, Forward
from reward_forcing.models.masks import block_causal
from reward_forcing.models.sequence_parallel import SequenceShare
from reward_forcing.models.wan_dit import WanDiT
from reward_forcing.rollout import Blend, CacheSettings, EmaSink, KVCache, NoSink, Recache, Rollout, SeededNoise
from reward_forcing.rollout.schedule import chunkwise, rolling

SMALL = CacheSettings(window_frames=6, chunk_frames=2, sink=EmaSink(frames=2, alpha=0.7))
SIGMAS = (1.0, 0.6)


@pytest.fixture
def network(tiny_dit: Callable[..., WanDiT]) -> WanDiT:
    return tiny_dit().requires_grad_(False)


def text_of(network: WanDiT, seed: int, batch: int = 1, tokens: int = 5) -> TextContext:
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(1, tokens, network.config["text_dim"], generator=generator)
    with torch.no_grad():
        return network.encode_text(embeddings).expand(batch)


def roll(network: WanDiT, forward: Forward | None, batch: int = 1, rows: int = 4, **how: object) -> Rollout:
    how = {"cache": SMALL, "storage": "exact", "schedule": chunkwise(SIGMAS)} | how
    cache, schedule = KVCache.empty(how.pop("cache"), how.pop("storage")), how.pop("schedule")
    noise, shape = SeededNoise(tuple(range(batch))), (4, rows, 4)
    return Rollout(Denoiser(network, forward), schedule, cache, noise, text_of(network, 0, batch), shape, **how)


def video(rollout: Rollout, chunks: int, texts: dict[int, TextContext] | None = None) -> Tensor:
    made = []
    for number in range(chunks):
        if texts and number in texts:
            rollout.text = texts[number]
        made.append(next(rollout).latents)
    return torch.cat(made, dim=1)


MODES = {"inference mode": torch.inference_mode, "no gradients": torch.no_grad}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"cache": SMALL.model_copy(update={"positions": "absolute"})},
        {"cache": SMALL.model_copy(update={"sink": NoSink(), "clean_pass_sees_sink": False})},
        {"schedule": rolling(SIGMAS)},
        {"switch": Recache()},
        {"switch": Blend(chunks=2)},
        {"context_noise": 0.1},
        {"clean_pass": False},
        {"schedule": rolling(SIGMAS), "clean_pass": False},
    ],
    ids=lambda how: ", ".join(how) or "plain",
)
def test_a_stream_is_the_same_over_evictions_and_prompt_switches(
    network: WanDiT, how: dict[str, object], mode: str
) -> None:
    tapes = Tapes()
    texts = {6: text_of(network, 1), 9: text_of(network, 2, tokens=7)}
    schedules = [rolling(SIGMAS), rolling(SIGMAS)] if "schedule" in how else [chunkwise(SIGMAS), chunkwise(SIGMAS)]
    with MODES[mode]():
        plain, graphed = (
            video(roll(network, forward, **how | {"schedule": schedule}), 14, texts)
            for forward, schedule in zip((None, GraphedForward(network, tapes)), schedules, strict=True)
        )
    assert torch.equal(graphed, plain)
    kinds = 1 if {"schedule", "clean_pass"} <= how.keys() else 2  # passes, and the clean or the last one
    assert tapes.captured >= 2 * kinds  # the same for the longer prompt
    assert tapes.replayed > 3 * tapes.captured


@torch.inference_mode()
def test_streams_of_other_batches_and_sizes_take_turns(network: WanDiT) -> None:
    tapes = Tapes()
    forward = GraphedForward(network, tapes, kept=6)
    of = [{"batch": 1}, {"batch": 2}, {"rows": 6}, {"batch": 1}]
    captured = []
    for together in (of[:3], of[::3]):
        plain = [roll(network, None, **how) for how in together]
        graphed = [roll(network, forward, **how) for how in together]
        for rollout in (*plain, *graphed):
            video(rollout, 2)
        for _ in range(6):
            for one, other in zip(plain, graphed, strict=True):
                assert torch.equal(next(one).latents, next(other).latents)
        captured.append(tapes.captured)
    assert captured[0] == 6  # passes and clean pass of three; streams in step meet a filling window's shapes twice


@torch.inference_mode()
def test_streams_in_threads_do_not_read_each_others_past(network: WanDiT) -> None:
    forward, made = GraphedForward(network, Tapes()), {}
    texts = [text_of(network, seed) for seed in range(3)]

    def stream(number: int) -> None:
        with torch.inference_mode():
            made[number] = video(roll(network, forward), 9, {0: texts[number]})

    threads = [Thread(target=stream, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, text in enumerate(texts):
        assert torch.equal(made[number], video(roll(network, None), 9, {0: text}))


@torch.inference_mode()
def test_nothing_is_captured_before_the_window_is_full_and_a_chunk_of_it_was_seen(network: WanDiT) -> None:
    tapes = Tapes()
    rollout = roll(network, GraphedForward(network, tapes))
    captured = []
    for _ in range(7):
        next(rollout)
        _ = rollout.cache
        captured.append(tapes.captured)
    # chunks 0 and 1 fill the window, chunk 2 sees it full for the first time, chunk 3 is captured
    assert captured == [0, 0, 0, 2, 2, 2, 2]
    fresh = roll(network, rollout._denoiser._forward)
    video(fresh, 3)
    assert tapes.captured == 2


@torch.inference_mode()
def test_the_past_is_copied_once_per_chunk_and_the_text_once_per_prompt(
    network: WanDiT, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: dict[tuple[int, ...], int] = {}
    fill = cuda_graphs._Buffer.fill

    def counted(self: cuda_graphs._Buffer, source: Tensor, may_stay: bool) -> None:
        before = self._source
        fill(self, source, may_stay)
        if self._source is not before:
            copied[tuple(source.shape)] = copied.get(tuple(source.shape), 0) + 1

    monkeypatch.setattr(cuda_graphs._Buffer, "fill", counted)
    rollout = roll(network, GraphedForward(network, Tapes()), schedule=chunkwise((1.0, 0.8, 0.5)))
    video(rollout, 6)
    text, past, x = (2, 1, 5, 2, 16), (1, 4, 4, 2, 16), (1, 2, 4, 4, 4)
    copied.clear()
    video(rollout, 5)
    assert (copied.get(text, 0), copied[past], copied[x]) == (0, 2 * 2 * 5, 4 * 5)  # keys and values, of two layers
    rollout.text = text_of(network, 1)
    video(rollout, 3)
    assert copied[text] == 2


@torch.inference_mode()
def test_results_are_the_callers_own_and_an_earlier_cache_stays(network: WanDiT) -> None:
    forward, results = GraphedForward(network, Tapes()), []

    def recorded(*inputs: object, **named: object) -> Outputs:
        velocity, kv = forward(*inputs, **named)
        results.extend((tensor, tensor.clone()) for tensor in flat((velocity, kv)))
        return velocity, kv

    rollout = roll(network, recorded)
    video(rollout, 6)
    context = rollout.cache.context
    assert context is not None
    held = [(tensor, tensor.clone()) for tensor in (*context.keys, *context.values)]
    video(rollout, 4)
    assert all(torch.equal(tensor, before) for tensor, before in (*results, *held))


@torch.inference_mode()
def test_a_tensor_that_was_written_to_is_read_again(network: WanDiT) -> None:
    forward = GraphedForward(network, Tapes())
    with torch.inference_mode(False), torch.no_grad():
        text, x, level = text_of(network, 0), torch.randn(1, 2, 4, 4, 4), torch.zeros(1)
        kept = torch.randn(3, 2, 2, 1, 4, 4, 2, 16)
        pasts = [past_of(pair) for pair in kept]
        for past in pasts:
            forward(x, level, text, past=past)
        pasts[2].keys[1].add_(1)
        for changed in (x, text.keys):
            changed.mul_(0.5)
            graphed, plain = (run(x, level, text, past=pasts[2])[0] for run in (forward, network))
            assert torch.equal(graphed, plain)


@torch.inference_mode()
def test_few_graphs_are_kept_and_what_they_read_goes_with_them(network: WanDiT) -> None:
    forward = GraphedForward(network, Tapes(), kept=2)
    sizes = []
    for rows in (4, 6, 8, 4):
        video(roll(network, forward, rows=rows), 7)
        sizes.append((len(forward._graphs), sum(b.tensor.nbytes for b in forward._buffers.values()) // rows))
    assert sizes[0] == sizes[3]
    assert all(size[0] == 2 for size in sizes)
    assert sizes[1][1] <= sizes[0][1]
    names = [key[0] for key in forward._buffers]
    assert len(names) == len(set(names))  # passes and clean pass share what they read


def test_what_cannot_be_captured_runs_as_ever(network: WanDiT, monkeypatch: pytest.MonkeyPatch) -> None:
    tapes = Tapes()
    forward, text = GraphedForward(network, tapes), text_of(network, 0)
    x = torch.randn(1, 2, 4, 4, 4)

    def passes(text: object = text, **how: object) -> Tensor:
        kept = [torch.randn(2, 2, 1, 4, 4, 2, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
        for past in map(past_of, kept):
            velocity, _ = forward(x, torch.zeros(1), text, **{"past": past} | how)
        return velocity

    x.requires_grad_()
    assert passes().requires_grad
    x.requires_grad_(False)
    passes()
    with torch.no_grad():
        passes(TextMix(((0.5, text), (0.5, text_of(network, 1)))))
        passes(past=None)
        passes(past=None, pattern=block_causal(2, 1))
        with torch.autocast("cpu", torch.bfloat16):
            passes()
        with monkeypatch.context() as shared:
            shared.setattr(network, "share", SequenceShare())
            passes()
        assert tapes.captured == 0
        passes()
    assert tapes.captured == 1


@pytest.mark.parametrize("storage", ["lean", "int8"])
@torch.inference_mode()
def test_a_past_that_is_made_on_demand_is_never_copied(network: WanDiT, storage: str) -> None:
    tapes = Tapes()
    plain, graphed = (
        video(roll(network, forward, storage=storage), 8) for forward in (None, GraphedForward(network, tapes))
    )
    assert torch.equal(graphed, plain)
    assert tapes.captured == 0


@torch.inference_mode()
def test_a_capture_that_fails_is_said_once_and_changes_nothing(
    network: WanDiT, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(run: Run) -> tuple[Callable[[], None], Outputs]:
        raise RuntimeError("operation not permitted when stream is capturing")

    caplog.set_level(logging.WARNING)
    assert torch.equal(video(roll(network, GraphedForward(network, refuse)), 7), video(roll(network, None), 7))
    assert caplog.text.count("operation not permitted") == 1


@torch.inference_mode()
def test_compiled_blocks_are_captured_as_well(network: WanDiT, tiny_dit: Callable[..., WanDiT]) -> None:
    compiled, shapes = tiny_dit().requires_grad_(False), []

    def compiler(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        shapes.append([tuple(one.shape) for one in inputs if isinstance(one, Tensor)])
        return module

    for block in compiled.blocks:
        block.compile(dynamic=False, backend=compiler)
    reruns = Reruns()
    graphed = video(roll(compiled, GraphedForward(compiled, reruns)), 8)
    torch.testing.assert_close(graphed, video(roll(network, None), 8), atol=1e-5, rtol=1e-5)
    assert reruns.captured == 2
    assert shapes
    before = len(shapes)
    video(roll(compiled, None), 8)
    assert len(shapes) == before  # what graphs read looks to compiled blocks as any tensors do


class Reruns:
    """`Capture` that runs Python again: compilers do not go with `Tapes`."""

    captured = 0

    def __call__(self, run: Run) -> tuple[Callable[[], None], Outputs]:
        """`run` again, into the results of the first."""
        self.captured += 1
        outputs = run()

        def replay() -> None:
            for old, new in zip(flat(outputs), flat(run()), strict=True):
                old.copy_(new)

        return replay, outputs


def flat(outputs: Outputs) -> list[Tensor]:
    velocity, kv = outputs
    return [velocity, *(() if kv is None else (*kv.keys, *kv.values))]


def past_of(pair: Tensor) -> Past:
    """Four frames of rotated keys and values [2, N, B, 4, S, H, D], which two frames see."""
    keys, values = (part.unbind() for part in pair)
    return Past(keys, values, torch.arange(4), torch.arange(4, 6), rotated=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@torch.inference_mode()
def test_graphs_of_a_gpu_make_the_same_video(network: WanDiT) -> None:
    network = network.cuda()
    forward = GraphedForward(network)
    plain, graphed = (
        torch.cat([chunk.latents for chunk in islice(gpu_stream(network, run), 9)]) for run in (None, forward)
    )
    torch.testing.assert_close(graphed, plain, atol=1e-4, rtol=1e-4)
    assert len(forward._graphs) == 2


def gpu_stream(network: WanDiT, forward: Forward | None) -> Rollout:
    text = text_of(network.cpu(), 0)
    network.cuda()
    text = replace(text, keys=text.keys.cuda(), values=text.values.cuda())
    denoiser, cache, noise = Denoiser(network, forward), KVCache.empty(SMALL), SeededNoise((0,))
    return Rollout(denoiser, chunkwise(SIGMAS), cache, noise, text, (4, 4, 4), device="cuda")
