"""Inspecting: format, roles, sizes, configuration and hashes, without reading the weights."""

import hashlib
from pathlib import Path

import pytest
import torch
from checkpoints.layouts import CONFIG, LAYOUTS, lora_of, prefixed

from reward_forcing.checkpoints import inspect
from reward_forcing.models.wan_dit import WanDiT


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_format_is_told_by_content(layout: str, network: WanDiT, tmp_path: Path) -> None:
    info = inspect(LAYOUTS[layout].write(tmp_path / "checkpoint", network), heads=2)
    assert info.format == LAYOUTS[layout].format
    assert info.config is not None
    assert {name: info.config[name] for name in CONFIG} == CONFIG
    role = info.roles["generator" if info.default_role is None else info.default_role]
    assert role.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert role.dtypes == {"float32": role.parameters}
    assert role.nbytes == 4 * role.parameters


def test_roles_are_listed_with_the_default(network: WanDiT, tmp_path: Path) -> None:
    torch.save({"critic": prefixed(network), "generator": prefixed(network), "step": 3}, tmp_path / "a.pt")
    info = inspect(tmp_path / "a.pt", heads=2)
    assert list(info.roles) == ["critic", "generator"]
    assert info.default_role == "generator"


def test_an_average_goes_before_a_critic_and_without_either_one_must_choose(network: WanDiT, tmp_path: Path) -> None:
    torch.save({"critic": prefixed(network), "generator_ema": prefixed(network)}, tmp_path / "a.pt")
    assert inspect(tmp_path / "a.pt", heads=2).default_role == "generator_ema"
    torch.save({"critic": prefixed(network), "teacher": prefixed(network)}, tmp_path / "b.pt")
    info = inspect(tmp_path / "b.pt", heads=2)
    assert info.default_role is None
    assert "--which ROLE" in str(info.problem)


def test_an_incomplete_network_is_told(network: WanDiT, tmp_path: Path) -> None:
    state = prefixed(network)
    state.pop(next(name for name in state if name.endswith("blocks.1.ffn.0.weight")))
    torch.save(state, tmp_path / "a.pt")
    assert "1 missing (blocks.1.ffn.net.0.proj.weight)" in str(inspect(tmp_path / "a.pt", heads=2).problem)


def test_unknown_heads_are_reported_and_not_guessed(network: WanDiT, tmp_path: Path) -> None:
    torch.save(prefixed(network), tmp_path / "a.pt")
    info = inspect(tmp_path / "a.pt")
    assert info.config is None
    assert "--heads" in str(info.problem)


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        ("diffusers shards", "diffusers' names, 4 shards"),
        ("Wan2.1", "Wan2.1's names"),
        ("Wan2.1 shards, as 14B", "Wan2.1's names, 2 shards"),
        ("Self Forcing's ode_init", "Wan2.1's names after 'model.', by role (generator)"),
        ("Reward Forcing's release", "Wan2.1's names after 'model.', one bare state dict"),
        ("an average alone", "Wan2.1's names after 'model.', by role (generator_ema), marks of FSDP or compiling"),
        ("ComfyUI, prefixed", "Wan2.1's names after 'model.diffusion_model.'"),
    ],
)
def test_the_layout_is_told_in_words(layout: str, words: str, network: WanDiT, tmp_path: Path) -> None:
    path = LAYOUTS[layout].write(tmp_path / "checkpoint", network)
    assert inspect(path, heads=2, hashes=False).layout == words


def test_what_is_wrong_with_a_lora_is_told(network: WanDiT, tmp_path: Path) -> None:
    torch.save(lora_of(network, "") | {"blocks.0.ffn.0.diff": torch.zeros(20, 24)}, tmp_path / "lora.pt")
    info = inspect(tmp_path / "lora.pt")
    assert (info.format, info.lora_rank) == ("lora", None)
    assert "also holds blocks.0.ffn.0.diff" in str(info.problem)


def test_a_lora_shows_its_rank(network: WanDiT, tmp_path: Path) -> None:
    torch.save({"generator_lora": lora_of(network, "base_model.model.", rank=3)}, tmp_path / "lora.pt")
    info = inspect(tmp_path / "lora.pt")
    assert (info.format, info.lora_rank, info.config) == ("lora", 3, None)


def test_hashes_are_those_of_the_files(network: WanDiT, tmp_path: Path) -> None:
    folder = LAYOUTS["Wan2.1 shards, as 14B"].write(tmp_path / "wan", network)
    shards = sorted(folder.glob("*.safetensors"))
    expected = {shard.name: hashlib.sha256(shard.read_bytes()).hexdigest() for shard in shards}
    assert inspect(folder).sha256 == expected
    assert inspect(folder, hashes=False).sha256 == {}
