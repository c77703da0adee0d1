"""`rforce data`: what is trained on. Makes the procedural world's clips, and looks at it; makes ODE pairs."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from reward_forcing.cli.data_encode import encode
from reward_forcing.cli.shares import device_of, parse_share
from reward_forcing.logs import StepProgress

app = typer.Typer(
    help="Make what is trained on: of the procedural world, or of videos of your own.", no_args_is_help=True
)
app.command(short_help="Encode a folder of videos.")(encode)


@app.command(short_help="Render clips of the procedural world.")
def make(
    out: Annotated[Path, typer.Option(help="The folder to write to; the same command again goes on where it stopped.")],
    count: Annotated[int, typer.Option(min=1, help="Clips in the split.")] = 1000,
    split: Annotated[str, typer.Option(help="train, validation or held_out.")] = "train",
    frames: Annotated[int, typer.Option(min=1, help="Frames of each clip; 81 are 5 seconds.")] = 81,
    size: Annotated[int, typer.Option(min=16, help="Width and height in pixels.")] = 64,
    vae: Annotated[Path | None, typer.Option(help="Write latents of this VAE's folder instead of videos.")] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Clips in a shard of latents.")] = 256,
    first: Annotated[int, typer.Option(min=0, help="Scene of the first clip of latents; the others count up.")] = 0,
    kinds: Annotated[str, typer.Option(help="Only these kinds of scene, in turn: spin,orbit. Latents only.")] = "",
    switch_chunk: Annotated[
        int, typer.Option(min=0, help="Clips whose prompt is switched at a multiple of so many latent frames.")
    ] = 0,
    share: Annotated[str, typer.Option(help="i/n: make only the i-th of n parts, from 0/n on.")] = "0/1",
) -> None:
    """Render clips with captions and the truth of every attribute, as .mp4 files or as latents."""
    from reward_forcing.config import unknown
    from reward_forcing.data.dataset import SPLITS

    if split not in SPLITS:
        raise ValueError(unknown("split", split, SPLITS))
    part = parse_share(share)
    if vae is not None:
        what = {"count": count, "split": split, "frames": frames, "size": size, "shard_size": shard_size}
        only = tuple(kind.strip() for kind in kinds.split(",") if kind.strip())
        _make_latents(out, vae, what | {"first": first, "kinds": only, "switch_chunk": switch_chunk}, part)
    elif switch_chunk or kinds or first:
        raise ValueError("--switch-chunk, --kinds and --first make latents: say which VAE encodes them, with --vae")
    else:
        _make_videos(out, count, split, frames, size, part)


def _make_latents(out: Path, vae: Path, what: Mapping[str, object], part: tuple[int, int]) -> None:
    import torch

    from reward_forcing.training.shards import weights_hash
    from reward_forcing.training.world_latents import LatentsManifest, encode_world

    torch.set_num_threads(1)
    manifest = LatentsManifest.model_validate({**what, "vae": weights_hash(vae)})
    shards = len(range(part[0], manifest.shards, part[1]))
    with StepProgress("encode", 0, max(1, shards)) as progress:
        for done in encode_world(vae, out, manifest, part):
            progress.advance(done)
    typer.echo(f"{out}: {manifest.count} clips of {manifest.frames} frames, split {manifest.split}")


def _make_videos(out: Path, count: int, split: str, frames: int, size: int, part: tuple[int, int]) -> None:
    import numpy as np

    from reward_forcing.data.captions import caption
    from reward_forcing.data.dataset import clip, world_scene
    from reward_forcing.data.scenes import FPS
    from reward_forcing.streaming.video_io import open_writer

    out.mkdir(parents=True, exist_ok=True)
    indices = range(part[0], count, part[1])
    with StepProgress("render", 0, len(indices)) as progress:
        for done, index in enumerate(indices):
            truth = out / f"{index:06d}.json"
            if not truth.is_file():  # written last: a clip without it is not whole
                scene = world_scene(index, split)  # pyright: ignore[reportArgumentType]
                words = caption(scene, np.random.default_rng([0, index]), held_out=split == "held_out")
                video = out / f"{index:06d}.mp4"
                with open_writer(video, FPS, (size, size), title=words.text, overwrite=True) as writer:
                    writer.write(clip(scene, frames, size))
                temporary = truth.with_suffix(f".{os.getpid()}.tmp")
                temporary.write_text(json.dumps({"caption": words.text, "says": words.says, "scene": asdict(scene)}))
                os.replace(temporary, truth)
            progress.advance(done + 1)
    typer.echo(f"{out}: {count} clips of {frames} frames with captions and truth, split {split}")


@app.command(short_help="A contact sheet of the world.")
def show(
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("world.png"),
    kind: Annotated[str | None, typer.Option(help="Only this kind of scene.")] = None,
    split: Annotated[str, typer.Option(help="train, validation or held_out.")] = "train",
    count: Annotated[int, typer.Option(min=1, help="Clips of each kind.")] = 1,
    size: Annotated[int, typer.Option(min=16, help="Width and height in pixels.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Where in the split to begin.")] = 0,
) -> None:
    """Draw a contact sheet of the world and print the captions of its rows."""
    import numpy as np
    from PIL import Image

    from reward_forcing.config import unknown
    from reward_forcing.data.captions import caption
    from reward_forcing.data.dataset import SPLITS, world_scene
    from reward_forcing.data.scenes import KINDS, render

    if kind is not None and kind not in KINDS:
        raise ValueError(unknown("scene kind", kind, KINDS))
    if split not in SPLITS:
        raise ValueError(unknown("split", split, SPLITS))
    if not out.parent.is_dir():
        raise FileNotFoundError(f"no folder '{out.parent}' to write {out.name} to")
    rows = []
    for name in [kind] if kind else KINDS:
        for index in range(seed, seed + count):
            scene = world_scene(index, split, name)  # pyright: ignore[reportArgumentType]
            rows.append(np.concatenate(list(render(scene, 81, size)[::8]), axis=1))
            typer.echo(f"{len(rows):3d}  {name:8s} {caption(scene, np.random.default_rng([index, len(rows)])).text}")
    Image.fromarray(np.concatenate(rows, axis=0)).save(out)
    typer.echo(f"wrote {out}")


@app.command(short_help="Solve a teacher's ODE for many prompts.")
def ode_pairs(
    teacher: Annotated[Path, typer.Option(help="The teacher's transformer/ folder.")],
    text: Annotated[Path, typer.Option(help="The folder with text_encoder/ and tokenizer/.")],
    out: Annotated[Path, typer.Option(help="The folder to write to; the same command again goes on.")],
    latent_shape: Annotated[str, typer.Option(help="Frames, channels, rows, columns of the latents.")] = "21,16,8,8",
    count: Annotated[
        int | None, typer.Option(min=1, help="Pairs to make: 500, or as many as there are prompts, if not said.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A file of prompts, one a line, in turn; the world's captions without it.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Euler steps of the teacher's ODE.")] = 16,
    shift: Annotated[float, typer.Option(min=0.01, help="Timestep shift of the teacher's ODE and the student.")] = 5.0,
    denoising_steps: Annotated[str, typer.Option(help="The student's steps, before the shift.")] = "1000,750,500,250",
    guidance: Annotated[float, typer.Option(help="CFG weight of the teacher.")] = 4.0,
    negative_prompt: Annotated[str, typer.Option(help="What guidance leads away from.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Another seed makes other noise, and other wordings.")] = 0,
    causal: Annotated[bool, typer.Option("--causal", help="The teacher is causal: solve chunk by chunk.")] = False,
    cache: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SETTING=VALUE", help="Its cache: 'chunk_frames=2', 'window_frames=12', 'sink={kind: ema}'."
        ),
    ] = None,
    context: Annotated[
        Path | None, typer.Option(help="Latents whose clips the causal teacher is given; its own chunks without it.")
    ] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Pairs in a shard.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Pairs solved together.")] = 16,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; the GPU where there is one, if not said.")] = None,
    share: Annotated[str, typer.Option(help="i/n: make only the i-th of n parts, from 0/n on.")] = "0/1",
) -> None:
    """Solve the teacher's ODE from noise for many prompts, for the ODE-regression stage."""
    import torch

    from reward_forcing.training.ode_pairs import OdePairs, OdePairsManifest, make_ode_pairs, prompts_hash, read_prompts
    from reward_forcing.training.shards import weights_hash
    from reward_forcing.training.tar_shards import shards_made

    torch.set_num_threads(1)
    part = parse_share(share)
    lines = read_prompts(prompts) if prompts else ()
    if not causal and (cache or context):
        raise ValueError("--cache and --context are for a causal teacher: say --causal, or leave them out")
    manifest = OdePairsManifest.model_validate(
        {"count": count or len(lines) or 500, "shard_size": shard_size, "teacher": weights_hash(teacher),
         "latent_shape": _whole_numbers("--latent-shape", latent_shape, 4), "steps": steps, "shift": shift,
         "denoising_steps": _whole_numbers("--denoising-steps", denoising_steps), "guidance": guidance,
         "negative_prompt": negative_prompt, "seed": seed, "prompts": prompts_hash(lines),
         "causal": _causal_teacher(cache or (), context) if causal else None}
    )  # fmt: skip
    where = device or device_of(part[0])
    with StepProgress("ode pairs", 0, max(1, len(range(part[0], manifest.shards, part[1])))) as progress:
        for done in make_ode_pairs(teacher, text, out, manifest, part, batch, lines, where, context):
            progress.advance(done)
    made = shards_made(out, manifest)
    if made == manifest.shards:
        typer.echo(f"{out}: {OdePairs(out).summary()}")
    else:
        typer.echo(f"{out}: part {share} is done; {made} of {manifest.shards} shards are there, make the other parts")


def _causal_teacher(changes: Sequence[str], context: Path | None) -> dict[str, Any]:
    """The settings of `ode_pairs.CausalTeacher`: its default cache with changes, and the hash of the context."""
    from reward_forcing.config import apply_override
    from reward_forcing.training.ode_pairs import CausalTeacher
    from reward_forcing.training.shards import weights_hash

    cache = CausalTeacher().cache.model_dump()
    for change in changes:
        apply_override(cache, change)
    return {"cache": cache, "context": weights_hash(context) if context else ""}


def _whole_numbers(option: str, text: str, count: int | None = None) -> tuple[int, ...]:
    numbers = text.split(",")
    if (count and len(numbers) != count) or not all(number.strip().isdigit() for number in numbers):
        how_many = f"{count} whole numbers as 21,16,8,8" if count else "whole numbers as 1000,750,500,250"
        raise ValueError(f"{option} must be {how_many}, got {text!r}")
    return tuple(int(number) for number in numbers)
