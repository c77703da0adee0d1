"""`rforce train --dry-run`: the plan of a run as a table or as JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from reward_forcing.training import load_stage_settings

if TYPE_CHECKING:
    from reward_forcing.training.plan import Plan
    from reward_forcing.training.plan_workload import Part

LABEL, COLUMN = 46, 18


def print_plan(config: Path, overrides: Sequence[str], options: dict[str, float], as_json: bool) -> None:
    """Print what the run of a configuration file will need; options: those of `Cluster` that were given."""
    from reward_forcing.training.plan import Cluster, make_plan

    plan = make_plan(load_stage_settings(config, overrides), Cluster(**options))  # type: ignore[arg-type]
    print(json.dumps(asdict(plan), indent=2) if as_json else describe_plan(plan))


def describe_plan(plan: Plan) -> str:
    """A plan as tables: networks, memory, operations of a clip, and the run."""
    layouts = [f"{name} *" if name == plan.configured else name for name in plan.total]
    gpus = "1 GPU" if plan.gpus == 1 else f"{plan.gpus} GPUs"
    shards = f"{plan.gpus} x {plan.accumulate} accumulated x {plan.clips} at a time"
    divided = f"sharded over {plan.shards}" if plan.shards > 1 else "one GPU shards nothing"
    lines = [
        f"stage {plan.stage}: {plan.steps} steps of a batch of {plan.batch} on {gpus} ({shards}), {plan.precision}",
        f"* as configured: {_gib([plan.total[plan.configured]])[0]} GiB per GPU; {divided}",
        "",
        _row("networks", ["parameters", "", "from"]),
        *(_row(part.role, [f"{part.parameters / 1e9:.3f} G", _trained(part), part.source]) for part in plan.networks),
        "",
        _row("memory of one GPU, GiB", layouts),
        *(_row(memory.what, _gib(memory.bytes.values())) for memory in plan.memory),
        *(
            _row(f"{peak.role} update: {what}", _gib(sizes.values()))
            for peak in plan.peaks
            for what, sizes in (("kept for the backward", peak.graph), ("the rest of its peak", peak.beside))
        ),
        _row("at the worst moment", _gib(plan.total.values())),
        "",
        _row("operations on one clip, TFLOP", ["one forward", "forwards", "with backward"]),
    ]
    for cost in plan.costs:
        lines.append(f"{cost.role} update")
        for work in cost.work:
            times = [work.total(recomputed) / (work.forwards * work.flops) for recomputed in (False, True)]
            backward = (f"x{times[0]:.3g} (x{times[1]:.3g})" if work.recomputed else f"x{times[0]:.3g}") * work.grad
            lines.append(_row(f"  {work.what}", [_tflop(work.flops), f"{work.forwards:g}", backward]))
        lines.append(_row("  in all", [_tflop(flops / plan.batch) for flops in cost.flops.values()]))
    rate = f"{plan.tflops:g} TFLOP/s x {plan.mfu:g} on {gpus}"
    lines += ["", _row(f"run at {rate}", layouts)]
    for cost in plan.costs:
        lines.append(_row(f"{cost.role} update, s ({cost.updates})", [f"{s:.3g}" for s in cost.seconds.values()]))
    lines += [
        _row("step on average, PFLOP", [f"{flops / 1e15:.4g}" for flops in plan.step_flops.values()]),
        _row("step on average, s", [f"{seconds:.3g}" for seconds in plan.step_seconds.values()]),
        _row("hours", [f"{hours:.3g}" for hours in plan.hours.values()]),
        "",
        *(textwrap.fill(line, 120) for line in plan.assumed),
    ]
    return "\n".join(line.rstrip() for line in lines)


def _trained(part: Part) -> str:
    if part.adapter:
        return f"LoRA {part.adapter / 1e9:.3f} G"
    return "trained" if part.trained else "frozen"


def _row(label: str, cells: Iterable[str]) -> str:
    return f"{label:<{LABEL}}" + "".join(f"{cell:>{COLUMN}}" for cell in cells)


def _gib(sizes: Iterable[int]) -> list[str]:
    return [f"{size / 2**30:.2f}" for size in sizes]


def _tflop(flops: float) -> str:
    return f"{flops / 1e12:.4g}"
