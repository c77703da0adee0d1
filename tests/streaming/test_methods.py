"""Methods as values, and how a model's own numbers combine with them."""

import pytest
from pydantic import ValidationError

from reward_forcing.rollout import Blend, Keep, KVFlush, Pass, Recache, Reset, chunkwise
from reward_forcing.streaming.methods import (
    METHODS,
    OF_THE_WEIGHTS,
    StreamingSettings,
    method_named,
    streaming_settings,
)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_complete_and_streams_480p(name: str) -> None:
    settings = streaming_settings(None, name)
    assert settings.method == name
    assert settings.cache == METHODS[name].cache
    assert settings.geometry().tokens_per_frame == 1560
    assert max(len(step.chunks) for step in settings.passes(chunks=9)) == settings.chunks_at_once


@pytest.mark.parametrize(
    ("name", "timesteps"),
    [
        *((name, [1000.0, 937.5, 833.33, 625.0]) for name in ("reward", "self", "longlive")),
        ("rolling", [1000.0, 952.38, 882.35, 769.23, 555.56]),
        ("causvid", [1000.0, 756.76, 521.74]),
    ],
)
def test_methods_have_the_published_timesteps(name: str, timesteps: list[float]) -> None:
    assert [round(1000 * sigma, 2) for sigma in METHODS[name].sigmas] == timesteps


@pytest.mark.parametrize(
    ("name", "window", "sink", "positions"),
    [
        ("reward", 9, ("ema", 3), "relative"),
        ("self", 21, ("none", 0), "absolute"),
        ("longlive", 12, ("static", 3), "absolute"),
        ("longlive-infinity", 12, ("static", 3), "relative"),
        ("rolling", 21, ("static", 3), "relative"),
        ("causvid", 21, ("none", 0), "absolute"),
        ("rolling-sink", 21, ("rolling", 15), "relative"),
        ("deep-forcing", 21, ("static", 10), "relative"),
        ("infinity-rope", 21, ("static", 1), "relative"),
    ],
)
def test_methods_have_the_published_windows(name: str, window: int, sink: tuple[str, int], positions: str) -> None:
    cache = METHODS[name].cache
    assert (cache.window_frames, (cache.sink.kind, cache.sink.frames), cache.positions) == (window, sink, positions)


def test_rolling_alone_denoises_chunks_together_and_causvid_alone_makes_clips() -> None:
    assert {name: method.chunks_at_once for name, method in METHODS.items()} == dict.fromkeys(METHODS, 1) | {
        "rolling": 5
    }
    assert [name for name, method in METHODS.items() if method.clips is not None] == ["causvid"]


def test_a_models_steps_say_how_many_chunks_roll_together() -> None:
    assert streaming_settings({"denoising_steps": [1000, 500]}, "rolling").chunks_at_once == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["window_frames=17"], "15 frames denoised together do not fit a window of 17 with 3 sink frames; .* >= 18"),
        (["schedule=roling"], r"unknown schedule 'roling'; did you mean 'rolling'\? \(chunkwise, rolling\)"),
        (["schedule=3"], "valid string"),
        (["clips={frames: 21}"], "schedule 'rolling' denoises 5 at once; use schedule=chunkwise or clips=null"),
        (["clips={frames: 5}"], "5 latent frames cannot repeat 3 and add a chunk of 3; use clips.frames >= 6"),
    ],
)
def test_what_does_not_fit_a_joint_window_is_refused(changes: list[str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        streaming_settings(None, "rolling", changes)


def test_longlive_computes_its_cache_anew_at_a_switch_infinity_rope_flushes_it_and_the_others_keep_it() -> None:
    acting = {name: method.switch for name, method in METHODS.items() if method.switch != Keep()}
    recache = Recache(global_sink=True, order="joint")
    assert acting == {"longlive": recache, "longlive-infinity": recache, "infinity-rope": KVFlush(frames=1)}


def test_a_switch_policy_is_changed_as_a_sink_is() -> None:
    assert streaming_settings(None, "longlive", ["switch={kind: blend, chunks: 2}"]).switch == Blend(chunks=2)
    assert streaming_settings(None, "longlive", ["switch.global_sink=false"]).switch == Recache(global_sink=False)
    assert streaming_settings(None, "longlive", ["switch.kind=reset"]).switch == Reset()
    assert streaming_settings({"switch": {"kind": "blend"}}, None).switch == Blend()
    assert streaming_settings({"switch": {"kind": "blend"}}, "longlive").switch == Recache()


def test_the_ema_sink_is_the_reference_codes() -> None:
    assert METHODS["reward"].sink.model_dump() == {"kind": "ema", "frames": 3, "alpha": 0.999}


OWN = {"window_frames": 15, "denoising_steps": [1000, 500], "shift": 3.0, "height": 64, "width": 64, "hint": "Balls."}


@pytest.mark.parametrize("method", [None, "reward"])
def test_a_models_own_numbers_replace_those_of_its_method(method: str | None) -> None:
    settings = streaming_settings(OWN, method)
    assert (settings.window_frames, settings.denoising_steps, settings.shift) == (15, (1000, 500), 3.0)
    assert settings.sink == METHODS["reward"].sink


def test_another_method_brings_its_cache_and_leaves_what_belongs_to_the_weights() -> None:
    settings = streaming_settings(OWN, "longlive")
    assert settings.cache == METHODS["longlive"].cache
    assert all(getattr(settings, name) == getattr(streaming_settings(OWN), name) for name in OF_THE_WEIGHTS)


def test_a_model_may_be_of_another_method() -> None:
    assert streaming_settings({"method": "self"}).cache == METHODS["self"].cache


def test_settings_survive_being_stored() -> None:
    settings = streaming_settings(OWN, "longlive")
    assert streaming_settings(settings.model_dump(mode="json")) == settings


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"unknown method 'longlife'; did you mean 'longlive'\? \(reward, self, longlive, "
    ):
        method_named("longlife")


@pytest.mark.parametrize(
    "own",
    [
        {"windows": 9},
        {"window_frames": 5},
        {"denoising_steps": [250, 500]},
        {"sink": {"kind": "emma"}},
        {"fps": 0},
        {"switch": {"kind": "keap"}},
    ],
)
@pytest.mark.parametrize("method", [None, "self"])
def test_settings_that_make_no_sense_are_refused_whatever_the_method(own: dict, method: str | None) -> None:
    with pytest.raises(ValidationError):
        streaming_settings(own, method)


def test_minus_one_means_no_window() -> None:
    assert StreamingSettings(window_frames=-1).cache.window_frames is None


def halves(sigmas, *, chunks=None):
    """A schedule from outside the package: every other level."""
    return chunkwise(sigmas[::2], chunks=chunks)


def unending(sigmas, *, chunks=None):
    return chunkwise(sigmas)


def unfinished(sigmas, *, chunks=None):
    while True:
        yield Pass((0,), (1.0,), (0.5,))


def half_finished(sigmas, *, chunks=None):
    return chunkwise(sigmas, chunks=1)


def backwards(sigmas, *, chunks=None):
    for chunk in reversed(range(chunks or 9)):
        yield Pass((chunk,), (1.0,), (None,))


def numbers(sigmas, *, chunks=None):
    return iter(sigmas)


def none(sigmas, *, chunks=None):
    return None


def without_chunks(sigmas):
    return chunkwise(sigmas)


def test_a_schedule_from_outside_is_used_by_its_name() -> None:
    settings = streaming_settings(None, "reward", [f"schedule={__name__}:halves"])
    assert list(settings.passes(chunks=3)) == list(chunkwise(settings.sigmas[::2], chunks=3))
    assert streaming_settings(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no.such.module:rolling", "cannot import the schedule 'no.such.module:rolling': No module named 'no'"),
        (f"{__name__}:nowhere", "cannot import the schedule .* has no attribute 'nowhere'"),
        (
            f"{__name__}:OWN",
            r"is not a schedule; write it as a generator of passes, `def OWN\(sigmas, \*, chunks=",
        ),
        (f"{__name__}:without_chunks", "is not a schedule; write it as a generator"),
        ("builtins:max", "is not a schedule; write it as a generator"),
        (f"{__name__}:none", "asked for 8 chunks, must yield passes, got None"),
        (f"{__name__}:numbers", r"must yield passes \(reward_forcing.rollout.Pass\), got 1.0"),
        (f"{__name__}:unending", "goes on to chunk 8; chunks are numbered from 0"),
        (f"{__name__}:unfinished", "does not finish chunk 0; the sigma_next of a chunk's last pass is None"),
        (f"{__name__}:half_finished", "does not finish chunk 1"),
        (f"{__name__}:backwards", "must begin every pass with the oldest unfinished chunk, 0, got Pass"),
    ],
)
def test_what_is_no_schedule_is_refused_before_anything_runs(name: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        streaming_settings(None, "reward", [f"schedule={name}"])
