"""A comparison as a table, a line for each measure: for the console and, in Markdown, for a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from reward_forcing.evaluation.metrics import METRICS
from reward_forcing.evaluation.side_by_side.measures import MOTION, ColumnRecord

if TYPE_CHECKING:
    from reward_forcing.evaluation.side_by_side.comparison import Comparison

NONE = "-"
DRIFTING = ("sharpness", "colourfulness")
"""Metrics of single frames whose drift is shown; results.json has all."""

Line = tuple[str, str, Callable[[ColumnRecord], str]]
"""A measure, its unit, and what a column has."""


def table(comparison: Comparison) -> str:
    """The table in columns of one width, with its notes."""
    rows = _rows(comparison)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", *_notes(comparison)])


def markdown(comparison: Comparison) -> str:
    """The table in Markdown, with what it is of, its notes and the command."""
    head, *rows = ([cell.replace("|", r"\|") for cell in row] for row in _rows(comparison))
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    wanted = comparison.wanted
    told = ", then ".join(f'"{prompt}"' + (f" at {at:g} s" if at else "") for at, prompt in wanted.prompts)
    about = f"{told}: {wanted.seconds:g} s, seed {wanted.seed}, measured at {wanted.form} frames per second."
    command = ["", f"`{comparison.command}`"] if comparison.command else []
    return "\n".join([about, "", *lines, "", *(f"- {note}" for note in _notes(comparison)), *command, ""])


def _rows(comparison: Comparison) -> list[list[str]]:
    """The head and a row for each measure: its name, its unit, and what every column has."""
    head = ["", "unit", *(one.name for one in comparison.columns)]
    return [head, *([name, unit, *map(cell, comparison.columns)] for name, unit, cell in _lines(comparison))]


def _lines(comparison: Comparison) -> Iterator[Line]:
    yield "length", "s", lambda one: f"{one.frames / one.fps:.2f}"
    yield "speed", "frames/s", lambda one: NONE if one.speed is None else f"{one.speed.fps:.1f}"
    yield "first frames after", "s", lambda one: NONE if one.speed is None else f"{one.speed.first_seconds:.2f}"
    if any(one.speed and one.speed.peak_memory for one in comparison.columns):
        yield "peak GPU memory", "GiB", _memory
    for name in MOTION:
        yield name.replace("_", " "), METRICS[name].unit, _score(name)
    for name in DRIFTING:
        yield f"drift of {name}", METRICS[name].unit, _drift(name, "drift", "")
        yield f"slope of {name}", f"{METRICS[name].unit} per minute", _drift(name, "slope", "+")
    if not comparison.unjudged:
        yield "motion seen", "1 is all meant", _motion
        yield "aligned", "attributes", _aligned


def _memory(one: ColumnRecord) -> str:
    return NONE if one.speed is None or one.speed.peak_memory is None else f"{one.speed.peak_memory / 2**30:.2f}"


def _score(name: str) -> Callable[[ColumnRecord], str]:
    return lambda one: f"{one.measures.scores[name]:.3g}" if name in one.measures.scores else NONE


def _drift(name: str, part: str, sign: str) -> Callable[[ColumnRecord], str]:
    def cell(one: ColumnRecord) -> str:
        along = one.measures.drift.get(name)
        return NONE if along is None else f"{along.model_dump()[part]:{sign}.3g}"

    return cell


def _motion(one: ColumnRecord) -> str:
    return ", then ".join(f"{part.motion:.2f}" for part in one.measures.judged) or NONE


def _aligned(one: ColumnRecord) -> str:
    """`5 of 7 (not colour, direction)` for each prompt."""
    told = []
    for part in one.measures.judged:
        wrong = [name for name, is_right in part.right.items() if not is_right]
        but = f" (not {', '.join(wrong)})" if wrong else ""
        told.append(f"{len(part.right) - len(wrong)} of {len(part.right)}{but}")
    return ", then ".join(told) or NONE


def _notes(comparison: Comparison) -> list[str]:
    notes = [
        "speed counts text encoding, denoising, decoding and video encoding, as `rforce generate` does, not loading",
        "drift is Reward Forcing's Eq. 12 over segments of 2 s; one clip each, so there are no intervals",
    ]
    notes += [f"{one.name}: {note}" for one in comparison.columns for note in one.notes]
    notes += [
        f"{one.name}: frames of the tiny decoder {decoder}, not the VAE's"
        for one in comparison.columns
        if (decoder := one.made_with.get("decoder"))
    ]
    notes += [
        f"{one.name}: streamed without clean passes"
        for one in comparison.columns
        if not one.made_with.get("settings", {}).get("clean_pass", True)
    ]
    if comparison.wanted.at:
        notes.append("drift and slope hold the changes of the prompt, too")
    if comparison.unjudged:
        notes.append(comparison.unjudged)
    else:
        notes.append("motion seen and aligned are of the last 5 s, of a later prompt of the second half of its time")
    return notes + [f"{name} is left out: {reason}" for name, reason in comparison.left_out.items()]
