"""Loading: every published layout gives the same network, bit by bit; wrong files fail early and say why."""

from pathlib import Path

import pytest
import torch
from checkpoints.layouts import LAYOUTS, assert_same, fsdp, lora_of, prefixed, random_network
from safetensors.torch import save_file

from reward_forcing.checkpoints import load_transformer
from reward_forcing.checkpoints.wan import wan_to_diffusers
from reward_forcing.models.wan_dit import WanDiT


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_network(layout: str, network: WanDiT, tmp_path: Path) -> None:
    path = LAYOUTS[layout].write(tmp_path / "checkpoint", network)
    found = load_transformer(path, heads=2)
    assert_same(found, network)
    assert not found.training


@pytest.mark.parametrize("role", ["generator", "generator_ema", "critic"])
def test_each_role_is_the_one_asked_for(role: str, tmp_path: Path) -> None:
    networks = {name: random_network(seed) for seed, name in enumerate(["generator", "critic", "generator_ema"])}
    states = {name: prefixed(net) for name, net in networks.items()}
    states["generator_ema"] = fsdp(networks["generator_ema"])
    torch.save(states, tmp_path / "all.pt")
    assert_same(load_transformer(tmp_path / "all.pt", role, heads=2), networks[role])
    assert_same(load_transformer(tmp_path / "all.pt", heads=2), networks["generator"])


def test_a_loaded_network_survives_its_file_being_overwritten(network: WanDiT, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(prefixed(network), path)
    found = load_transformer(path, heads=2)
    path.write_bytes(bytes(path.stat().st_size))
    assert_same(found, network)


def test_a_dtype_keeps_norms_and_modulation_in_float32(network: WanDiT, tmp_path: Path) -> None:
    LAYOUTS["Wan2.1"].write(tmp_path / "wan", network)
    found = load_transformer(tmp_path / "wan", dtype=torch.bfloat16).state_dict()
    expected = random_network().to_mixed(torch.bfloat16).state_dict()
    assert {name: tensor.dtype for name, tensor in found.items()} == {n: t.dtype for n, t in expected.items()}
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def renamed(name: str, naming: str) -> str:
    """The name of a LoRA's matrix as another program calls it; `name` is Wan2.1's."""
    module, half = name.split(".lora_")
    if naming == "diffusers":
        (module,) = wan_to_diffusers({f"{module}.weight": None})
        return f"transformer.{module.removesuffix('.weight')}.lora_{half}"
    if naming == "ComfyUI":
        return f"diffusion_model.{module}.lora_{'down' if half[0] == 'A' else 'up'}.weight"
    marked = module.replace("blocks.0.", "blocks.0._fsdp_wrapped_module.")
    return f"base_model.model.{marked}.lora_{half[0]}.default.weight"


@pytest.mark.parametrize("naming", ["diffusers", "ComfyUI", "FSDP"])
def test_a_lora_is_the_same_in_every_naming(naming: str, network: WanDiT, tmp_path: Path) -> None:
    lora = lora_of(network, "")
    torch.save({"generator": prefixed(network)}, tmp_path / "base.pt")
    save_file(lora, tmp_path / "lora.safetensors")
    save_file({renamed(name, naming): tensor for name, tensor in lora.items()}, tmp_path / "other.safetensors")
    found = [
        load_transformer(tmp_path / "base.pt", heads=2, lora=tmp_path / name).state_dict()
        for name in ("lora.safetensors", "other.safetensors")
    ]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_lora_tells_its_own_alpha_or_pefts_folder_does(network: WanDiT, tmp_path: Path) -> None:
    lora = lora_of(network, "", rank=3)
    alphas = {f"{name.removesuffix('.lora_A.weight')}.alpha": torch.tensor(1.5) for name in lora if "lora_A" in name}
    torch.save({"generator": prefixed(network)}, tmp_path / "base.pt")
    save_file(lora | alphas, tmp_path / "own.safetensors")
    (tmp_path / "adapter").mkdir()
    save_file(lora, tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"r": 3, "lora_alpha": 1.5, "use_dora": false}')
    name = "blocks.0.ffn.0"
    update = lora[f"{name}.lora_B.weight"] @ lora[f"{name}.lora_A.weight"]
    for path in ("own.safetensors", "adapter"):
        found = load_transformer(tmp_path / "base.pt", heads=2, lora=tmp_path / path).state_dict()
        expected = network.state_dict()["blocks.0.ffn.net.0.proj.weight"] + 0.5 * update
        torch.testing.assert_close(found["blocks.0.ffn.net.0.proj.weight"], expected)
    for text, message in (
        ('{"lora_alpha": 1.5, "use_rslora": true}', "asks for use_rslora; only alpha / rank"),
        ('{"r": 3}', "it has no lora_alpha"),
    ):
        (tmp_path / "adapter" / "adapter_config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_transformer(tmp_path / "base.pt", heads=2, lora=tmp_path / "adapter")


def test_unknown_heads_are_asked_for(network: WanDiT, tmp_path: Path) -> None:
    torch.save(prefixed(network), tmp_path / "a.pt")
    with pytest.raises(ValueError, match="--heads"):
        load_transformer(tmp_path / "a.pt")
    with pytest.raises(ValueError, match="5 heads do not divide"):
        load_transformer(tmp_path / "a.pt", heads=5)


def test_heads_that_contradict_the_configuration_are_refused(network: WanDiT, tmp_path: Path) -> None:
    LAYOUTS["Wan2.1"].write(tmp_path / "wan", network)
    with pytest.raises(ValueError, match="says 2 heads, not 3"):
        load_transformer(tmp_path / "wan", heads=3)


def test_an_absent_role_names_the_nearest(network: WanDiT, tmp_path: Path) -> None:
    torch.save({"generator": prefixed(network), "critic": prefixed(network)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="unknown role 'generater'; did you mean 'generator'"):
        load_transformer(tmp_path / "a.pt", "generater", heads=2)


def test_a_configuration_of_another_network_is_refused(network: WanDiT, tmp_path: Path) -> None:
    path = LAYOUTS["diffusers transformer"].write(tmp_path / "d", network)
    config = path / "config.json"
    config.write_text(config.read_text().replace('"num_layers": 2', '"num_layers": 3'))
    with pytest.raises(ValueError, match="num_layers = 3, but the weights have 2"):
        load_transformer(path)


def test_an_image_to_video_network_is_recognised(network: WanDiT, tmp_path: Path) -> None:
    torch.save(prefixed(network) | {"model.blocks.0.cross_attn.k_img.weight": torch.zeros(1)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="image-to-video"):
        load_transformer(tmp_path / "a.pt", heads=2)


def test_names_that_become_equal_are_refused(network: WanDiT, tmp_path: Path) -> None:
    torch.save(prefixed(network) | {"patch_embedding.bias": torch.zeros(24)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="two parameters are called 'patch_embedding"):
        load_transformer(tmp_path / "a.pt", heads=2)
