"""Prompt changes: how they are written and which chunk they reach."""

import math

import pytest

from reward_forcing.streaming.prompts import Timeline, check_prompts, parse_at


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("5s: a blue ball", (5.0, "a blue ball")),
        ("2.5:a blue ball", (2.5, "a blue ball")),
        (" .5 s :  a: b ", (0.5, "a: b")),
        ("1m: night", (60.0, "night")),
        ("1m30s: night", (90.0, "night")),
    ],
)
def test_a_change_is_a_time_and_a_prompt(text: str, change: tuple[float, str]) -> None:
    assert parse_at(text) == change


@pytest.mark.parametrize("text", ["a blue ball", "5s a blue ball", ": a ball", "-5s: a ball", "five: a ball", ""])
def test_another_form_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="such as '5s: a blue ball'"):
        parse_at(text)


def test_a_change_without_a_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no prompt in '5s:  '"):
        parse_at("5s:  ")


def test_a_change_is_due_at_the_first_chunk_that_begins_at_its_time_or_later() -> None:
    timeline = Timeline.of("red", {2.0: "green", 1.0: "blue"})
    starts = [0.0, 0.75, 1.0, 1.75, 2.5]
    due = [timeline.due(before, start) for before, start in zip([0.0, *starts], starts, strict=False)]
    assert due == [None, None, ("blue",), None, ("green",)]


def test_of_two_changes_before_one_chunk_the_later_counts() -> None:
    assert Timeline.of("red", {1.0: "blue", 1.2: "green"}).due(0.75, 1.5) == ("green",)


@pytest.mark.parametrize("time", [0.0, -1.0, math.nan, math.inf])
def test_a_change_needs_a_positive_finite_time(time: float) -> None:
    with pytest.raises(ValueError, match="positive time in seconds"):
        Timeline.of("red", [(time, "blue")])


def test_two_changes_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match="two prompts are to begin at 1 s"):
        Timeline.of("red", [(1.0, "blue"), (1.0, "green")])


def test_a_change_after_the_last_chunk_began_is_refused() -> None:
    timeline = Timeline.of("red", {4.0: "blue"})
    timeline.check_reached(4.0)
    with pytest.raises(ValueError, match=r"the prompt at 4 s would never be shown.*begins at 3\.90 s"):
        timeline.check_reached(3.9)


@pytest.mark.parametrize("prompts", ["", "  \n", [], ["red", ""], [None]])
def test_a_prompt_must_say_something(prompts: list[str]) -> None:
    with pytest.raises(ValueError, match="prompt"):
        check_prompts(prompts)
