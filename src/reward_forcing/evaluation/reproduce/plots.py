"""An ablation as pictures: bars with intervals, the course of training, drift along long clips, clips to look at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from reward_forcing.evaluation.clip_scores import SEGMENT_SECONDS
from reward_forcing.evaluation.reproduce.measure import MEASURES
from reward_forcing.evaluation.reproduce.paper import TABLES, PaperTable
from reward_forcing.evaluation.reproduce.recipe import LONG, OURS
from reward_forcing.evaluation.reproduce.record import ALONG_CLIPS, AblationResults, Cell, VariantResults
from reward_forcing.evaluation.results import read_results
from reward_forcing.streaming.contact_sheet import contact_sheet
from reward_forcing.streaming.video_io import read_video

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BARRED = ("moves", "alignment", "background_shift", "colour_shift")
"""Measures that have bars besides the columns of the paper's table."""
SHEET_FRAMES = 16


def plots_of(results: AblationResults) -> dict[str, str]:
    """The pictures of an ablation: file -> caption."""
    drawn = _names(_drawn(results))
    captions = (
        f"Every variant with 95 % intervals; the dashed line is {OURS}; axes need not begin at 0",
        f"Watched rewards in training, mean over runs and their range: {drawn}",
        f"Along the long clips, mean over runs and their range: {drawn}",
        f"The first long clip of each variant, evenly spaced frames: {_names(_apart(results))}",
    )
    names = (f"{results.recipe['table']}_{part}.png" for part in ("bars", "training", "drift", "clips"))
    return dict(zip(names, captions, strict=True))


def draw(results: AblationResults, out: Path) -> list[Path]:
    """The pictures' files in `out`/images. out: the ablation's folder, where the clips are.

    Raises ImportError that names the extra where matplotlib is missing.
    """
    folder = out / "images"
    folder.mkdir(exist_ok=True)
    *figures, clips = (folder / name for name in plots_of(results))
    for path, figure in zip(figures, (_bars(results), _training(results), _along(results)), strict=True):
        figure.savefig(path, dpi=110)
    _clips(results, out).save(clips)
    return [*figures, clips]


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plots need matplotlib; run: pip install -e '.[eval]' in its checkout") from None
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _bars(results: AblationResults) -> Figure:
    """One row of bars for each measure, a bar for each variant."""
    wanted = dict.fromkeys((*_paper(results).columns, *BARRED))
    names = [name for name in wanted if any(name in one.measures for one in results.variants.values())]
    columns = 3
    height = 0.6 + 0.24 * len(results.variants)
    figure, axes = _figure(-(-len(names) // columns), columns, 5.2, height)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    labels = [variant.label for variant in results.variants.values()]
    ours = list(results.variants).index(OURS)
    for number, (axis, name) in enumerate(zip(axes.flat, names, strict=False)):
        _bar_row(axis, [variant.measures.get(name) for variant in results.variants.values()], ours)
        axis.set_title(f"{MEASURES[name].label} ({MEASURES[name].better} is better)", fontsize=9)
        axis.set_yticks(range(len(labels)), labels if number % columns == 0 else [""] * len(labels), fontsize=8)
    return figure


def _bar_row(axis: Axes, cells: Sequence[Cell | None], ours: int) -> None:
    """A bar for each known cell, that of number `ours` in colour and with a line through all."""
    known = [(place, cell.value) for place, cell in enumerate(cells) if cell is not None]
    places, values = [place for place, _ in known], [one.value for _, one in known]
    errors = np.abs([[one.value - one.low for _, one in known], [one.high - one.value for _, one in known]])
    colours = ["tab:blue" if place == ours else "tab:gray" for place in places]
    axis.barh(places, values, xerr=errors, color=colours, height=0.7, error_kw={"elinewidth": 1, "capsize": 2})
    if ours in places:
        axis.axvline(values[places.index(ours)], color="tab:blue", linestyle="--", linewidth=0.8)
    axis.set_ylim(len(cells) - 0.5, -0.5)
    ends = [end for _, one in known for end in (one.low, one.high)]
    if max(ends) > min(ends) > 0.5 * max(ends) > 0:  # near one another: from 0 on no difference could be seen
        room = 0.1 * (max(ends) - min(ends))
        axis.set_xlim(min(ends) - room, max(ends) + room)
    axis.tick_params(labelsize=8)


def _training(results: AblationResults) -> Figure:
    """The watched rewards over the generator's updates."""
    names = list(results.variants[OURS].curves)
    figure, axes = _figure(1, max(1, len(names)), 5.2, 3.6)
    for axis, name in zip(axes.flat, names, strict=False):
        for variant in _drawn(results):
            points = np.array(variant.curves[name])
            if len(points):
                _band(axis, points[:, 0], points[:, 1:].T, variant.label)
        _label(axis, f"watched reward: {name}", "updates of the generator")
    return figure


def _along(results: AblationResults) -> Figure:
    """Scores along the long clips."""
    figure, axes = _figure(1, len(ALONG_CLIPS), 4.2, 3.6)
    for axis, name in zip(axes.flat, ALONG_CLIPS, strict=True):
        for variant in _drawn(results):
            curves = np.array(variant.along[name])
            if curves.size:
                _band(axis, SEGMENT_SECONDS * (np.arange(curves.shape[1]) + 0.5), curves, variant.label)
        _label(axis, name.replace("_", " "), "seconds")
    return figure


def _band(axis: Axes, x: Any, runs: Any, label: str) -> None:
    """The mean over runs [K, n] and the range that they span."""
    (line,) = axis.plot(x, runs.mean(axis=0), label=f"{label} ({len(runs)} runs)", linewidth=1.5)
    axis.fill_between(x, runs.min(axis=0), runs.max(axis=0), color=line.get_color(), alpha=0.2, linewidth=0)


def _label(axis: Axes, title: str, along: str) -> None:
    axis.set_title(title, fontsize=9)
    axis.set_xlabel(along, fontsize=8)
    axis.tick_params(labelsize=8)
    if axis.lines:
        axis.legend(fontsize=7)


def _clips(results: AblationResults, out: Path) -> Any:
    """A row for each trained variant: its first long clip of its first run."""
    rows = []
    for variant in _apart(results):
        folder = out / variant.trained_as / f"seed{variant.seeds[0]}" / "evaluation"
        sample = next(sample for sample in read_results(folder).samples if sample.set == LONG)
        frames, _ = read_video(folder / sample.file)
        rows.append(frames[torch.linspace(0, len(frames) - 1, SHEET_FRAMES).round().long()])
    return contact_sheet(torch.cat(rows), SHEET_FRAMES)


def _drawn(results: AblationResults) -> list[VariantResults]:
    return [results.variants[name] for name in _paper(results).drawn if name in results.variants]


def _paper(results: AblationResults) -> PaperTable:
    return TABLES[results.recipe["table"]]


def _apart(results: AblationResults) -> list[VariantResults]:
    """The variants that were trained themselves."""
    return [variant for name, variant in results.variants.items() if variant.trained_as == name]


def _names(variants: Iterable[VariantResults]) -> str:
    return ", ".join(variant.label for variant in variants)
