"""The record: its schema, what is kept of a killed run, and that no speed is printed bare."""

from pathlib import Path

import pytest

from reward_forcing.benchmarks.clock import cpu_seconds, median_of_pairs, percentile
from reward_forcing.benchmarks.record import (
    Conditions,
    Point,
    Recorder,
    Series,
    Speed,
    Sweep,
    Table,
    bench_schema,
    read_record,
)

ROOT = Path(__file__).parents[2]
CONDITIONS = Conditions(
    model="D",
    method="reward",
    scope="DiT only",
    window_frames=9,
    passes="4+1",
    precision="float32",
    decoder="none",
    size=(16, 16),
    text=(8, 32),
)


def sweep_of(values: list[str]) -> Sweep:
    speed, chunks = Speed(wall=2.0, cpu=3.0, conditions=CONDITIONS), Series(wall=(1.0,), cpu=(0.5,))
    return Sweep(over="window", points=tuple(Point(value=v, speed=speed, chunks=chunks, flops=1) for v in values))


def test_the_documented_schema_is_the_one_of_the_code() -> None:
    assert (ROOT / "docs" / "bench.schema.json").read_text(encoding="utf-8") == bench_schema()


def test_every_sub_result_is_in_the_file_at_once(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "bench.json", "rforce bench", seed=3)
    assert read_record(tmp_path / "bench.json").results == ()
    recorder.add(Table(name="memory", unit="GB/s", values={"copy": 10.0, "none": None}))
    recorder.fail("no time left")
    found = read_record(tmp_path / "bench.json")
    assert found == recorder.record
    assert found.failures == ("no time left",)
    assert found.seed == 3
    assert list(tmp_path.iterdir()) == [tmp_path / "bench.json"]


def test_a_growing_sweep_is_one_result(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "bench.json", "rforce bench sweep", seed=0)
    for values in (["6"], ["6", "9"], ["6", "9", "12"]):
        recorder.add(sweep_of(values))
        assert recorder.record.results == (sweep_of(values),)
    recorder.add(sweep_of(["3"]))
    assert len(recorder.record.results) == 2


def test_a_record_needs_its_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        Recorder(tmp_path / "nowhere" / "bench.json", "", 0)


@pytest.mark.parametrize("average", ["steady state", "clip"])
def test_a_speed_in_words_says_what_it_counts(average: str) -> None:
    words = str(Speed(wall=23.1, cpu=None, conditions=CONDITIONS.model_copy(update={"average": average})))
    for part in ("23.1 FPS", "DiT only", "window 9", "4+1 passes", "float32", "decoder none", average, "16x16 latents"):
        assert part in words


def test_quantiles_are_interpolated_and_pairs_compared_pair_by_pair() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.5
    assert percentile([1.0, 2.0, 3.0], 100) == 3.0
    assert median_of_pairs([1.0, 10.0, 1.0], [2.0, 20.0, 7.0]) == 2.0


def test_cpu_seconds_grow_with_work_and_not_with_waiting() -> None:
    import time

    before = cpu_seconds()
    time.sleep(0.2)
    waited = cpu_seconds() - before
    sum(number * number for number in range(1_000_000))
    assert waited < 0.1
    assert cpu_seconds() - before > waited
