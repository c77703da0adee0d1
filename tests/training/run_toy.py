"""`python run_toy.py CONFIG [a.b=c ...] --out RUN [--processes N]`: `rforce train` for the toy stage."""

import sys

import typer

from reward_forcing.cli.train import train
from reward_forcing.training import STAGES

STAGES["toy"] = "toy:ToyStage"

if __name__ == "__main__":
    try:
        typer.run(train)
    except ValueError as error:
        sys.exit(f"rforce: {error}")
