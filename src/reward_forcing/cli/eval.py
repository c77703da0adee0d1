"""`rforce eval`: measure what a model makes of prompts it never saw."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reward_forcing.cli import eval_report, eval_run, eval_world
from reward_forcing.cli.generate import DECODED_TINY, Decoder
from reward_forcing.logs import StepProgress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

app = typer.Typer(help="Measure a model.", no_args_is_help=True)
app.command(short_help="Make a suite's clips and measure them.")(eval_run.run)
app.command(short_help="How a metric drifts along long clips.")(eval_run.drift)
app.command(short_help="Two evaluations, clip by clip.")(eval_run.compare)
app.command(short_help="Write a report as one HTML file.")(eval_report.report)
app.command(short_help="What of held-out prompts is seen.")(eval_world.world)

Out = Annotated[Path, typer.Option(help="Folder for results.json and the contact sheet.")]
Model = Annotated[str, typer.Option(help="Bundled name, folder or hub id.")]
Method = Annotated[str | None, typer.Option(help="How it streams; see rforce schedule.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the first clip; the others count up.")]
Batch = Annotated[int, typer.Option(min=1, help="Clips streamed side by side.")]
Sheet = Annotated[int, typer.Option(min=0, help="Clips shown in the contact sheet.")]


SWITCH_FRAME = 45
"""Pixel frame at which `switches` changes the prompt: where the fifth chunk begins."""


@app.command(short_help="Whether switched prompts are followed.")
def switches(
    out: Out,
    model: Model = "mini",
    method: Method = None,
    decoder: Decoder = None,
    changes: eval_world.Changes = None,
    prompts: Annotated[int, typer.Option(min=1, help="Pairs of prompts.")] = 64,
    seed: Seed = 0,
    batch: Batch = 8,
    sheet: Sheet = 32,
) -> None:
    """Whether a prompt that is switched after three seconds is followed, from the second chunk after the switch on."""
    from reward_forcing.evaluation.world_suite import judge_switch, summarise, switch_prompts
    from reward_forcing.streaming.model_folder import open_model_folder
    from reward_forcing.streaming.pipeline import StreamingVideoPipeline

    folder = open_model_folder(model, method, None, changes or (), decoder)
    pipeline = StreamingVideoPipeline.load(folder)
    geometry = pipeline.geometry
    at, settled = SWITCH_FRAME / geometry.fps, SWITCH_FRAME + geometry.temporal_factor * geometry.chunk_frames
    seconds = (settled + 5 * geometry.fps) / geometry.fps
    wanted = switch_prompts(prompts, SWITCH_FRAME)
    verdicts, rows = [], []
    with StepProgress("switches", 0, prompts) as progress:
        for first in range(0, prompts, batch):
            piece = wanted[first : first + batch]
            after = tuple(prompt.second.text for prompt in piece)
            seeds = [seed + prompt.second.index for prompt in piece]
            frames = pipeline.generate([prompt.first for prompt in piece], seconds, at={at: after}, seeds=seeds)
            clips = _pixels(frames)
            verdicts += [judge_switch(prompt, clip[settled:]) for prompt, clip in zip(piece, clips, strict=True)]
            rows += list(clips[: max(0, sheet - len(rows))])
            progress.advance(first + len(piece))
    results: dict[str, Any] = {
        "model": model, "method": method, "decoder": folder.decoder_name, "streaming": folder.settings.recorded(),
        "switch_frame": SWITCH_FRAME, "judged_from_frame": settled, "seed": seed,
        "prompts": prompts, "summary": summarise([verdict.right for verdict in verdicts]),
        "clips": [verdict.as_json() | {"first": prompt.first, "changed": prompt.changed}
                  for prompt, verdict in zip(wanted, verdicts, strict=True)],
    }  # fmt: skip
    _write(out, results, rows)
    if folder.decoder_name is not None:
        typer.echo(f"{folder.decoder_name}: {DECODED_TINY}")


def _pixels(frames: "Tensor") -> "NDArray[np.uint8]":
    """Frames [B, T, H, W, 3] uint8 of frames [B, T, 3, H, W] in [0, 1]."""
    return (frames.clamp(0, 1) * 255).round().byte().permute(0, 1, 3, 4, 2).numpy()


def _write(out: Path, results: dict[str, Any], clips: list["NDArray[np.uint8]"]) -> None:
    """Store results.json and a sheet with about ten frames of each clip, and print the rates."""
    import numpy as np
    from PIL import Image

    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results, indent=1))
    if clips:
        rows = [np.concatenate(list(clip[:: max(1, len(clip) // 10)]), axis=1) for clip in clips]
        Image.fromarray(np.concatenate(rows, axis=0)).save(out / "sheet.png")
    for name, numbers in results["summary"].items():
        rate, low, high = (100 * numbers[key] for key in ("rate", "low", "high"))
        typer.echo(f"{name:22s} {rate:5.1f} %   [{low:.0f}, {high:.0f}]   of {numbers['count']:.0f}")
    typer.echo(f"wrote {out / 'results.json'}")
