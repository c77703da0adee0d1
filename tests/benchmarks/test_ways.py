"""One network in several ways: the same weights and chunk, and the error that rounding makes."""

from collections.abc import Callable

import pytest
import torch
from models.tape import Tapes

from reward_forcing.benchmarks.subjects import Subject
from reward_forcing.benchmarks.ways import EXACT, LOW_BIT, accelerated, measure_way, name_of
from reward_forcing.models import cuda_graphs
from reward_forcing.models.wan_dit import WanDiT
from reward_forcing.streaming.acceleration import Acceleration
from reward_forcing.streaming.methods import METHODS


@pytest.fixture
def subject(tiny_dit: Callable[..., WanDiT]) -> Subject:
    network = tiny_dit().requires_grad_(False)
    return Subject("tiny", network, METHODS["reward"], "reward", "float32", (4, 6), torch.randn(1, 8, 12))


def test_every_way_has_a_name_of_its_own() -> None:
    names = [name_of(how) for how in (*EXACT, *LOW_BIT)]
    assert len(names) == len(set(names))
    assert names[:2] == ["exact", "exact, graphs"]


def test_graphs_are_captured_before_what_counts_and_change_nothing(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    tapes = Tapes()
    monkeypatch.setattr(Acceleration, "check", lambda self, device: None)
    monkeypatch.setattr(cuda_graphs, "CudaCapture", lambda device: tapes)
    found = measure_way(subject, Acceleration(graphs=True), chunks=2)
    assert found.error == 0
    assert len(found.chunks.wall) == 2
    assert tapes.captured == 2
    assert tapes.replayed >= 2 * 5
    assert "CUDA graphs" in str(found.speed)


def test_low_bits_have_an_error_and_leave_the_subject_as_it_is(subject: Subject) -> None:
    for how in (Acceleration(weights="int8"), Acceleration(weights="fp8"), Acceleration(attention="fp8")):
        assert measure_way(subject, how, 1).error > 0
    assert measure_way(subject, Acceleration(), 1).error == 0


def test_ways_share_their_weights(subject: Subject) -> None:
    twin = accelerated(subject, Acceleration()).network
    assert twin is not subject.network
    for one, other in zip(twin.parameters(), subject.network.parameters(), strict=True):
        assert one.data_ptr() == other.data_ptr()
