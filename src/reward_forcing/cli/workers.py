"""What a command's processes run: it quiets imports before it makes them, and loads nothing itself for that reason."""

import sys
from pathlib import Path

from reward_forcing.logs import silence_imports


def train_part(config: Path, overrides: tuple[str, ...], out: Path) -> None:
    """Train as one of several processes. A stopped one leaves at once: returning would wait for the launcher, which is
    itself waiting for its processes to leave."""
    silence_imports()
    from reward_forcing.training import run_worker

    if code := run_worker(config, overrides, out):
        raise SystemExit(code)


def reproduce_part(
    recipe: Path, overrides: tuple[str, ...], out: Path, only: tuple[str, ...], share: tuple[int, int]
) -> None:
    """Work on a table's units beside others; what goes wrong is told in one line, as the command itself does."""
    silence_imports()
    from reward_forcing.cli.main import exit_status
    from reward_forcing.evaluation.reproduce.recipe import load_recipe
    from reward_forcing.evaluation.reproduce.units import work

    sys.exit(exit_status(lambda: work(load_recipe(recipe, overrides), out, only, share)))
