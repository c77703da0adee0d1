"""The report in Markdown: the summary and every table of the page, without pictures."""

from __future__ import annotations

from collections.abc import Sequence

from reward_forcing.evaluation.report import summary, tables, truth, words
from reward_forcing.evaluation.report.comparison import Material
from reward_forcing.evaluation.report.tables import Table, markdown, plain
from reward_forcing.evaluation.results import EvalResults


def markdown_page(material: Material) -> str:
    """The whole report."""
    results, paired, other = material.results, material.paired, material.other
    sets, source = results.sets, results.provenance
    parts = [f"# Evaluation of {plain(source.model)}", plain(f"{results.suite} suite, {words.date_of(source.created)}")]
    parts += ["## Summary", plain(" ".join(summary.tested(results)))]
    if source.quick:
        parts.append(plain(summary.QUICK))
    numbers = summary.main_numbers(material)
    parts += _bullets([f"{main.value} (95 % interval {main.interval}) {main.meaning}" for main in numbers])
    parts += ["### Where it is weak", *(_bullets(summary.weak_points(material)) or [plain(summary.NO_WEAK_POINT)])]
    strong = _bullets(summary.strong_points(results))
    parts += ["### Where it is strong", *strong] if strong else []
    parts += [f"### Against {plain(other)}", *_bullets(summary.compared(paired))] if paired else []
    parts += [plain(summary.RULE)]
    parts += _section("Scores", summary.HOW_TO_READ, [table for found in sets for table in tables.scores_tables(found)])
    kinds = [tables.kinds_table(found, truth.samples_of(results, found.name)) for found in sets]
    parts += _section("What was asked for, and what is shown", "", [each for each in kinds if each is not None])
    time = [table for found in sets for table in tables.time_tables(found, material.ends[found.name])]
    parts += _section("Change over time", summary.HOW_TO_READ_DRIFT, time)
    pairs = [tables.comparison_table(paired, source.model, other)] if paired else []
    parts += _section(f"Compared with {other}", summary.HOW_TO_READ_PAIRS, pairs)
    parts += _section("Best, median and worst clips", summary.HOW_RANKED, _ranked(results))
    parts += _section("How these numbers were made", "", [tables.provenance_table(results)])
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _ranked(results: EvalResults) -> list[Table]:
    found = truth.short_set(results)
    groups = truth.ranked(truth.samples_of(results, found.name) if found else ())
    named = (("Best", groups.best), ("Median", groups.median), ("Worst", groups.worst))
    return [tables.clips_table(name, samples) for name, samples in named if samples]


def _bullets(sentences: Sequence[str]) -> list[str]:
    return ["\n".join(f"- {plain(sentence)}" for sentence in sentences)] if sentences else []


def _section(title: str, note: str, content: Sequence[Table]) -> list[str]:
    """A heading, a paragraph if there is one, and tables; nothing where there are no tables."""
    if not content:
        return []
    return [f"## {plain(title)}", *([plain(note)] if note else []), *map(markdown, content)]
