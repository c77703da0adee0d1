"""Clips whose right answer is known: how much of it they show, which are best and worst, what scene they are of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from reward_forcing.data.captions import DIRECTIONS, GERUNDS, VERBS
from reward_forcing.evaluation.results import ALIGNED, EvalResults, Interval, Sample, SetResults
from reward_forcing.evaluation.statistics import wilson_interval

RANKED = 3


@dataclass(frozen=True)
class Ranked:
    """Clips with a known truth: best first, the middle ones, and the worst first. No clip is in two of them."""

    best: tuple[Sample, ...]
    median: tuple[Sample, ...]
    worst: tuple[Sample, ...]


def samples_of(results: EvalResults, name: str) -> tuple[Sample, ...]:
    """The clips of one set, in the order of results.json."""
    return tuple(sample for sample in results.samples if sample.set == name)


def short_set(results: EvalResults) -> SetResults | None:
    """The set with the shortest clips, the first of them if there are several; None if there is no set."""
    return min(results.sets, key=lambda found: found.seconds, default=None)


def is_verdict_on_all(name: str) -> bool:
    """Whether an attribute or score sums up the others."""
    return name.partition("@")[0] == ALIGNED


def named(sample: Sample) -> dict[str, bool]:
    """What the prompt names -> whether the clip shows it, without the verdict on the whole."""
    return {name: right for name, right in sample.right.items() if not is_verdict_on_all(name)}


def share_right(sample: Sample) -> float:
    """The share of what the prompt names that the clip shows. The sample must have a known truth."""
    return sum(named(sample).values()) / len(named(sample))


def entirely_right(samples: Iterable[Sample]) -> Interval | None:
    """The rate of clips that show all that their prompt names, with Wilson's interval; None if no truth is known."""
    known = [all(named(sample).values()) for sample in samples if named(sample)]
    return Interval.of(wilson_interval(sum(known), len(known))) if known else None


def ranked(samples: Iterable[Sample]) -> Ranked:
    """Three best, median and worst clips by `share_right`; a third of the clips each if there are fewer than nine.

    Ties: more attributes right first, then the lower prompt index, then the lower seed. Clips without a known truth
    are left out; of one or two clips none is the median.
    """
    known = [sample for sample in samples if named(sample)]
    known.sort(key=lambda sample: (-share_right(sample), -len(named(sample)), sample.prompt_index, sample.seed))
    if len(known) < 3:
        return Ranked(tuple(known[:1]), (), tuple(known[1:]))
    each = min(RANKED, len(known) // 3)
    middle = (len(known) - each) // 2
    return Ranked(tuple(known[:each]), tuple(known[middle : middle + each]), tuple(known[: -each - 1 : -1]))


def by_kind(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """The clips with a known truth by the kind of scene that their prompt asks for, 'other' where it names none.

    Empty if no prompt names a kind.
    """
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        if named(sample):
            groups.setdefault(scene_kind(sample.prompt) or "other", []).append(sample)
    return {} if set(groups) <= {"other"} else dict(sorted(groups.items()))


def scene_kind(prompt: str) -> str | None:
    """The kind of scene of the procedural world that a prompt is worded for, None if it names none."""
    text = f" {' '.join(re.findall('[a-z]+', prompt.lower()))} "
    return next((kind for pattern, kind in _wordings() if pattern.search(text)), None)


@cache
def _wordings() -> tuple[tuple[re.Pattern[str], str], ...]:
    """What names a kind of scene, in the order in which it is looked for."""
    return (
        (_any_of(("snow", "snowing", "snowflakes")), "snow"),
        (_any_of(("camera",)), "pan"),
        (_any_of(("sun", "day", "night", "sunrise", "sunset")), "day"),
        (_any_of(("and a", "and an", "and the")), "two"),
        *((_any_of((verb,)), kind) for verb, kind in _verbs()),
        (_any_of(_towards("climb")), "climb"),
        (_any_of(_towards("slide")), "slide"),
    )


def _any_of(phrases: Iterable[str]) -> re.Pattern[str]:
    return re.compile(f" (?:{'|'.join(phrases)}) ")


def _verbs() -> Sequence[tuple[str, str]]:
    """Every wording of a motion with its kind, the longest first: 'bounces off the walls' is no 'bounces'.

    Without those that name no kind by themselves: 'moves' is a slide or a climb by its direction.
    """
    plain = [(verb, kind) for kind in VERBS if kind not in ("slide", "climb", "two") for form in VERBS[kind]
             for verb in form]  # fmt: skip
    return sorted(set(plain), key=lambda item: (-len(item[0]), item))


def _towards(kind: str) -> list[str]:
    """The words of a direction of `kind`, and the verbs that say one: 'to the left', 'rises', 'rising'."""
    wordings = [wording for (of, _), some in DIRECTIONS.items() if of == kind for wording in some]
    found = [wording.replace("{}", "").strip() for wording in wordings]
    return [*found, *(GERUNDS[wording] for wording in found if wording in GERUNDS)]
