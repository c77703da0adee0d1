"""Plots drawn as SVG by hand: rates as bars with their intervals, and a metric along clips.

Colours are classes of page.css, so that a plot follows the page into dark mode. Lengths are SVG units; a plot is 360
wide, which a phone shows at about one pixel per unit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reward_forcing.evaluation.report import words
from reward_forcing.evaluation.report.markup import Html, element
from reward_forcing.evaluation.results import Interval

WIDTH = 360
ROW, BAR = 36, 10
LEFT, RIGHT, TOP, BOTTOM, HEIGHT = 52, 352, 8, 168, 196

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Bar:
    """A rate in 0..1 with its interval, under a label."""

    label: str
    rate: Interval


def bar_plot(title: str, bars: Sequence[Bar], mark: float | None = None) -> Html:
    """Rates as bars from 0 to 100 %, each with its interval as a line. mark: a rate to draw a line at."""
    height = ROW * len(bars) + 20
    parts = []
    for i, bar in enumerate(bars):
        top, middle = ROW * i + 20, ROW * i + 20 + BAR / 2
        low, high = _along(bar.rate.low), _along(bar.rate.high)
        told = f"{words.value_of(bar.rate, True)} ({words.span_of(bar.rate, True)})"
        whisker = f"M{low} {middle:g}H{high}M{low} {middle - 4:g}v8M{high} {middle - 4:g}v8"
        parts += [
            element("text", bar.label, x=0, y=top - 6, class_="label"),
            element("text", told, x=WIDTH, y=top - 6, class_="value"),
            element("rect", x=0, y=top, width=WIDTH, height=BAR, class_="track"),
            element("rect", x=0, y=top, width=_along(bar.rate.value), height=BAR, class_="bar"),
            element("path", d=whisker, class_="whisker"),
        ]
    end = ROW * len(bars) + 2
    for rate, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        text = f"{100 * rate:.0f} %"
        parts.append(element("text", text, x=_along(rate), y=end + 14, class_="tick", text_anchor=anchor))
    if mark is not None:
        text = f"{100 * mark:.0f} %"
        lines = "".join(f"M{_along(mark)} {ROW * i + 20}v{BAR + 4}" for i in range(len(bars)))
        parts.append(element("path", d=lines, class_="mark"))
        parts.append(element("text", text, x=_along(mark), y=end + 14, class_="tick", text_anchor="middle"))
    told = "; ".join(f"{bar.label} {words.value_of(bar.rate, True)}" for bar in bars)
    return _plot(f"{title}. {told}.", height, parts)


def _along(rate: float) -> str:
    return f"{WIDTH * min(1, max(0, rate)):.2f}".rstrip("0").rstrip(".")


def line_plot(description: str, curve: Points, clips: Sequence[Points] = (), slope: float | None = None) -> Html:
    """A metric over seconds: the mean in bold, single clips faintly, and the line of its slope per minute dashed.

    The vertical axis covers what is drawn and need not hold 0. Raises ValueError for an empty curve.
    """
    if not curve:
        raise ValueError("a curve needs at least one point")
    line = _trend(curve, slope) if slope is not None else ()
    times = [second for second, _ in curve]
    values = [value for points in (curve, line, *clips) for _, value in points]
    across, up = _Axis(0, max(times) or 1, LEFT, RIGHT), _Axis(*_roomy(values), BOTTOM, TOP)
    parts = []
    for tick in up.ticks():
        parts.append(element("path", d=f"M{LEFT} {up.at(tick)}H{RIGHT}", class_="grid"))
        text = words.number(tick, up.decimals)
        parts.append(element("text", text, x=LEFT - 5, y=f"{float(up.at(tick)) + 4:g}", class_="value"))
    for tick in across.ticks():
        text = words.number(tick, across.decimals)
        parts.append(
            element("text", text, x=across.at(tick), y=BOTTOM + 15, class_="tick", text_anchor="middle"),
        )
    parts.append(element("text", "seconds", x=RIGHT, y=HEIGHT - 2, class_="value"))
    for points, kind in (*((points, "clip") for points in clips), (line, "trend"), (curve, "mean")):
        if points:
            path = " ".join(f"{across.at(second)},{up.at(value)}" for second, value in points)
            parts.append(element("polyline", points=path, class_=f"line {kind}"))
    return _plot(description, HEIGHT, parts)


@dataclass(frozen=True)
class _Axis:
    """Values low..high drawn at positions first..last, with ticks at round numbers."""

    low: float
    high: float
    first: float
    last: float

    @property
    def _step(self) -> float:
        """1, 2 or 5 times a power of ten, so that 3 to 7 steps cover the axis."""
        span = self.high - self.low
        power = 10.0 ** math.floor(math.log10(span / 3))
        return next(power * digit for digit in (5, 2, 1) if span / (power * digit) >= 3)

    @property
    def decimals(self) -> int:
        return max(0, -math.floor(math.log10(self._step) + 1e-9))

    def ticks(self) -> list[float]:
        first, last = math.ceil(self.low / self._step - 1e-9), math.floor(self.high / self._step + 1e-9)
        return [i * self._step for i in range(first, last + 1)]

    def at(self, value: float) -> str:
        share = (value - self.low) / (self.high - self.low)
        return f"{self.first + share * (self.last - self.first):.2f}".rstrip("0").rstrip(".")


def _roomy(values: Sequence[float]) -> tuple[float, float]:
    """The range of the values with a little room; of equal values, a range around them."""
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.05 * abs(low) or 0.5
    return low - room, high + room


def _trend(curve: Points, slope: float) -> Points:
    """The line of this slope per minute through the middle of the curve, at its first and last time."""
    middle = sum(second for second, _ in curve) / len(curve)
    level = sum(value for _, value in curve) / len(curve)
    return [(second, level + slope / 60 * (second - middle)) for second in (curve[0][0], curve[-1][0])]


def _plot(description: str, height: float, parts: Sequence[Html]) -> Html:
    """The drawing; `description` is what a reader who cannot see it is told."""
    return element("svg", *parts, viewBox=f"0 0 {WIDTH} {height:g}", role="img", aria_label=description, class_="plot")
