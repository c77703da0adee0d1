"""From the records of clips to the scores of a set, and two evaluations of the same prompts and seeds side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from reward_forcing.evaluation.clip_scores import SEGMENT_SECONDS, meaning
from reward_forcing.evaluation.metrics import Way
from reward_forcing.evaluation.results import DriftScore, EvalResults, Interval, Sample, Score, SetResults
from reward_forcing.evaluation.statistics import Comparison, bootstrap_mean, compare, wilson_interval
from reward_forcing.evaluation.vbench_long import clip_frames, split_into_clips

RESAMPLES = 10_000


def score_set(name: str, seconds: float, samples: Sequence[Sample]) -> SetResults:
    """The scores of the clips of one set.

    Rates have Wilson's interval over clips, which takes several seeds of one prompt for independent clips; means have a
    bootstrap over prompts. A score that fewer than 2 prompts have is left out. Drift is that of the curves.
    """
    prompts = _by_prompt(samples)
    values = {score: _values(prompts, score) for score in dict.fromkeys(s for one in samples for s in _all_of(one))}
    scores = {score: _score(score, found) for score, found in values.items() if len(found) > 1}
    curves = dict.fromkeys(curve for sample in samples for curve in sample.curves)
    return SetResults(
        name=name,
        seconds=seconds,
        prompts=len(prompts),
        seeds_per_prompt=max(len(clips) for clips in prompts),
        scores=scores,
        drift={curve: _drift(curve, prompts, scores) for curve in curves if f"{curve}@slope" in scores},
    )


def _all_of(sample: Sample) -> dict[str, float]:
    """Every number of a clip by name, right and wrong as 1 and 0."""
    return {name: float(right) for name, right in sample.right.items()} | sample.scores


def _by_prompt(samples: Iterable[Sample]) -> list[list[Sample]]:
    """The clips of each prompt, by seed."""
    prompts: dict[int, list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: (sample.prompt_index, sample.seed)):
        prompts.setdefault(sample.prompt_index, []).append(sample)
    return list(prompts.values())


def _values(prompts: Sequence[Sequence[Sample]], name: str) -> list[list[float]]:
    """A score of every clip [prompts][seeds], without the prompts of which no clip has it."""
    found = [[_all_of(sample)[name] for sample in clips if name in _all_of(sample)] for clips in prompts]
    return [seeds for seeds in found if seeds]


def _score(name: str, values: Sequence[Sequence[float]]) -> Score:
    what = meaning(name)
    clips = [value for seeds in values for value in seeds]
    rate = what.kind == "rate"
    estimate = wilson_interval(round(sum(clips)), len(clips)) if rate else bootstrap_mean(values, resamples=RESAMPLES)
    return Score(**asdict(estimate), **asdict(what))


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


@dataclass(frozen=True)
class Paired:
    """A score of evaluation A against that of B on the same prompts and seeds.

    comparison: its difference is A - B in the score's unit. Win rate and effect size speak for A, which wins where its
    score is better; where neither way is better, where its score is larger.
    """

    better: Way
    comparison: Comparison


def common_sets(a: EvalResults, b: EvalResults, name: str | None = None) -> list[str]:
    """The names of the sets that both have, or `name` alone. Raises ValueError if one lacks it, or without any."""
    if name is not None:
        return [a.set_named(name).name and b.set_named(name).name]
    names = [one.name for one in a.sets if one.name in {other.name for other in b.sets}]
    if not names:
        theirs = " and ".join(", ".join(one.name for one in results.sets) for results in (a, b))
        raise ValueError(f"the evaluations have no set in common: {theirs}")
    return names


def compare_sets(a: EvalResults, b: EvalResults, name: str) -> dict[str, Paired]:
    """Every score of a set that both have on at least 2 prompts, compared pair by pair.

    p values are of single comparisons, not corrected for their number.
    Raises ValueError where lengths, prompts or seeds differ, naming the first difference.
    """
    if a.set_named(name).seconds != b.set_named(name).seconds:
        lengths = " and ".join(f"{results.set_named(name).seconds:g} s" for results in (a, b))
        raise ValueError(f"the clips of set '{name}' last {lengths}; only equal lengths compare")
    ours, theirs = (_by_prompt(sample for sample in one.samples if sample.set == name) for one in (a, b))
    _check_pairs(name, ours, theirs)
    scores = dict.fromkeys(score for clips in ours for sample in clips for score in _all_of(sample))
    found = {score: _paired(score, ours, theirs) for score in scores}
    return {score: paired for score, paired in found.items() if paired is not None}


def _check_pairs(name: str, a: Sequence[Sequence[Sample]], b: Sequence[Sequence[Sample]]) -> None:
    if len(a) != len(b):
        raise ValueError(f"set '{name}' has {len(a)} prompts in one evaluation and {len(b)} in the other")
    for ours, theirs in zip(a, b, strict=True):
        if ours[0].prompt != theirs[0].prompt:
            where = f"prompt {ours[0].prompt_index} of set '{name}'"
            raise ValueError(f"{where} is '{ours[0].prompt}' in one evaluation and '{theirs[0].prompt}' in the other")
        seeds = [[sample.seed for sample in clips] for clips in (ours, theirs)]
        if seeds[0] != seeds[1]:
            raise ValueError(
                f"'{ours[0].prompt}' has the seeds {seeds[0]} in one evaluation and {seeds[1]} in the other; "
                "make both with the same --seed and --seeds"
            )


def _paired(name: str, a: Sequence[Sequence[Sample]], b: Sequence[Sequence[Sample]]) -> Paired | None:
    """The comparison on the prompts of which every clip of both has the score; None for fewer than 2."""
    pairs = [pair for pair in zip(a, b, strict=True) if all(name in _all_of(s) for clips in pair for s in clips)]
    if len(pairs) < 2:
        return None
    better = meaning(name).better
    sign = -1 if better == "lower" else 1
    of: Callable[[Sequence[Sample]], list[float]] = lambda clips: [sign * _all_of(sample)[name] for sample in clips]  # noqa: E731
    found = compare([of(ours) for ours, _ in pairs], [of(theirs) for _, theirs in pairs], resamples=RESAMPLES)
    if better != "lower":
        return Paired(better, found)
    turned = found.difference
    turned = replace(turned, value=-turned.value, low=-turned.high, high=-turned.low)
    return Paired(better, replace(found, difference=turned))
