"""A plan is told from headers and agrees with what the loaded objects hold, to the byte where that can be."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from commands import rforce
from models.tape import Tapes

from reward_forcing.benchmarks.work import held_bytes
from reward_forcing.models import rope
from reward_forcing.models.cuda_graphs import GraphedForward
from reward_forcing.models.tiny_vae import TinyVAE
from reward_forcing.rollout import Storage
from reward_forcing.streaming.acceleration import Acceleration, stored_tensors
from reward_forcing.streaming.memory_needs import Model, model_of_folder, model_of_size, needs_of
from reward_forcing.streaming.memory_plan import (
    CPU_GROWTH,
    DeviceMemory,
    Preset,
    choose,
    describe_plan,
    parse_bytes,
    plan_of,
    plans_of,
    precision_on,
)
from reward_forcing.streaming.model_folder import open_model_folder
from reward_forcing.streaming.pipeline import StreamingVideoPipeline

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GIB = 2**30


@pytest.fixture(scope="module")
def small_1_3b() -> Model:
    """The 1.3B network as its plan needs a window of two chunks."""
    return model_of_size("wan-1.3b", "self", ["window_frames=6"])


def planned(folder: Path | str, how: Acceleration, **changes: object) -> tuple[Model, object]:
    model = model_of_folder(open_model_folder(folder, changes=changes))
    precision = precision_on(CPU)
    return model, plan_of(model, needs_of(model, precision, storage=how.cache), how, CPU, precision)


def bytes_of(*modules: torch.nn.Module) -> int:
    return sum(tensor.nbytes for module in modules for tensor in stored_tensors(module))


@pytest.mark.parametrize("weights", ["exact", "int8", "fp8"])
@pytest.mark.parametrize("of", ["tiny", "mini"])
def test_planned_weights_are_those_that_are_loaded(tiny_model_folder: Path, weights: str, of: str) -> None:
    folder = tiny_model_folder if of == "tiny" else "mini"
    how = Acceleration.model_validate({"weights": weights, "offload_text": weights != "exact"})
    _, plan = planned(folder, how)
    pipeline = StreamingVideoPipeline.from_pretrained(folder, device="cpu", acceleration=how)
    assert plan.weights["transformer"] == bytes_of(pipeline.transformer)
    assert plan.weights["VAE"] == bytes_of(pipeline.vae.vae)
    encoder = pipeline.text_encoder._encoder
    assert plan.weights["text encoder"] == (bytes_of(encoder) if encoder else 0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"window_frames": 4},
        {"sink": {"kind": "none"}},
        {"sink": {"kind": "static", "frames": 2}, "schedule": "rolling"},
        {"clean_pass_sees_sink": False},
        {"clean_pass": False},
    ],
)
@pytest.mark.parametrize("storage", get_args(Storage))
def test_planned_cache_and_decoder_state_are_what_a_stream_holds(
    tiny_model_folder: Path, changes: dict[str, object], storage: Storage
) -> None:
    how = Acceleration(cache=storage)
    _, plan = planned(tiny_model_folder, how, **changes)
    place = {"device": "cpu", "acceleration": how}
    stream = StreamingVideoPipeline.from_pretrained(tiny_model_folder, settings=changes, **place).stream("a ball")
    for _ in range(6):
        next(stream)
    assert plan.needs.cache == held_bytes(stream.rollout.cache)
    assert plan.needs.context == held_bytes(stream.rollout.text)
    assert plan.needs.state == held_bytes(stream.vae_state)


def test_a_tiny_decoder_is_planned_in_place_of_the_vaes(tiny_model_folder: Path, tiny_decoder_file: Path) -> None:
    """Its weights lie beside the VAE's, which still encodes; its state and its work take the place of the VAE's."""
    folder = open_model_folder(tiny_model_folder, decoder=tiny_decoder_file)
    plain, tiny = (model_of_folder(one) for one in (open_model_folder(tiny_model_folder), folder))
    (with_vae, with_tiny) = (next(plans_of(model, "quality", CPU)) for model in (plain, tiny))
    stream = (pipeline := StreamingVideoPipeline.load(folder, "cpu")).stream("a ball")
    for _ in range(2):
        next(stream)
    assert pipeline.decoder is not None
    added = {name: size for name, size in with_tiny.weights.items() if name not in with_vae.weights}
    assert added == {"tiny decoder taetiny": bytes_of(pipeline.decoder.vae)}
    assert with_tiny.needs.state == held_bytes(stream.vae_state) != with_vae.needs.state
    assert with_tiny.needs.decoding != with_vae.needs.decoding
    assert with_tiny.needs.decoding[1] < with_tiny.needs.decoding[3]


def test_a_tiny_decoder_saves_memory_at_480p(small_1_3b: Model, tmp_path: Path) -> None:
    torch.save(TinyVAE().state_dict(), tmp_path / "tae.pth")
    tiny = model_of_size("wan-1.3b", "self", ["window_frames=6"], tmp_path / "tae.pth")
    plain, less = (next(plans_of(model, "quality", CUDA)) for model in (small_1_3b, tiny))
    assert round(less.needs.state / 2**20) == 64  # as docs/performance.md says
    assert less.stages["decode"] < plain.stages["decode"] - 2 * GIB


def test_a_plan_is_the_same_when_rope_angles_are_known_already() -> None:
    """A lean cache shows nothing rotated, so that it meets the angles later than the exact one does."""
    model, precision = model_of_folder(open_model_folder("mini")), precision_on(CPU)
    alone, after_another = [], []
    for storage in get_args(Storage):
        rope._rotation.cache_clear()
        alone.append(needs_of.__wrapped__(model, precision, storage=storage))
    for storage in get_args(Storage):
        after_another.append(needs_of.__wrapped__(model, precision, storage=storage))
    assert after_another == alone


def test_keys_and_values_that_wait_for_the_next_chunk_are_planned(tiny_model_folder: Path) -> None:
    (_, clean), (_, waiting) = (planned(tiny_model_folder, Acceleration(), clean_pass=how) for how in (True, False))
    stream = StreamingVideoPipeline.from_pretrained(tiny_model_folder, settings={"clean_pass": False}).stream("a ball")
    next(stream)
    pending = stream.rollout.state.pending
    assert pending is not None
    size = held_bytes(pending.kv)
    assert size > 0
    assert waiting.needs.encoding - clean.needs.encoding == size
    assert waiting.needs.decoding == {frames: needed + size for frames, needed in clean.needs.decoding.items()}
    joint = {"schedule": "rolling", "window_frames": 8}
    _, rolling = planned(tiny_model_folder, Acceleration(), clean_pass=False, **joint)
    # of the two chunks at once, and of the oldest once more
    assert rolling.needs.committing == rolling.needs.denoising + 3 * size


def test_the_1_3b_network_fits_8_gib_at_480p_with_its_own_weights(small_1_3b: Model) -> None:
    plan = choose(small_1_3b, "auto", DeviceMemory(CUDA, 8 * GIB))
    assert plan.acceleration.is_exact
    assert (small_1_3b.settings.width, small_1_3b.settings.height) == (832, 480)
    assert plan.peak < 8 * GIB - GIB // 2


def test_the_14b_network_fits_24_gib_at_480p_with_its_own_weights() -> None:
    model = model_of_size("wan-14b", "self", ["window_frames=6"])
    plan = choose(model, "auto", DeviceMemory(CUDA, 24 * GIB))
    assert plan.acceleration.is_exact
    assert plan.acceleration.offload_blocks < 40
    assert plan.weights["transformer"] + plan.host > 28e9  # what does not lie here lies there


def test_reward_forcing_fits_8_gib_at_480p_with_its_own_weights_and_a_lean_cache() -> None:
    model = model_of_size("wan-1.3b", "reward")
    plan = choose(model, "auto", DeviceMemory(CUDA, 8 * GIB))
    assert plan.acceleration.is_exact
    assert plan.acceleration.cache == "lean"
    assert plan.stages["commit"] < plan.stages["decode"], "no second cache"


def test_no_preset_gives_up_what_it_does_not_say(small_1_3b: Model) -> None:
    plans = {preset: [plan.acceleration for plan in plans_of(small_1_3b, preset, CUDA)] for preset in Preset}
    assert plans["auto"][0] == plans["quality"][0] == plans["fast"][0] == Acceleration()
    assert all(how.is_exact for how in plans["quality"])
    assert not any(how.offload_blocks or how.offload_text for how in plans["fast"])
    last_exact = max(number for number, how in enumerate(plans["auto"]) if how.is_exact)
    assert all(how.is_exact for how in plans["auto"][: last_exact + 1])
    peaks = [plan.peak for preset in Preset for plan in plans_of(small_1_3b, preset, CUDA)]
    assert min(peaks) == next(plans_of(small_1_3b, "low", CUDA)).peak


def test_a_plan_says_when_it_changes_the_output(small_1_3b: Model) -> None:
    memory = DeviceMemory(CUDA, 80 * GIB)
    exact, low = (describe_plan(choose(small_1_3b, name, memory), small_1_3b, memory) for name in ("quality", "low"))
    assert "exact weights" in exact
    fixed = choose(small_1_3b, "quality", memory, fixed={"cache": "int8"})
    assert not fixed.acceleration.is_exact
    assert "int8 cache (which changes the output)" in describe_plan(fixed, small_1_3b, memory)
    assert "int8 weights (which changes the output)" in low


def test_where_nothing_fits_the_numbers_and_what_would_fit_are_told() -> None:
    model = model_of_folder(open_model_folder("mini"))
    least = min(plan.peak for plan in plans_of(model, "quality", CPU))
    with pytest.raises(ValueError, match=r"nothing fits .* cache .* MiB\. This would fit: --size \d+x\d+"):
        choose(model, "quality", DeviceMemory(CPU, int(0.9 * CPU_GROWTH * least)))


def test_what_the_user_fixes_stays(small_1_3b: Model) -> None:
    fixed = {"weights": "fp8", "offload_blocks": 3}
    plan = choose(small_1_3b, "auto", DeviceMemory(CUDA, 80 * GIB), fixed=fixed)
    assert plan.acceleration == Acceleration.model_validate(fixed)


@pytest.mark.parametrize(("text", "size"), [("8GiB", 8 * GIB), ("24 GB", 24 * 10**9), ("512mib", GIB // 2)])
def test_memory_is_read_with_its_unit(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["8", "GiB", "8 TiB", "-1GiB"])
def test_memory_without_a_known_unit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="such as 8GiB"):
        parse_bytes(text)


def test_commands_print_plans_and_load_nothing(
    tiny_model_folder: Path,
    tiny_decoder_file: Path,
    workplace: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(StreamingVideoPipeline, "load", None)  # nothing is loaded
    assert rforce("generate", "a ball", "--model", tiny_model_folder, "--plan") == 0
    assert "everything at the worst moment of each stage" in capsys.readouterr().out
    assert rforce("models", "plan", tiny_model_folder, "--memory", "8GiB", "--height", 64) == 0
    assert "32x64" in capsys.readouterr().out
    for command in (
        ("models", "plan", tiny_model_folder),
        ("generate", "a ball", "--plan", "--model", tiny_model_folder),
    ):
        assert rforce(*command, "--decoder", tiny_decoder_file) == 0
        assert "weights: tiny decoder taetiny" in capsys.readouterr().out
    assert rforce("generate", "a ball", "--model", tiny_model_folder, "--preset", "atuo") == 2
    assert "did you mean 'auto'" in capsys.readouterr().err
    assert list(workplace.iterdir()) == []


@pytest.mark.parametrize("preset", Preset)
@pytest.mark.parametrize("stays", ["compile", "graphs"])
def test_blocks_that_are_compiled_or_graphed_are_never_offloaded_by_a_preset(
    small_1_3b: Model, preset: str, stays: str
) -> None:
    plans = list(plans_of(small_1_3b, preset, CUDA, fixed={stays: True}))
    assert plans
    assert {plan.acceleration.offload_blocks for plan in plans} == {0}
    assert stays != "graphs" or {plan.acceleration.cache for plan in plans} == {"exact"}
    with pytest.raises(ValueError, match="cannot visit the device in turn"):
        list(plans_of(small_1_3b, preset, CUDA, fixed={stays: True, "offload_blocks": 3}))


def test_graphs_are_planned_with_what_they_copy(tiny_model_folder: Path) -> None:
    model, plain = planned(tiny_model_folder, Acceleration())
    graphed = plan_of(model, plain.needs, Acceleration(graphs=True), CPU, precision_on(CPU))
    pipeline = StreamingVideoPipeline.from_pretrained(tiny_model_folder, device="cpu", dtype=torch.float32)
    pipeline.graphed = GraphedForward(pipeline.transformer, Tapes())
    stream = pipeline.stream("a red ball bounces")
    for _ in range(6):
        next(stream)
    copied = sum(buffer.tensor.nbytes for name, buffer in pipeline.graphed._buffers.items() if "past" in name[0])
    assert plain.needs.past == copied > 0
    for stage, size in plain.stages.items():
        assert graphed.stages[stage] == size + plain.needs.graphed
    assert plain.needs.graphed >= copied + held_bytes(stream.rollout.text) + plain.needs.committing
    assert "CUDA graphs" in describe_plan(graphed, model, DeviceMemory(CPU, GIB))
