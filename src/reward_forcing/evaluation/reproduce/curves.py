"""How watched rewards go along a training (the paper's Fig. 6), from the runs' logs, and whether one rises steadily."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from reward_forcing.evaluation.reproduce.claims import LEAST_RUNS, Judged, Verdict
from reward_forcing.evaluation.statistics import Estimate, t_interval
from reward_forcing.logs import JsonLines

Curve = Mapping[int, Sequence[float]]
"""Updates of the generator -> the reward then, one for each run."""
PREFIX = "validation/reward/"
RISE = "dynamics_rise_in_training"
RISE_CLAIM = "The dynamic score increases steadily with training time (Fig. 6)."


def reward_curve(runs: Sequence[Path], name: str, generator_every: int) -> dict[int, tuple[float, ...]]:
    """The mean of a watched reward over validation clips, at the updates of the generator that all runs logged."""
    key = PREFIX + name
    logs = [{int(row["step"]): float(row[key]) for row in JsonLines(run / "log.jsonl").rows() if key in row}
            for run in runs]  # fmt: skip
    steps = [step for step in logs[0] if all(step in log for log in logs)] if logs else []
    return {-(-step // generator_every): tuple(log[step] for log in logs) for step in steps}


def rise_of(curve: Curve) -> Estimate | None:
    """The slope of the least squares line through each run's curve, per 100 updates, mean over runs; None for one run.

    Its interval is over runs: all of them watch the same clips.
    """
    updates = np.array(list(curve), np.float64)
    if len(updates) < 2 or len(next(iter(curve.values()))) < LEAST_RUNS:
        return None
    away = updates - updates.mean()
    return t_interval(100 * away @ np.array(list(curve.values())) / (away @ away))


def judge_rise(name: str, curve: Curve) -> Judged:
    """Whether the reward called `name` rises in training: by the interval of its slope."""
    slope = rise_of(curve)
    if slope is None:
        return Judged("not measured", f"Not measured (two runs with two logged points). The paper: {RISE_CLAIM}")
    verdict: Verdict = "reproduced" if slope.low > 0 else "not reproduced" if slope.high < 0 else "undecided"
    first, *_, last = (float(np.mean(values)) for values in curve.values())
    numbers = f"{name} goes from {first:.3f} to {last:.3f}, {slope.value:+.3f} [{slope.low:+.3f}, {slope.high:+.3f}]"
    sentence = f"{verdict.capitalize()} at this scale. The paper: {RISE_CLAIM} Here: {numbers} per 100 updates."
    return Judged(verdict, sentence)
