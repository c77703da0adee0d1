"""Side by side, streams and sweeps on tiny networks: what is compared is the same work, and a wrong output voids it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from reward_forcing.benchmarks import pairs as pairs_module
from reward_forcing.benchmarks.decoders import beside_vae
from reward_forcing.benchmarks.pairs import side_by_side
from reward_forcing.benchmarks.record import Sweep
from reward_forcing.benchmarks.streamed import naive_clip, stream_latents, stream_video
from reward_forcing.benchmarks.subjects import CONFIGS, Subject, check_subject, open_subject
from reward_forcing.benchmarks.sweep import DEFAULTS, LABELS, check_values, draw, sweep
from reward_forcing.benchmarks.where import OperatorTimes, where
from reward_forcing.cli.bench import describe_pairs, describe_stream
from reward_forcing.models.vae import VAEState
from reward_forcing.models.wan_dit import WanDiT
from reward_forcing.streaming.methods import METHODS


@pytest.fixture
def subject(tiny_dit: Callable[..., WanDiT]) -> Subject:
    network = tiny_dit().requires_grad_(False)
    return Subject("tiny", network, METHODS["reward"], "reward", "float32", (4, 6), torch.randn(1, 8, 12))


@pytest.mark.parametrize("name", ["reward", "self", "longlive", "rolling", "causvid"])
def test_the_naive_mode_computes_the_same_chunk_in_every_pair(name: str, subject: Subject) -> None:
    told: list[str] = []
    found = side_by_side(replace(subject, method=METHODS[name]), "naive", 2, told.append)
    assert found.valid
    assert len(found.errors) == len(told) == len(found.ours.cpu) == len(found.theirs.wall) == 2
    assert found.errors[0] == found.errors[1]
    assert found.counted == pytest.approx(found.flops, rel=0.01)
    assert found.ratio_cpu > 0
    assert "naive: " in describe_pairs(found)
    assert "DiT only" in describe_pairs(found)


@pytest.mark.parametrize("name", ["reward", "self", "longlive"])
def test_diffusers_network_encoding_the_window_again_gives_the_same_chunk(name: str, subject: Subject) -> None:
    found = side_by_side(replace(subject, method=METHODS[name]), "diffusers", 1)
    assert found.valid, found.errors
    assert "whole window in every pass" in found.notes


def test_diffusers_is_refused_where_it_has_no_equal(subject: Subject) -> None:
    with pytest.raises(ValueError, match="one after the other"):
        side_by_side(replace(subject, method=METHODS["rolling"]), "diffusers", 1)


def test_a_ratio_of_different_outputs_is_void(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    against = pairs_module.against_naive

    def wrong(subject: Subject) -> tuple[pairs_module.Side, pairs_module.Side]:
        ours, theirs = against(subject)

        def begin() -> pairs_module.Run:
            run = theirs()
            return lambda: 1.01 * run()

        return ours, begin

    monkeypatch.setattr(pairs_module, "against_naive", wrong)
    found = side_by_side(subject, "naive", 1)
    assert not found.valid
    assert "no ratio" in describe_pairs(found)
    assert "times its speed" not in describe_pairs(found)


def test_who_begins_changes_from_pair_to_pair(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def both(subject: Subject) -> tuple[pairs_module.Side, pairs_module.Side]:
        def side(name: str) -> pairs_module.Side:
            return lambda: lambda: order.append(name) or torch.ones(1)

        return side("ours"), side("theirs")

    monkeypatch.setattr(pairs_module, "against_naive", both)
    side_by_side(subject, "naive", 3)
    assert order[3:] == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]


def test_a_stream_of_latents_is_timed_by_stage(subject: Subject) -> None:
    found = stream_latents(subject, 3)
    assert {stage: len(seconds) for stage, seconds in found.stages.items()} == {"dit": 6, "commit": 6}
    assert len(found.chunks.wall) == 6
    assert found.steady.conditions.average == "steady state"
    assert found.clip.conditions.average == "clip"
    assert found.first_frame == found.stages["dit"][0]
    assert found.steady.wall == pytest.approx(3 * 12 / sum(found.chunks.wall[3:]))
    assert found.quantiles["p50"] <= found.quantiles["p95"] <= found.quantiles["p99"]
    assert found.held_bytes > 0
    assert found.steady.conditions.window_frames == 9


def test_a_video_is_timed_from_prompt_to_file_and_so_is_the_naive_clip(tiny_model_folder: Path) -> None:
    subject = open_subject(str(tiny_model_folder))
    found = stream_video(subject, 2)
    assert set(found.stages) == {"text", "dit", "commit", "decode", "encode"}
    assert found.stages["text"][0] > 0.0
    assert sum(found.stages["text"][1:]) == 0.0
    assert min(found.stages["encode"]) > 0.0
    assert found.steady.conditions.scope == "end to end"
    assert found.steady.conditions.size == (32, 32)
    assert found.steady.conditions.passes == "2+1"
    assert "decoder Wan VAE" in describe_stream(found)
    clip = naive_clip(subject, 2)
    assert clip.chunks == len(found.chunks.wall) == 5
    assert clip.first_frame > clip.stages["dit and commit"]
    assert clip.clip.conditions == found.clip.conditions


def test_a_decoder_beside_the_vae_has_the_error_of_its_frames(tiny_model_folder: Path) -> None:
    subject = open_subject(str(tiny_model_folder))
    assert subject.pipeline is not None
    with pytest.raises(ValueError, match="has no other decoder than its VAE"):
        beside_vae(subject, 1)
    vae = subject.pipeline.vae

    class Brighter:
        name = "brighter"

        def decode(self, latents: Tensor, state: VAEState | None = None) -> tuple[Tensor, VAEState]:
            frames, state = vae.decode(latents, state)
            return frames + 0.1, state

    for decoder, expected in ((Brighter(), 20.0), (vae, 100.0)):
        subject.pipeline.decoder = decoder
        told: list[str] = []
        found = beside_vae(subject, 2, told.append)
        assert found.psnr == pytest.approx(expected, abs=1e-3)
        assert found.chunk_psnr == pytest.approx((expected, expected), abs=1e-3)
        assert found.conditions.decoder == decoder.name
        assert found.reference == vae.name
        assert len(told) == 2


def test_where_the_time_goes_adds_up_to_the_chunk(subject: Subject) -> None:
    with OperatorTimes() as times:
        subject.network.encode_text(subject.text)
    assert ("wan_dit.py:encode_text", "stack") in times.seconds
    for naive, file in ((False, "cpu_linear.py"), (True, "naive_network.py")):
        values = where(replace(subject, latent_size=(32, 32)), naive).values
        assert any(name.startswith("addmm in ") and file in name for name in values)
        assert "the rest" in values
        assert all(seconds is not None and seconds >= 0 for seconds in values.values())


def test_a_transformer_alone_makes_no_video(subject: Subject) -> None:
    for measured in (stream_video, naive_clip):
        with pytest.raises(ValueError, match="needs a model folder"):
            measured(subject, 1)


@pytest.mark.parametrize("over", LABELS)
def test_every_sweep_measures_what_it_says_and_draws_it(over: str, subject: Subject, tmp_path: Path) -> None:
    values = {"size": ("2x2", "4x6"), "length": ("3", "12"), "window": ("6", "9")}.get(over, DEFAULTS[over][:2])
    grown: list[Sweep] = []
    found = sweep(subject, over, values, 1, grown.append)
    assert [point.value for point in found.points] == list(values)
    assert grown[-1] == found
    assert len(grown) == 2
    small, large = (point.flops for point in found.points)
    assert small == large if over == "length" else small < large
    for point in found.points:
        assert (point.speed.conditions.average == "clip") == (over == "length")
    assert draw(found, tmp_path / "sweep.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("over", "values", "message"),
    [
        ("windows", ("6",), "did you mean 'window'"),
        ("window", ("3",), "cannot hold"),
        ("size", ("16",), "ROWSxCOLUMNS"),
        ("size", ("5x6",), "do not divide into patches"),
        ("steps", ("0",), "at least 1"),
        ("length", ("4",), "multiple of the chunk"),
        ("batch", (), "needs values"),
    ],
)
def test_a_sweep_over_nonsense_is_refused(over: str, values: tuple[str, ...], message: str, subject: Subject) -> None:
    with pytest.raises(ValueError, match=message):
        check_values(subject, over, values)


def test_configurations_are_those_of_the_specification_and_none_of_their_weights_is_zero() -> None:
    widths = {
        name: (c.size["num_attention_heads"] * c.size["attention_head_dim"], *c.latent_size)
        for name, c in CONFIGS.items()
    }
    assert widths == {"A": (512, 40, 52), "B": (1536, 30, 52), "D": (256, 16, 16), "wan-1.3b": (1536, 60, 104)}
    subject = open_subject("D", "mixed", changes=["window_frames=6"], seed=1)
    assert subject.network.proj_out.weight.abs().min() > 0
    assert subject.dtype == torch.bfloat16
    assert subject.network.scale_shift_table.dtype == torch.float32
    assert subject.method.window_frames == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("C", "float32", None), "unknown configuration 'C'"),
        (("A", "float23", None), "did you mean 'float32'"),
        (("A", "float32", "rewad"), "did you mean 'reward'"),
    ],
)
def test_bad_names_are_refused_before_weights_are_drawn(arguments: tuple[str, str, str | None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_subject(*arguments)
