"""Converting: every layout to every format and back, bit by bit; diffusers' own class loads what we write."""

import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from checkpoints.layouts import LAYOUTS, assert_same, prefixed, random_network
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

from reward_forcing.checkpoints import inspect, load_transformer
from reward_forcing.checkpoints.convert import Target, convert
from reward_forcing.models.wan_dit import WanDiT


@pytest.mark.parametrize("to", get_args(Target))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_converted_checkpoint_is_the_same_network(layout: str, to: Target, network: WanDiT, tmp_path: Path) -> None:
    source = LAYOUTS[layout](tmp_path / "source", network)
    written = convert(source, tmp_path / "new" / "checkpoint", to, heads=2)
    assert inspect(written).format == to
    assert_same(load_transformer(written), network)


@pytest.mark.parametrize("to", get_args(Target))
def test_there_and_back_keeps_mixed_dtypes(to: Target, tmp_path: Path) -> None:
    network = random_network().to_mixed(torch.bfloat16)
    torch.save({"generator": prefixed(network)}, tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "there", to, heads=2)
    convert(tmp_path / "there", tmp_path / "back.pt", "forcing")
    back = torch.load(tmp_path / "back.pt", weights_only=True)["generator"]
    assert back.keys() == prefixed(network).keys()
    for name, tensor in prefixed(network).items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)


@pytest.mark.parametrize("to", ["diffusers", "wan"])
def test_shards_hold_everything_once_and_load_alike(to: Target, network: WanDiT, tmp_path: Path) -> None:
    source = LAYOUTS["wan"](tmp_path / "source", network)
    written = convert(source, tmp_path / "shards", to, shard_bytes=4000)
    assert len(list(written.glob("*.safetensors"))) > 3
    assert json.loads((written / "diffusion_pytorch_model.safetensors.index.json").read_text())["metadata"] == {
        "total_size": sum(tensor.nbytes for tensor in network.state_dict().values())
    }
    assert_same(load_transformer(written), network)


@pytest.mark.parametrize("shard_bytes", [4000, 10**9])
def test_diffusers_own_class_loads_what_we_write(shard_bytes: int, network: WanDiT, tmp_path: Path) -> None:
    source = LAYOUTS["forcing generator"](tmp_path / "source.pt", network)
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
    source = LAYOUTS["wan"](tmp_path / "source", network)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").touch()
    cases: list[tuple[Path, Target]] = [(tmp_path / "there", "diffusers"), (source / "config.json", "forcing")]
    for destination, to in cases:
        with pytest.raises(FileExistsError, match="exists; name a new"):
            convert(source, destination, to)


def test_a_failed_conversion_leaves_nothing_behind(
    network: WanDiT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = LAYOUTS["wan"](tmp_path / "source", network)

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("reward_forcing.checkpoints.convert.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        convert(source, tmp_path / "new", "diffusers")
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_an_unknown_format_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown format 'diffuser'; did you mean 'diffusers'"):
        convert("mini", tmp_path / "x", "diffuser")  # pyright: ignore[reportArgumentType]
