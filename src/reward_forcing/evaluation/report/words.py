"""Numbers and names as a reader meets them: as many digits as the interval supports, rates in per cent."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from reward_forcing.evaluation.results import Interval, Score

MOST_DECIMALS = 6
NAMES = {"aligned": "everything right", "count": "number"}
PARTS = {"start": "at the start", "end": "at the end"}


def label(name: str) -> str:
    """A name from results.json in words: 'noise level' of noise_level, 'colour at the end' of colour@end."""
    base, _, part = name.partition("@")
    return " ".join([NAMES.get(base, base), PARTS.get(part, part)]).replace("_", " ").strip()


def number(value: float, decimals: int) -> str:
    """`value` with so many decimals; in powers of ten where `MOST_DECIMALS` would not do, and never as -0."""
    text = f"{value:.{decimals}f}" if decimals <= MOST_DECIMALS else f"{value:.1e}"
    return text.removeprefix("-") if float(text) == 0 else text


def decimals(interval: Interval) -> int:
    """So many decimals that half the interval's width has two digits, or the value four if it has no width."""
    half = (interval.high - interval.low) / 2
    size, digits = (half, 2) if half > 0 else (abs(interval.value), 4)
    return max(0, digits - 1 - math.floor(math.log10(size))) if 0 < size < math.inf else 1


def four_digits(value: float) -> str:
    """A number without an interval, with four digits."""
    return value_of(Interval(value=value, low=value, high=value, count=1))


def value_of(interval: Interval, is_rate: bool = False) -> str:
    """The value: '77.3 %' of a rate, else a plain number."""
    return f"{100 * interval.value:.1f} %" if is_rate else number(interval.value, decimals(interval))


def span_of(interval: Interval, is_rate: bool = False) -> str:
    """The interval: '69.0 to 83.9 %' of a rate, else two plain numbers."""
    if is_rate:
        return f"{100 * interval.low:.1f} to {100 * interval.high:.1f} %"
    return f"{number(interval.low, decimals(interval))} to {number(interval.high, decimals(interval))}"


def points_of(change: Interval) -> tuple[str, str]:
    """A difference of rates and its interval in percentage points, without the unit: '-12.5', '-25.0 to 0.0'.

    A bootstrap interval of few prompts can reach beyond -100 or 100; it is cut there.
    """
    value, low, high = (number(100 * max(-1, min(1, end)), 1) for end in (change.value, change.low, change.high))
    return value, f"{low} to {high}"


def count_of(score: Score) -> str:
    """What the interval rests on: '119 clips' of a rate, '128 prompts' of a mean."""
    return plural(score.count, "clip" if score.kind == "rate" else "prompt")


def date_of(created: str) -> str:
    """The day of an ISO date and time; any other text as it is."""
    day = created[:10]
    return day if re.fullmatch(r"\d{4}-\d\d-\d\d", day) else created


def plural(count: int, noun: str) -> str:
    """'1 clip', '2 clips'."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(names: Iterable[str], last: str = "and") -> str:
    """'a', 'a and b', 'a, b and c'."""
    *first, end = names
    return f"{', '.join(first)} {last} {end}" if first else end


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as one level of `outer.inner` names with text; empty texts, lists and None are left out."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        elif (text := _plain(value)) != "":
            found[prefix + name] = text
    return found


def _plain(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value)
    return str(value)
