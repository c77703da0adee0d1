"""A transformer in less memory: what only moves changes no video, what rounds changes it little and says so."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from models.tape import Tapes
from torch import nn

from reward_forcing.models.cuda_graphs import GraphedForward
from reward_forcing.models.denoiser import Denoiser
from reward_forcing.models.live_bytes import LiveBytes
from reward_forcing.models.wan_dit import WanDiT
from reward_forcing.streaming.acceleration import (
    Acceleration,
    LowBitLinear,
    is_offloaded,
    load_accelerated,
)
from reward_forcing.streaming.pipeline import StreamingVideoPipeline

SECONDS = 1.5


def frames_of(folder: Path, **how: object) -> torch.Tensor:
    pipeline = StreamingVideoPipeline.from_pretrained(
        folder, device="cpu", dtype=torch.float32, acceleration=Acceleration.model_validate(how)
    )
    return pipeline.generate("a red ball bounces", SECONDS, at={0.5: "a blue square slides"})


@pytest.fixture(scope="module")
def exact(tiny_model_folder: Path) -> torch.Tensor:
    return frames_of(tiny_model_folder)


@pytest.mark.parametrize(
    "how", [{"offload_blocks": 1}, {"offload_blocks": 2}, {"offload_blocks": 99}, {"offload_text": True}]
)
def test_what_is_offloaded_changes_no_video(tiny_model_folder: Path, exact: torch.Tensor, how: dict[str, int]) -> None:
    assert torch.equal(frames_of(tiny_model_folder, **how), exact)


def test_decoding_fewer_frames_at_a_time_changes_no_video(tiny_model_folder: Path, exact: torch.Tensor) -> None:
    torch.testing.assert_close(frames_of(tiny_model_folder, decode_frames=1), exact, atol=1e-6, rtol=0)


def test_compiled_blocks_make_the_same_video_but_for_rounding(tiny_model_folder: Path, exact: torch.Tensor) -> None:
    torch.testing.assert_close(frames_of(tiny_model_folder, compile=True), exact, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="compile=false or offload_blocks=0"):
        Acceleration(compile=True, offload_blocks=1)


@pytest.mark.parametrize("of", ["one", "batch"])
def test_graphed_passes_make_the_same_video_over_a_switch_and_a_new_stream(tiny_model_folder: Path, of: str) -> None:
    pipeline = StreamingVideoPipeline.from_pretrained(tiny_model_folder, device="cpu", dtype=torch.float32)
    prompt = ["a red ball bounces", "a green ball slides"] if of == "batch" else "a red ball bounces"
    how = {"seconds": 5.0, "at": {2.5: "a blue square slides"}}
    plain, tapes = pipeline.generate(prompt, **how), Tapes()
    pipeline.graphed = GraphedForward(pipeline.transformer, tapes)
    for _ in range(2):
        assert torch.equal(pipeline.generate(prompt, **how), plain)
    assert tapes.replayed > tapes.captured >= 2


def test_graphs_are_refused_where_they_cannot_be(tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reward_forcing.streaming.pipeline.load_accelerated", None)  # before weights are read
    with pytest.raises(ValueError, match=r"needs an NVIDIA GPU, not cpu; use graphs=false"):
        frames_of(tiny_model_folder, graphs=True)
    with pytest.raises(ValueError, match="for one process, not for 2"):
        Acceleration(graphs=True).check(torch.device("cuda"), processes=2)
    with pytest.raises(ValueError, match="graphs=false or offload_blocks=0"):
        Acceleration(graphs=True, offload_blocks=1)
    for cache in ("lean", "int8"):
        with pytest.raises(ValueError, match=f"copy a {cache} cache as a whole; use graphs=false or cache=exact"):
            Acceleration(graphs=True, cache=cache)


def test_a_denoiser_refuses_graphs_of_another_network(tiny_dit: Callable[..., WanDiT]) -> None:
    with pytest.raises(ValueError, match="another network"):
        Denoiser(tiny_dit(), GraphedForward(tiny_dit(), Tapes()))


@pytest.mark.parametrize("blocks", [1, 2, 3, 5])
def test_blocks_that_visit_in_any_order_compute_what_they_hold(
    tiny_dit: Callable[..., WanDiT], tmp_path: Path, blocks: int
) -> None:
    tiny_dit(num_layers=blocks).save_pretrained(tmp_path)
    plain, staged = (
        load_accelerated(tmp_path, how, heads=None, dtype=torch.float32, device=torch.device("cpu"))
        for how in (Acceleration(), Acceleration(offload_blocks=blocks))
    )
    text = torch.randn(1, 3, plain.config["num_attention_heads"] * plain.config["attention_head_dim"])
    for number in (0, blocks - 1, 0, blocks // 2, blocks - 1):
        for one, other in zip(*(n.blocks[number].encode_text(text) for n in (plain, staged)), strict=True):
            assert torch.equal(one, other)


def test_offloaded_blocks_are_spread_and_as_many_as_asked() -> None:
    assert [number for number in range(8) if is_offloaded(number, 8, 2)] == [3, 7]
    assert all(sum(is_offloaded(number, 30, count) for number in range(30)) == count for count in range(31))
    assert sum(is_offloaded(number, 4, 9) for number in range(4)) == 4


@pytest.mark.parametrize(("weights", "most"), [("int8", 0.05), ("int8-dynamic", 0.1), ("fp8", 0.15)])
def test_low_bit_weights_change_frames_little(
    tiny_model_folder: Path, exact: torch.Tensor, weights: str, most: float
) -> None:
    difference = (frames_of(tiny_model_folder, weights=weights) - exact).norm() / exact.norm()
    assert 0 < difference < most


def test_attention_in_float8_changes_frames_little_wherever_blocks_lie(
    tiny_model_folder: Path, exact: torch.Tensor
) -> None:
    made = frames_of(tiny_model_folder, attention="fp8")
    assert 0 < (made - exact).norm() / exact.norm() < 0.15
    assert torch.equal(frames_of(tiny_model_folder, attention="fp8", offload_blocks=1), made)
    assert not Acceleration(attention="fp8").is_exact


def test_only_the_matrices_of_blocks_are_stored_in_few_bits_and_never_written(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    how = Acceleration(weights="int8", offload_blocks=1)
    pipeline = StreamingVideoPipeline.from_pretrained(tiny_model_folder, device="cpu", acceleration=how)
    with pytest.raises(ValueError, match="load with weights=exact"):
        pipeline.save_pretrained(tmp_path)
    network = pipeline.transformer
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            assert (type(module) is LowBitLinear) == name.startswith("blocks."), name
    assert {p.dtype for name, p in network.named_parameters() if "norm" in name} == {torch.float32}


def test_without_torchao_the_extra_is_named_before_weights_are_read(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setattr("reward_forcing.streaming.acceleration.load_transformer", None)
    with pytest.raises(ValueError, match=r"pip install -e '.\[quant\]'"):
        frames_of(tiny_model_folder, weights="int8")


def test_what_this_machine_cannot_multiply_is_refused(tiny_model_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"needs a GPU that multiplies float8"):
        frames_of(tiny_model_folder, weights="fp8-dynamic")


def test_a_decoder_state_that_nobody_holds_is_never_there_twice(tiny_model_folder: Path) -> None:
    vae = StreamingVideoPipeline.from_pretrained(tiny_model_folder, device="cpu", dtype=torch.float32).vae
    latents = torch.randn(1, 1, 4, 16, 16)
    held = [vae.decode(latents)[1] for _ in range(2)]
    size = sum(tensor.nbytes for tensor in held[0].features)
    peaks = []
    for given_up in (False, True):
        with LiveBytes() as live:
            state = [vae.decode(latents)[1]]
            live.peak = live.live
            kept = None if given_up else state[0]
            vae.decode(latents, state.pop())
            peaks.append(live.peak)
            del kept
    assert peaks[0] - peaks[1] > size / 2
