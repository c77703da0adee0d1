"""The fast path's speed over one setting at a time: window (the paper's Fig. 6), steps, size, length and batch."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from reward_forcing.benchmarks.clock import Spent, measure
from reward_forcing.benchmarks.pairs import fast_side, series
from reward_forcing.benchmarks.record import Conditions, Point, Speed, Sweep
from reward_forcing.benchmarks.subjects import Subject
from reward_forcing.config import unknown

Tell = Callable[[Sweep], None]

LABELS = {
    "window": "attention window, latent frames",
    "steps": "denoising steps per chunk",
    "size": "latent rows x columns",
    "length": "latent frames of the clip",
    "batch": "videos side by side",
}
DEFAULTS = {
    "window": ("6", "9", "12", "15", "21"),
    "steps": ("1", "2", "4", "8"),
    "size": ("16x16", "24x24", "32x32"),
    "length": ("3", "9", "21", "42"),
    "batch": ("1", "2", "4"),
}
"""What is swept over unless values are given."""


def sweep(subject: Subject, over: str, values: Sequence[str], repeats: int = 3, tell: Tell | None = None) -> Sweep:
    """Speeds of the transformer alone, at every value; the window is full, but for 'length', which is of whole clips.

    values: as text; of 'size' latent ROWSxCOLUMNS. tell: is given the sweep so far after every value.
    Raises ValueError, before anything is measured, for values that make no sense.
    """
    subjects = check_values(subject, over, values)
    points: list[Point] = []
    for value, varied in zip(values, subjects, strict=True):
        points.append(_clip(varied, value) if over == "length" else _steady(varied, value, repeats))
        if tell is not None:
            tell(Sweep(over=over, points=tuple(points)))
    return Sweep(over=over, points=tuple(points))


def check_values(subject: Subject, over: str, values: Sequence[str]) -> list[Subject]:
    """The subject at every value; raises ValueError for an unknown setting and for values that make no sense."""
    if over not in LABELS:
        raise ValueError(unknown("sweep", over, LABELS))
    if not values:
        raise ValueError(f"a sweep over {over} needs values, such as {','.join(DEFAULTS[over])}")
    try:
        return [_varied(subject, over, value) for value in values]
    except ValueError as error:
        raise ValueError(f"--values of a sweep over {over}: {error}") from None


def _varied(subject: Subject, over: str, value: str) -> Subject:
    if over == "size":
        rows, cross, columns = value.partition("x")
        if not cross:
            raise ValueError(f"a size is ROWSxCOLUMNS of latents, got '{value}'")
        size = (int(rows), int(columns))
        if size[0] % subject.network.patch[1] or size[1] % subject.network.patch[2] or min(size) < 1:
            raise ValueError(f"latents of {value} do not divide into patches of {subject.network.patch[1:]}")
        return replace(subject, latent_size=size)
    number = int(value)
    if number < 1:
        raise ValueError(f"expected a number of at least 1, got {value}")
    if over == "window":
        return subject.with_method(window_frames=number)
    if over == "steps":
        return subject.with_method(denoising_steps=tuple(round(1000 * (number - i) / number) for i in range(number)))
    if over == "batch":
        return replace(subject, seeds=tuple(range(subject.seeds[0], subject.seeds[0] + number)))
    if number % subject.method.chunk_frames:
        raise ValueError(f"a length is a multiple of the chunk's {subject.method.chunk_frames} frames, got {value}")
    return replace(subject, length=number)


@torch.no_grad()
def _steady(subject: Subject, value: str, repeats: int) -> Point:
    begin = fast_side(subject, subject.given(subject.chunks_to_fill))
    begin()()
    taken = [measure(begin(), subject.device)[1] for _ in range(repeats)]
    return _point(value, subject, taken, repeats * subject.frames_per_chunk, subject.conditions())


@torch.no_grad()
def _clip(subject: Subject, value: str) -> Point:
    """From the first pass to the last, the window filling up on the way."""
    rollout, taken = subject.fast(), []
    chunks = (subject.length or subject.method.chunk_frames) // subject.method.chunk_frames
    for number in range(chunks):
        commit = number < chunks - 1  # nothing is generated after the last
        taken.append(
            measure(lambda commit=commit: (next(rollout), rollout.cache if commit else None), subject.device)[1]
        )
    frames = subject.geometry.frames_of(chunks * subject.method.chunk_frames) * len(subject.seeds)
    return _point(value, subject, taken, frames, subject.conditions().model_copy(update={"average": "clip"}))


def _point(value: str, subject: Subject, taken: list[Spent], frames: int, conditions: Conditions) -> Point:
    wall, cpu = sum(one.wall for one in taken), sum(one.cpu for one in taken)
    cpu_speed = None if subject.device.type == "cuda" else frames / cpu
    speed = Speed(wall=frames / wall, cpu=cpu_speed, conditions=conditions)
    return Point(value=value, speed=speed, chunks=series(taken), flops=subject.flops)


def draw(found: Sweep, path: Path) -> Path:
    """The sweep as a picture: on a CPU frames per CPU second, on a GPU frames per second.

    Raises ImportError that names the extra where matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plots need matplotlib; run: pip install -e '.[eval]' in its checkout") from None
    speeds = [point.speed.wall if point.speed.cpu is None else point.speed.cpu for point in found.points]
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    axis = figure.subplots()
    axis.plot(range(len(speeds)), speeds, marker="o")
    axis.set_xticks(range(len(speeds)), [point.value for point in found.points])
    axis.set_xlabel(LABELS[found.over])
    axis.set_ylabel("frames per second" if found.points[0].speed.cpu is None else "frames per CPU second")
    axis.set_ylim(bottom=0)
    conditions = found.points[0].speed.conditions
    axis.set_title(f"{conditions.model}, {conditions.scope}, {conditions.precision}, {conditions.average}", fontsize=9)
    figure.savefig(path, dpi=110)
    return path
