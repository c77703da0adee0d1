"""`rforce models`: inspect and convert from the command line."""

import json
from pathlib import Path

import pytest
import torch
from checkpoints.layouts import LAYOUTS, assert_same, prefixed, random_network

from reward_forcing.checkpoints import load_transformer
from reward_forcing.cli.main import main


def run(*arguments: object) -> int:
    """The exit code of `rforce models *arguments`, run in this process."""
    with pytest.raises(SystemExit) as stop:
        main(["models", *map(str, arguments)])
    return int(stop.value.code or 0)


def test_info_tells_roles_network_and_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = random_network()
    torch.save({"generator": prefixed(network), "critic": prefixed(network)}, tmp_path / "a.pt")
    assert run("info", tmp_path / "a.pt", "--heads", 2) == 0
    text = capsys.readouterr().out
    assert "format     forcing" in text
    count = sum(parameter.numel() for parameter in network.parameters())
    assert f"generator  {count:,} parameters" in text
    assert "2 layers, width 24, 2 heads of 12" in text
    assert "sha256" in text


def test_info_as_json_is_the_same_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = LAYOUTS["Wan2.1"].write(tmp_path / "wan", random_network())
    assert run("info", path, "--json", "--no-hash") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == "wan"
    assert found["config"]["num_layers"] == 2
    assert found["sha256"] == {}


def test_convert_writes_a_folder_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = random_network()
    source = LAYOUTS["Reward Forcing's release"].write(tmp_path / "a.pt", network)
    assert run("convert", source, tmp_path / "new", "--to", "diffusers", "--heads", 2) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "new")
    assert_same(load_transformer(tmp_path / "new"), network)


def test_a_missing_checkpoint_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", tmp_path / "absent.pt") == 2
    assert capsys.readouterr().err.startswith("error: no file, folder or bundled model")


def test_list_names_published_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert "Wan-AI/Wan2.1-T2V-1.3B-Diffusers" in found["published"]
    assert run("list") == 0
    assert "Wan-AI/Wan2.1-T2V-1.3B-Diffusers" in capsys.readouterr().out
