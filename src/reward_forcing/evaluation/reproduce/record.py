"""The record of an ablation, `results.json`: every number, the intervals, and what makes them again."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Literal

from pydantic import Field

from reward_forcing.config import Settings
from reward_forcing.evaluation import environment
from reward_forcing.evaluation.reproduce.claims import CLAIMS_OF, Verdict, judge_claim
from reward_forcing.evaluation.reproduce.curves import RISE, RISE_CLAIM, judge_rise, reward_curve
from reward_forcing.evaluation.reproduce.measure import MEASURES, Runs, difference, per_run, value_of
from reward_forcing.evaluation.reproduce.recipe import OURS, Ablation, streamed_as
from reward_forcing.evaluation.reproduce.units import EVALUATE, TASKS, TRAIN, Unit, is_done, records_of, units_of
from reward_forcing.evaluation.results import RESULTS, Interval
from reward_forcing.evaluation.statistics import Estimate
from reward_forcing.training.shards import write_whole

COVERS = (
    "95 % intervals over training runs (Student's t) and prompts (bootstrap; jackknife for distances); of one training "
    "run they cover the prompts alone. Differences are paired by prompt, noise and training seed. Not corrected for "
    "their number."
)
ALONG_CLIPS = ("background_shift", "colour_shift", "sharpness", "tracked_motion")
"""Scores of long clips whose course is kept."""


class Cell(Settings):
    """A measure of a variant. per_run: of each training run. against_ours: less that of `ours`."""

    value: Interval
    per_run: tuple[float, ...]
    against_ours: Interval | None = None


class VariantResults(Settings):
    """A variant. trained_as: the variant with the same settings that was trained. seeds: those that are done.

    changes: stage and overrides. streaming: how it is streamed. commands: by task and seed. curves: reward ->
    [updates, one value for each run]. along: score of long clips -> [runs][segments of 2 seconds].
    """

    label: str
    block: str
    trained_as: str
    seeds: tuple[int, ...]
    changes: tuple[str, ...]
    streaming: dict[str, Any]
    commands: tuple[str, ...]
    measures: dict[str, Cell]
    curves: dict[str, tuple[tuple[float, ...], ...]] = Field(default_factory=dict)
    along: dict[str, tuple[tuple[float, ...], ...]] = Field(default_factory=dict)


class ClaimResults(Settings):
    """A claim of the paper and what came of it."""

    where: str
    says: str
    verdict: Verdict
    sentence: str


class AblationResults(Settings):
    """A whole ablation; `results.json`. cpu: task -> median CPU seconds of a unit. missing: variants not measured."""

    format: Literal[1] = 1
    command: str
    created: str
    commits: tuple[str, ...]
    versions: dict[str, str]
    machine: str
    recipe: dict[str, Any]
    intervals: str
    cpu: dict[str, float]
    variants: dict[str, VariantResults]
    missing: tuple[str, ...]
    claims: dict[str, ClaimResults]


def summarise(recipe: Ablation, out: Path, command: str) -> AblationResults:
    """The results of all units that are done. Raises ValueError before `ours` has one."""
    done = [unit for unit in units_of(recipe, out) if is_done(unit)]
    first = recipe.trained_as()
    units = {name: [unit for unit in done if unit.variant == first[name]] for name in recipe.variants}
    if not units[OURS]:
        raise ValueError(f"nothing to tell yet: no unit of '{OURS}' is trained and evaluated in '{out}'")
    loaded = {name: Runs.of_folders({unit.seed: unit.evaluation for unit in units[name]})
              for name in dict.fromkeys(first.values()) if units[name]}  # fmt: skip
    runs = {name: loaded[first[name]] for name in recipe.variants if units[name]}
    variants = {name: _variant(recipe, name, runs[name], runs[OURS], units[name]) for name in runs}
    records = [records_of(unit) for unit in done]
    return AblationResults(
        command=command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        commits=tuple(dict.fromkeys(record.commit for one in records for record in one.values())),
        versions=environment.versions(),
        machine=environment.machine(),
        recipe=recipe.model_dump(mode="json"),
        intervals=COVERS,
        cpu={task: median(one[task].cpu for one in records) for task in TASKS},
        variants=variants,
        missing=tuple(name for name in recipe.variants if name not in runs),
        claims=_claims(recipe, runs, variants),
    )


def _variant(recipe: Ablation, name: str, runs: Runs, ours: Runs, units: list[Unit]) -> VariantResults:
    chosen, trained_as = recipe.variants[name], units[0].variant
    settings = recipe.training(name, recipe.seeds[0])
    stage = (f"stage={chosen.stage}",) if chosen.stage else ()
    cells = {}
    for key, measure in MEASURES.items():
        value = value_of(runs, measure)
        if value is not None:
            against = None if runs is ours else _interval(difference(runs, ours, measure))
            own = tuple(per_run(runs, measure))
            cells[key] = Cell(value=Interval.of(value), per_run=own, against_ours=against)
    curves = {key: reward_curve([unit.run for unit in units], key, settings.generator_every) for key in recipe.curve}
    return VariantResults(
        label=chosen.label,
        block=chosen.block,
        trained_as=trained_as,
        seeds=tuple(unit.seed for unit in units),
        changes=(*stage, *chosen.overrides),
        streaming=streamed_as(settings),
        commands=tuple(records_of(unit)[task].command for task in (TRAIN, EVALUATE) for unit in units),
        measures=cells,
        curves={key: tuple((float(at), *values) for at, values in curve.items()) for key, curve in curves.items()},
        along={score: tuple(map(tuple, runs.curve(score))) for score in ALONG_CLIPS},
    )


def _interval(estimate: Estimate | None) -> Interval | None:
    return None if estimate is None else Interval.of(estimate)


def _claims(recipe: Ablation, runs: dict[str, Runs], variants: dict[str, VariantResults]) -> dict[str, ClaimResults]:
    def measured(measure: str, variant: str, than: str) -> Estimate | None:
        if variant not in runs or than not in runs:
            return None
        return difference(runs[variant], runs[than], MEASURES[measure])

    counts = {name: len(one) for name, one in runs.items()}
    claims = CLAIMS_OF[recipe.table]
    judged = {name: judge_claim(claim, measured, counts, recipe.margins) for name, claim in claims.items()}
    found = {
        name: ClaimResults(where=claims[name].where, says=claims[name].says, **vars(one))
        for name, one in judged.items()
    }
    if recipe.curve and recipe.table == "table3":
        course = {int(at): values for at, *values in variants[OURS].curves[recipe.curve[0]]}
        rise = judge_rise(recipe.curve[0], course)
        found[RISE] = ClaimResults(where="Section 4.3, Fig. 6", says=RISE_CLAIM, **vars(rise))
    return found


def write_ablation(results: AblationResults, out: Path) -> Path:
    """`out`/results.json, whole or not at all."""
    text = results.model_dump_json(indent=1)
    write_whole(out / RESULTS, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return out / RESULTS


def ablation_schema() -> str:
    """The JSON schema of an ablation's results.json."""
    return json.dumps(AblationResults.model_json_schema(), indent=1) + "\n"
