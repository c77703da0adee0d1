"""What the scores say, by rule and in words: what was tested, the main numbers, what is weak and what is strong.

Knows no model and no names of sets or metrics; a sentence is made of what stands in results.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reward_forcing.evaluation.paired import LEAST_PROMPTS, PairedMeasure, verdict_on
from reward_forcing.evaluation.report import truth, words
from reward_forcing.evaluation.report.comparison import EndChange, Material
from reward_forcing.evaluation.results import DriftScore, EvalResults, Interval, Score, SetResults

GOOD_RATE = 0.8
"""A rate is weak if its whole interval lies below this, strong if none of it does."""
MAIN_NUMBERS = 4

RULE = (
    f"By rule, a rate is weak if its whole 95 % interval lies below {100 * GOOD_RATE:.0f} %, and strong if none of it "
    "does; a kind of scene is weak if the interval of its entirely right clips lies below the rate of all scenes; a "
    f"change along the clips is weak if its whole interval, of at least {LEAST_PROMPTS} prompts, is on the worse side; "
    "of forty steady measures one is expected there by chance. Means are not called weak or strong: no value of theirs "
    "is known to be good."
)
QUICK = "A quick run with few clips: a look, not figures to quote."
NO_WEAK_POINT = "No weak point by the rule below, which needs enough clips to be sure of one."
HOW_TO_READ = (
    "Each value stands with its 95 % interval: Wilson's for rates, of clips; by drawing prompts anew (bootstrap) for "
    "means, where a prompt counts once with all its seeds. 'Better' says which way is better, all else being equal; "
    "'neither' is a description."
)
HOW_TO_READ_DRIFT = (
    "Drift is the standard deviation of a measure over the segments of a clip, averaged over clips: 0 is steady. The "
    "slope, with its 95 % interval, tells a fall from a fluctuation; 'first to last' is the mean size of the change "
    "between the first and the last segment. Plots: bold the mean of all clips, faint single clips, dashed the slope. "
    "Their vertical axes do not begin at 0. Where a measure was taken at the start and at the end of each clip, the "
    "two are compared clip by clip."
)
HOW_TO_READ_PAIRS = (
    "Clips of the same prompt and seed are compared one with another. Difference: this minus other, with its 95 % "
    "interval, of rates in percentage points. Wins: the share of pairs in which this one is better, ties half. Effect "
    "size: Cohen's d of the prompts' differences. p: of the sign-flip test, two-sided, not corrected for the number "
    "of rows."
)
HOW_RANKED = (
    "Ranked by the share of what the prompt names that the clip shows; ties: more of it right, then the lower prompt "
    "index, then the lower seed."
)


@dataclass(frozen=True)
class MainNumber:
    """A number of the summary with its interval and what it says."""

    value: str
    interval: str
    meaning: str


def tested(results: EvalResults) -> list[str]:
    """What was tested, in sentences."""
    sentences = [
        f"This page reports how well the video model {results.provenance.model} does on the suite '{results.suite}'."
    ]
    sets = [_set_in_words(results, found) for found in results.sets]
    if sets:
        sentences.append(f"It was judged by {words.plural(len(results.samples), 'clip')}: {'; '.join(sets)}.")
    known = [sample for sample in results.samples if truth.named(sample)]
    if known:
        names = dict.fromkeys(name.partition("@")[0] for sample in known for name in truth.named(sample))
        share = "all" if len(known) == len(results.samples) else str(len(known))
        sentences.append(
            f"For {share} of them it is known what a right clip shows: a program, not a person, looked whether "
            f"each shows what its prompt names ({', '.join(map(words.label, names))})."
        )
    if results.provenance.weights is None:
        sentences.append("The clips were made elsewhere; only they were measured here.")
    if results.provenance.decoder is not None:
        sentences.append(f"Its frames are those of the tiny decoder {results.provenance.decoder}, not of its VAE.")
    if not results.provenance.streaming.get("clean_pass", True):
        sentences.append("It streamed without clean passes, which is not how its method was published.")
    if results.provenance.form is not None:
        sentences.append(
            f"Clips were brought to {results.provenance.form} frames per second before they were measured."
        )
    return sentences


def _set_in_words(results: EvalResults, found: SetResults) -> str:
    clips = words.plural(len(truth.samples_of(results, found.name)), "clip")
    prompts, seeds = words.plural(found.prompts, "prompt"), words.plural(found.seeds_per_prompt, "seed")
    return f"{clips} of {found.seconds:.3g} s in the set '{found.name}' ({prompts} with {seeds} each)"


def main_numbers(material: Material) -> list[MainNumber]:
    """Up to four numbers: the clips entirely right, the least and the greatest rate, and what time makes worst.

    The first three are of the set with the shortest clips; without rates, its first means of which a way is better.
    """
    found = truth.short_set(material.results)
    if found is None:
        return []
    numbers = []
    samples = truth.samples_of(material.results, found.name)
    whole, attributes = truth.entirely_right(samples), {name for sample in samples for name in sample.right}
    if whole is not None:
        meaning = f"of {words.plural(whole.count, 'clip')} in '{found.name}' show everything that their prompt names"
        numbers.append(MainNumber(words.value_of(whole, True), words.span_of(whole, True), meaning))
    names = [name for name in _rates(found) if name in attributes] or list(_rates(found))
    for which, name in (("weakest", names[0]), ("strongest", names[-1])) if len(names) > 1 else ():
        score = found.scores[name]
        meaning = f"{words.label(name)}: the {which} rate in '{found.name}', of {words.count_of(score)}"
        numbers.append(MainNumber(words.value_of(score, True), words.span_of(score, True), meaning))
    directed = [(name, score) for name, score in found.scores.items() if score.better != "neither"]
    for name, score in [] if numbers else directed[: MAIN_NUMBERS - 1]:
        unit = f", {score.unit}" if score.unit and score.kind != "rate" else ""
        meaning = f"{words.label(name)} in '{found.name}'{unit}; {score.better} is better"
        is_rate = score.kind == "rate"
        numbers.append(MainNumber(words.value_of(score, is_rate), words.span_of(score, is_rate), meaning))
    return [*numbers, *_worst_of_time(material)][:MAIN_NUMBERS]


def _rates(found: SetResults) -> dict[str, Interval]:
    """The rates of which a way is better, turned so that higher is better, the least first; no verdicts on all."""
    turned: dict[str, Interval] = {}
    for name, score in found.scores.items():
        if score.kind == "rate" and score.better != "neither" and not truth.is_verdict_on_all(name):
            ends = score.value, score.low, score.high
            value, low, high = ends if score.better == "higher" else (1 - ends[0], 1 - ends[2], 1 - ends[1])
            turned[name] = Interval(value=value, low=low, high=high, count=score.count)
    return dict(sorted(turned.items(), key=lambda item: item[1].value))


def _worst_of_time(material: Material) -> list[MainNumber]:
    """The greatest loss of a rate from start to end, else the steepest slope for the worse, else that nothing is clear.

    One number in a list, or none where no set has clips that were followed.
    """
    ends = [(found.name, end) for found in material.results.sets for end in material.ends[found.name] if end.is_rate]
    ends.sort(key=lambda item: (item[1].verdict != "worse", item[1].change.value))
    slopes = [(found, name) for found in material.results.sets for name in worsening(found)]
    slopes.sort(key=lambda item: -_steepness(item[0].drift[item[1]]))
    for name, end in ends[:1]:
        if end.verdict == "worse" or not slopes:
            value, interval = words.points_of(end.change)
            told = {"worse": "the greatest loss", "too few to tell": "the lowest, of too few prompts to tell"}
            meaning = f"{words.label(end.name)}, the end of the clips of '{name}' against their start: "
            meaning += told.get(end.verdict, "no rate is clearly lower at the end")
            return [MainNumber(f"{value} percentage points", interval, meaning)]
    directed = [(found, name) for found in material.results.sets for name in found.drift
                if name in found.scores and found.scores[name].better != "neither"]  # fmt: skip
    for found, name in [*slopes, *directed][:1]:
        slope, score = found.drift[name].slope, found.scores[name]
        told = "the steepest change for the worse" if slopes else "nothing clearly changes for the worse"
        unit = f"{score.unit} per minute".strip()
        meaning = f"{unit}: {words.label(name)} along the clips of '{found.name}' ({score.better} is better); {told}"
        return [MainNumber(words.value_of(slope), words.span_of(slope), meaning)]
    return []


def worsening(found: SetResults) -> list[str]:
    """The metrics of a set whose slope over time lies, with its whole interval, on the worse side; steepest first.

    Steepness is relative to the mean level of the curve, so that units do not matter.
    """
    worse = [name for name, drift in found.drift.items() if _is_worse(drift, found.scores.get(name))]
    return sorted(worse, key=lambda name: -_steepness(found.drift[name]))


def _is_worse(drift: DriftScore, score: Score | None) -> bool:
    return score is not None and verdict_on(drift.slope, score.better) == "worse"


def _steepness(drift: DriftScore) -> float:
    level = sum(abs(value) for _, value in drift.curve) / max(1, len(drift.curve))
    return abs(drift.slope.value) / (level or 1)


def weak_points(material: Material) -> list[str]:
    """Where the model is weak: low rates, kinds of scene below the average, and what gets worse along the clips."""
    sentences = []
    for found in material.results.sets:
        low = [_rate_in_words(found, name) for name, good in _rates(found).items() if good.high < GOOD_RATE]
        worse = [_end_in_words(end) for end in material.ends[found.name] if end.verdict == "worse"]
        slopes = [_slope_in_words(found, name) for name in worsening(found)]
        for start, told in (
            (f"Low rates in '{found.name}'", low),
            (_below_average(material.results, found), _weak_kinds(material.results, found)),
            (f"Worse at the end of the clips of '{found.name}' than at their start", worse),
            (f"Getting worse along the clips of '{found.name}', per minute", slopes),
        ):
            if told:
                sentences.append(f"{start}: {'; '.join(told)}.")
    return sentences


def strong_points(results: EvalResults) -> list[str]:
    """The rates whose whole interval is at or above `GOOD_RATE`, a sentence for each set that has some."""
    sentences = []
    for found in results.sets:
        strong = [_rate_in_words(found, name) for name, good in _rates(found).items() if good.low >= GOOD_RATE]
        if strong:
            sentences.append(f"High rates in '{found.name}': {'; '.join(reversed(strong))}.")
    return sentences


def _rate_in_words(found: SetResults, name: str) -> str:
    score = found.scores[name]
    way = ", lower is better" if score.better == "lower" else ""
    return f"{words.label(name)} {words.value_of(score, True)} ({words.span_of(score, True)}{way})"


def _end_in_words(end: EndChange) -> str:
    if end.is_rate:
        change, interval = words.points_of(end.change)
        return f"{words.label(end.name)} {change} percentage points ({interval})"
    return f"{words.label(end.name)} {words.value_of(end.change)} {end.unit} ({words.span_of(end.change)})"


def _slope_in_words(found: SetResults, name: str) -> str:
    slope, score = found.drift[name].slope, found.scores[name]
    value = f"{words.value_of(slope)} {score.unit}".strip()
    return f"{words.label(name)} {value} ({words.span_of(slope)}, {score.better} is better)"


def _below_average(results: EvalResults, found: SetResults) -> str:
    whole = truth.entirely_right(truth.samples_of(results, found.name))
    share = words.value_of(whole, True) if whole else ""
    return f"Kinds of scene in '{found.name}' that are entirely right less often than all its clips ({share})"


def _weak_kinds(results: EvalResults, found: SetResults) -> list[str]:
    """The kinds of scene whose whole interval lies below the rate of all, the least first."""
    samples = truth.samples_of(results, found.name)
    average, groups = truth.entirely_right(samples), truth.by_kind(samples)
    wholes = {kind: truth.entirely_right(group) for kind, group in groups.items()}
    weak = [(whole.value, kind, whole) for kind, whole in wholes.items()
            if whole is not None and average is not None and whole.high < average.value]  # fmt: skip
    return [
        f"{kind} {words.value_of(whole, True)} of {words.plural(whole.count, 'clip')} ({words.span_of(whole, True)})"
        for _, kind, whole in sorted(weak, key=lambda item: item[:2])
    ]


def compared(paired: Sequence[PairedMeasure]) -> list[str]:
    """In which measures this one is better, worse or different, and in how many it is not clearly so."""
    sentences = []
    for verdict in ("better", "worse", "different"):
        names = [f"{words.label(row.measure)} ({row.set})" for row in paired if row.verdict == verdict]
        if names:
            sentences.append(f"This one is {verdict} in {words.listed(names)}.")
    clear = sum(row.verdict in ("better", "worse", "different") for row in paired)
    if clear < len(paired):
        sentences.append(f"No clear difference in {len(paired) - clear} of {words.plural(len(paired), 'measure')}.")
    return sentences
