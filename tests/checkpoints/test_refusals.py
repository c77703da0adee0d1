"""Files that are no checkpoint of ours: named, with what was expected, before a single weight is read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints.layouts import LAYOUTS, lora_of, original, prefixed, write_wan
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_ltx import LTXVideoTransformer3DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file

from reward_forcing.checkpoints import inspect, load_transformer
from reward_forcing.checkpoints.convert import convert
from reward_forcing.models.wan_dit import WanDiT

pytestmark = pytest.mark.usefixtures("no_weight_is_read")


def sd(path: Path) -> Path:
    """A Stable Diffusion checkpoint with the names of its published file."""
    names = ("model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.decoder.conv_in.weight")
    torch.save({"state_dict": dict.fromkeys(names, torch.zeros(4)), "global_step": 470000}, path)
    return path


def sd_safetensors(path: Path) -> Path:
    """The same as one safetensors file."""
    names = ("model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.decoder.conv_in.weight")
    save_file({name: torch.zeros(4) for name in names}, path)
    return path


def unet(path: Path) -> Path:
    """A diffusers UNet."""
    widths = {"block_out_channels": (4, 4), "norm_num_groups": 2, "cross_attention_dim": 4, "attention_head_dim": 2}
    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "layers_per_block": 1}
    UNet2DConditionModel(**widths, **blocks, up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")).save_pretrained(path)
    return path


def ltx(path: Path) -> Path:
    """A diffusers LTX-Video model."""
    sizes = {"num_attention_heads": 2, "attention_head_dim": 4, "cross_attention_dim": 8, "caption_channels": 6}
    LTXVideoTransformer3DModel(**sizes, num_layers=1).save_pretrained(path / "transformer")
    return path


def ltx_file(path: Path) -> Path:
    """The transformer of LTX-Video's single file."""
    save_file({"model.diffusion_model.patchify_proj.weight": torch.zeros(4, 4)}, path)
    return path


def wan_vae(path: Path) -> Path:
    """A diffusers Wan VAE by itself."""
    AutoencoderKLWan(base_dim=4, z_dim=16, num_res_blocks=1).save_pretrained(path)
    return path


def holding(name: str) -> Callable[[Path], Path]:
    """A writer of a safetensors file with one parameter."""

    def write(path: Path) -> Path:
        save_file({name: torch.zeros(1)}, path)
        return path

    return write


@pytest.mark.parametrize(
    ("write", "what"),
    [
        (sd, "this is a Stable Diffusion UNet"),
        (sd_safetensors, "this is a Stable Diffusion UNet"),
        (unet, "this is a diffusers UNet"),
        (ltx, "this is an LTX-Video transformer"),
        (ltx_file, "this is an LTX-Video transformer"),
        (wan_vae, "this is a diffusers VAE"),
        (holding("decoder.conv1.weight"), "this is the original Wan VAE"),
        (holding("token_embedding.weight"), "this is the original Wan text encoder"),
        (holding("layer.weight"), "found layer.weight"),
    ],
)
@pytest.mark.parametrize("use", ["load", "convert"])
def test_another_model_is_named(use: str, write: Callable[[Path], Path], what: str, tmp_path: Path) -> None:
    path = write(tmp_path / "other")
    with pytest.raises(ValueError, match=f"expected a Wan transformer .*; {what}") as raised:
        load_transformer(path) if use == "load" else convert(path, tmp_path / "new", "diffusers")
    assert str(path) in str(raised.value)
    assert not (tmp_path / "new").exists()


def damage_key(state: dict[str, torch.Tensor]) -> None:
    del state["model.blocks.1.norm3.bias"]


def damage_shape(state: dict[str, torch.Tensor]) -> None:
    state["model.blocks.0.self_attn.q.weight"] = torch.zeros(24, 7)


def damage_block(state: dict[str, torch.Tensor]) -> None:
    state["model.blocks.4000000000.modulation"] = torch.zeros(1, 6, 24)


def damage_patch(state: dict[str, torch.Tensor]) -> None:
    state["model.patch_embedding.weight"] = torch.zeros(24)


def damage_head(state: dict[str, torch.Tensor]) -> None:
    del state["model.head.head.weight"]


def damage_counter(state: dict[str, torch.Tensor]) -> None:
    state["step"] = torch.tensor(7)


def damage_note(state: dict[str, torch.Tensor]) -> None:
    state["note"] = "from somewhere"  # pyright: ignore[reportArgumentType]


def damage_kind(state: dict[str, torch.Tensor]) -> None:
    state["model.vace_blocks.0.before_proj.weight"] = torch.zeros(24, 24)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_key, r"do not fit the network: 1 missing \(blocks\.1\.norm2\.bias\)"),
        (damage_shape, r"1 of another shape \(blocks\.0\.attn1\.to_q\.weight \[24, 7\] instead of \[24, 24\]\)"),
        (damage_block, r"block 2 is missing: the blocks are 0, 1, 4000000000"),
        (damage_patch, r"'patch_embedding\.weight' has the shape \[24\], which no Wan transformer has"),
        (damage_head, r"'proj_out\.weight' is missing"),
        (damage_counter, r"'step' is a number \(int64\), no weight"),
        (damage_note, r"one with entries that are no tensors: note"),
        (damage_kind, r"'vace_blocks\.0\.before_proj\.weight' belongs to a VACE network; only text-to-video"),
    ],
)
def test_wrong_content_is_told_before_it_is_read(
    damage: Callable[[dict[str, torch.Tensor]], None], message: str, network: WanDiT, tmp_path: Path
) -> None:
    state = prefixed(network)
    damage(state)
    torch.save({"generator": state}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=message) as raised:
        load_transformer(tmp_path / "a.pt", heads=2)
    assert "a.pt" in str(raised.value)


def test_an_image_to_video_network_in_diffusers_names_is_told(network: WanDiT, tmp_path: Path) -> None:
    state = network.state_dict() | {"blocks.0.attn2.add_k_proj.weight": torch.zeros(24, 24)}
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="belongs to an image-to-video network"):
        load_transformer(tmp_path / "a.safetensors", heads=2)


@pytest.mark.parametrize("layout", ["Wan2.1 shards, as 14B", "diffusers shards"])
def test_a_missing_shard_is_named(layout: str, network: WanDiT, tmp_path: Path) -> None:
    folder = LAYOUTS[layout].write(tmp_path / "model", network)
    lost = sorted(folder.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(FileNotFoundError, match=lost.name):
        load_transformer(folder)


@pytest.mark.parametrize("layout", ["Wan2.1 shards, as 14B", "diffusers shards"])
def test_a_truncated_shard_is_named(layout: str, network: WanDiT, tmp_path: Path) -> None:
    folder = LAYOUTS[layout].write(tmp_path / "model", network)
    cut = sorted(folder.glob("*.safetensors"))[1]
    cut.write_bytes(cut.read_bytes()[:-8])
    with pytest.raises(ValueError, match=f"{cut.name}' is damaged or incomplete"):
        load_transformer(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "must hold a JSON object, got list"),
        ('{"_class_name": "FluxTransformer2DModel"}', "describes a FluxTransformer2DModel"),
        ('{"_class_name": "WanModel", "model_type": "i2v"}', "of type i2v; only text-to-video"),
        ('{"_class_name": "WanModel", "num_heads": 2}', "dim = None must be a multiple of num_heads = 2"),
        ('{"_class_name": "WanModel", "dim": 24, "num_heads": 0}', "dim = 24 must be a multiple of num_heads = 0"),
        ('{"_class_name": "WanModel", "dim": 48, "num_heads": 2}', "heads of 24, but the weights are 24 wide"),
    ],
)
def test_a_foreign_configuration_is_refused(config: str, message: str, network: WanDiT, tmp_path: Path) -> None:
    folder = write_wan(tmp_path / "wan", network)
    (folder / "config.json").write_text(config)
    with pytest.raises(ValueError, match=message) as raised:
        load_transformer(folder)
    assert str(folder) in str(raised.value)


def lone_half(state: dict[str, torch.Tensor]) -> None:
    del state["blocks.0.ffn.0.lora_B.weight"]


def unequal_ranks(state: dict[str, torch.Tensor]) -> None:
    state["blocks.0.ffn.0.lora_B.weight"] = torch.zeros(20, 4)


def another_shape(state: dict[str, torch.Tensor]) -> None:
    state["blocks.0.ffn.0.lora_A.weight"] = torch.zeros(3, 9)


def dora(state: dict[str, torch.Tensor]) -> None:
    state["blocks.0.ffn.0.lora_magnitude_vector"] = torch.zeros(20)


def unmerged_base(state: dict[str, torch.Tensor]) -> None:
    state["blocks.0.ffn.0.base_layer.weight"] = torch.zeros(20, 24)


def another_network(state: dict[str, torch.Tensor]) -> None:
    state["blocks.7.ffn.0.lora_A.weight"] = torch.zeros(3, 24)
    state["blocks.7.ffn.0.lora_B.weight"] = torch.zeros(20, 3)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lone_half, r"only one of lora_A and lora_B for blocks\.0\.ffn\.0"),
        (unequal_ranks, r"of 'blocks\.0\.ffn\.0' do not fit each other: A \[3, 24\], B \[20, 4\]"),
        (another_shape, r"by \[20, 9\], which is \[20, 24\]"),
        (dora, r"the LoRA also holds blocks\.0\.ffn\.0\.lora_magnitude_vector; only low-rank updates"),
        (unmerged_base, r"the LoRA also holds blocks\.0\.ffn\.0\.base_layer\.weight"),
        (another_network, r"updates 'blocks\.7\.ffn\.net\.0\.proj\.weight', which the network lacks"),
    ],
)
@pytest.mark.parametrize("use", ["load", "convert"])
def test_a_lora_that_does_not_fit_is_refused(
    use: str, damage: Callable[[dict[str, torch.Tensor]], None], message: str, network: WanDiT, tmp_path: Path
) -> None:
    torch.save({"generator": prefixed(network)}, tmp_path / "base.pt")
    state = lora_of(network, "")
    damage(state)
    lora = tmp_path / "lora.pt"
    torch.save(state, lora)
    to = (tmp_path / "new", "diffusers") if use == "convert" else ()
    with pytest.raises(ValueError, match=message) as raised:
        (convert if to else load_transformer)(tmp_path / "base.pt", *to, heads=2, lora=lora)
    assert str(lora) in str(raised.value)


def test_a_network_given_as_a_lora_is_refused(network: WanDiT, tmp_path: Path) -> None:
    torch.save({"generator": prefixed(network)}, tmp_path / "base.pt")
    with pytest.raises(ValueError, match=r"base\.pt' is a whole network \(forcing\), not a LoRA"):
        load_transformer(tmp_path / "base.pt", heads=2, lora=tmp_path / "base.pt")


def test_a_lora_alone_asks_for_its_base(network: WanDiT, tmp_path: Path) -> None:
    torch.save({"generator_lora": lora_of(network, "base_model.model.")}, tmp_path / "lora.pt")
    for use in (load_transformer, lambda path: convert(path, tmp_path / "new", "diffusers")):
        with pytest.raises(ValueError, match=r"lora\.pt' is a LoRA.*give the base.*--lora FILE"):
            use(tmp_path / "lora.pt")


def test_headers_are_enough_to_inspect(network: WanDiT, tmp_path: Path) -> None:
    for layout in LAYOUTS:
        path = LAYOUTS[layout].write(tmp_path / layout.replace(" ", "-"), network)
        assert inspect(path, heads=2, hashes=False).config is not None, layout


def test_a_vae_beside_the_transformer_is_not_taken_for_it(network: WanDiT, tmp_path: Path) -> None:
    folder = write_wan(tmp_path / "wan", network)
    torch.save(original(network), folder / "models_t5_umt5-xxl-enc-bf16.pth")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no weights in"):
        load_transformer(folder)
    assert json.loads((folder / "config.json").read_text())["dim"] == 24
