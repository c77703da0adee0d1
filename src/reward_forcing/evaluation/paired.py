"""Two evaluations side by side: every number on the clips of the same prompt and seed that both have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from reward_forcing.evaluation.results import EvalResults, Interval, Sample, Score, Way
from reward_forcing.evaluation.statistics import compare

Verdict = Literal["better", "worse", "different", "no clear difference", "too few to tell"]
Pairs = Sequence[Sequence[tuple[float, float]]]
"""Two numbers for each clip: [prompts][seeds]."""

LEAST_PROMPTS = 5
"""Bootstrap intervals of fewer prompts are too narrow for a verdict: two that agree by chance would make one."""


@dataclass(frozen=True)
class PairedMeasure:
    """A measure of the clips that two evaluations share.

    clips: the number of pairs. ours, theirs: means over prompts. difference: ours - theirs with its interval. win_rate:
    share of pairs that ours wins, ties half; None where no way is better. p_value: of the sign-flip test, not corrected
    for the number of measures. effect_size: Cohen's d_z of ours - theirs.
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


def pair(results: EvalResults, against: EvalResults, only: str | None = None) -> tuple[PairedMeasure, ...]:
    """Every attribute and score that clips of the same set, prompt and seed have in both evaluations.

    only: the one set to compare; without it, all that both have. Numbers that fewer than 2 prompts share are left out.
    Raises ValueError for sets that one lacks or whose lengths differ, and where nothing is left to compare.
    """
    theirs = {(sample.set, sample.prompt, sample.seed): sample for sample in against.samples}
    found = []
    for name in _common_sets(results, against, only):
        ours = [sample for sample in results.samples if sample.set == name]
        keys = [(sample.set, sample.prompt, sample.seed) for sample in ours]
        shared = [(sample, theirs[key]) for sample, key in zip(ours, keys, strict=True) if key in theirs]
        scores = results.set_named(name).scores
        for measure in dict.fromkeys(measure for sample, _ in shared for measure in sample.numbers):
            pairs = pairs_of(shared, measure, measure)
            if len(pairs) > 1:
                found.append(_paired(name, measure, pairs, scores.get(measure)))
    if not found:
        raise ValueError(
            "the two evaluations share fewer than two prompts with the same set and seed; compare runs of one suite"
        )
    return tuple(found)


def _common_sets(a: EvalResults, b: EvalResults, only: str | None) -> list[str]:
    names = [one.name for one in a.sets if one.name in {other.name for other in b.sets}]
    if only is not None:
        names = [a.set_named(only).name and b.set_named(only).name]
    if not names:
        theirs = " and ".join(", ".join(one.name for one in results.sets) for results in (a, b))
        raise ValueError(f"the evaluations have no set in common: {theirs}")
    for name in names:
        lengths = [results.set_named(name).seconds for results in (a, b)]
        if lengths[0] != lengths[1]:
            told = " and ".join(f"{seconds:g} s" for seconds in lengths)
            raise ValueError(f"the clips of set '{name}' last {told}; only equal lengths compare")
    return names


def _paired(of: str, name: str, pairs: Pairs, score: Score | None) -> PairedMeasure:
    better = score.better if score else "neither"
    ours, theirs = ([[both[side] for both in seeds] for seeds in pairs] for side in (0, 1))
    outcome = compare(ours, theirs)
    return PairedMeasure(
        set=of,
        measure=name,
        is_rate=score is not None and score.kind == "rate",
        better=better,
        clips=sum(map(len, pairs)),
        ours=mean_of(pairs, 0),
        theirs=mean_of(pairs, 1),
        difference=Interval.of(outcome.difference),
        win_rate={"higher": outcome.win_rate, "lower": 1 - outcome.win_rate, "neither": None}[better],
        effect_size=outcome.effect_size,
        p_value=outcome.p_value,
    )


def pairs_of(clips: Sequence[tuple[Sample, Sample]], first: str, second: str) -> Pairs:
    """The number `first` of the one clip beside `second` of the other, for the pairs that have both, by prompt."""
    by_prompt: dict[str, list[tuple[float, float]]] = {}
    for one, other in clips:
        a, b = one.numbers.get(first), other.numbers.get(second)
        if a is not None and b is not None:
            by_prompt.setdefault(one.prompt, []).append((a, b))
    return list(by_prompt.values())


def mean_of(pairs: Pairs, side: int) -> float:
    """The mean over prompts of the mean over their seeds."""
    return fmean(fmean(both[side] for both in seeds) for seeds in pairs)
