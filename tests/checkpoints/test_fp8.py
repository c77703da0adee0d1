"""Scaled fp8 as in single files for ComfyUI: W = scale * q in both spellings; anything else quantised is refused."""

from pathlib import Path

import pytest
import torch
from checkpoints.layouts import original, output
from safetensors.torch import save_file

from reward_forcing.checkpoints import inspect, load_transformer
from reward_forcing.checkpoints.convert import convert
from reward_forcing.models.wan_dit import WanDiT

SCALE = {"scale_weight": "scale_input", "weight_scale": "input_scale"}


def scaled(network: WanDiT, spelling: str, per_row: bool = False) -> dict[str, torch.Tensor]:
    """The network's parameters as Comfy-Org's `..._fp8_scaled.safetensors`: matrices of `Linear` in fp8, the rest fp16.

    The older spelling marks the file with an empty tensor, the later one every layer with the name of its format.
    """
    state: dict[str, torch.Tensor] = {}
    for name, weight in original(network).items():
        if not (name.endswith(".weight") and weight.ndim == 2):
            state[name] = weight.half()
            continue
        module = name.removesuffix(".weight")
        scale = weight.abs().amax(dim=1 if per_row else None).float() / 448
        state[name] = (weight / (scale[:, None] if per_row else scale)).to(torch.float8_e4m3fn)
        state[f"{module}.{spelling}"] = scale
        state[f"{module}.{SCALE[spelling]}"] = torch.tensor(1.0)
        if spelling == "weight_scale":
            state[f"{module}.comfy_quant"] = torch.frombuffer(
                bytearray(b'{"format":"float8_e4m3fn"}'), dtype=torch.uint8
            )
    if spelling == "scale_weight":
        state["scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    return state


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("spelling", SCALE)
def test_scaled_weights_are_multiplied_when_read(
    spelling: str, per_row: bool, prefix: str, network: WanDiT, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    state = scaled(network, spelling, per_row)
    save_file({prefix + name: tensor for name, tensor in state.items()}, path)
    found = load_transformer(path, heads=2)
    q, scale = state["blocks.1.ffn.2.weight"], state[f"blocks.1.ffn.2.{spelling}"]
    product = q.float() * (scale[:, None] if per_row else scale)
    assert torch.equal(found.state_dict()["blocks.1.ffn.net.2.weight"], product.bfloat16())
    assert torch.equal(found.state_dict()["blocks.1.norm2.weight"], state["blocks.1.norm3.weight"])
    for name, weight in network.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name].float(), weight, rtol=0.07, atol=0.02)
    assert "scaled fp8, read as bfloat16" in inspect(path, heads=2).layout


def test_a_scaled_file_is_written_plainly(network: WanDiT, tmp_path: Path) -> None:
    save_file(scaled(network, "scale_weight"), tmp_path / "a.safetensors")
    written = convert(tmp_path / "a.safetensors", tmp_path / "new", "diffusers", heads=2)
    found = [load_transformer(path, heads=2, dtype=torch.float32) for path in (written, tmp_path / "a.safetensors")]
    assert torch.equal(output(found[0]), output(found[1]))


def test_fp8_without_scales_is_read_as_it_stands(network: WanDiT, tmp_path: Path) -> None:
    state = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in original(network).items()}
    save_file(state, tmp_path / "a.safetensors")
    found = load_transformer(tmp_path / "a.safetensors", heads=2, dtype=torch.float32).state_dict()
    assert torch.equal(found["blocks.0.attn1.to_q.weight"], state["blocks.0.self_attn.q.weight"].float())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"blocks.0.ffn.0.scale_weight": None},
            r"lacks its scale 'blocks\.0\.ffn\.0\.scale_weight'",
        ),
        ({"blocks.0.ffn.0.weight": None}, r"a scale for 'blocks\.0\.ffn\.0\.weight', but no such weight"),
        ({"blocks.0.ffn.0.scale_weight": torch.ones(20, 3)}, r"with scales float32 \[20, 3\].* one for each row"),
        ({"blocks.0.ffn.0.weight": torch.ones(20, 24, dtype=torch.int8)}, r"int8 \[20, 24\] with scales.* only fp8"),
        ({"blocks.0.ffn.0.bias": torch.ones(20, dtype=torch.uint8)}, r"quantised to uint8; only fp8 is read"),
    ],
)
def test_other_quantisation_is_named_and_refused(
    changes: dict[str, torch.Tensor | None], message: str, network: WanDiT, tmp_path: Path
) -> None:
    state = scaled(network, "scale_weight") | changes
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=message) as raised:
        load_transformer(tmp_path / "a.safetensors", heads=2)
    assert "a.safetensors" in str(raised.value)
