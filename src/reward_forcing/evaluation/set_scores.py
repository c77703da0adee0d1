"""From the records of clips to the scores of a set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict

import numpy as np

from reward_forcing.data.scenes import FPS, Scene
from reward_forcing.evaluation.clip_scores import SEGMENT_SECONDS, meaning
from reward_forcing.evaluation.results import DriftScore, Interval, Sample, Score, SetResults
from reward_forcing.evaluation.statistics import bootstrap_mean, wilson_interval
from reward_forcing.evaluation.vbench_long import clip_frames, split_into_clips
from reward_forcing.evaluation.world_distance import DOCS, RENDERED_DOC, beside_rendered, window_frames

RESAMPLES = 10_000


def score_set(name: str, seconds: float, samples: Sequence[Sample], scenes: Sequence[Scene] = ()) -> SetResults:
    """The scores of the clips of one set. scenes: what each prompt should show, where that is known.

    Rates have Wilson's interval over clips, which takes several seeds of one prompt for independent clips; means have a
    bootstrap over prompts, distances from rendered clips a jackknife. A score that fewer than 2 prompts have is left
    out. Drift is that of the curves.
    """
    prompts = _by_prompt(samples)
    values = {score: _values(prompts, score) for score in dict.fromkeys(s for one in samples for s in one.numbers)}
    scores = {score: _score(score, found) for score, found in values.items() if len(found) > 1}
    scores |= _distances(prompts, scenes)
    curves = dict.fromkeys(curve for sample in samples for curve in sample.curves)
    return SetResults(
        name=name,
        seconds=seconds,
        prompts=len(prompts),
        seeds_per_prompt=max(len(clips) for clips in prompts),
        scores=scores,
        drift={curve: _drift(curve, prompts, scores) for curve in curves if f"{curve}@slope" in scores},
    )


def _by_prompt(samples: Iterable[Sample]) -> list[list[Sample]]:
    """The clips of each prompt, by seed."""
    prompts: dict[int, list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: (sample.prompt_index, sample.seed)):
        prompts.setdefault(sample.prompt_index, []).append(sample)
    return list(prompts.values())


def _values(prompts: Sequence[Sequence[Sample]], name: str) -> list[list[float]]:
    """A score of every clip [prompts][seeds], without the prompts of which no clip has it."""
    found = [[sample.numbers[name] for sample in clips if name in sample.numbers] for clips in prompts]
    return [seeds for seeds in found if seeds]


def _score(name: str, values: Sequence[Sequence[float]]) -> Score:
    what = meaning(name)
    clips = [value for seeds in values for value in seeds]
    rate = what.kind == "rate"
    estimate = wilson_interval(round(sum(clips)), len(clips)) if rate else bootstrap_mean(values, resamples=RESAMPLES)
    return Score(**asdict(estimate), **asdict(what))


def _distances(prompts: Sequence[Sequence[Sample]], scenes: Sequence[Scene]) -> dict[str, Score]:
    """How far the clips, and rendered ones in their place, are from rendered clips, for every part with features."""
    found = {}
    one = prompts[0][0]
    for part in one.features if scenes else ():
        start = one.seconds - window_frames(FPS) / FPS if part == "end" else 0.0
        of_clips = [[sample.features[part] for sample in clips] for clips in prompts]
        shown = [scenes[clips[0].prompt_index] for clips in prompts]
        for prefix, estimates in beside_rendered(of_clips, shown, start).items():
            for name, estimate in estimates.items():
                doc = f"{RENDERED_DOC} {DOCS[name]}" if prefix else DOCS[name]
                better = "neither" if prefix else "lower"
                score = Score(**asdict(estimate), better=better, kind="distance", doc=doc)
                found[f"{prefix}{name}@{part}".rstrip("@")] = score
    return found


def _drift(name: str, prompts: Sequence[Sequence[Sample]], scores: dict[str, Score]) -> DriftScore:
    """Drift (Eq. 13) and slope as means over prompts, as `drift.measure_drift` has them over videos."""
    clips = [[sample for sample in samples if name in sample.curves] for samples in prompts]
    change = [[abs(sample.curves[name][-1] - sample.curves[name][0]) for sample in samples] for samples in clips]
    slope = scores[f"{name}@slope"]
    columns = zip(*[_points(sample, name) for samples in clips for sample in samples], strict=False)
    return DriftScore(
        drift=scores[f"{name}@drift"].value,
        slope=Interval(value=slope.value, low=slope.low, high=slope.high, count=slope.count),
        change=float(np.mean([np.mean(seeds) for seeds in change if seeds])),
        curve=tuple(_mean_point(column) for column in columns if len({seconds for seconds, _ in column}) == 1),
    )


def _points(sample: Sample, name: str) -> list[tuple[float, float]]:
    """The middle of each segment, in seconds, with the curve's value there."""
    fps = sample.frames / sample.seconds
    spans = split_into_clips(sample.frames, clip_frames(round(fps, 6), SEGMENT_SECONDS))
    return [((s.start + s.stop) / 2 / fps, value) for s, value in zip(spans, sample.curves[name], strict=True)]


def _mean_point(column: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return column[0][0], float(np.mean([value for _, value in column]))
