"""`rforce eval world`: what a student, a teacher or the VAE alone makes of prompts that say what must be seen."""

import json
import math
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reward_forcing.cli.generate import DECODED_TINY, Decoder
from reward_forcing.cli.shares import parse_share

if TYPE_CHECKING:
    from reward_forcing.evaluation.world_clips import ClipMaker
    from reward_forcing.evaluation.world_run import WorldRecipe
    from reward_forcing.streaming.model_folder import ModelFolder

OPTIONS = {
    "student": {"method", "weights", "decoder", "set"},
    "teacher": {"vae", "text", "steps", "guidance", "shift"},
    "vae": {"vae"},
    "rendered": set[str](),
}
"""What can be judged, and the options that only some of it takes."""

Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SETTING=VALUE", help="Change a number of how the model streams. Repeatable."),
]


def world(
    out: Annotated[Path, typer.Option(help="Folder to write to; the same command again goes on where it stopped.")],
    model: Annotated[str, typer.Option(help="Bundled name, folder or hub id.")] = "mini",
    weights: Annotated[str | None, typer.Option(help="Checkpoint in place of the model's transformer.")] = None,
    method: Annotated[str | None, typer.Option(help="How it streams; see rforce schedule.")] = None,
    decoder: Decoder = None,
    changes: Changes = None,
    teacher: Annotated[
        Path | None, typer.Option(help="Judge this bidirectional transformer/ folder in place of the model's student.")
    ] = None,
    only_vae: Annotated[bool, typer.Option("--only-vae", help="Judge rendered clips after the VAE.")] = False,
    rendered: Annotated[bool, typer.Option("--rendered", help="Judge rendered clips.")] = False,
    vae: Annotated[
        Path | None, typer.Option(help="With --teacher or --only-vae: a VAE in place of the model's.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="With --teacher: folder of its text_encoder/ and tokenizer/.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of the teacher's ODE. [default: 20]")] = None,
    guidance: Annotated[float | None, typer.Option(help="The teacher's CFG weight. [default: 4]")] = None,
    shift: Annotated[float | None, typer.Option(min=0.01, help="The teacher's timestep shift. [default: 5]")] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Held-out prompts.")] = 128,
    seconds: Annotated[float, typer.Option(help="Length of each clip; beyond 10 s its first and last 5 count.")] = 5.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first clip; the others count up.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Clips made side by side.")] = 8,
    sheet: Annotated[int, typer.Option(min=0, help="Clips shown in the contact sheet.")] = 32,
    share: Annotated[str, typer.Option(help="i/n: make only the i-th of n parts, from 0/n on.")] = "0/1",
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON instead.")] = False,
) -> None:
    """Colour, shape, number, motion and more of held-out prompts, and the distance to rendered clips."""
    from reward_forcing.checkpoints.files import files_hash, find_weights
    from reward_forcing.evaluation.results import RESULTS
    from reward_forcing.evaluation.world_clips import TeacherSampling
    from reward_forcing.evaluation.world_run import WorldRecipe, evaluate_world, table
    from reward_forcing.streaming.model_folder import open_model_folder

    part, kind = parse_share(share), _kind(teacher, only_vae, rendered)
    options = {"steps": steps, "guidance": guidance, "shift": shift}
    options = {name: value for name, value in options.items() if value is not None}
    others = {"vae": vae, "text": text, "method": method, "weights": weights, "decoder": decoder}
    others["set"] = changes or None
    _check_options(kind, {*options, *(name for name, value in others.items() if value is not None)})
    folder = open_model_folder(model, method, weights, changes or (), decoder)
    _check_clips(kind, folder, seconds)
    sampling = TeacherSampling.model_validate(options) if kind == "teacher" else None
    parts = _parts(kind, folder, teacher, vae or folder.path / "vae", text or folder.path)
    recipe = WorldRecipe(
        source=kind, model=model, weights={name: files_hash(find_weights(path)) for name, path in parts.items()},
        streaming=folder.settings.recorded() if kind == "student" else {},
        sampling=sampling, prompts=prompts, seconds=seconds, seed=seed, batch=batch, sheet=sheet,
        decoder=folder.decoder_name,
    )  # fmt: skip
    command = shlex.join(["rforce", *sys.argv[1:]])
    results = evaluate_world(lambda: _source(recipe, folder, parts), recipe, out, part, command)
    if results is None:
        note = f"share {share} is done; the results come with the last of {part[1]} shares"
        typer.echo(json.dumps({"results": None, "note": note}) if as_json else note)
    elif as_json:
        typer.echo(json.dumps({name: value for name, value in results.items() if name != "clips"}, indent=1))
    else:
        for name, numbers in results["parts"].items():
            typer.echo(f"{kind}: {prompts} clips of {seconds:g} s, {name}\n{table(numbers)}\n")
        if recipe.decoder is not None:
            typer.echo(f"{recipe.decoder}: {DECODED_TINY}")
        typer.echo(f"wrote {out / RESULTS}")


def _kind(teacher: Path | None, only_vae: bool, rendered: bool) -> str:
    """What is judged, a key of OPTIONS."""
    given = {"teacher": teacher is not None, "vae": only_vae, "rendered": rendered}
    chosen = [name for name, is_given in given.items() if is_given]
    if len(chosen) > 1:
        raise ValueError("--teacher, --only-vae and --rendered exclude each other; judge them one by one")
    return chosen[0] if chosen else "student"


def _check_options(kind: str, given: set[str]) -> None:
    """Raise ValueError for options that what is judged does not take."""
    if left := sorted(given - OPTIONS[kind]):
        named = ", ".join(f"--{name}" for name in left)
        raise ValueError(f"{named} would change nothing when judging the {kind}; leave it out, or see --help")


def _check_clips(kind: str, folder: "ModelFolder", seconds: float) -> None:
    """Raise ValueError for clips that cannot be made or judged."""
    from reward_forcing.data.scenes import FPS
    from reward_forcing.evaluation.suites import LONGEST_SHORT

    geometry = folder.geometry
    if not 0 < seconds < math.inf:
        raise ValueError(f"--seconds must be positive and finite, got {seconds:g}")
    if kind == "teacher" and seconds > LONGEST_SHORT:
        raise ValueError(
            f"a bidirectional teacher makes a clip as a whole: at most {LONGEST_SHORT:g} s, got {seconds:g}"
        )
    if geometry.height != geometry.width or geometry.fps != FPS:
        raise ValueError(
            f"the world is square at {FPS} frames per second; '{folder.path}' makes {geometry.width} x "
            f"{geometry.height} at {geometry.fps}"
        )


def _parts(kind: str, folder: "ModelFolder", teacher: Path | None, vae: Path, text: Path) -> dict[str, Path]:
    """The folders of the networks that make the clips."""
    from reward_forcing.models.text import TextEncoder
    from reward_forcing.training.networks import check_network

    if kind == "rendered":
        return {}
    check_network(vae, "VAE")
    if kind == "vae":
        return {"vae": vae}
    TextEncoder.from_pretrained(text)
    if teacher is not None:
        check_network(teacher, "transformer")
    parts = {"transformer": teacher or folder.transformer, "vae": vae, "text_encoder": text / "text_encoder"}
    return parts if folder.decoder is None else parts | {"tiny_decoder": folder.decoder}


def _source(recipe: "WorldRecipe", folder: "ModelFolder", parts: dict[str, Path]) -> "ClipMaker":
    """What makes the clips, its weights read now."""
    import torch

    from reward_forcing.evaluation.world_clips import DecodedClips, RenderedClips, StreamedClips, TeacherClips
    from reward_forcing.models.vae import StreamingVAE
    from reward_forcing.streaming.pipeline import StreamingVideoPipeline
    from reward_forcing.training.networks import load_transformer
    from reward_forcing.training.prompts import PromptEncoder

    if recipe.source == "student":
        return StreamedClips(StreamingVideoPipeline.load(folder), recipe.seed)
    rendered = RenderedClips(folder.geometry.height)
    if recipe.source == "rendered":
        return rendered
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vae = StreamingVAE.from_pretrained(parts["vae"], device=device)
    if recipe.sampling is None:
        return DecodedClips(rendered, vae)
    network = load_transformer(parts["transformer"], device).requires_grad_(False).eval()
    prompts = PromptEncoder(parts["text_encoder"].parent, device)
    return TeacherClips(network, vae, prompts, folder.geometry.height, recipe.sampling, recipe.seed)
