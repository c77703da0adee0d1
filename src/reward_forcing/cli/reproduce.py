"""`rforce reproduce`: the paper's tables, made again at a size that can be run at home."""

import multiprocessing
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reward_forcing.cli.data import parse_share
from reward_forcing.cli.workers import reproduce_part
from reward_forcing.logs import duration

if TYPE_CHECKING:
    from reward_forcing.evaluation.reproduce.recipe import Ablation

app = typer.Typer(help="Make a table of the paper again, in miniature.", no_args_is_help=True)


class Show(StrEnum):
    """What to show instead of working: how far the units are, the results of those that are done, their schema."""

    STATUS = "status"
    REPORT = "report"
    SCHEMA = "schema"


Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="SETTING=VALUE", help="Settings to change, as evaluation.prompts=16.")
]
Recipe = Annotated[Path, typer.Option("--recipe", help="The recipe file.")]
Out = Annotated[Path, typer.Option(help="The folder. The same command continues in it.")]
Processes = Annotated[int, typer.Option(min=1, help="Units worked on side by side, one thread each.")]
Only = Annotated[list[str] | None, typer.Option(metavar="VARIANT", help="Keep to this variant. Repeatable.")]
Share = Annotated[str, typer.Option(help="i/n: keep to the i-th of n parts of the units, from 0/n on.")]
Shown = Annotated[Show | None, typer.Option(help="Show this and stop, without working.")]


@app.command(short_help="The ablation: Table 3 and Fig. 6.")
def table3(
    overrides: Overrides = None,
    recipe: Recipe = Path("configs/reproduce/table3.yaml"),
    out: Out = Path("runs/table3"),
    processes: Processes = 1,
    only: Only = None,
    share: Share = "0/1",
    show: Shown = None,
) -> None:
    """Train and judge every variant of the ablation (Table 3, Fig. 6), and write what came of the paper's claims.

    Stopped at any moment, the same command goes on; several may run on one folder. The results are of what is done.
    """
    _reproduce(recipe, tuple(overrides or ()), out, processes, tuple(only or ()), parse_share(share), show)


@app.command(short_help="All methods: Tables 1 and 2.")
def methods(
    overrides: Overrides = None,
    recipe: Recipe = Path("configs/reproduce/methods.yaml"),
    out: Out = Path("runs/methods"),
    processes: Processes = 1,
    only: Only = None,
    share: Share = "0/1",
    show: Shown = None,
) -> None:
    """Train and judge a student for every method (Tables 1 and 2), and write what came of the papers' claims.

    Goes on and shares as table3 does.
    """
    _reproduce(recipe, tuple(overrides or ()), out, processes, tuple(only or ()), parse_share(share), show)


def _reproduce(
    file: Path,
    changes: tuple[str, ...],
    out: Path,
    processes: int,
    only: tuple[str, ...],
    share: tuple[int, int],
    show: Show | None,
) -> None:
    from reward_forcing.evaluation.reproduce.recipe import load_recipe
    from reward_forcing.evaluation.reproduce.record import ablation_schema
    from reward_forcing.evaluation.reproduce.units import work
    from reward_forcing.optical_flow import opencv

    if show is Show.SCHEMA:
        typer.echo(ablation_schema(), nl=False)
        return
    if not file.is_file():
        raise FileNotFoundError(f"no recipe '{file}': run this in a checkout, or give --recipe")
    opencv()
    wanted = load_recipe(file, changes)
    if show is Show.STATUS:
        typer.echo(_status(wanted, out))
        return
    if show is None:
        if processes == 1:
            code = work(wanted, out, only, share)
        else:
            code = _work_in(processes, (file, changes, out, only, share))
        if code:
            raise typer.Exit(code)
    _report(wanted, out)


def _work_in(processes: int, arguments: tuple[Any, ...]) -> int:
    """Do the units in so many processes; 0, or the exit status of the first that did not end well."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=reproduce_part, args=arguments) for _ in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    codes = [worker.exitcode or 0 for worker in workers]
    return next((128 - code if code < 0 else code for code in codes if code), 0)


def _report(recipe: "Ablation", out: Path) -> None:
    from reward_forcing.evaluation.reproduce.plots import draw
    from reward_forcing.evaluation.reproduce.record import summarise, write_ablation
    from reward_forcing.evaluation.reproduce.table import markdown

    results = summarise(recipe, out, shlex.join(["rforce", *sys.argv[1:]]))
    pictures = draw(results, out)
    page = out / f"{recipe.table}.md"
    page.write_text(markdown(results), encoding="utf-8")
    for claim in results.claims.values():
        typer.echo(f"- {claim.sentence}")
    typer.echo("\n".join(map(str, (write_ablation(results, out), page, *pictures))))


def _status(recipe: "Ablation", out: Path) -> str:
    """A line for each unit, and what is left."""
    from reward_forcing.evaluation.reproduce.units import cpu_left, progress_of, units_of

    progress = [one for unit in units_of(recipe, out) for one in progress_of(recipe, unit)]
    lines = [f"{'unit':32s} {'task':9s} {'state':8s} {'done':>6s} {'CPU s':>8s}"]
    for one in progress:
        name = f"{one.unit.variant} seed {one.unit.seed}"
        cpu = "" if one.cpu is None else f"{one.cpu:.0f}"
        lines.append(f"{name:32s} {one.task:9s} {one.state:8s} {100 * one.share:4.0f} % {cpu:>8s}")
    for task, seconds in cpu_left(progress).items():
        told = "unknown until one is done" if seconds is None else f"{duration(seconds)} of CPU time"
        lines.append(f"left to {task}: {told}")
    return "\n".join(lines)
