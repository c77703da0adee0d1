"""`rforce compare`: one prompt and one noise with several methods, models, pipelines and videos, side by side."""

import json
import math
import shlex
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reward_forcing.cli.generate import notes
from reward_forcing.cli.sources import form_of, open_model, open_pipeline, parse_named
from reward_forcing.config import unknown
from reward_forcing.logs import console

if TYPE_CHECKING:
    from reward_forcing.evaluation.side_by_side import Column
    from reward_forcing.evaluation.sources import Source


def compare(
    prompt: Annotated[str, typer.Argument(help="What every video shows.")],
    out: Annotated[Path, typer.Option(help="Folder to write to; the same command again goes on where it stopped.")],
    methods: Annotated[
        str | None, typer.Option(help="Methods by commas, each METHOD or NAME=METHOD; '' for none. [default: all]")
    ] = None,
    models: Annotated[
        str, typer.Option(help="Models by commas, each a bundled name, folder or hub id, or NAME=such.")
    ] = "mini",
    weights: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=CHECKPOINT", help="In place of model NAME's transformer. Repeatable."),
    ] = None,
    decoders: Annotated[
        list[str] | None,
        typer.Option("--decoder", metavar="NAME=FILE", help="A tiny decoder in place of model NAME's. Repeatable."),
    ] = None,
    pipelines: Annotated[
        list[str] | None,
        typer.Option(
            "--pipeline", metavar="NAME=PIPELINE", help="Folder or hub id of a diffusers pipeline. Repeatable."
        ),
    ] = None,
    folders: Annotated[
        list[str] | None,
        typer.Option("--folder", metavar="NAME=DIR", help="Videos, one of them of this prompt. Repeatable."),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="COLUMN.SETTING=VALUE", help="Change a setting: 'reward.sink.alpha=0.9'. Repeatable."
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Length of each video.")] = 10.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    at: Annotated[
        list[str] | None, typer.Option(metavar="TIME:PROMPT", help="Change the prompt: '5s: a blue ball'. Repeatable.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT that all are brought to. [default: the first column's]")
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Frames per second that all are brought to, likewise.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Render the same prompt and noise in every way, and measure speed, motion, drift and alignment."""
    from reward_forcing.evaluation import side_by_side
    from reward_forcing.optical_flow import opencv
    from reward_forcing.rollout import SeededNoise
    from reward_forcing.streaming.methods import METHODS
    from reward_forcing.streaming.prompts import Timeline, parse_at

    opencv()
    if not 0 < seconds < math.inf:
        raise ValueError(f"--seconds must be positive and finite, got {seconds:g}")
    prompts = Timeline.of(prompt, [parse_at(text) for text in at or []]).singles()
    form = form_of(size, fps)
    replaced = _named(weights, "--weights"), _named(decoders, "--decoder")
    streamed = _streamed(_split(models), _split(",".join(METHODS) if methods is None else methods), *replaced)
    whole = [(name, partial(open_pipeline, place)) for name, place in _named(pipelines, "--pipeline")]
    columns = _opened([*streamed, *whole], changes or [])
    left_out: dict[str, str] = {}
    for name, place in _named(folders, "--folder"):
        if video := side_by_side.video_of(Path(place), prompt):
            columns.append(side_by_side.Column(name, video))
        else:
            left_out[name] = f"no video of this prompt in '{place}'"
            console().print(f"note: {name} is left out: {left_out[name]}", markup=False, soft_wrap=True)
    wanted = side_by_side.Wanted(
        prompt=prompt,
        at=tuple(prompts[1:]),
        seconds=seconds,
        seed=SeededNoise((seed,)).seeds[0],
        form=form or side_by_side.form_like(columns),
    )
    command = shlex.join(["rforce", *sys.argv[1:]])
    with notes():
        found = side_by_side.compare(wanted, columns, out, left_out=left_out, command=command, quiet=as_json)
    if as_json:
        typer.echo(json.dumps(found.model_dump(mode="json"), indent=1))
    else:
        typer.echo("\n".join([side_by_side.table(found), "", *(str(out / name) for name in side_by_side.FILES)]))


Opener = Callable[[list[str]], "Source"]
"""Gives a source with the user's changes to its settings; what is wrong with it is found here, before weights load."""


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _named(texts: Iterable[str] | None, option: str) -> list[tuple[str, str]]:
    return [parse_named(text, option) for text in texts or []]


def _streamed(
    models: list[str], methods: list[str], checkpoints: list[tuple[str, str]], decoders: list[tuple[str, str]]
) -> list[tuple[str, Opener]]:
    """Every model with every method: `METHOD`, or of several models `MODEL-METHOD`, and what opens it."""
    named = _named(models, "--models")
    for name, _ in (*checkpoints, *decoders):
        if name not in dict(named):
            raise ValueError(unknown("model", name, dict(named)))

    def opener(name: str, place: str, method: str) -> Opener:
        return partial(open_model, place, method, dict(checkpoints).get(name), decoder=dict(decoders).get(name))

    return [
        (how if len(named) == 1 else f"{name}-{how}", opener(name, place, method))
        for name, place in named
        for how, method in _named(methods, "--methods")
    ]


def _opened(openers: list[tuple[str, Opener]], changes: list[str]) -> list["Column"]:
    """The columns with their settings, `COLUMN.setting=value`."""
    from reward_forcing.evaluation.side_by_side import Column

    own: dict[str, list[str]] = {name: [] for name, _ in openers}
    for change in changes:
        name, dot, rest = change.partition(".")
        if not dot:
            raise ValueError(f"--set must be COLUMN.setting=value, got '{change}'; columns: {', '.join(own)}")
        if name not in own:
            raise ValueError(unknown("column", name, own))
        own[name].append(rest)
    return [Column(name, opener(own[name])) for name, opener in openers]
