"""`rforce train`: train one stage of the recipe from its configuration file."""

import os
from pathlib import Path
from typing import Annotated

import typer

from reward_forcing.cli.main import BAD_INPUT
from reward_forcing.cli.train_plan import print_plan
from reward_forcing.cli.workers import train_part
from reward_forcing.training import load_stage_settings, run_worker
from reward_forcing.training.plan_names import refuse_names


def train(
    config: Annotated[Path, typer.Argument(help="The stage's configuration file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="SETTING=VALUE", help="Settings to change, as train.steps=100.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The run's folder. The same command continues a run in it.")] = Path("run"),
    processes: Annotated[int, typer.Option(min=1, help="Processes that share the batch on this machine.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what the run will need, and stop.")] = False,
    gpus: Annotated[int | None, typer.Option(help="Of the dry run. Default: one clip at a time on each.")] = None,
    tflops: Annotated[float | None, typer.Option(help="Of the dry run: a GPU's peak. Default: 989.")] = None,
    mfu: Annotated[float | None, typer.Option(help="Of the dry run: the part of it reached. Default: 0.4.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the dry run as JSON.")] = False,
) -> None:
    """Train a stage; interrupt it at will, the same command continues exactly."""
    changes = tuple(overrides or ())
    given = {"gpus": gpus, "tflops": tflops, "mfu": mfu}
    options = {name: value for name, value in given.items() if value is not None}
    if dry_run:
        print_plan(config, changes, options, as_json)
        return
    if options or as_json:
        raise ValueError("--gpus, --tflops, --mfu and --json belong to --dry-run; add it, or leave them out")
    refuse_names(load_stage_settings(config, changes))
    if processes == 1 or "WORLD_SIZE" in os.environ:
        code = run_worker(config, changes, out)
    else:
        code = _launch_workers(processes, config, changes, out)
    if code:
        raise typer.Exit(code)


def _launch_workers(processes: int, config: Path, overrides: tuple[str, ...], out: Path) -> int:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from reward_forcing.training.distributed import launch

    try:
        launch(processes, train_part, config, overrides, out)
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode > 128:
            return failure.exitcode
        raise _as_error(rank, failure.message) from None
    return 0


def _as_error(rank: int, message: object) -> Exception:
    """The error that ended a process: what the caller can fix as it was, anything else with the process's traceback."""
    if not isinstance(message, dict):
        return RuntimeError(f"training process {rank} ended: {message}")
    kind, _, text = str(message["message"]).partition(": ")
    for bad_input in BAD_INPUT:
        if kind == bad_input.__name__:
            return bad_input(text)
    if kind == "VlmError":
        return RuntimeError(text)
    return RuntimeError(f"training process {rank} failed\n{message['extraInfo']['py_callstack']}")
