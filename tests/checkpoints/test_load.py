"""Loading: every published layout gives the same network, bit by bit; wrong files fail early and say why."""

from pathlib import Path

import pytest
import torch
from checkpoints.layouts import LAYOUTS, assert_same, lora_of, prefixed, random_network, sharded_by_fsdp
from safetensors.torch import save_file

from reward_forcing.checkpoints import load_transformer
from reward_forcing.models.wan_dit import WanDiT


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_network(layout: str, network: WanDiT, tmp_path: Path) -> None:
    path = LAYOUTS[layout](tmp_path / "checkpoint", network)
    found = load_transformer(path, heads=2)
    assert_same(found, network)
    assert not found.training


@pytest.mark.parametrize("role", ["generator", "generator_ema", "critic"])
def test_each_role_is_the_one_asked_for(role: str, tmp_path: Path) -> None:
    networks = {name: random_network(seed) for seed, name in enumerate(["generator", "critic", "generator_ema"])}
    states = {name: prefixed(net) for name, net in networks.items()}
    states["generator_ema"] = sharded_by_fsdp(networks["generator_ema"])
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
    LAYOUTS["wan"](tmp_path / "wan", network)
    found = load_transformer(tmp_path / "wan", dtype=torch.bfloat16).state_dict()
    expected = random_network().to_mixed(torch.bfloat16).state_dict()
    assert {name: tensor.dtype for name, tensor in found.items()} == {n: t.dtype for n, t in expected.items()}
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_stored_dtype_is_kept(network: WanDiT, tmp_path: Path) -> None:
    state = {name: tensor.to(torch.bfloat16) for name, tensor in prefixed(network).items()}
    torch.save({"generator": state}, tmp_path / "a.pt")
    found = load_transformer(tmp_path / "a.pt", heads=2)
    assert {parameter.dtype for parameter in found.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("prefix", ["base_model.model.", "base_model.model.model.", ""])
@pytest.mark.parametrize("wrapper", [None, "generator_lora"])
def test_a_lora_adds_alpha_over_rank_times_b_a(
    prefix: str, wrapper: str | None, network: WanDiT, tmp_path: Path
) -> None:
    lora = lora_of(network, prefix)
    torch.save({"generator": prefixed(network)}, tmp_path / "longlive_base.pt")
    torch.save(lora if wrapper is None else {wrapper: lora}, tmp_path / "lora.pt")
    name = "blocks.1.cross_attn.k"
    update = lora[f"{prefix}{name}.lora_B.weight"] @ lora[f"{prefix}{name}.lora_A.weight"]
    for alpha, scale in ((None, 1.0), (6.0, 2.0)):
        found = load_transformer(
            tmp_path / "longlive_base.pt", heads=2, lora=tmp_path / "lora.pt", lora_alpha=alpha
        ).state_dict()
        before = network.state_dict()
        expected = before["blocks.1.attn2.to_k.weight"] + scale * update
        torch.testing.assert_close(found["blocks.1.attn2.to_k.weight"], expected)
        assert torch.equal(found["blocks.1.attn2.norm_k.weight"], before["blocks.1.attn2.norm_k.weight"])
        assert sum(not torch.equal(found[key], before[key]) for key in before) == len(lora) // 2


def test_a_lora_of_another_shape_is_refused(network: WanDiT, tmp_path: Path) -> None:
    torch.save(prefixed(network), tmp_path / "a.pt")
    torch.save(
        {"blocks.0.ffn.0.lora_A.weight": torch.zeros(3, 9), "blocks.0.ffn.0.lora_B.weight": torch.zeros(20, 3)},
        tmp_path / "lora.pt",
    )
    with pytest.raises(ValueError, match=r"by \[20, 9\], which is \[20, 24\]"):
        load_transformer(tmp_path / "a.pt", heads=2, lora=tmp_path / "lora.pt")


def test_a_lora_alone_asks_for_its_base(network: WanDiT, tmp_path: Path) -> None:
    torch.save(lora_of(network, ""), tmp_path / "lora.pt")
    with pytest.raises(ValueError, match="give the base"):
        load_transformer(tmp_path / "lora.pt")


def test_unknown_heads_are_asked_for(network: WanDiT, tmp_path: Path) -> None:
    torch.save(prefixed(network), tmp_path / "a.pt")
    with pytest.raises(ValueError, match="--heads"):
        load_transformer(tmp_path / "a.pt")
    with pytest.raises(ValueError, match="5 heads do not divide"):
        load_transformer(tmp_path / "a.pt", heads=5)


def test_heads_that_contradict_the_configuration_are_refused(network: WanDiT, tmp_path: Path) -> None:
    LAYOUTS["wan"](tmp_path / "wan", network)
    with pytest.raises(ValueError, match="says 2 heads, not 3"):
        load_transformer(tmp_path / "wan", heads=3)


def test_an_absent_role_names_the_nearest(network: WanDiT, tmp_path: Path) -> None:
    torch.save({"generator": prefixed(network), "critic": prefixed(network)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="unknown role 'generater'; did you mean 'generator'"):
        load_transformer(tmp_path / "a.pt", "generater", heads=2)


def test_several_networks_without_a_generator_ask_which(network: WanDiT, tmp_path: Path) -> None:
    torch.save({"critic": prefixed(network), "generator_ema": prefixed(network)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="choose one of critic, generator_ema"):
        load_transformer(tmp_path / "a.pt", heads=2)


def test_misfits_are_listed_by_kind(network: WanDiT, tmp_path: Path) -> None:
    state = prefixed(network)
    del state["model.blocks.1.norm3.bias"]
    state["model.blocks.0.self_attn.q.bias"] = torch.zeros(7)
    torch.save(state, tmp_path / "a.pt")
    expected = (
        r"1 missing \(blocks.1.norm2.bias\); 1 of another shape \(blocks.0.attn1.to_q.bias \[7\] instead of \[24\]\)"
    )
    with pytest.raises(ValueError, match=expected):
        load_transformer(tmp_path / "a.pt", heads=2)


def test_a_configuration_of_another_network_is_refused(network: WanDiT, tmp_path: Path) -> None:
    path = LAYOUTS["diffusers transformer"](tmp_path / "d", network)
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


@pytest.mark.parametrize(
    ("state", "what"),
    [
        ({"decoder.conv1.weight": torch.zeros(1)}, "this is the original Wan VAE"),
        ({"token_embedding.weight": torch.zeros(1)}, "this is the original Wan text encoder"),
        ({"layer.weight": torch.zeros(1)}, "found layer.weight"),
    ],
)
def test_another_model_is_named(state: dict[str, torch.Tensor], what: str, tmp_path: Path) -> None:
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=what):
        load_transformer(tmp_path / "a.safetensors")
