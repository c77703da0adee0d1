"""Schedules as data."""

from dataclasses import replace
from itertools import islice

import pytest

from reward_forcing.flow import warp_denoising_steps
from reward_forcing.rollout.schedule import (
    SCHEDULES,
    Pass,
    chunks_at_once,
    chunkwise,
    format_timetable,
    rolling,
    timetable,
)


def test_chunkwise_finishes_a_chunk_before_it_begins_the_next():
    assert list(islice(chunkwise((1.0, 0.5)), 4)) == [
        Pass((0,), (1.0,), (0.5,)),
        Pass((0,), (0.5,), (None,)),
        Pass((1,), (1.0,), (0.5,)),
        Pass((1,), (0.5,), (None,)),
    ]


def test_rolling_windows_grow_stay_full_and_shrink():
    assert list(rolling((1.0, 0.6), chunks=3)) == [
        Pass((0,), (1.0,), (0.6,)),
        Pass((0, 1), (0.6, 1.0), (None, 0.6)),
        Pass((1, 2), (0.6, 1.0), (None, 0.6)),
        Pass((2,), (0.6,), (None,)),
    ]


def test_rolling_windows_without_end_stay_full():
    assert list(islice(rolling((1.0, 0.6)), 5))[3:] == [
        Pass((2, 3), (0.6, 1.0), (None, 0.6)),
        Pass((3, 4), (0.6, 1.0), (None, 0.6)),
    ]


def test_fewer_chunks_than_steps_roll_together_and_wait_for_nobody():
    assert list(rolling((1.0, 0.9, 0.6, 0.3), chunks=2)) == [
        Pass((0,), (1.0,), (0.9,)),
        Pass((0, 1), (0.9, 1.0), (0.6, 0.9)),
        Pass((0, 1), (0.6, 0.9), (0.3, 0.6)),
        Pass((0, 1), (0.3, 0.6), (None, 0.3)),
        Pass((1,), (0.3,), (None,)),
    ]


@pytest.mark.parametrize("chunks", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_exits_tile_the_video_with_every_chunk_at_the_level_of_its_age(steps, chunks):
    sigmas = [1.0 - step / (steps + 1) for step in range(steps)]
    plain = list(rolling(sigmas, chunks=chunks))
    for exit_window in range(steps):
        passes = list(rolling(sigmas, exit_window, chunks=chunks))
        exits = [(window, step) for window, step in enumerate(passes) if step.is_exit]
        assert [chunk for _, step in exits for chunk in step.chunks] == list(range(chunks))
        assert all(window % steps == exit_window for window, _ in exits)
        assert all(step.sigma == tuple(sigmas[window - chunk] for chunk in step.chunks) for window, step in exits)
        assert passes[-1].is_exit
        assert [replace(step, is_exit=False, grad=False) for step in passes] == plain[: len(passes)]
        assert not any(step.is_exit for step in plain)
        endless = islice(rolling(sigmas, exit_window), 2 * steps)
        assert [step.is_exit for step in endless] == [window % steps == exit_window for window in range(2 * steps)]


def test_exits_that_hold_a_chosen_chunk_are_trained():
    passes = list(rolling((1.0, 0.6, 0.3), 1, grad_from=3, chunks=6))
    assert [(step.chunks, step.grad) for step in passes if step.is_exit] == [
        ((0, 1), False), ((2, 3, 4), True), ((5,), True)
    ]  # fmt: skip
    assert not any(step.grad for step in passes if not step.is_exit)
    assert all(step.grad for step in rolling((1.0, 0.6, 0.3), 1, chunks=6) if step.is_exit)


@pytest.mark.parametrize("exit_window", [-1, 2])
def test_an_exit_window_that_is_none_is_rejected_at_once(exit_window):
    with pytest.raises(ValueError, match=rf"exit_window must be in 0 .. 1 for 2 sigmas, got {exit_window}"):
        rolling((1.0, 0.5), exit_window)


def test_one_step_rolls_chunk_by_chunk():
    assert list(rolling((1.0,), chunks=3)) == list(chunkwise((1.0,), chunks=3))


def test_as_many_chunks_are_denoised_at_once_as_there_are_steps_and_chunks():
    assert chunks_at_once(rolling((1.0, 0.9, 0.6), chunks=7)) == 3
    assert chunks_at_once(rolling((1.0, 0.9, 0.6), chunks=2)) == 2
    assert chunks_at_once(chunkwise((1.0, 0.9, 0.6), chunks=7)) == 1


def test_only_the_last_pass_of_chosen_chunks_is_trained():
    passes = list(islice(chunkwise((1.0, 0.5), grad_from=1), 6))
    assert [(step.chunks[0], step.sigma[0]) for step in passes if step.grad] == [(1, 0.5), (2, 0.5)]


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("sigmas", [(), (1.0, 1.0), (0.5, 0.9), (1.0, 0.0), (1.5, 0.5), (1.0, -0.5)])
def test_sigmas_that_do_not_decrease_are_rejected_at_once(schedule, sigmas):
    with pytest.raises(ValueError, match="sigmas must decrease strictly"):
        schedule(sigmas)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("chunks", [0, -1])
def test_a_schedule_of_no_chunks_is_rejected_at_once(schedule, chunks):
    with pytest.raises(ValueError, match=f"at least one chunk, or None for no end, got {chunks}"):
        schedule((1.0, 0.5), chunks=chunks)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((), (), ()), "one sigma and one sigma_next for each"),
        (((0, 1), (1.0,), (0.5,)), "one sigma and one sigma_next for each"),
        (((0, 2), (0.5, 1.0), (None, 0.5)), "consecutive chunks"),
        (((1, 0), (0.5, 1.0), (None, 0.5)), "consecutive chunks"),
        (((0, 1), (0.5, 1.0), (None, None)), "only the oldest chunk"),
    ],
)
def test_passes_that_make_no_sense_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        Pass(*arguments)


def test_timetable_shows_the_timesteps_of_every_chunk():
    rows = timetable(chunkwise(warp_denoising_steps((1000, 500), shift=5.0)), passes=4)
    rounded = [[None if step is None else round(step, 1) for step in row] for row in rows]
    assert rounded == [[1000.0, 833.3, None, None], [None, None, 1000.0, 833.3]]
    assert timetable([], passes=4) == []
    assert timetable(rolling((1.0, 0.5), chunks=2)) == [[1000.0, 500.0, None], [None, 1000.0, 500.0]]


def test_timetable_prints_a_line_for_each_chunk():
    text = format_timetable(timetable(chunkwise((1.0, 0.625)), passes=3))
    assert [line.split() for line in text.splitlines()] == [
        ["chunk", "pass", "0", "pass", "1", "pass", "2"],
        ["0", "1000.0", "625.0", "."],
        ["1", ".", ".", "1000.0"],
    ]
