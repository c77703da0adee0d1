"""The tables of a report as plain text in cells, and how Markdown writes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from reward_forcing.evaluation.paired import PairedMeasure
from reward_forcing.evaluation.report import truth, words
from reward_forcing.evaluation.report.comparison import EndChange
from reward_forcing.evaluation.results import EvalResults, Interval, Sample, Score, SetResults


@dataclass(frozen=True)
class Table:
    """A table: what it shows, its columns, and rows of as many cells. numbers: the columns that are set flush right."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            assert len(row) == len(self.columns), (self.columns, row)


def scores_tables(found: SetResults) -> list[Table]:
    """Every score of a set with its interval: rates, distances, then means; drift and slope are in `drift_table`."""
    about = (
        f"{words.plural(found.prompts, 'prompt')} with {words.plural(found.seeds_per_prompt, 'seed')} each, clips of "
        f"{found.seconds:.3g} s"
    )
    kinds = (
        ("rate", "clips that are right, and other rates"),
        ("distance", "distances of all clips together from rendered ones"),
        ("mean", "measures of picture and motion"),
    )
    content = []
    for kind, what in kinds:
        rows = [
            _score_row(name, score)
            for name, score in found.scores.items()
            if score.kind == kind and not _is_of_time(found, name)
        ]
        units = ("unit",) if kind == "mean" else ()
        columns = ("measure", "value", "95 % interval", *units, "better", "of", "what it is")
        if rows:
            content.append(Table(f"Set '{found.name}': {what} ({about})", columns, tuple(rows), (1, 2)))
    return content


def _is_of_time(found: SetResults, name: str) -> bool:
    base, _, part = name.partition("@")
    return base in found.drift and part in ("drift", "slope")


def _score_row(name: str, score: Score) -> tuple[str, ...]:
    is_rate = score.kind == "rate"
    numbers = words.value_of(score, is_rate), words.span_of(score, is_rate)
    units = (score.unit,) if score.kind == "mean" else ()
    about = (score.better, words.count_of(score), score.doc.replace("`", ""))
    return (words.label(name), *numbers, *units, *about)


def drift_table(found: SetResults) -> Table:
    """Every metric that was followed along the clips of a set."""
    rows = []
    for name, drift in found.drift.items():
        score, whole = found.scores.get(name), found.scores.get(f"{name}@drift")
        spread = (words.value_of(whole), words.span_of(whole)) if whole else (words.four_digits(drift.drift), "")
        slope = words.value_of(drift.slope), words.span_of(drift.slope)
        known = (score.unit, score.better) if score else ("", "neither")
        of = words.plural(drift.slope.count, "clip")
        rows.append((words.label(name), *spread, *slope, words.four_digits(drift.change), *known, of))
    columns = ("measure", "drift", "95 % interval", "slope per minute", "its 95 % interval", "first to last", "unit",
               "better", "of")  # fmt: skip
    caption = f"Set '{found.name}': change along clips of {found.seconds:.3g} s"
    return Table(caption, columns, tuple(rows), (1, 2, 3, 4, 5))


def time_tables(found: SetResults, ends: Sequence[EndChange]) -> list[Table]:
    """The tables of what changes along the clips of a set, where it was followed."""
    return [*([drift_table(found)] if found.drift else []), *([ends_table(found, ends)] if ends else [])]


def kinds_table(found: SetResults, samples: Sequence[Sample]) -> Table | None:
    """How many clips of each kind of scene are right, attribute by attribute; None if no prompt names a kind."""
    groups = truth.by_kind(samples)
    if not groups:
        return None
    names = list(dict.fromkeys(name for sample in samples for name in truth.named(sample)))
    rows = []
    for kind, group in groups.items():
        whole = truth.entirely_right(group)
        assert whole is not None, kind
        everything = f"{round(whole.value * whole.count)} of {whole.count}"
        rows.append((kind, everything, words.span_of(whole, True), *(_right_of(group, name) for name in names)))
    columns = ("kind of scene", "all right", "95 % interval", *map(words.label, names))
    caption = f"Set '{found.name}': clips that are right, by the kind of scene asked for"
    return Table(caption, columns, tuple(rows), tuple(range(1, len(columns))))


def _right_of(group: Sequence[Sample], name: str) -> str:
    outcomes = [sample.right[name] for sample in group if name in sample.right]
    return f"{sum(outcomes)} of {len(outcomes)}" if outcomes else ""


def ends_table(found: SetResults, ends: Sequence[EndChange]) -> Table:
    """Every score that was taken at the start and at the end of the clips of a set."""
    rows = []
    for end in ends:
        change = words.points_of(end.change) if end.is_rate else (words.value_of(end.change), words.span_of(end.change))
        unit = "percentage points" if end.is_rate else end.unit
        shown = _means((end.start, end.end), end.change, end.is_rate)
        of = words.plural(end.change.count, "prompt")
        rows.append((words.label(end.name), *shown, *change, unit, end.better, end.verdict, of))
    columns = ("measure", "start", "end", "change", "95 % interval", "unit", "better", "the end is", "of")
    return Table(f"Set '{found.name}': the end of the clips against their start", columns, tuple(rows), (1, 2, 3, 4))


def comparison_table(paired: Sequence[PairedMeasure], model: str, other: str) -> Table:
    """Every paired comparison; differences are `model` minus `other`."""
    rows = []
    for row in paired:
        change = row.difference
        told = words.points_of(change) if row.is_rate else (words.value_of(change), words.span_of(change))
        wins = "" if row.win_rate is None else f"{100 * row.win_rate:.1f} %"
        sure = f"{row.effect_size:.2f}", f"{row.p_value:.4f}", str(row.clips)
        means = _means((row.ours, row.theirs), change, row.is_rate)
        rows.append((row.set, words.label(row.measure), *means, *told, row.better, row.verdict, wins, *sure))
    columns = ("set", "measure", "this", "other", "difference", "95 % interval", "better", "this one is", "wins",
               "effect size", "p", "pairs")  # fmt: skip
    return Table(f"This: {model}. Other: {other}.", columns, tuple(rows), (2, 3, 4, 5, 8, 9, 10, 11))


def _means(values: Sequence[float], difference: Interval, is_rate: bool) -> list[str]:
    """Two means with as many digits as their difference has."""
    digits = words.decimals(difference)
    return [f"{100 * value:.1f} %" if is_rate else words.number(value, digits) for value in values]


def provenance_table(results: EvalResults) -> Table:
    """What is needed to make the same numbers again."""
    source = results.provenance
    values = {
        "suite": results.suite,
        "command": source.command,
        "created": source.created,
        "model": source.model,
        "SHA-256 of the weights": source.weights or "none: the clips were made elsewhere",
        "frames of a tiny decoder, not the VAE's": source.decoder or "no",
        "SHA-256 of the prompts": source.prompts,
        "seed": source.seed,
        "commit": source.commit or "unknown",
        "machine": source.machine,
        "quick": source.quick,
        "size and rate that clips were brought to": str(source.form) if source.form else "none: as they were made",
        **{f"version of {name}": version for name, version in source.versions.items()},
        "streaming": source.streaming,
        "format of results.json": results.format,
    }
    return Table("How these numbers were made", ("what", "value"), tuple(words.flat(values).items()))


def clips_table(caption: str, samples: Sequence[Sample]) -> Table:
    """What clips were asked for, which of it they show, and what was seen."""
    columns = ("clip", "prompt", "seed", "right", "shown", "not shown", "seen")
    rows = [
        (
            sample.name,
            sample.prompt,
            str(sample.seed),
            score_of(sample),
            attributes(sample, True),
            attributes(sample, False),
            seen(sample),
        )
        for sample in samples
    ]
    return Table(caption, columns, tuple(rows), (2, 3))


def attributes(sample: Sample, right: bool) -> str:
    """The attributes of a prompt that its clip shows (or does not), in words."""
    return ", ".join(words.label(name) for name, outcome in truth.named(sample).items() if outcome == right)


def score_of(sample: Sample) -> str:
    """How much of what the prompt names the clip shows: '5 of 7'."""
    return f"{sum(truth.named(sample).values())} of {len(truth.named(sample))}"


def seen(sample: Sample) -> str:
    """What the detector saw in a clip, in words."""
    found = words.flat(sample.seen)
    return "; ".join(f"{words.label(name.replace('.', ' '))} {value}" for name, value in found.items())


def markdown(table: Table) -> str:
    """The table in Markdown as GitHub reads it, below its caption; text cannot become markup."""
    rules = ["---:" if column in table.numbers else "---" for column in range(len(table.columns))]
    lines = [_line(table.columns), f"| {' | '.join(rules)} |", *map(_line, table.rows)]
    return "\n".join([f"**{plain(table.caption)}**", "", *lines, ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(plain(cell) for cell in cells)} |"


def plain(text: str) -> str:
    """Text on one line in which Markdown finds no markup."""
    return re.sub(r"([\\`*_\[\]<>|#~$&])", r"\\\1", " ".join(text.split()))
