"""Paired differences: two evaluations of the same prompts and seeds, and the start and the end of long clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from reward_forcing.evaluation.report import words
from reward_forcing.evaluation.report.truth import samples_of
from reward_forcing.evaluation.results import EvalResults, Interval, Sample, Score, SetResults
from reward_forcing.evaluation.statistics import bootstrap_mean, compare

Way = Literal["higher", "lower", "neither"]
Verdict = Literal["better", "worse", "different", "no clear difference", "too few to tell"]
Pairs = Sequence[Sequence[tuple[float, float]]]
"""Two numbers for each clip: [prompts][seeds]."""

LEAST_PROMPTS = 5
"""Bootstrap intervals of fewer prompts are too narrow for a verdict: two that agree by chance would make one."""


@dataclass(frozen=True)
class EndChange:
    """A score of long clips at their start and at their end. change: end - start, with its interval over prompts."""

    name: str
    start: float
    end: float
    change: Interval
    unit: str
    better: Way
    is_rate: bool

    @property
    def verdict(self) -> Verdict:
        """What the interval says of the end against the start."""
        return verdict_on(self.change, self.better)


@dataclass(frozen=True)
class PairedMeasure:
    """A measure of the clips that two evaluations share.

    clips: the number of pairs. ours, theirs: means over prompts. difference: ours - theirs with its interval. win_rate:
    share of pairs that ours wins, ties half; None where no way is better. p_value: of the sign-flip test. effect_size:
    Cohen's d_z of ours - theirs.
    """

    set: str
    measure: str
    is_rate: bool
    better: Way
    clips: int
    ours: float
    theirs: float
    difference: Interval
    win_rate: float | None
    effect_size: float
    p_value: float

    @property
    def verdict(self) -> Verdict:
        """What the interval says of ours against theirs."""
        return verdict_on(self.difference, self.better)


@dataclass(frozen=True)
class Material:
    """What a report is written from. other: the model compared with, '' without one. ends: of every set, by name."""

    results: EvalResults
    ends: dict[str, tuple[EndChange, ...]]
    paired: tuple[PairedMeasure, ...] = ()
    other: str = ""


def gather(results: EvalResults, against: EvalResults | None = None) -> Material:
    """The results with all that is computed of them. Raises ValueError as `pair` does."""
    ends = {found.name: end_changes(found, samples_of(results, found.name)) for found in results.sets}
    if against is None:
        return Material(results, ends)
    return Material(results, ends, pair(results, against), against.provenance.model)


def verdict_on(difference: Interval, better: Way) -> Verdict:
    """Whether a difference is for the better: only if its whole interval lies on one side of 0.

    None is given of fewer than `LEAST_PROMPTS`.
    """
    if difference.count < LEAST_PROMPTS:
        return "too few to tell"
    if difference.low <= 0 <= difference.high:
        return "no clear difference"
    if better == "neither":
        return "different"
    return "better" if (difference.low > 0) == (better == "higher") else "worse"


def end_changes(found: SetResults, samples: Sequence[Sample]) -> tuple[EndChange, ...]:
    """How the scores that a set's clips have at their start and at their end (x@start, x@end) differ, clip by clip.

    Scores that fewer than 2 prompts have are left out.
    """
    changes = []
    for name, score in found.scores.items():
        base, _, part = name.partition("@")
        start = f"{base}@start"
        pairs = _pairs([(sample, sample) for sample in samples], start, name) if part == "end" else []
        if len(pairs) > 1:
            change = bootstrap_mean([[at_end - at_start for at_start, at_end in seeds] for seeds in pairs])
            means = _mean(pairs, 0), _mean(pairs, 1)
            about = score.unit, score.better, score.kind == "rate"
            changes.append(EndChange(base, *means, words.as_interval(change), *about))
    return tuple(changes)


def pair(results: EvalResults, against: EvalResults) -> tuple[PairedMeasure, ...]:
    """Every attribute and score that clips of the same set, prompt and seed have in both evaluations.

    Raises ValueError if no set has at least two prompts in common.
    """
    mine, others = ({(s.set, s.prompt, s.seed): s for s in side.samples} for side in (results, against))
    shared = [(sample, others[key]) for key, sample in mine.items() if key in others]
    found = []
    for one in results.sets:
        of_set = [both for both in shared if both[0].set == one.name]
        for name in dict.fromkeys(name for ours, _ in of_set for name in _numbers(ours)):
            pairs = _pairs(of_set, name, name)
            if len(pairs) > 1:
                is_attribute = any(name in ours.right for ours, _ in of_set)
                found.append(_paired(one.name, name, pairs, one.scores.get(name), is_attribute))
    if not found:
        raise ValueError(
            "the two evaluations share fewer than two prompts with the same set and seed; compare runs of one suite"
        )
    return tuple(found)


def _paired(of: str, name: str, pairs: Pairs, score: Score | None, is_attribute: bool) -> PairedMeasure:
    better = "higher" if is_attribute else score.better if score else "neither"
    ours, theirs = ([[both[side] for both in seeds] for seeds in pairs] for side in (0, 1))
    outcome = compare(ours, theirs)
    return PairedMeasure(
        set=of,
        measure=name,
        is_rate=is_attribute or (score is not None and score.kind == "rate"),
        better=better,
        clips=sum(map(len, pairs)),
        ours=_mean(pairs, 0),
        theirs=_mean(pairs, 1),
        difference=words.as_interval(outcome.difference),
        win_rate={"higher": outcome.win_rate, "lower": 1 - outcome.win_rate, "neither": None}[better],
        effect_size=outcome.effect_size,
        p_value=outcome.p_value,
    )


def _numbers(sample: Sample) -> dict[str, float]:
    """All numbers of a clip by name, right and wrong as 1 and 0."""
    return {name: float(right) for name, right in sample.right.items()} | sample.scores


def _pairs(clips: Sequence[tuple[Sample, Sample]], first: str, second: str) -> Pairs:
    """The score `first` of the one clip beside `second` of the other, for the pairs that have both, by prompt."""
    by_prompt: dict[str, list[tuple[float, float]]] = {}
    for one, other in clips:
        a, b = _numbers(one).get(first), _numbers(other).get(second)
        if a is not None and b is not None:
            by_prompt.setdefault(one.prompt, []).append((a, b))
    return list(by_prompt.values())


def _mean(pairs: Pairs, side: int) -> float:
    """The mean over prompts of the mean over their seeds."""
    return fmean(fmean(both[side] for both in seeds) for seeds in pairs)
