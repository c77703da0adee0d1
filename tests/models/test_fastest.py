"""The fastest candidate is found by a clock, whoever refuses drops out, and an answer is measured once."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from reward_forcing import remembered
from reward_forcing.models.fastest import Choice, fastest


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "answers_file", lambda: tmp_path / "measured.json")


class Fake:
    """Candidates that take given times in turn, and a clock that tells them."""

    def __init__(self, **times: list[float] | None) -> None:
        self.times, self.calls, self.now = times, [], 0.0

    def run(self, name: str) -> None:
        self.calls.append(name)
        times = self.times[name]
        if times is None:
            raise RuntimeError("no available kernel")
        self.now = times[min(self.calls.count(name), len(times)) - 1]

    def candidates(self) -> dict[str, Callable[[], None]]:
        return {name: lambda name=name: self.run(name) for name in self.times}

    def clock(self, run: Callable[[], object]) -> float:
        run()
        return self.now

    def fastest(self, **how: float) -> str | None:
        return fastest(self.candidates(), self.clock, repeats=3, **how)


def test_the_least_time_counts_and_the_first_call_does_not() -> None:
    fake = Fake(slow=[5, 5, 5, 5], cold=[99, 4, 9, 2], lucky_once=[1, 7, 7, 7])
    assert fake.fastest() == "cold"
    assert fake.calls == ["slow", "cold", "lucky_once"] * 4


def test_who_refuses_drops_out_and_is_not_asked_again() -> None:
    fake = Fake(refuses=None, slow=[3], fast=[2])
    assert fake.fastest() == "fast"
    assert fake.calls.count("refuses") == 1
    assert Fake(refuses=None).fastest() is None


def test_the_first_candidate_must_be_beaten_by_the_margin() -> None:
    assert Fake(own=[100], other=[98]).fastest(margin=0.03) == "own"
    assert Fake(own=[100], other=[96]).fastest(margin=0.03) == "other"
    assert Fake(own=None, other=[98], third=[97]).fastest(margin=0.03) == "third"


def test_want_of_memory_is_no_refusal() -> None:
    def starve() -> None:
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        fastest({"a": starve}, lambda run: (run(), 1.0)[1])


def test_a_case_is_measured_once_on_a_machine_and_apart_from_the_callers_modes() -> None:
    asked: list[tuple[int, bool]] = []

    def measure(case: int) -> str:
        assert threading.current_thread() is not threading.main_thread()
        asked.append((case, torch.is_inference_mode_enabled()))
        return "odd" if case % 2 else "even"

    def choice() -> Choice[int]:
        return Choice(lambda case: f"of {case}", ("odd", "even"), measure)

    with torch.inference_mode():
        this, later = choice(), choice()
        assert [this(1), this(2), this(1)] == ["odd", "even", "odd"]
        assert [later(2), later(1)] == ["even", "odd"]
    assert asked == [(1, False), (2, False)]
