"""The command `rforce`: a table of verbs, imported only when called, and one place that turns errors into exit codes.

Knows no verb's options: each lives in its own file of this package.
"""

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import typer
from pydantic import ValidationError

from reward_forcing import __version__
from reward_forcing.config import describe, unknown
from reward_forcing.host_memory import keep_freed_memory
from reward_forcing.logs import silence_imports

EXIT_FAILURE = 1  # something broke inside
EXIT_BAD_INPUT = 2  # the caller can fix it
BAD_INPUT = (ValueError, FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)


class Verb(NamedTuple):
    """Where a verb's function (or typer app, if it has sub-verbs) lives, and its line in `rforce --help`."""

    target: str
    help: str

    def load(self) -> Callable[..., Any] | typer.Typer:
        """The function or typer app named by `target`, imported now."""
        module, name = self.target.split(":")
        return getattr(importlib.import_module(f"reward_forcing.cli.{module}"), name)


VERBS = {
    "generate": Verb("generate:generate", "Make a video of a prompt."),
    "compare": Verb("compare:compare", "Render a prompt with several methods side by side."),
    "schedule": Verb("schedule:schedule", "Draw when a method denoises what, and what its attention sees."),
    "train": Verb("train:train", "Train one stage of the recipe."),
    "data": Verb("data:app", "Make what is trained on: of the procedural world, or of your videos."),
    "eval": Verb("eval:app", "Measure a model."),
    "reproduce": Verb("reproduce:app", "Make a table of the paper again, in miniature."),
    "bench": Verb("bench:app", "Measure speed, beside the naive mode and diffusers."),
    "models": Verb("models:app", "List, inspect and convert checkpoints."),
    "doctor": Verb("doctor:doctor", "Report what this machine can run, and how fast."),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command line (default: this process's) and exit: 0 done, 1 failure, 2 bad input, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that a `package.module:Class` of the user is found and hides nothing
    silence_imports()
    keep_freed_memory()
    sys.exit(exit_status(lambda: build_app(_first_word(arguments))(arguments, prog_name="rforce")))


def exit_status(run: Callable[[], int | None]) -> int | None:
    """What `run` returns, or the exit status of the error that ended it, told in one line on stderr."""
    try:
        return run()
    except BAD_INPUT as error:
        return _report(error, EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return _report(error, EXIT_FAILURE)


def build_app(verb: str | None) -> typer.Typer:
    """The typer app in which `verb` is loaded and every other verb stands by name only, so that help needs no torch.

    Raises ValueError with the nearest name if `verb` is not one of `VERBS`.
    """
    if verb is not None and verb not in VERBS:
        raise ValueError(unknown("command", verb, VERBS))
    app = typer.Typer(
        help="Streaming text-to-video: generate, train and judge few-step autoregressive video models.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_global_options)
    for name, entry in VERBS.items():
        loaded = entry.load() if name == verb else _not_loaded
        if isinstance(loaded, typer.Typer):
            app.add_typer(loaded, name=name, help=entry.help)
        else:
            app.command(name, help=None if name == verb else entry.help)(loaded)
    return app


def _first_word(arguments: Sequence[str]) -> str | None:
    return next((argument for argument in arguments if not argument.startswith("-")), None)


def _not_loaded() -> None:
    raise AssertionError("a verb that was not named on the command line cannot run")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"rforce {__version__}")
        raise typer.Exit()


def _global_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def _report(error: Exception, code: int) -> int:
    """`code`, after one line about `error` on stderr; RFORCE_DEBUG=1 adds the traceback."""
    if os.environ.get("RFORCE_DEBUG", "0") not in ("", "0"):
        traceback.print_exception(error)
    message = describe(error) if isinstance(error, ValidationError) else str(error)
    if isinstance(error, OSError) and error.strerror:
        message = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if code == EXIT_FAILURE:
        message = f"{type(error).__name__}: {message} (RFORCE_DEBUG=1 shows where)"
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return code
