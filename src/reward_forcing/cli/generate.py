"""`rforce generate`: a prompt to a video file, written as it comes."""

import json
import logging
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from reward_forcing.logs import console

if TYPE_CHECKING:
    from reward_forcing.streaming.given import Given
    from reward_forcing.streaming.model_folder import ModelFolder
    from reward_forcing.streaming.prompts import Timeline
    from reward_forcing.streaming.recording import Recording
    from reward_forcing.streaming.stream import VideoChunk

DEFAULT_SECONDS = 5.0
EXIT_INTERRUPTED = 130
DECODED_TINY = "frames of a tiny decoder, not the VAE's (`rforce bench decoder` measures the difference)"
NO_CLEAN_PASS = "without clean passes"

Decoder = Annotated[
    str | None, typer.Option(help="Tiny decoder (TAEHV) in place of the model's: faster, other frames.")
]


def generate(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help="What the video shows.")],
    seconds: Annotated[
        float | None,
        typer.Option(help=f"Length of the video, with what it begins with. [default: {DEFAULT_SECONDS:g} new ones]"),
    ] = None,
    endless: Annotated[bool, typer.Option("--endless", help="Go on until Ctrl-C.")] = False,
    at: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TIME:PROMPT", help="Change the prompt: '5s: a blue ball', from the video's beginning. Repeatable."
        ),
    ] = None,
    image: Annotated[Path | None, typer.Option(help="Begin with this picture.")] = None,
    video: Annotated[Path | None, typer.Option(help="Begin with this video and continue it.")] = None,
    video_seconds: Annotated[
        float | None, typer.Option(help="Begin with the last so many seconds of --video. [default: all]")
    ] = None,
    only_new: Annotated[bool, typer.Option("--only-new", help="Leave out what the video begins with.")] = False,
    seed: Annotated[int | None, typer.Option(help="Same seed, same video. [default: drawn]")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in multiples of 16. [default: the model's]")] = None,
    model: Annotated[str, typer.Option(help="Model folder, bundled model or hub id.")] = "mini",
    weights: Annotated[str | None, typer.Option(help="Checkpoint in place of the model's transformer.")] = None,
    decoder: Decoder = None,
    method: Annotated[
        str | None,
        typer.Option(help="reward, self, longlive, .. (`rforce schedule --list`). [default: the model's]"),
    ] = None,
    switch: Annotated[
        str | None, typer.Option(help="At --at: keep, recache, .. (`rforce schedule --list`). [default: the method's]")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SETTING=VALUE", help="Change a setting: 'sink.alpha=0.9'. Repeatable."),
    ] = None,
    decoder_device: Annotated[
        str | None, typer.Option(help="Decode on another device, such as cuda:1. [default: the transformer's]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="FILE.mp4, .webm or .gif, or a folder of images.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is at --out.")] = False,
    scale: Annotated[int | None, typer.Option(help="Enlarge the frames so many times. [default: up to 384]")] = None,
    preset: Annotated[
        str | None, typer.Option(help="Fit the memory: auto, quality, fast or low. [default: auto on a GPU]")
    ] = None,
    accelerate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SETTING=VALUE", help="How weights are kept: 'weights=int8', 'offload_blocks=10'. Repeatable."
        ),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print what memory it would take, and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Make a video of a prompt. The file plays at any moment, however the command ends."""
    from reward_forcing.cli.memory import acceleration_for, print_plan
    from reward_forcing.processes import device_called, from_first, join_world
    from reward_forcing.rollout import SeededNoise
    from reward_forcing.streaming.given import open_given
    from reward_forcing.streaming.methods import method_named
    from reward_forcing.streaming.model_folder import open_model_folder
    from reward_forcing.streaming.prompts import Timeline, parse_at
    from reward_forcing.streaming.stream import last_start
    from reward_forcing.streaming.video_io import check_output, free_path

    length = _length(seconds, endless)
    vae_device = None if decoder_device is None else device_called(decoder_device)
    world = context.with_resource(join_world())
    seed = from_first(secrets.randbelow(2**31) if seed is None else SeededNoise((seed,)).seeds[0], world)
    timeline = Timeline.of(prompt, [parse_at(text) for text in at or []])
    pixels = None if size is None else parse_size(size)
    if method is not None:
        method_named(method)
    out = out or free_path(Path(f"{_file_name(prompt)}-{seed}.mp4"))
    out = check_output(out, overwrite) if world.is_first else out
    changes = [*([] if switch is None else [f"switch.kind={switch}"]), *(changes or ())]
    folder = open_model_folder(model, method, weights, changes, decoder)
    if switch is not None and not at:
        raise ValueError("--switch says how a prompt changes: give --at, or leave it out")
    if pixels is not None:
        folder = folder.resized(*pixels)
    if plan:
        print_plan(folder, preset, accelerate or ())
        return
    taken = {"image": image, "video": video, "seconds": video_seconds, "shown": not only_new}
    given = open_given(folder.geometry, folder.latent_channels, **taken)
    if only_new and given is None:
        raise ValueError("--only-new leaves out an --image or a --video, and none is given")
    source = _source(folder, given, image or video)
    if length is not None:
        length += source["seconds"] if source and source["shown"] and seconds is None else 0
        known = (given.latent_frames, given.hidden_frames) if given else ()
        timeline.check_reached(last_start(folder.geometry, length, *known))
    scale = _scale(folder, scale)
    how = acceleration_for(folder, preset, accelerate or ()) if world.is_first else None  # all take the first one's

    place = {"vae_device": vae_device, "world": world, "acceleration": how}
    recording = _make(
        folder, timeline, length, seed, out, overwrite, scale, given, source, place, changes, quiet=as_json
    )
    report = _report(folder, timeline, recording) | {"path": str(out), "model": model, "seed": seed, "scale": scale}
    report |= {"weights": weights, "changes": changes, "settings": folder.settings.recorded()}
    report["given"] = source
    if world.is_first:
        print(json.dumps(report, indent=2) if as_json else _summary(report))
    if recording.interrupted and not endless:
        raise typer.Exit(EXIT_INTERRUPTED)


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of `WIDTHxHEIGHT`; raises ValueError for another form."""
    match = re.fullmatch(r"(\d+)[x×](\d+)", text.strip().lower())
    if match is None:
        raise ValueError(f"--size must be WIDTHxHEIGHT in pixels, such as 832x480, got '{text}'")
    return int(match[2]), int(match[1])


def _make(
    folder: "ModelFolder",
    timeline: "Timeline",
    seconds: float | None,
    seed: int,
    out: Path,
    overwrite: bool,
    scale: int,
    given: "Given | None",
    source: dict[str, Any] | None,
    place: dict[str, Any],
    changes: list[str],
    quiet: bool,
) -> "Recording":
    """Load the model and record the video. place: arguments of `StreamingVideoPipeline.load`."""
    import transformers

    from reward_forcing.streaming.pipeline import StreamingVideoPipeline
    from reward_forcing.streaming.processes import WrittenElsewhere, in_step
    from reward_forcing.streaming.recording import record
    from reward_forcing.streaming.video_io import open_writer

    transformers.utils.logging.disable_progress_bar()
    geometry, (prompt, *later), world = folder.geometry, timeline.singles(), place["world"]
    with _progress(quiet or not world.is_first) as bar, notes(silent=not world.is_first):
        task = bar.add_task("loading the model", total=None, fps="")

        def show(chunk: "VideoChunk", recording: "Recording") -> None:
            bar.update(task, completed=recording.frames, description=chunk.prompt, fps=f"{recording.fps:.1f} fps")

        pipeline = StreamingVideoPipeline.load(folder, **place)
        bar.update(task, total=None if seconds is None else geometry.frames_for(seconds), description=prompt[1])
        begin = {} if given is None else {**given.as_argument, "shows_given": given.shown}
        stream = pipeline.stream(prompt[1], at=later, seed=seed, height=geometry.height, width=geometry.width, **begin)
        weights = f", weights {folder.transformer.name}" if folder.transformer != folder.path else ""
        changed = "".join(f", {change}" for change in changes)
        method = f"method {folder.settings.method}{changed}"
        comment = f"rforce, model {folder.path.name}{weights}, {method}, seed {seed}"
        if folder.decoder is not None:
            comment += f", tiny decoder {folder.decoder_name}"
        if not folder.settings.clean_pass:
            comment += f", {NO_CLEAN_PASS}"
        if source is not None:
            comment += f", {_words(source)}, sha256 {source['sha256']}"
        size = (geometry.height, geometry.width)
        named = {"title": prompt[1], "comment": comment, "overwrite": overwrite}
        writer = WrittenElsewhere()
        if world.is_first:
            writer = open_writer(out, geometry.fps, size, scale=scale, resample="bicubic", **named)
        return record(in_step(stream if seconds is None else stream.until(seconds), world), writer, show)


def _source(folder: "ModelFolder", given: "Given | None", path: Path | None) -> dict[str, Any] | None:
    """What the video begins with, for the report; None for noise."""
    from reward_forcing.checkpoints.files import files_hash
    from reward_forcing.streaming.video_sinks import png_frames

    if given is None or path is None:
        return None
    frames = folder.geometry.frames_of(given.latent_frames)
    return {
        "kind": given.kind,
        "path": str(path),
        "sha256": files_hash(png_frames(path) if path.is_dir() else [path]),
        "frames": frames,
        "seconds": frames / folder.geometry.fps,
        "shown": given.shown,
    }


def _words(source: dict[str, Any]) -> str:
    """What the video begins with, in words."""
    what = "" if source["kind"] == "image" else f"the last {source['frames']} frames ({source['seconds']:.2f} s) of "
    return f"{'begins with' if source['shown'] else 'goes on from'} {what}{Path(source['path']).name}"


def _report(folder: "ModelFolder", timeline: "Timeline", recording: "Recording") -> dict[str, Any]:
    geometry = folder.geometry
    return {
        "method": folder.settings.method,
        "clean_pass": folder.settings.clean_pass,
        "decoder": None if folder.decoder is None else str(folder.decoder),
        "prompts": [{"at": time, "prompt": prompt} for time, prompt in timeline.singles()],
        "frames": recording.frames,
        "seconds": recording.frames / geometry.fps,
        "video_fps": geometry.fps,
        "width": geometry.width,
        "height": geometry.height,
        "interrupted": recording.interrupted,
        "speed": recording.to_dict(),
    }


def _summary(report: dict[str, Any]) -> str:
    speed, scale = report["speed"], report["scale"]
    enlarged = f", enlarged {scale} times for viewing (--scale)" if scale > 1 else ""
    given = f"  {_words(report['given'])}\n" if report["given"] else ""
    method = report["method"] if report["clean_pass"] else f"{report['method']} {NO_CLEAN_PASS}"
    tiny = f", {DECODED_TINY}" if report["decoder"] else ""
    weights = f" with weights {report['weights']}" if report["weights"] else ""
    changed = "".join(f", {change}" for change in report["changes"])
    stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in speed["stage_seconds"].items())
    return f"""{report["path"]}
  {report["frames"]} frames, {report["seconds"]:.2f} s at {report["video_fps"]} fps, \
{report["width"]}x{report["height"]}{enlarged}
{given}  model {report["model"]}{weights}, method {method}, seed {report["seed"]}{changed}{tiny}
  made at {speed["fps"]:.1f} fps, first frames after {speed["first_chunk_seconds"]:.2f} s
  counting {speed["fps_includes"]}
  stages: {stages}; video encoding runs beside them"""


def _length(seconds: float | None, endless: bool) -> float | None:
    """Seconds of video, None for endless."""
    if endless and seconds is not None:
        raise ValueError("give either --seconds or --endless, not both")
    if seconds is not None and not 0 < seconds < float("inf"):
        raise ValueError(
            f"--seconds must be positive and finite, got {seconds:g}; for a video without end use --endless"
        )
    return None if endless else seconds or DEFAULT_SECONDS


def _scale(folder: "ModelFolder", scale: int | None) -> int:
    from reward_forcing.streaming.video_io import viewing_scale

    if scale is not None and scale < 1:
        raise ValueError(f"--scale must be a whole number of at least 1, got {scale}")
    return scale or viewing_scale(folder.geometry.height, folder.geometry.width)


def _file_name(prompt: str) -> str:
    """The prompt's first words as a file name."""
    return "-".join(re.findall(r"\w+", prompt.lower())[:6])[:60] or "video"


def _progress(quiet: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.completed} frames"),
        TextColumn("{task.fields[fps]}"),
        TimeElapsedColumn(),
        console=console(),
        transient=True,
        disable=quiet or not console().is_terminal,
    )


@contextmanager
def notes(silent: bool = False) -> Iterator[None]:
    """Show the package's warnings as notes above the progress bar, each once; none if `silent`."""
    logger, handler = logging.getLogger("reward_forcing"), logging.Handler(logging.WARNING)
    told: set[str] = set()

    def tell(record: logging.LogRecord) -> None:
        if (message := record.getMessage()) not in told and not silent:
            told.add(message)
            console().print(f"note: {message}", markup=False, soft_wrap=True)

    handler.emit = tell
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
