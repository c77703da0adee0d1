"""What a report is written from: the results, how the end of long clips differs from their start, and a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reward_forcing.evaluation.paired import PairedMeasure, Verdict, mean_of, pair, pairs_of, verdict_on
from reward_forcing.evaluation.report.truth import samples_of
from reward_forcing.evaluation.results import EvalResults, Interval, Sample, SetResults, Way
from reward_forcing.evaluation.statistics import bootstrap_mean


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


def end_changes(found: SetResults, samples: Sequence[Sample]) -> tuple[EndChange, ...]:
    """How the scores that a set's clips have at their start and at their end (x@start, x@end) differ, clip by clip.

    Scores that fewer than 2 prompts have are left out.
    """
    changes = []
    for name, score in found.scores.items():
        base, _, part = name.partition("@")
        start = f"{base}@start"
        pairs = pairs_of([(sample, sample) for sample in samples], start, name) if part == "end" else []
        if len(pairs) > 1:
            change = bootstrap_mean([[at_end - at_start for at_start, at_end in seeds] for seeds in pairs])
            means = mean_of(pairs, 0), mean_of(pairs, 1)
            about = score.unit, score.better, score.kind == "rate"
            changes.append(EndChange(base, *means, Interval.of(change), *about))
    return tuple(changes)
