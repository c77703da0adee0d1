"""The loop, seen through an analytic denoiser that records what it is asked."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

import pytest
import torch
from rollout.toy import SHAPE, SIGMAS, ToyDenoiser, toy_text
from torch import Tensor

from reward_forcing.flow import add_noise, euler_step, ode_sigmas, x0_to_velocity
from reward_forcing.models.attention import KV, Past, Prediction
from reward_forcing.models.live_bytes import LiveBytes
from reward_forcing.rollout.kv_cache import CacheSettings, Commit, KVCache
from reward_forcing.rollout.noise import SeededNoise
from reward_forcing.rollout.rollout import KV_GRADS, Chunk, Rollout
from reward_forcing.rollout.schedule import Pass, chunkwise, rolling
from reward_forcing.rollout.sinks import EmaSink, NoSink, StaticSink

SETTINGS = CacheSettings(window_frames=6, chunk_frames=2, sink=EmaSink(frames=2, alpha=0.5))
NOISE = SeededNoise((1,))


def make(denoiser: ToyDenoiser | None = None, **changes) -> Rollout:
    arguments = {
        "schedule": chunkwise(SIGMAS),
        "cache": KVCache.empty(SETTINGS),
        "noise": NOISE,
        "text": toy_text(),
        "shape": SHAPE,
    }
    return Rollout(denoiser or ToyDenoiser(), **(arguments | changes))


def take(rollout: Rollout, chunks: int) -> list[Tensor]:
    return [chunk.latents for chunk in islice(rollout, chunks)]


def assert_same(first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
    assert len(first) == len(second) > 0
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_chunks_are_numbered_and_placed():
    chunks = list(islice(make(), 3))
    assert [(chunk.index, chunk.start, tuple(chunk.latents.shape)) for chunk in chunks] == [
        (0, 0, (1, 2, *SHAPE)),
        (1, 2, (1, 2, *SHAPE)),
        (2, 4, (1, 2, *SHAPE)),
    ]


def test_passes_run_in_the_schedules_order_and_each_chunk_ends_with_a_clean_pass():
    denoiser = ToyDenoiser()
    rollout = make(denoiser)
    take(rollout, 2)
    asked = [(call.sigma, call.want_kv) for call in denoiser.calls]
    noisy = [([pytest.approx(sigma)] * 2, False) for sigma in SIGMAS]
    assert asked == [*noisy, ([0.0, 0.0], True), *noisy]


def test_a_chunk_is_re_noised_with_a_fresh_draw_after_every_pass_but_its_last():
    denoiser = ToyDenoiser()
    chunk = next(make(denoiser))
    x = NOISE(0, 0, (2, *SHAPE))
    for step, call in enumerate(denoiser.calls):
        torch.testing.assert_close(call.x, x)
        x0 = 0.5 * (1 - SIGMAS[step] / 2) * x
        if step + 1 < len(SIGMAS):
            x = add_noise(x0, NOISE(0, step + 1, (2, *SHAPE)), SIGMAS[step + 1])
    torch.testing.assert_close(chunk.latents, x0)


def test_without_fresh_noise_a_chunk_follows_the_flow_ode_to_its_clean_end():
    asked: list[tuple[int, int]] = []

    def noise(chunk: int, draw: int, shape: Sequence[int]) -> Tensor:
        asked.append((chunk, draw))
        return NOISE(chunk, draw, shape)

    denoiser, sigmas = ToyDenoiser(), ode_sigmas(5, 3.0)
    chunks = take(make(denoiser, schedule=chunkwise(sigmas[:-1].tolist(), fresh_noise=False), noise=noise), 2)
    x = NOISE(0, 0, (2, *SHAPE))
    for call, sigma, sigma_next in zip(denoiser.calls, sigmas, sigmas[1:], strict=False):
        torch.testing.assert_close(call.x, x)
        x0 = 0.5 * (1 - sigma / 2) * x
        x = euler_step(x, x0_to_velocity(x, x0, sigma), sigma, sigma_next)
    torch.testing.assert_close(chunks[0], x)
    assert asked == [(0, 0), (1, 0)], "nothing is drawn but the initial noise"


def test_the_last_chunks_clean_pass_waits_until_it_is_needed():
    denoiser = ToyDenoiser()
    rollout = make(denoiser)
    next(rollout)
    assert not any(call.want_kv for call in denoiser.calls)
    assert rollout.cache.committed == 2
    assert [call.want_kv for call in denoiser.calls].count(True) == 1
    assert rollout.cache.committed == 2
    assert [call.want_kv for call in denoiser.calls].count(True) == 1


def test_reading_the_cache_between_chunks_changes_nothing():
    rollout = make()
    read = []
    for chunk in islice(rollout, 4):
        read.append(chunk.latents)
        assert rollout.cache.committed == chunk.start + 2
    assert_same(read, take(make(), 4))


def test_new_text_counts_from_the_next_chunk_and_the_clean_pass_keeps_the_old():
    denoiser = ToyDenoiser()
    rollout = make(denoiser, text=toy_text(0.25))
    next(rollout)
    rollout.text = toy_text(0.75)
    next(rollout)
    assert [call.text for call in denoiser.calls] == [0.25] * 4 + [0.75] * 3


def test_without_clean_passes_the_cache_holds_what_the_last_passes_computed():
    """Of given chunks and of nothing else a pass of their own is run."""
    denoiser = ToyDenoiser()
    rollout = make(denoiser, clean_pass=False)
    rollout.prime(torch.ones(1, 2, *SHAPE))
    take(rollout, 2)
    asked = [(call.sigma, call.want_kv) for call in denoiser.calls]
    denoising = [([pytest.approx(sigma)] * 2, sigma == SIGMAS[-1]) for sigma in SIGMAS]
    assert asked == [([0.0, 0.0], True), *denoising, *denoising]
    context = rollout.cache.context
    assert context is not None
    last = [denoiser.calls[number].x for number in (3, 6)]
    tokens = torch.cat([0.5 * x.flatten(3).transpose(2, 3)[:, :, :, None] for x in last], dim=1)
    torch.testing.assert_close(context.keys[0][:, -2:], tokens[:, -2:])
    torch.testing.assert_close(context.values[0][:, -2:], 2 * tokens[:, -2:])


@pytest.mark.parametrize("kv_grad", ["clean", "stale"])
def test_gradients_through_clean_passes_need_clean_passes(kv_grad):
    with pytest.raises(ValueError, match=f"kv_grad='{kv_grad}' speaks of clean passes"):
        make(clean_pass=False, kv_grad=kv_grad)


def test_a_replaced_cache_stands_for_all_chunks_so_far():
    denoiser = ToyDenoiser()
    rollout = make(denoiser)
    next(rollout)
    rollout.cache = KVCache.empty(SETTINGS)
    chunk = next(rollout)
    assert not any(call.want_kv for call in denoiser.calls)
    assert denoiser.calls[-1].past is None
    assert (chunk.index, chunk.start) == (1, 2)


def test_a_cache_for_chunks_of_another_size_is_rejected():
    rollout = make()
    with pytest.raises(ValueError, match="chunks have 2 frames, the new cache expects chunks of 3"):
        rollout.cache = KVCache.empty(CacheSettings(chunk_frames=3))


@pytest.mark.parametrize("schedule", [chunkwise, rolling])
@pytest.mark.parametrize("when", [0, 1, 4])
def test_a_resumed_state_continues_as_if_nothing_had_happened(schedule, when):
    cache = KVCache.empty(CacheSettings(window_frames=8, chunk_frames=2, sink=EmaSink(frames=2, alpha=0.5)))
    whole = take(make(schedule=schedule(SIGMAS), cache=cache), 7)
    first = make(schedule=schedule(SIGMAS), cache=cache)
    take(first, when)
    state = first.state
    take(first, 2)
    again = make(cache=cache)
    again.resume(state, schedule(SIGMAS))
    first.resume(state, schedule(SIGMAS))
    assert_same(take(again, 7 - when), whole[when:])
    assert_same(take(first, 7 - when), whole[when:])


def test_a_branch_with_other_sigmas_begins_at_the_saved_chunk():
    rollout = make()
    take(rollout, 2)
    rollout.resume(rollout.state, chunkwise((1.0, 0.3)))
    assert next(rollout).index == 2


def test_priming_equals_having_generated_the_latents():
    source = make()
    chunks = list(islice(source, 3))
    latents = torch.cat([chunk.latents for chunk in chunks], dim=1)
    primed = make()
    primed.prime(latents)
    assert primed.cache.committed == 6
    following = next(primed)
    assert (following.index, following.start) == (3, 6)
    assert_same([following.latents], take(source, 1))


def test_priming_puts_the_remainder_first():
    denoiser = ToyDenoiser()
    rollout = make(denoiser)
    rollout.prime(torch.randn(1, 5, *SHAPE))
    assert [len(call.sigma) for call in denoiser.calls] == [1, 2, 2]
    chunk = next(rollout)
    assert (chunk.index, chunk.start) == (3, 5)


def test_priming_between_chunks_continues_the_numbers():
    rollout = make()
    take(rollout, 2)
    rollout.prime(torch.randn(1, 2, *SHAPE))
    chunk = next(rollout)
    assert (chunk.index, chunk.start, rollout.cache.committed) == (3, 6, 8)


@pytest.mark.parametrize("size", [(1, 2, 4, 4, 4), (1, 0, *SHAPE), (2, *SHAPE)])
def test_priming_with_latents_of_another_size_is_rejected(size):
    with pytest.raises(ValueError, match="expected latents"):
        make().prime(torch.zeros(size))


def test_priming_is_rejected_while_chunks_are_in_flight():
    rollout = make(schedule=rolling(SIGMAS), cache=KVCache.empty(replace_settings(window_frames=8)))
    next(rollout)
    with pytest.raises(ValueError, match="2 chunks are in flight"):
        rollout.prime(torch.zeros(1, 2, *SHAPE))


def replace_settings(**changes) -> CacheSettings:
    return CacheSettings.model_validate(SETTINGS.model_dump() | changes)


def test_a_joint_schedule_denoises_every_chunk_through_all_sigmas():
    denoiser = ToyDenoiser()
    chunks = list(
        islice(make(denoiser, schedule=rolling(SIGMAS), cache=KVCache.empty(replace_settings(window_frames=8))), 3)
    )
    noisy = [call for call in denoiser.calls if not call.want_kv]
    levels = [[round(sigma, 3) for sigma in call.sigma[::2]] for call in noisy]
    assert levels == [[1.0], [0.9, 1.0], [0.6, 0.9, 1.0], [0.6, 0.9, 1.0], [0.6, 0.9, 1.0]]
    assert [chunk.index for chunk in chunks] == [0, 1, 2]
    torch.testing.assert_close(noisy[1].x[:, 2:], NOISE(1, 0, (2, *SHAPE)))
    entered = noisy[3].past
    assert entered is not None
    assert entered.key_positions.tolist() == [0, 1]


ROLLING = CacheSettings(window_frames=10, chunk_frames=2, sink=StaticSink(frames=2))


def seen(call) -> list[list[int]]:
    """Time positions of the past and of the frames themselves."""
    assert call.past is not None
    return [call.past.key_positions.tolist(), call.past.query_positions.tolist()]


def test_a_joint_window_sees_the_chunk_before_it_and_just_before_that_the_sink():
    denoiser = ToyDenoiser()
    chunks = take(make(denoiser, schedule=rolling(SIGMAS), cache=KVCache.empty(ROLLING)), 5)
    first, *windows = [call for call in denoiser.calls if len(call.sigma) == 6]
    assert first.past is None
    assert seen(windows[0]) == [[0, 1], [2, 3, 4, 5, 6, 7]]
    for number, call in enumerate(windows[1:], start=2):
        assert seen(call) == [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9]]
        assert call.past is not None
        shown = call.past.values[0][:, :, :, 0]  # twice half the clean latents of each frame
        expected = torch.cat([chunks[0], chunks[number - 1]], dim=1).flatten(3).transpose(2, 3)
        torch.testing.assert_close(shown, expected)


def test_shrinking_windows_see_more_of_the_past():
    denoiser = ToyDenoiser()
    settings = ROLLING.model_copy(update={"window_frames": 12})
    assert len(take(make(denoiser, schedule=rolling(SIGMAS, chunks=6), cache=KVCache.empty(settings)), 6)) == 6
    noisy = [call for call in denoiser.calls if not call.want_kv]
    assert [len(call.sigma) for call in noisy] == [2, 4, 6, 6, 6, 6, 4, 2]
    assert [0 if call.past is None else call.past.frames for call in noisy[3:]] == [2, 4, 6, 8, 10]


@pytest.mark.parametrize(
    ("sees_sink", "expected"),
    [(True, [[0, 1, 10, 11, 12, 13, 14, 15], [16, 17]]), (False, [[8, 9, 10, 11, 12, 13, 14, 15], [16, 17]])],
)
def test_the_clean_pass_sees_the_sink_or_in_its_place_more_of_the_past(sees_sink, expected):
    denoiser = ToyDenoiser()
    settings = ROLLING.model_copy(update={"positions": "absolute", "clean_pass_sees_sink": sees_sink})
    rollout = make(denoiser, schedule=rolling(SIGMAS), cache=KVCache.empty(settings))
    take(rollout, 9)
    assert rollout.cache.committed == 18
    clean = [call for call in denoiser.calls if call.want_kv]
    assert seen(clean[4]) == [list(range(8)), [8, 9]]
    assert seen(clean[8]) == expected
    assert seen(denoiser.calls[-2]) == [[0, 1, 14, 15], [16, 17, 18, 19, 20, 21]]


def test_a_noisy_pass_sees_the_sink_whatever_the_clean_pass_over_the_same_cache_sees():
    denoiser = ToyDenoiser()
    settings = ROLLING.model_copy(update={"positions": "absolute", "clean_pass_sees_sink": False})
    rollout = make(denoiser, cache=KVCache.empty(settings))
    take(rollout, 6)
    assert rollout.cache.committed == 12
    noisy, clean = denoiser.calls[-2:]
    assert seen(noisy) == [[0, 1, 4, 5, 6, 7, 8, 9], [10, 11]]
    assert seen(clean) == [[2, 3, 4, 5, 6, 7, 8, 9], [10, 11]]


def test_every_chunk_has_one_clean_pass_when_chunks_roll():
    denoiser = ToyDenoiser()
    take(make(denoiser, schedule=rolling(SIGMAS), cache=KVCache.empty(ROLLING)), 4)
    assert [len(call.sigma) for call in denoiser.calls if call.want_kv] == [2, 2, 2]
    assert not any(call.want_kv for call in denoiser.calls[:3]), "none before the first chunk is finished"


def test_windows_grow_over_a_given_past():
    denoiser = ToyDenoiser()
    rollout = make(denoiser, schedule=rolling(SIGMAS), cache=KVCache.empty(ROLLING))
    rollout.prime(torch.randn(1, 7, *SHAPE))
    chunk = next(rollout)
    assert (chunk.index, chunk.start) == (4, 7)
    noisy = [call for call in denoiser.calls if not call.want_kv]
    assert [seen(call) for call in noisy] == [
        [[0, 1, 2, 3, 4, 5, 6], [7, 8]],
        [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9]],
        [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9]],
    ]


def test_chunks_in_flight_go_on_with_a_new_text_and_the_clean_pass_keeps_the_old():
    denoiser = ToyDenoiser()
    rollout = make(denoiser, schedule=rolling(SIGMAS), cache=KVCache.empty(ROLLING), text=toy_text(0.25))
    next(rollout)
    rollout.text = toy_text(0.75)
    next(rollout)
    assert [(call.text, len(call.sigma)) for call in denoiser.calls[-2:]] == [(0.25, 2), (0.75, 6)]


def test_a_finished_chunk_does_not_keep_its_window_alive():
    rollout = make(schedule=rolling(SIGMAS), cache=KVCache.empty(ROLLING))
    for latents in take(rollout, 3):
        assert latents.untyped_storage().nbytes() == latents.numel() * latents.element_size()


def test_a_pass_that_skips_an_unfinished_chunk_is_caught():
    with pytest.raises(AssertionError, match="should begin with chunk 0"):
        next(make(schedule=[Pass((1,), (1.0,), (None,))]))


def test_a_finite_schedule_ends_the_rollout():
    assert len(list(make(schedule=islice(chunkwise(SIGMAS), 2 * len(SIGMAS))))) == 2


def test_the_last_clean_pass_of_a_finite_schedule_waits_until_the_cache_is_read():
    denoiser = ToyDenoiser()
    rollout = make(denoiser, schedule=chunkwise(SIGMAS, chunks=2))
    assert len(list(rollout)) == 2
    assert [call.want_kv for call in denoiser.calls].count(True) == 1
    assert rollout.cache.committed == 4


def at_exit(rollout: Rollout) -> list[Tensor]:
    """What the exits of a finite schedule predict of each chunk in turn."""
    finished = [chunk.at_exit for chunk in rollout]
    return finished + [chunk.at_exit for chunk in rollout.state.noisy if chunk.at_exit is not None]


@pytest.mark.parametrize("exit_window", range(3))
def test_a_chunk_keeps_what_its_exit_pass_predicted(exit_window):
    denoiser = ToyDenoiser(torch.tensor(0.5, requires_grad=True))
    schedule = list(rolling(SIGMAS, exit_window, chunks=5))
    predicted = at_exit(make(denoiser, schedule=schedule, cache=KVCache.empty(ROLLING)))
    passes = [call for call in denoiser.calls if not call.want_kv]
    assert [call.grad for call in passes] == [step.is_exit for step in schedule]
    again = ToyDenoiser(torch.tensor(0.5))
    exits = [again(call.x, torch.tensor(call.sigma), toy_text(), call.past).x0 for call in passes if call.grad]
    assert_same([tensor.detach() for tensor in predicted], torch.cat(exits, dim=1).split(2, dim=1))
    assert all(tensor.requires_grad for tensor in predicted)


def test_without_exits_training_looks_at_the_finished_chunks():
    for schedule in (chunkwise(SIGMAS, grad_from=0, chunks=3), rolling(SIGMAS, chunks=3)):
        chunks = list(make(schedule=schedule, cache=KVCache.empty(ROLLING)))
        assert len(chunks) == 3
        assert all(chunk.at_exit is chunk.latents for chunk in chunks)


@pytest.mark.parametrize("kv_grad", KV_GRADS)
def test_a_resumed_training_rollout_keeps_the_exits_of_chunks_in_flight(kv_grad):
    def whole() -> Rollout:
        schedule = rolling(SIGMAS, 1, chunks=7)
        return make(schedule=schedule, cache=KVCache.empty(ROLLING), kv_grad=kv_grad)

    expected, first, second = at_exit(whole()), whole(), whole()
    before = [chunk.at_exit for chunk in islice(first, 3)]
    assert first.state.noisy[0].at_exit is not None
    second.resume(first.state, rolling(SIGMAS, 1, chunks=7))
    assert_same([*before, *at_exit(second)], expected)


def test_context_noise_is_a_draw_of_its_own_and_is_told_to_the_network():
    denoiser = ToyDenoiser()
    rollout = make(denoiser, context_noise=0.1)
    chunk = next(rollout)
    assert rollout.cache.committed == 2
    call = denoiser.calls[-1]
    assert call.sigma == [pytest.approx(0.1)] * 2
    torch.testing.assert_close(call.x, add_noise(chunk.latents, NOISE(0, len(SIGMAS), (2, *SHAPE)), 0.1))


def test_the_network_computes_in_its_dtype_and_chunks_are_float32():
    denoiser = ToyDenoiser()
    rollout = make(denoiser, dtype=torch.bfloat16)
    chunks = list(islice(rollout, 4))
    assert {call.x.dtype for call in denoiser.calls} == {torch.bfloat16}
    assert {chunk.latents.dtype for chunk in chunks} == {torch.float32}


def test_gradients_flow_only_where_schedule_and_surroundings_allow_them():
    def flags(denoiser: ToyDenoiser) -> list[bool]:
        return [call.grad for call in denoiser.calls]

    trained, inference, surrounded = ToyDenoiser(), ToyDenoiser(), ToyDenoiser()
    take(make(trained, schedule=chunkwise(SIGMAS, grad_from=0)), 2)
    take(make(inference), 2)
    with torch.no_grad():
        take(make(surrounded, schedule=chunkwise(SIGMAS, grad_from=0)), 2)
    assert flags(trained) == [False, False, True, False, False, False, True]
    assert not any(flags(inference))
    assert not any(flags(surrounded))


@pytest.mark.parametrize(("kv_grad", "reaches"), [("none", False), ("clean", True)])
def test_the_cache_carries_gradients_only_when_asked(kv_grad, reaches):
    gain = torch.tensor(0.5, requires_grad=True)

    def chunks(context_gain: Tensor) -> list[Chunk]:
        return list(
            islice(make(Split(gain, context_gain), schedule=chunkwise(SIGMAS, grad_from=0), kv_grad=kv_grad), 5)
        )

    context_gain = torch.tensor(0.5, requires_grad=True)
    chunks(context_gain)[-1].latents.sum().backward()
    assert gain.grad is not None
    assert (context_gain.grad is not None and context_gain.grad.abs() > 1e-6) == reaches


@pytest.mark.parametrize(("kv_grad", "reaches"), [("none", False), ("clean", True), ("stale", False)])
def test_a_clean_pass_in_the_graph_reaches_the_earlier_chunks_latents(kv_grad, reaches):
    denoiser = ToyDenoiser(torch.tensor(0.5, requires_grad=True))
    first, second = take(make(denoiser, schedule=chunkwise(SIGMAS, grad_from=0), kv_grad=kv_grad), 2)
    (gradient,) = torch.autograd.grad(second.sum(), first, allow_unused=True)
    assert (gradient is not None and bool(gradient.abs().max() > 0)) == reaches


def test_stale_keys_have_the_values_of_the_clean_pass_and_the_graph_of_the_last_one():
    def second_chunk(kv_grad: str) -> tuple[Tensor, Tensor]:
        gain = torch.tensor(0.5, requires_grad=True)
        _, second = take(make(ToyDenoiser(gain), schedule=chunkwise(SIGMAS, grad_from=0), kv_grad=kv_grad), 2)
        (gradient,) = torch.autograd.grad(second.sum(), gain)
        return second.detach(), gradient

    detached, detached_gradient = second_chunk("none")
    stale, stale_gradient = second_chunk("stale")
    assert torch.equal(stale, detached)
    assert (stale_gradient - detached_gradient).abs() > 1e-3 * detached_gradient.abs()


def test_gradients_never_cross_from_one_pass_to_the_one_before():
    def gradient(schedule: Iterator[Pass]) -> Tensor:
        gain = torch.tensor(0.5, requires_grad=True)
        torch.cat(take(make(ToyDenoiser(gain), schedule=schedule), 2)).sum().backward()
        assert gain.grad is not None
        return gain.grad

    everywhere = (replace(step, grad=True) for step in chunkwise(SIGMAS))
    torch.testing.assert_close(gradient(everywhere), gradient(chunkwise(SIGMAS, grad_from=0)))


class Split(ToyDenoiser):
    """A toy whose clean pass has a gain of its own, so that gradients through the cache can be told apart."""

    def __init__(self, gain: Tensor, context_gain: Tensor) -> None:
        super().__init__(gain)
        self.gains = (gain, context_gain)

    def __call__(self, *arguments, want_kv: bool = False):
        self.gain = self.gains[bool(want_kv)]
        return super().__call__(*arguments, want_kv=want_kv)


def test_noise_of_another_shape_or_batch_is_rejected():
    with pytest.raises(ValueError, match=r"noise for chunk 0 must be \[B, \(2, 4, 4, 6\)\]"):
        next(make(noise=lambda chunk, draw, shape: torch.zeros(1, 1, *SHAPE)))
    rollout = make(noise=SeededNoise((1, 2)))
    rollout.prime(torch.zeros(1, 2, *SHAPE))
    with pytest.raises(ValueError, match="the noise has 2 samples, the cache holds 1"):
        next(rollout)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (4, 4)}, r"shape must be \(channels, rows, columns\)"),
        ({"context_noise": 1.0}, "context_noise is a sigma in"),
        ({"kv_grad": "dirty"}, "kv_grad must be one of none, clean, stale, got 'dirty'"),
    ],
)
def test_impossible_arguments_are_rejected(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_a_window_of_one_chunk_forgets_everything():
    settings = CacheSettings(window_frames=2, chunk_frames=2, sink=NoSink())
    denoiser = ToyDenoiser()
    take(make(denoiser, cache=KVCache.empty(settings)), 3)
    assert all(call.past is None for call in denoiser.calls)


def test_a_state_is_a_value_that_later_chunks_leave_alone():
    rollout = make()
    take(rollout, 2)
    state = rollout.state
    kept = replace(state)
    take(rollout, 2)
    assert state == kept
    assert state.index == 2


class Deep:
    """A denoiser of so many layers, whose keys and values are the latents' pixels and the layer's number."""

    layers = 16

    def __call__(self, x: Tensor, sigma: Tensor, text: object, past: Past | None = None, want_kv: object = False):
        kv = KV(*(tuple(x.flatten(3).mT.unsqueeze(3) + layer for layer in range(self.layers)) for _ in range(2)))
        return Prediction(x / 2, x / 2, kv if want_kv else None)

    def rotate(self, past: Past, latent_size: tuple[int, int]) -> Past:
        return past.with_rotated(torch.clone)


@pytest.mark.parametrize("is_held", [False, True])
@torch.no_grad()
def test_a_commit_gives_back_layer_by_layer_what_nobody_else_holds(is_held):
    """In latent frames of one layer: the pass sees 4, its keys a second time, makes 2 and 2; a cache has 4 + 4 and a
    sink of 2 + 2."""
    frame, layers = 4 * 4 * 6 * 4, Deep.layers
    with LiveBytes() as live:
        rollout = make(Deep())
        latents = take(rollout, 6)[-1]
        held = rollout.cache
        held = held if is_held else None
        live.peak = before = live.live
        rollout.prime(latents)
        grown = (live.peak - before) / frame
    if held:
        assert grown >= layers * 12, "a whole other cache"
    else:
        assert grown < layers * (4 + 4) + 24, "the new frames, the keys shown, and what one layer takes"


def test_a_cache_that_somebody_holds_stays_as_it_was():
    rollout = make()
    take(rollout, 5)
    cache = rollout.cache
    assert cache.context is not None
    assert cache.sink is not None
    layers = [*cache.context.keys, *cache.context.values, *cache.sink.keys, *cache.sink.values]
    before = [layer.clone() for layer in layers]
    take(rollout, 3)
    assert_same(layers, before)


def test_after_a_commit_that_broke_off_a_rollout_says_so_until_a_state_is_resumed(monkeypatch):
    rollout, whole = make(), take(make(), 6)
    take(rollout, 3)
    state = rollout.state
    with monkeypatch.context() as patch:
        patch.setattr(Commit, "run", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            next(rollout)
    for read in (lambda: next(rollout), lambda: rollout.cache, lambda: rollout.state):
        with pytest.raises(RuntimeError, match="broke off"):
            read()
    rollout.resume(state, chunkwise(SIGMAS))
    assert_same(take(rollout, 3), whole[3:])


def test_a_state_saved_with_all_layers_in_one_tensor_goes_on():
    rollout = make()
    take(rollout, 5)
    cache = rollout.cache
    assert cache.context is not None
    assert cache.sink is not None
    stacked = replace(cache, context=KV(*cache.context.stacked()), sink=KV(*cache.sink.stacked()))  # type: ignore[arg-type]
    again = make()
    again.resume(replace(rollout.state, cache=stacked), chunkwise(SIGMAS))
    assert_same(take(again, 3), take(rollout, 3))
