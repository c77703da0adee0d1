"""The GPU protocol's four scripts, whole, at toy size on a CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from reward_forcing.benchmarks.record import BenchResults, SideBySide, Table, read_record

SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "gpu"


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def record_of(script: str, out: Path) -> BenchResults:
    done = run(script, "--tiny", "--device", "cpu", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    return read_record(out)


def test_ceilings_come_after_equality(tmp_path: Path) -> None:
    record = record_of("1_ceilings.py", tmp_path / "1.json")
    equality, tables = record.results[:2], record.results[2:]
    assert all(isinstance(result, SideBySide) and result.valid for result in equality)
    assert [table.name for table in tables if isinstance(table, Table)] == [
        "memory",
        "matrix products",
        "attention",
        "convolutions",
    ]
    measured = [value for table in tables if isinstance(table, Table) for value in table.values.values()]
    assert sum(value is not None for value in measured) > len(measured) / 2
    assert all(value is None or value > 0 for value in measured)


def test_nothing_is_timed_where_the_outputs_differ(tmp_path: Path) -> None:
    broken = "import sys; sys.path.insert(0, sys.argv.pop(1)); import runpy, reward_forcing.benchmarks.pairs as pairs\n"
    broken += "pairs.tolerance = lambda opponent, dtype: 0.0\n"
    broken += "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    out = tmp_path / "1.json"
    script = str(SCRIPTS / "1_ceilings.py")
    command = [sys.executable, "-c", broken, str(SCRIPTS), script, "--tiny", "--device", "cpu", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    record = read_record(out)
    assert [result.kind for result in record.results] == ["side by side", "side by side"]
    assert "nothing was timed" in record.failures[0]


def test_the_transformer_is_measured_beside_the_naive_mode_and_over_windows(tmp_path: Path) -> None:
    record = record_of("2_dit.py", tmp_path / "2.json")
    assert [result.kind for result in record.results] == ["side by side", "stream", "sweep"]


def test_the_pipeline_is_measured_and_its_memory_is_flat(tmp_path: Path) -> None:
    record = record_of("3_pipeline.py", tmp_path / "3.json")
    tables = {result.name: result.values for result in record.results if isinstance(result, Table)}
    assert set(tables) >= {
        "Wan VAE decode",
        "TAEHV decode",
        "latencies",
        "memory of a stream",
        "chunks of a stream",
        "speed of a stream",
    }
    memory = tables["memory of a stream"]
    assert memory["held after chunk 6"] == memory["held after chunk 12"]
    assert not any(value is None for values in tables.values() for value in values.values())


def test_the_profile_names_operators_of_both(tmp_path: Path) -> None:
    record = record_of("4_profile.py", tmp_path / "4.json")
    fast, naive = (result.values for result in record.results if isinstance(result, Table))
    assert "aten::addmm" in fast
    assert "aten::addmm" in naive


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_real_sizes_are_refused_without_a_gpu(tmp_path: Path) -> None:
    done = run("2_dit.py", "--out", str(tmp_path / "2.json"))
    assert done.returncode == 2
    assert "no GPU here" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_is_late_is_left_out_and_noted(tmp_path: Path) -> None:
    done = run("3_pipeline.py", "--tiny", "--device", "cpu", "--minutes", "0", "--out", str(tmp_path / "3.json"))
    assert done.returncode == 0, done.stderr
    assert any("no time left" in failure for failure in read_record(tmp_path / "3.json").failures)
