"""The GPU protocol's five scripts, whole, at toy size on a CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from reward_forcing.benchmarks.record import BenchResults, SideBySide, Table, WayMeasured, read_record

QUICK = {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
"""What compiled networks compute is no matter of these scripts."""
SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "gpu"


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | QUICK)


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
    ways = [result.name for result in record.results if isinstance(result, WayMeasured)]
    assert [result.kind for result in record.results] == ["side by side", *["way"] * len(ways), "stream", "sweep"]
    assert ways == ["exact", "exact, compiled", "int8", "fp8", "int8-dynamic", "exact, fp8 attention"]
    failed = "\n".join(record.failures)
    assert "exact, graphs: ValueError: graphs=true needs an NVIDIA GPU, not cpu" in failed
    assert "fp8-dynamic, compiled, graphs: ValueError" in failed


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
        "latencies, TAEHV, exact",
        "speed of a stream, TAEHV, exact",
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


def test_one_command_measures_all_in_turn_and_its_failures_are_words(tmp_path: Path) -> None:
    record = record_of("0_in_ten_minutes.py", tmp_path / "0.json")
    named = [result.name if isinstance(result, Table | WayMeasured) else result.kind for result in record.results]
    assert named == [
        *["side by side"] * 2,
        "attention",
        "side by side",
        "exact",
        "exact, compiled",
        "Wan VAE decode",
        "TAEHV decode",
        *(f"{what} of a stream" for what in ("memory", "chunks", "speed")),
        "latencies",
        *(f"{what} of a stream, TAEHV, exact" for what in ("memory", "chunks", "speed")),
        "latencies, TAEHV, exact",
        *("int8", "fp8", "int8-dynamic", "exact, fp8 attention"),
        *("matrix products", "convolutions", "memory"),
    ]
    assert [failure.split(":")[0] for failure in record.failures if "NVIDIA" in failure] == [
        "exact, graphs",
        "exact, compiled, graphs",
        "TAEHV, exact, compiled, graphs",
        "fp8-dynamic, compiled, graphs",
    ]
    ways = {result.name: result for result in record.results if isinstance(result, WayMeasured)}
    assert ways["exact"].error == 0
    assert all(0 < ways[name].error < 0.2 for name in ("int8", "fp8", "exact, fp8 attention"))
    assert "weights fp8" in str(ways["fp8"].speed)
    assert "attention fp8" in str(ways["exact, fp8 attention"].speed)


def test_one_command_stops_where_the_outputs_differ_or_equality_cannot_be_told(tmp_path: Path) -> None:
    broken = "import runpy, sys, reward_forcing.benchmarks.pairs as pairs\n"
    broken += "def fail(*_): raise RuntimeError('no kernel')\n"
    broken += "pairs.against_naive = fail; sys.path.insert(0, sys.argv[1]); sys.argv = sys.argv[2:]\n"
    broken += "runpy.run_path(sys.argv[0], run_name='__main__')"
    script, out = str(SCRIPTS / "0_in_ten_minutes.py"), tmp_path / "0.json"
    command = [sys.executable, "-c", broken, str(SCRIPTS), script, "--tiny", "--device", "cpu", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert read_record(out).failures[0] == "equality: RuntimeError: no kernel"
    assert read_record(out).results == ()
