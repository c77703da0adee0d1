"""Converting: every layout to every format and back, bit by bit; diffusers' own class loads what we write."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints.layouts import (
    CONFIG,
    LAYOUTS,
    assert_same,
    by_role,
    lora_of,
    original,
    output,
    prefixed,
    random_network,
    write_torch,
)
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from safetensors import safe_open
from safetensors.torch import load_file

from reward_forcing.checkpoints import inspect, load_transformer
from reward_forcing.checkpoints.convert import Target, convert
from reward_forcing.models.wan_dit import WanDiT

FORMATS: dict[Target, str] = {"diffusers": "diffusers", "wan": "wan", "forcing": "forcing", "forcing-flat": "forcing"}


@pytest.fixture(scope="module")
def comfy_network() -> WanDiT:
    """A network whose one head is as wide as ComfyUI takes heads to be."""
    return random_network(config=CONFIG | {"num_attention_heads": 1, "attention_head_dim": 128})


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_converted_checkpoint_is_the_same_network(layout: str, to: Target, network: WanDiT, tmp_path: Path) -> None:
    source = LAYOUTS[layout].write(tmp_path / "source", network)
    written = convert(source, tmp_path / "new" / "checkpoint", to, heads=2)
    assert inspect(written).format == FORMATS[to]
    found = load_transformer(written, heads=2)
    assert_same(found, network)
    assert torch.equal(output(found), output(network))


@pytest.mark.parametrize("to", FORMATS)
def test_there_and_back_keeps_mixed_dtypes(to: Target, tmp_path: Path) -> None:
    network = random_network().to_mixed(torch.bfloat16)
    torch.save({"generator": prefixed(network)}, tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "there", to, heads=2)
    convert(tmp_path / "there", tmp_path / "back.pt", "forcing", heads=2)
    back = torch.load(tmp_path / "back.pt", weights_only=True)["generator"]
    assert back.keys() == prefixed(network).keys()
    for name, tensor in prefixed(network).items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)


@pytest.mark.parametrize("content", [prefixed, by_role(generator=prefixed)])
def test_a_file_of_the_family_comes_back_as_its_own_code_reads_it(
    content: Any, network: WanDiT, tmp_path: Path
) -> None:
    """Reward Forcing's code loads a bare state, the others one under `generator`; both strictly, by exact names."""
    source = write_torch(content)(tmp_path / "a.pt", network)
    flat = content is prefixed
    convert(source, tmp_path / "there", "diffusers", heads=2)
    convert(tmp_path / "there", tmp_path / "back.pt", "forcing-flat" if flat else "forcing")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    state = back if flat else back["generator"]
    assert state.keys() == prefixed(network).keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in prefixed(network).items())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_a_file_for_comfyui_is_one_with_bare_names(
    dtype: torch.dtype | None, comfy_network: WanDiT, tmp_path: Path
) -> None:
    source = LAYOUTS["Self Forcing's ode_init"].write(tmp_path / "a.pt", comfy_network)
    written = convert(source, tmp_path / "new.safetensors", "comfy", heads=1, dtype=dtype)
    found = load_file(written)
    assert found.keys() == original(comfy_network).keys()
    for name, tensor in original(comfy_network).items():
        assert found[name].dtype == (dtype or torch.float32)
        assert torch.equal(found[name], tensor.to(found[name].dtype)), name
    convert(written, tmp_path / "back", "diffusers", heads=1)
    back = load_transformer(tmp_path / "back").state_dict()
    assert all(torch.equal(back[name], tensor.to(dtype)) for name, tensor in comfy_network.state_dict().items())


def test_a_file_for_comfyui_says_that_it_is_causal_if_asked(comfy_network: WanDiT, tmp_path: Path) -> None:
    source = LAYOUTS["Self Forcing's ode_init"].write(tmp_path / "a.pt", comfy_network)
    for name, causal in (("student", True), ("teacher", False)):
        written = convert(source, tmp_path / name, "comfy", heads=1, causal=causal)
        with safe_open(written, framework="pt") as file:
            config = json.loads(file.metadata().get("config", "{}"))
        assert config == ({"transformer": {"causal_ar": True}} if causal else {})
    with pytest.raises(ValueError, match="only a file for ComfyUI is marked as causal, not wan"):
        convert(source, tmp_path / "wan", "wan", heads=1, causal=True)


def test_comfyui_is_not_given_heads_that_it_would_take_for_others(network: WanDiT, tmp_path: Path) -> None:
    source = LAYOUTS["Wan2.1"].write(tmp_path / "source", network)
    with pytest.raises(ValueError, match="has heads of 12, and ComfyUI takes heads of 128"):
        convert(source, tmp_path / "new.safetensors", "comfy")


@pytest.mark.parametrize("to", FORMATS)
def test_a_merged_lora_is_part_of_the_written_network(to: Target, network: WanDiT, tmp_path: Path) -> None:
    base = LAYOUTS["LongLive's base"].write(tmp_path / "longlive_base.pt", network)
    torch.save({"generator_lora": lora_of(network, "base_model.model.")}, tmp_path / "lora.pt")
    written = convert(base, tmp_path / "merged", to, heads=2, lora=tmp_path / "lora.pt")
    assert_same(load_transformer(written, heads=2), load_transformer(base, heads=2, lora=tmp_path / "lora.pt"))
    assert not torch.equal(output(load_transformer(written, heads=2)), output(network))


@pytest.mark.parametrize("to", ["diffusers", "wan"])
def test_shards_hold_everything_once_and_load_alike(to: Target, network: WanDiT, tmp_path: Path) -> None:
    source = LAYOUTS["Wan2.1"].write(tmp_path / "source", network)
    written = convert(source, tmp_path / "shards", to, shard_bytes=4000)
    assert len(list(written.glob("*.safetensors"))) > 3
    assert json.loads((written / "diffusion_pytorch_model.safetensors.index.json").read_text())["metadata"] == {
        "total_size": sum(tensor.nbytes for tensor in network.state_dict().values())
    }
    assert_same(load_transformer(written), network)


@pytest.mark.parametrize("shard_bytes", [4000, 10**9])
def test_diffusers_own_class_loads_what_we_write(shard_bytes: int, network: WanDiT, tmp_path: Path) -> None:
    source = LAYOUTS["Self Forcing"].write(tmp_path / "source.pt", network)
    written = convert(source, tmp_path / "new", "diffusers", heads=2, shard_bytes=shard_bytes)
    theirs = WanTransformer3DModel.from_pretrained(written).state_dict()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in network.state_dict().items())


def test_the_role_asked_for_is_written_under_its_name(tmp_path: Path) -> None:
    generator, critic = random_network(0), random_network(1)
    torch.save({"generator": prefixed(generator), "critic": prefixed(critic)}, tmp_path / "a.pt")
    written = convert(tmp_path / "a.pt", tmp_path / "b.pt", "forcing", "critic", heads=2)
    assert list(inspect(written).roles) == ["critic"]
    assert_same(load_transformer(written, "critic"), critic)


def test_an_existing_destination_is_left_alone(network: WanDiT, tmp_path: Path) -> None:
    source = LAYOUTS["Wan2.1"].write(tmp_path / "source", network)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").touch()
    cases: list[tuple[Path, Target]] = [(tmp_path / "there", "diffusers"), (source / "config.json", "comfy")]
    for destination, to in cases:
        with pytest.raises(FileExistsError, match="exists; name a new"):
            convert(source, destination, to)


def test_a_failed_conversion_leaves_nothing_behind(
    network: WanDiT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = LAYOUTS["Wan2.1"].write(tmp_path / "source", network)

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("reward_forcing.checkpoints.convert.save_safetensors", fail)
    with pytest.raises(OSError, match="disk full"):
        convert(source, tmp_path / "new", "diffusers")
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_an_unknown_format_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown format 'diffuser'; did you mean 'diffusers'"):
        convert("mini", tmp_path / "x", "diffuser")  # pyright: ignore[reportArgumentType]
