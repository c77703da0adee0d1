"""`rforce models`: inspect and convert from the command line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints.layouts import LAYOUTS, assert_same, lora_of, original, prefixed, random_network
from checkpoints.repositories import random_model, write_original
from commands import rforce
from safetensors.torch import save_file

from reward_forcing.checkpoints import inspect, load_transformer
from reward_forcing.cli.models import describe
from reward_forcing.streaming.video_io import read_video


def run(*arguments: object) -> int:
    """The exit code of `rforce models *arguments`."""
    return rforce("models", *arguments)


def test_info_tells_roles_network_and_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = random_network()
    torch.save({"generator": prefixed(network), "critic": prefixed(network)}, tmp_path / "a.pt")
    assert run("info", tmp_path / "a.pt", "--heads", 2) == 0
    text = capsys.readouterr().out
    assert "format     forcing: Wan2.1's names after 'model.', by role (generator, critic)" in text
    count = sum(parameter.numel() for parameter in network.parameters())
    assert f"generator  {count:,} parameters" in text
    assert "2 layers, width 24, 2 heads of 12" in text
    assert "sha256" in text


def test_info_recognises_the_published_sizes(tmp_path: Path) -> None:
    """From shapes alone: `describe` is given what `inspect` finds in the headers of the real files."""
    info = inspect(LAYOUTS["Wan2.1"].write(tmp_path / "wan", random_network()), hashes=False)
    assert "as Wan2.1" not in describe(info)
    for size, (layers, heads, ffn) in {"1.3B": (30, 12, 8960), "14B": (40, 40, 13824)}.items():
        config = (info.config or {}) | {"num_layers": layers, "num_attention_heads": heads, "ffn_dim": ffn}
        assert f"(as Wan2.1 {size})" in describe(replace(info, config=config))


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


def test_a_repository_and_a_students_file_become_a_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From files as published to frames: Wan2.1's repository, and Reward Forcing's bare file and one for ComfyUI."""
    monkeypatch.chdir(tmp_path)
    model = random_model()
    student = random_network(5, model.transformer.config)
    write_original(tmp_path / "Wan2.1", model)
    torch.save(prefixed(student), tmp_path / "rewardforcing.pt")
    save_file({f"model.diffusion_model.{n}": t for n, t in original(student).items()}, tmp_path / "comfy.safetensors")
    assert run("convert", "Wan2.1", "folder", "--whole") == 0
    assert run("convert", "Wan2.1", "student", "--whole", "--weights", "rewardforcing.pt", "--heads", 2) == 0
    sizes = ("--size", "32x32", "--seconds", "0.3", "--seed", "1")
    clips = {}
    for name, how in {
        "base": ("--model", "folder"),
        "flat": ("--model", "folder", "--weights", "rewardforcing.pt"),
        "comfy": ("--model", "folder", "--weights", "comfy.safetensors"),
        "merged": ("--model", "student"),
    }.items():
        assert rforce("generate", "a red ball", *how, *sizes, "--out", f"{name}.mp4") == 0, capsys.readouterr().err
        clips[name] = read_video(f"{name}.mp4")[0]
    assert torch.equal(clips["flat"], clips["comfy"])
    assert torch.equal(clips["flat"], clips["merged"])
    assert not torch.equal(clips["flat"], clips["base"])


def test_convert_merges_a_lora(tmp_path: Path) -> None:
    network = random_network()
    base, lora = tmp_path / "longlive_base.pt", tmp_path / "lora.pt"
    torch.save({"generator": prefixed(network)}, base)
    torch.save({"generator_lora": lora_of(network, "base_model.model.")}, lora)
    options = ("--lora", lora, "--lora-alpha", 6, "--heads", 2, "--dtype", "bfloat16")
    assert run("convert", base, tmp_path / "new.pt", "--to", "forcing", *options) == 0
    expected = load_transformer(base, heads=2, lora=lora, lora_alpha=6.0).bfloat16()
    assert_same(load_transformer(tmp_path / "new.pt"), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--whole", "--to", "comfy"), "--whole writes a folder"),
        (("--weights", "a.pt"), "add --whole"),
        (("--to", "forcing", "--causal"), "only a file for ComfyUI"),
        (("--whole", "--causal"), "leave it out with --whole"),
        (("--lora-alpha", "3"), "belongs to a LoRA"),
        (("--lora", "a.pt", "--lora-alpha", "nan"), "must be a finite number"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    options: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("convert", LAYOUTS["Wan2.1"].write(tmp_path / "wan", random_network()), tmp_path / "new", *options) == 2
    assert message in capsys.readouterr().err


def test_a_missing_checkpoint_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", tmp_path / "absent.pt") == 2
    assert capsys.readouterr().err.startswith("error: no file, folder or bundled model")


def test_list_names_published_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert "Wan-AI/Wan2.1-T2V-1.3B-Diffusers" in found["published"]
    assert run("list") == 0
    assert "Wan-AI/Wan2.1-T2V-1.3B-Diffusers" in capsys.readouterr().out
