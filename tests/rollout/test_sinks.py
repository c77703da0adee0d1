"""What evicted frames do to a sink."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from reward_forcing.config import Settings
from reward_forcing.rollout import CacheSettings
from reward_forcing.rollout.sinks import SINKS, EmaSink, NoSink, Sink, SinkSettings, StaticSink


class Newest(Sink):
    """A policy from outside the package: the sink is whatever was evicted last."""

    share: float = 1.0

    def absorb(self, sink: Tensor, evicted: Tensor, slot: int) -> Tensor:
        kept = torch.cat([sink, evicted.float()], dim=2)[:, :, -self.frames :]
        return self.share * kept + (1 - self.share) * sink


def frames(count: int, seed: int = 0) -> Tensor:
    return torch.randn(2, 1, count, 4, 1, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", SINKS)
def test_absorb_keeps_shape_dtype_and_its_arguments(kind):
    policy = SINKS[kind]()
    sink, evicted = frames(policy.frames), frames(5, seed=1).bfloat16()
    kept = sink.clone(), evicted.clone()
    out = policy.absorb(sink, evicted, slot=0)
    assert out.shape == sink.shape
    assert out.dtype == torch.float32
    assert torch.equal(sink, kept[0])
    assert torch.equal(evicted, kept[1])


@pytest.mark.parametrize("kind", SINKS)
def test_every_sink_is_made_from_settings_by_its_name(kind):
    class Holder(Settings):
        sink: SinkSettings

    assert Holder.model_validate({"sink": {"kind": kind}}).sink == SINKS[kind]()


def test_static_sink_ignores_what_is_evicted():
    sink = frames(3)
    assert torch.equal(StaticSink().absorb(sink, frames(6, seed=1), slot=0), sink)


def test_ema_of_one_group_is_the_papers_equation():
    sink, evicted = frames(3), frames(3, seed=1)
    out = EmaSink(alpha=0.8).absorb(sink, evicted, slot=0)
    torch.testing.assert_close(out, 0.8 * sink + 0.2 * evicted)


def test_ema_continues_a_group_that_does_not_fill_the_sink():
    sink, evicted = frames(3), frames(7, seed=1)
    policy = EmaSink(alpha=0.5)
    together = policy.absorb(sink, evicted, slot=2)
    one_by_one = sink
    for number in range(7):
        one_by_one = policy.absorb(one_by_one, evicted[:, :, number : number + 1], slot=(2 + number) % 3)
    torch.testing.assert_close(together, one_by_one, rtol=0, atol=0)


def test_ema_puts_an_evicted_frame_into_its_slot_only():
    sink, evicted = frames(3), frames(1, seed=1)
    out = EmaSink(alpha=0.5).absorb(sink, evicted, slot=1)
    assert torch.equal(out[:, :, [0, 2]], sink[:, :, [0, 2]])
    torch.testing.assert_close(out[:, :, 1:2], (sink[:, :, 1:2] + evicted) / 2)


def test_ema_passes_gradients_to_the_sink_and_to_the_evicted():
    sink, evicted = frames(2).requires_grad_(), frames(2, seed=1).requires_grad_()
    EmaSink(frames=2, alpha=0.75).absorb(sink, evicted, slot=0).sum().backward()
    assert sink.grad is not None
    assert evicted.grad is not None
    torch.testing.assert_close(sink.grad, torch.full_like(sink, 0.75))
    torch.testing.assert_close(evicted.grad, torch.full_like(evicted, 0.25))


def test_small_updates_from_bfloat16_frames_are_not_lost():
    sink = torch.ones(1, 1, 1, 1, 1, 1)
    policy = EmaSink(frames=1, alpha=0.999)
    for _ in range(100):
        sink = policy.absorb(sink, torch.zeros_like(sink, dtype=torch.bfloat16), slot=0)
    torch.testing.assert_close(sink, torch.full_like(sink, 0.999**100))


@pytest.mark.parametrize("bad", [{"kind": "ema", "alpha": 1.5}, {"kind": "static", "frames": 0}, {"kind": "emma"}])
def test_impossible_sinks_are_rejected(bad):
    with pytest.raises(ValidationError):
        TypeAdapter(SinkSettings).validate_python(bad)


def test_a_policy_from_outside_is_used_by_value_and_by_name():
    settings = CacheSettings(sink=Newest(frames=2, share=0.5))
    saved = settings.model_dump()
    assert saved["sink"] == {"kind": f"{__name__}:Newest", "frames": 2, "share": 0.5}
    assert CacheSettings.model_validate(saved) == settings
    assert isinstance(CacheSettings.model_validate(saved).sink, Newest)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no.such.module:Sink", "cannot import the sink"),
        (f"{__name__}:Nowhere", "cannot import the sink"),
        (f"{__name__}:frames", "is not a sink; derive it"),
        ("emma", "did you mean 'ema'"),
    ],
)
def test_a_name_without_a_sink_behind_it_is_refused(kind, message):
    with pytest.raises(ValueError, match=message):
        CacheSettings.model_validate({"sink": {"kind": kind}})
    with pytest.raises(ValueError, match="missing kind"):
        CacheSettings.model_validate({"sink": {"frames": 3}})


def test_a_setting_that_a_sink_lacks_is_named():
    with pytest.raises(ValueError, match="unknown setting 'alpa'; did you mean 'alpha'"):
        CacheSettings.model_validate({"sink": {"kind": "ema", "alpa": 0.5}})


def test_no_sink_holds_no_frames():
    assert NoSink().frames == 0
    with pytest.raises(ValueError, match="frames"):
        CacheSettings.model_validate({"sink": {"kind": "none", "frames": 3}})
