"""`rforce data ode-pairs` makes pairs of the world's captions or of a file's prompts, in parts, and says so."""

import json
from pathlib import Path

import pytest

from reward_forcing.cli.main import main
from reward_forcing.training.ode_pairs import OdePairs


def run(*arguments: object) -> int:
    """The exit code of `rforce data ode-pairs *arguments`, run in this process."""
    with pytest.raises(SystemExit) as stop:
        main(["data", "ode-pairs", *map(str, arguments)])
    return int(stop.value.code or 0)


@pytest.fixture
def model(tiny_model_folder: Path) -> list[object]:
    """Options that name the tiny model and its latents."""
    parts = ["--teacher", tiny_model_folder / "transformer", "--text", tiny_model_folder, "--device", "cpu"]
    return [*parts, "--latent-shape", "3,4,4,4", "--steps", "4"]


def test_parts_make_a_store_and_the_last_says_what_it_holds(
    model: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pairs"
    options = [*model, "--out", out, "--count", 3, "--shard-size", 1]
    assert run(*options, "--share", "1/2") == 0
    assert f"{out}: part 1/2 is done; 1 of 3 shards are there, make the other parts" in capsys.readouterr().out
    assert run(*options, "--share", "0/2") == 0
    assert f"{out}: 3 pairs, 5 points of 3 x 4 x 4 x 4 at timesteps 1000, 937.5" in capsys.readouterr().out
    assert len(OdePairs(out)) == 3


def test_a_file_gives_the_prompts_and_their_number(
    model: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "prompts.txt", tmp_path / "pairs"
    file.write_text("a red ball bounces\na green square slides\n")
    options = [*model, "--out", out, "--prompts", file, "--shift", 8, "--denoising-steps", "1000,500", "--guidance", 6]
    assert run(*options) == 0
    assert "2 pairs, 3 points of 3 x 4 x 4 x 4 at timesteps 1000, 888.89, 0;" in capsys.readouterr().out
    assert [OdePairs(out).read(index).prompt for index in range(2)] == file.read_text().splitlines()
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["shift"], manifest["guidance"], manifest["count"]) == (8.0, 6.0, 2)
    file.write_text("a red ball bounces\na blue square slides\n")
    assert run(*options) == 2
    assert "another store (prompts: " in capsys.readouterr().err


def test_a_causal_teacher_is_told_by_the_manifest(
    model: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pairs"
    changes = ("chunk_frames=1", "window_frames=2", "sink={kind: static, frames: 1}")
    cache = ["--causal", *(word for change in changes for word in ("--cache", change))]
    assert run(*model, "--out", out, "--count", 2, *cache) == 0
    assert "causal, chunks of 1 given its own in a window of 2 with 1 static sink frames" in capsys.readouterr().out
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["causal"]["cache"]["sink"] == {"kind": "static", "frames": 1}
    assert run(*model, "--out", out, "--count", 2) == 2
    assert "holds another store (causal: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["--latent-shape", "3,4,4"], "--latent-shape must be 4 whole numbers as 21,16,8,8, got '3,4,4'"),
        (["--denoising-steps", "1000,x"], "--denoising-steps must be whole numbers as 1000,750,500,250"),
        (["--steps", "3"], "do not lie on 3 ODE steps"),
        (["--prompts", "none.txt"], "no file of prompts 'none.txt'"),
        (["--share", "2/2"], "--share must be i/n"),
        (["--cache", "window_frames=2"], "--cache and --context are for a causal teacher"),
        (["--causal", "--cache", "chunk_frames=2"], "3 latent frames are no whole chunks of 2"),
        (["--causal", "--context", "nowhere"], "no .safetensors weights in 'nowhere'"),
    ],
)
def test_a_mistake_is_one_line(
    model: list[object], tmp_path: Path, changes: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*model, "--out", tmp_path / "pairs", "--count", 1, *changes) == 2
    said = capsys.readouterr().err.strip()
    assert says in said
    assert "\n" not in said
