"""What switch policies do to cache and text, seen through an analytic denoiser that records what it reads."""

from itertools import islice

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from rollout.toy import SHAPE, SIGMAS, Call, ToyDenoiser, toy_text
from torch import Tensor

from reward_forcing.models.attention import TextMix
from reward_forcing.rollout import (
    SWITCHES,
    Blend,
    CacheSettings,
    EmaSink,
    Keep,
    KVCache,
    NoSink,
    Recache,
    Reset,
    Rollout,
    SeededNoise,
    StaticSink,
    SwitchPolicy,
    SwitchSettings,
    chunkwise,
)

SETTINGS = CacheSettings(window_frames=8, chunk_frames=2, sink=StaticSink(frames=2))
OLD, NEW, NEWEST = 0.25, 0.75, 0.5


class Fade(SwitchPolicy):
    """A policy from outside the package: half of each of the last two prompts, for ever."""

    share: float = 0.5

    def weights(self, ages: tuple[int, ...]) -> tuple[float, ...]:
        return (*(0.0 for _ in ages[2:]), self.share, 1 - self.share) if len(ages) > 1 else (1.0,)


def make(switch: SwitchPolicy, settings: CacheSettings = SETTINGS) -> tuple[Rollout, list[Call]]:
    denoiser = ToyDenoiser()
    cache = KVCache.empty(settings)
    rollout = Rollout(denoiser, chunkwise(SIGMAS), cache, SeededNoise((1,)), toy_text(OLD), SHAPE, switch=switch)
    return rollout, denoiser.calls


def take(rollout: Rollout, chunks: int) -> list[Tensor]:
    return [chunk.latents for chunk in islice(rollout, chunks)]


def switched(
    switch: SwitchPolicy, after: int, settings: CacheSettings = SETTINGS
) -> tuple[KVCache, KVCache, list[Call]]:
    """The cache before and after a switch that follows `after` chunks, and what the switch itself computed."""
    rollout, calls = make(switch, settings)
    take(rollout, after)
    before = rollout.cache
    calls.clear()
    rollout.text = toy_text(NEW)
    return before, rollout.cache, calls


def values(cache: KVCache) -> Tensor:
    assert cache.context is not None
    return cache.context.values[0]


def assert_same_sink(one: KVCache, other: KVCache) -> None:
    assert one.sink is not None
    assert other.sink is not None
    assert torch.equal(one.sink.keys[0], other.sink.keys[0])
    assert torch.equal(one.sink.values[0], other.sink.values[0])


@pytest.mark.parametrize("kind", SWITCHES)
def test_every_switch_policy_is_made_from_settings_by_its_name(kind):
    assert TypeAdapter(SwitchSettings).validate_python({"kind": kind}) == SWITCHES[kind]()


@pytest.mark.parametrize("policy", [Keep(), Blend(chunks=3), Fade()])
def test_a_policy_of_the_text_alone_keeps_the_cache_and_computes_nothing(policy):
    before, after, calls = switched(policy, after=5)
    assert after is before
    assert not calls


def test_a_reset_leaves_nothing_to_see():
    _, after, calls = switched(Reset(), after=5)
    assert after == KVCache.empty(SETTINGS)
    assert not calls


def test_after_a_reset_the_first_frames_fill_the_sink():
    rollout, calls = make(Reset(), SETTINGS.model_copy(update={"positions": "absolute"}))
    take(rollout, 5)
    rollout.text = toy_text(NEW)
    calls.clear()
    take(rollout, 6)
    assert calls[0].past is None
    clean = [call.x for call in calls if call.want_kv]
    assert rollout.cache.sink is not None
    torch.testing.assert_close(rollout.cache.sink.keys[0][:, :, :, 0], 0.5 * clean[0].flatten(3).transpose(2, 3))
    assert calls[-1].past is not None
    assert calls[-1].past.key_positions.tolist() == [0, 1, 6, 7, 8, 9]


@pytest.mark.parametrize("order", ["joint", "causal"])
def test_a_window_that_holds_the_whole_video_is_computed_anew_sink_and_all(order):
    before, after, calls = switched(Recache(order=order), after=4)
    frames = [2, 2, 2, 2] if order == "causal" else [8]
    assert [len(call.sigma) for call in calls] == frames
    assert all(call.want_kv and call.text == NEW and not any(call.sigma) for call in calls)
    assert calls[0].past is None
    assert (after.committed, after.evicted, after.frames) == (before.committed, before.evicted, before.frames)


def test_later_the_sink_stays_and_the_rest_of_the_window_sees_it():
    before, after, calls = switched(Recache(), after=7)
    (call,) = calls
    assert (len(call.sigma), call.text) == (6, NEW)
    assert call.past is not None
    assert call.past.key_positions.tolist() == [0, 1]
    assert call.past.query_positions.tolist() == [2, 3, 4, 5, 6, 7]
    torch.testing.assert_close(call.past.values[0], values(before)[:, :2])
    assert (after.committed, after.evicted, after.frames) == (before.committed, before.evicted, before.frames)
    assert_same_sink(after, before)


def test_absolute_positions_of_what_is_computed_anew_are_its_own():
    _, _, calls = switched(Recache(), 7, SETTINGS.model_copy(update={"positions": "absolute"}))
    past = calls[0].past
    assert past is not None
    assert past.key_positions.tolist() == [0, 1]
    assert past.query_positions.tolist() == [8, 9, 10, 11, 12, 13]


def test_chunk_by_chunk_each_sees_those_before_it():
    _, _, calls = switched(Recache(order="causal"), after=7)
    assert [len(call.sigma) for call in calls] == [2, 2, 2]
    assert [call.past and call.past.key_positions.tolist() for call in calls] == [[0, 1], [0, 1, 2, 3], [*range(6)]]


@pytest.mark.parametrize("order", ["joint", "causal"])
def test_without_a_global_sink_the_window_begins_anew(order):
    before, after, calls = switched(Recache(global_sink=False, order=order), after=7)
    assert sum(len(call.sigma) for call in calls) == 8
    assert calls[0].past is None
    assert after.sink is not None
    torch.testing.assert_close(after.sink.keys[0], 0.5 * calls[0].x[:, :2].flatten(3).transpose(2, 3).unsqueeze(3))
    assert before.sink is not None
    assert not torch.allclose(after.sink.keys[0], before.sink.keys[0])


def test_more_frames_than_the_window_may_be_computed_anew_of_which_it_keeps_its_own():
    settings = SETTINGS.model_copy(update={"positions": "absolute"})
    before, after, (call,) = switched(Recache(global_sink=False, frames=12), 9, settings)
    assert (len(call.sigma), call.past) == (12, None)
    assert after.sink is not None
    torch.testing.assert_close(after.sink.keys[0], 0.5 * call.x[:, :2].flatten(3).transpose(2, 3).unsqueeze(3))
    assert after.frames == before.frames
    torch.testing.assert_close(values(after)[:, 2:], call.x[:, -4:].flatten(3).mT.unsqueeze(3))
    past = after.past(2)
    assert past is not None
    assert past.key_positions.tolist() == [0, 1, 8, 9, 10, 11]
    with pytest.raises(ValueError, match="frames=12 needs global_sink=false"):
        Recache(frames=12)


def test_a_window_of_no_whole_number_of_chunks_is_computed_anew_to_the_frame():
    settings = SETTINGS.model_copy(update={"window_frames": 7})
    _, _, calls = switched(Recache(order="causal"), 7, settings)
    assert [len(call.sigma) for call in calls] == [1, 2, 2]
    _, _, calls = switched(Recache(), 7, settings)
    assert [len(call.sigma) for call in calls] == [5]


def test_what_is_computed_anew_is_what_entered_the_cache_noise_and_all():
    denoiser = ToyDenoiser()
    rollout = Rollout(denoiser, chunkwise(SIGMAS), KVCache.empty(SETTINGS), SeededNoise((1,)), toy_text(OLD), SHAPE,
                      context_noise=0.1, switch=Recache())  # fmt: skip
    take(rollout, 3)
    _ = rollout.cache
    entered = torch.cat([call.x for call in denoiser.calls if call.want_kv], dim=1)
    rollout.text = toy_text(NEW)
    assert torch.equal(denoiser.calls[-1].x, entered)
    assert denoiser.calls[-1].sigma == [pytest.approx(0.1)] * 6


@pytest.mark.parametrize("order", ["joint", "causal"])
def test_an_ema_sink_absorbs_no_frame_twice(order):
    settings = SETTINGS.model_copy(update={"sink": EmaSink(frames=2, alpha=0.5)})
    before, after, _ = switched(Recache(order=order), 7, settings)
    assert_same_sink(after, before)
    assert (after.evicted, after.sink_updates) == (before.evicted, before.sink_updates)


def test_a_recache_without_known_latents_leaves_the_cache():
    rollout, calls = make(Recache())
    rollout.text = toy_text(NEW)
    take(rollout, 4)
    rollout.cache = given = rollout.cache
    calls.clear()
    rollout.text = toy_text(OLD)
    assert rollout.cache is given
    assert not calls


def test_after_a_given_cache_only_what_followed_it_is_computed_anew():
    rollout, calls = make(Recache())
    take(rollout, 5)
    rollout.cache = given = rollout.cache
    take(rollout, 1)
    before = rollout.cache
    calls.clear()
    rollout.text = toy_text(NEW)
    assert [len(call.sigma) for call in calls] == [2]
    assert torch.equal(values(rollout.cache)[:, :4], values(before)[:, :4])
    assert_same_sink(rollout.cache, given)


def test_a_blend_reads_the_mean_of_the_last_chunks_prompts():
    rollout, calls = make(Blend(chunks=4))
    take(rollout, 2)
    rollout.text = toy_text(NEW)
    take(rollout, 6)
    read = [call.text for call in calls if call.sigma[0] == 1.0]
    assert read == pytest.approx([OLD, OLD, *(OLD + (NEW - OLD) * k / 4 for k in (1, 2, 3, 4, 4, 4))])
    assert not rollout.state.earlier, "the old prompt is forgotten"


def test_a_switch_within_a_blend_lets_every_prompt_fade_in_by_itself():
    rollout, calls = make(Blend(chunks=3))
    take(rollout, 1)
    rollout.text = toy_text(NEW)
    take(rollout, 1)
    rollout.text = toy_text(NEWEST)
    take(rollout, 4)
    read = [call.text for call in calls if call.sigma[0] == 1.0]
    assert read == pytest.approx([
        OLD, (2 * OLD + NEW) / 3, (OLD + NEW + NEWEST) / 3, (NEW + 2 * NEWEST) / 3, NEWEST, NEWEST])  # fmt: skip


def test_a_clean_pass_within_a_blend_reads_what_its_chunk_read():
    rollout, calls = make(Blend(chunks=3))
    take(rollout, 1)
    rollout.text = toy_text(NEW)
    take(rollout, 3)
    chunks = [calls[start : start + 4] for start in range(0, 16, 4)]
    assert all(len({call.text for call in chunk}) == 1 for chunk in chunks)


def test_a_text_that_no_chunk_read_leaves_no_trace():
    rollout, calls = make(Blend(chunks=3))
    take(rollout, 1)
    rollout.text = toy_text(100.0)
    rollout.text = toy_text(NEW)
    take(rollout, 1)
    assert calls[-1].text == pytest.approx((2 * OLD + NEW) / 3)


def test_a_policy_from_outside_is_used_by_value_and_by_name():
    adapter = TypeAdapter(SwitchSettings)
    saved = adapter.dump_python(Fade(share=0.25))
    assert saved == {"kind": f"{__name__}:Fade", "share": 0.25}
    assert adapter.validate_python(saved) == Fade(share=0.25)
    rollout, calls = make(Fade(share=0.25))
    take(rollout, 1)
    rollout.text = toy_text(NEW)
    take(rollout, 3)
    assert calls[-1].text == pytest.approx(0.25 * OLD + 0.75 * NEW)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"kind": "recash"}, "unknown switch policy 'recash'; did you mean 'recache'"),
        ({"kind": "blend", "chunks": 0}, "greater than 0"),
        ({"kind": "recache", "order": "casual"}, "'joint' or 'causal'"),
        ({"kind": f"{__name__}:make"}, "is not a switch policy; derive it from"),
        ({"chunks": 3}, "missing kind"),
    ],
)
def test_impossible_policies_are_rejected(bad, message):
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(SwitchSettings).validate_python(bad)


class Wrong(SwitchPolicy):
    """A policy that returns whatever it is told to."""

    given: tuple[float, ...] = ()
    window: int | None = None

    def weights(self, ages: tuple[int, ...]) -> tuple[float, ...]:
        return self.given if len(ages) > 1 else (1.0,)

    def cache(self, cache, recent, clean):
        return KVCache.empty(CacheSettings(chunk_frames=3, sink=NoSink()))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((1.0,), r"must weigh the 2 prompts of ages \(1, 0\), got \(1.0,\)"),
        ((0.5, 0.6), "must be positive and add up to 1"),
        ((0.0, 0.0), "must be positive and add up to 1"),
        ((-0.5, 1.5), "must be positive and add up to 1"),
        ((0.5, 0.5), "chunks have 2 frames, the new cache expects chunks of 3"),
    ],
)
def test_a_policy_that_breaks_its_promise_is_told_so(given, message):
    rollout, _ = make(Wrong(given=given))
    take(rollout, 1)
    with pytest.raises(ValueError, match=message):
        rollout.text = toy_text(NEW)


def test_mixed_prompts_must_belong_together():
    with pytest.raises(ValueError, match="one batch"):
        TextMix(((0.5, toy_text()), (0.5, toy_text(batch=2))))
