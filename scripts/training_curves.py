"""Draws the courses of trainings from their logs: a panel for each run with its losses, and one for watched rewards.

    python scripts/training_curves.py runs/mini/4_teacher runs/mini/5_teacher_longer --out curves.png

Lines are what was logged (means over `train.log_every` steps), dots what was measured on validation clips.
"""

from collections import defaultdict
from pathlib import Path
from typing import Annotated

import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reward_forcing.logs import JsonLines

COLUMNS = 3
VALIDATION, REWARD = "validation/", "validation/reward/"

Course = list[tuple[int, float]]


def courses(run: Path) -> dict[str, Course]:
    """(step, value) of every loss and watched reward of a run, by name."""
    found: dict[str, Course] = defaultdict(list)
    for row in JsonLines(run / "log.jsonl").rows():
        for name, value in row.items():
            if name.endswith("/loss") or name.startswith(REWARD):
                found[name].append((int(row["step"]), float(value)))
    return dict(found)


def panels_of(run: Path) -> dict[str, dict[str, Course]]:
    """Panel title -> its courses."""
    found = courses(run)
    losses = {name: course for name, course in found.items() if name.endswith("/loss")}
    rewards = {name: course for name, course in found.items() if name.startswith(REWARD) and "alarms" not in name}
    panels = {run.name: losses, f"{run.name}: watched rewards": rewards}
    return {title: lines for title, lines in panels.items() if lines}


def draw(axes: Axes, title: str, lines: dict[str, Course]) -> None:
    """One panel; a curve of single points over a long range is cut at its early peak, which tells nothing."""
    for name, course in sorted(lines.items()):
        steps, values = zip(*course, strict=True)
        measured = name.startswith(VALIDATION)
        axes.plot(steps, values, "o-" if measured else "-", markersize=3, linewidth=1, label=name)
    settled = sorted(value for course in lines.values() for _, value in course[len(course) // 20 :])
    if not title.endswith("rewards"):
        axes.set_ylim(0.95 * settled[0], 1.05 * settled[int(0.98 * (len(settled) - 1))])
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("step")
    axes.legend(fontsize=7)


def main(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    out: Annotated[Path, typer.Option(help="The picture.")],
) -> None:
    """Write the picture."""
    panels = {title: lines for run in runs for title, lines in panels_of(run).items()}
    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(4.2 * COLUMNS, 3 * rows), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes, (title, lines) in zip(grid, panels.items(), strict=False):
        draw(axes, title, lines)
    for axes in grid[len(panels) :]:
        axes.axis("off")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=100)


if __name__ == "__main__":
    typer.run(main)
