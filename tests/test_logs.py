"""Clocks, JSON lines and progress without a terminal."""

import math
import time

import pytest

from reward_forcing import logs
from reward_forcing.logs import Clock, JsonLines, StepProgress, duration, track


def test_nested_times_are_exclusive():
    clock = Clock()
    with clock("outer"):
        time.sleep(0.01)
        with clock("inner"):
            time.sleep(0.05)
    taken = clock.take()
    assert taken["inner"] >= 0.05
    assert 0.01 <= taken["outer"] < 0.05
    assert clock.take() == {}


def test_a_clock_counts_a_block_that_fails_and_stays_usable():
    clock = Clock()
    with pytest.raises(KeyError), clock("outer"), clock("inner"):
        raise KeyError
    with clock("outer"):
        pass
    assert clock.seconds.keys() == {"outer", "inner"}


def test_json_lines_come_back_without_torn_or_later_ones(tmp_path):
    lines = JsonLines(tmp_path / "log.jsonl")
    assert lines.rows() == []
    for step in (1, 2, 3):
        lines.append({"step": step, "loss": math.nan if step == 2 else 0.5})
    with lines.path.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in lines.rows()] == [1, 2, 3]
    lines.truncate_after(2)
    assert lines.rows() == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None}]


def test_without_a_terminal_notes_are_lines_and_bars_are_silent(capsys):
    logs.console.cache_clear()
    with StepProgress("vae", 0, 10) as progress:
        progress.advance(5)
        progress.note(5, "loss 0.5")
    assert list(track([1, 2], "reading")) == [1, 2]
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("vae 5/10  loss 0.5  left 0:00:0")
    assert "reading" not in printed.err
    logs.console.cache_clear()


def test_a_quiet_progress_says_nothing(capsys):
    logs.console.cache_clear()
    with StepProgress("vae", 0, 10, quiet=True) as progress:
        progress.note(5, "loss 0.5")
    assert capsys.readouterr().err == ""
    logs.console.cache_clear()


def test_durations_read_as_hours_minutes_seconds():
    assert duration(3725.4) == "1:02:05"
