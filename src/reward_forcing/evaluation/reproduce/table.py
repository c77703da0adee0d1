"""An ablation as Markdown: the paper's table beside ours, everything else measured, and a sentence for each claim.

The text is a section that can be pasted into a page of results, with the pictures beside it.
"""

from __future__ import annotations

from reward_forcing.evaluation.reproduce.measure import MEASURES, Measure
from reward_forcing.evaluation.reproduce.paper import TABLES, PaperTable
from reward_forcing.evaluation.reproduce.plots import plots_of
from reward_forcing.evaluation.reproduce.record import AblationResults, Cell, VariantResults
from reward_forcing.evaluation.results import Interval

NOTHING = ""
"""What stands in a cell that was not measured."""
ARROWS = {"higher": "up", "lower": "down", "neither": ""}


def markdown(results: AblationResults) -> str:
    """The whole section."""
    paper = TABLES[results.recipe["table"]]
    rest = [name for name in MEASURES if name not in paper.columns]
    parts = [
        f"### {paper.title}",
        f"`{results.command}` ({results.created}, commit {', '.join(results.commits) or 'unknown'}, {results.machine})",
        _scale(results),
        f"{results.intervals} The paper's numbers, in round brackets, are VBench's scores in percent, the drift of "
        "imaging quality and ratings from 1 to 5, of other models: directions compare, sizes do not.",
        _table(results, list(paper.columns), paper),
        "What else was measured:",
        _table(results, rest, None),
        "Less `ours`, on the same prompts, noise and training seeds:",
        _differences(results, list(paper.columns)),
        "What came of the paper's claims:",
        "\n".join(f"- **{claim.where}.** {claim.sentence}" for claim in results.claims.values()),
        "\n\n".join(f"![{caption}](images/{name})" for name, caption in plots_of(results).items()),
    ]
    return "\n\n".join(parts) + "\n"


def _scale(results: AblationResults) -> str:
    seeds = {len(variant.seeds) for variant in results.variants.values()}
    judged, base = results.recipe["evaluation"], results.recipe["base"]
    told = (
        f"Trained from `{base['config']}` with {' '.join(f'`{one}`' for one in base['overrides']) or 'no changes'}, "
        f"{' or '.join(map(str, sorted(seeds)))} training seeds; {judged['prompts']} held-out prompts of "
        f"{judged['seconds']:g} s and {judged['long_prompts']} under-specified ones of {judged['long_seconds']:g} s, "
        f"{judged['seeds']} of each. CPU seconds (median) of a training {results.cpu['train']:.0f}, of an evaluation "
        f"{results.cpu['evaluate']:.0f}."
    )
    return told + (f" Not measured: {', '.join(results.missing)}." if results.missing else "")


def _table(results: AblationResults, measures: list[str], paper: PaperTable | None) -> str:
    heads = [f"{_head(name, paper)} {ARROWS[MEASURES[name].better]}" for name in measures]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for block in dict.fromkeys(variant.block for variant in results.variants.values()):
        lines.append(f"| **{block}** |" + " |" * len(heads))
        lines += [_row(name, one, measures, paper) for name, one in results.variants.items() if one.block == block]
    return "\n".join(lines)


def _head(name: str, paper: PaperTable | None) -> str:
    return f"{paper.columns[name]}: {MEASURES[name].label}" if paper else MEASURES[name].label


def _row(name: str, variant: VariantResults, measures: list[str], paper: PaperTable | None) -> str:
    printed = paper.rows.get(name, {}) if paper else {}
    cells = [
        f"{_cell(variant.measures.get(one), MEASURES[one])}{f' ({printed[one]:.2f})' if one in printed else ''}"
        for one in measures
    ]
    return f"| {variant.label} | {' | '.join(cells)} |"


def _cell(cell: Cell | None, measure: Measure) -> str:
    return NOTHING if cell is None else _told(cell.value, measure.digits)


def _told(interval: Interval, digits: int, sign: str = "") -> str:
    value, low, high = (f"{number:{sign}.{digits}f}" for number in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]"


def _differences(results: AblationResults, measures: list[str]) -> str:
    lines = [f"| | {' | '.join(MEASURES[name].label for name in measures)} |", "|---" * (len(measures) + 1) + "|"]
    for variant in results.variants.values():
        cells = [variant.measures[name].against_ours if name in variant.measures else None for name in measures]
        if any(cell is not None for cell in cells):
            told = [
                NOTHING if cell is None else _told(cell, MEASURES[name].digits, "+")
                for name, cell in zip(measures, cells, strict=True)
            ]
            lines.append(f"| {variant.label} | {' | '.join(told)} |")
    return "\n".join(lines)
