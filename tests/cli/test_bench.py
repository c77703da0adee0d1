"""`rforce bench` as a command: what it prints, what it writes, and what it refuses."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from reward_forcing.benchmarks.record import BenchResults, bench_schema, read_record
from reward_forcing.cli.main import build_app


def command(*arguments: object) -> Result:
    return CliRunner().invoke(build_app("bench"), ["bench", *map(str, arguments)])


def test_a_model_folder_is_measured_alone_side_by_side_and_end_to_end(tiny_model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    done = command(
        "--model", tiny_model_folder, "--against", "naive,diffusers", "--pairs", 1, "--chunks", 1, "--out", out
    )
    assert done.exit_code == 0, done.output
    kinds = [result.kind for result in read_record(out).results]
    assert kinds == ["side by side", "side by side", "stream", "stream", "naive clip"]
    speeds = [line for line in done.output.splitlines() if " FPS" in line]
    assert len(speeds) == 5
    for line in speeds:
        assert "DiT only" in line or "end to end" in line
        for part in ("window 6", "2+1 passes", "float32", "decoder ", "batch 1"):
            assert part in line
        assert ("steady state" in line) != ("clip" in line)


def test_what_diffusers_cannot_run_is_noted_and_the_rest_measured(tiny_model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    arguments = ("--model", tiny_model_folder, "--against", "diffusers", "--pairs", 1, "--chunks", 0)
    done = command(*arguments, "--set", "window_frames=5", "--out", out, "--json")
    assert done.exit_code == 0, done.output
    record = BenchResults.model_validate_json(done.stdout[done.stdout.index("{") :])
    assert record.results == ()
    assert "fill the window" in record.failures[0]


def test_a_tiny_decoder_is_measured_beside_the_vae(
    tiny_model_folder: Path, tiny_decoder_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "decoder.json"
    how = ("--model", tiny_model_folder, "--decoder", tiny_decoder_file, "--out", out)
    done = command("decoder", *how, "--chunks", 3)
    assert done.exit_code == 0, done.output
    (found,) = json.loads(out.read_text())["results"]
    assert found["kind"] == "decoder beside the VAE"
    assert len(found["chunk_psnr"]) == len(found["ours"]["wall"]) == len(found["theirs"]["cpu"]) == 3
    assert min(found["chunk_psnr"]) <= found["psnr"] <= max(found["chunk_psnr"])
    for part in ("TAEHV taetiny", "beside Wan VAE", f"PSNR {found['psnr']:.2f} dB", "decoder only", "32x32 pixels"):
        assert part in done.output


def test_a_tiny_decoder_is_among_the_conditions_of_what_it_took_part_in(
    tiny_model_folder: Path, tiny_decoder_file: Path, tmp_path: Path
) -> None:
    how = ("--model", tiny_model_folder, "--decoder", tiny_decoder_file, "--out", tmp_path / "bench.json")
    done = command(*how, "--pairs", 1, "--chunks", 1)
    assert done.exit_code == 0, done.output
    ends = [line for line in done.output.splitlines() if "end to end" in line]
    assert ["decoder TAEHV taetiny" in line for line in ends] == [True, True, False]
    assert "naive: " in ends[-1]
    assert "decoder Wan VAE" in ends[-1]


def test_a_sweep_is_recorded_and_drawn(tiny_model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep.json"
    arguments = ("--over", "window", "--values", "4,6", "--model", tiny_model_folder, "--repeats", 1, "--out", out)
    done = command("sweep", *arguments)
    assert done.exit_code == 0, done.output
    (found,) = json.loads(out.read_text())["results"]
    assert [point["value"] for point in found["points"]] == ["4", "6"]
    assert (tmp_path / "sweep_window.png").exists()
    assert done.output.count("DiT only") == 2


def test_what_changes_the_output_is_measured_beside_the_exact_stream(tiny_model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "quality.json"
    options = ("weights=int8", "denoising_steps=[1000]", "offload_blocks=1", "clean_pass=false")
    changes = [f"--change={option}" for option in options]
    done = command("quality", *changes, "--chunks", 2, "--model", tiny_model_folder, "--device", "cpu", "--out", out)
    assert done.exit_code == 0, done.output
    tables = {table["name"]: table["values"] for table in json.loads(out.read_text())["results"]}
    int8, fewer, moved, unclean = (tables[f"{option}: relative error of latents by chunk"] for option in options)
    assert 0 < int8["0"] < fewer["0"]
    assert set(moved.values()) == {0.0}
    assert unclean["0"] == 0 < unclean["1"]  # the first chunk has no past
    assert set(tables["offload_blocks=1: PSNR of frames by chunk"].values()) == {None}


def test_the_schema_is_printed() -> None:
    assert command("--schema").output == bench_schema()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--against", "naiv"), "did you mean 'naive'"),
        (("--model", "C"), "unknown configuration 'C'"),
        (("--precision", "half"), "unknown precision 'half'"),
        (("--model", "D", "--decoder", "a.pth"), "a decoder needs a model folder"),
        (("decoder", "--decoder", "nowhere.pth"), "no file, folder or bundled model 'nowhere.pth'"),
        (("decoder", "--model", "A", "--decoder", "a.pth"), "'A' is a transformer only"),
        (("--device", "gpu"), "must be cpu, cuda or cuda:N"),
        (("--graphs", "--device", "cpu"), "graphs=true needs an NVIDIA GPU"),
        (("sweep", "--over", "widow"), "did you mean 'window'"),
        (("quality", "--change", "weights=int9"), "int8"),
        (("quality", "--change", "weights=fp8-dynamic", "--device", "cpu"), "multiplies float8"),
    ],
)
def test_bad_options_are_refused_and_nothing_is_written(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = command(*arguments)
    assert isinstance(done.exception, ValueError | FileNotFoundError)
    assert message in str(done.exception)
    assert list(tmp_path.iterdir()) == []
