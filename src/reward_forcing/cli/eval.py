"""`rforce eval`: measure what a model makes of prompts it never saw."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from reward_forcing.logs import StepProgress

app = typer.Typer(help="Measure a model.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `world` a sub-command while it is the only one."""


@app.command()
def world(
    out: Annotated[Path, typer.Option(help="Folder for results.json and the contact sheet.")],
    model: Annotated[str, typer.Option(help="Bundled name, folder or hub id.")] = "mini",
    method: Annotated[str | None, typer.Option(help="How it streams; see rforce schedule.")] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Held-out prompts.")] = 128,
    seconds: Annotated[float, typer.Option(help="Length of each clip.")] = 5.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first clip; the others count up.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Clips streamed side by side.")] = 8,
    sheet: Annotated[int, typer.Option(min=0, help="Clips shown in the contact sheet.")] = 32,
) -> None:
    """Colour, shape, number, motion, direction and background of held-out prompts, read by simple vision."""
    import numpy as np
    from PIL import Image

    from reward_forcing.evaluation.world_suite import by_kind, held_out_prompts, judge, summarise
    from reward_forcing.streaming.pipeline import StreamingVideoPipeline

    pipeline = StreamingVideoPipeline.from_pretrained(model, method=method)
    wanted = held_out_prompts(prompts)
    verdicts, rows = [], []
    with StepProgress("clips", 0, prompts) as progress:
        for first in range(0, prompts, batch):
            piece = wanted[first : first + batch]
            seeds = [seed + prompt.index for prompt in piece]
            frames = pipeline.generate([prompt.text for prompt in piece], seconds, seeds=seeds)
            clips = (frames.clamp(0, 1) * 255).round().byte().permute(0, 1, 3, 4, 2).numpy()
            verdicts += [judge(prompt, clip) for prompt, clip in zip(piece, clips, strict=True)]
            shown = clips[: max(0, sheet - len(rows))]
            rows += [np.concatenate(list(clip[:: max(1, len(clip) // 10)]), axis=1) for clip in shown]
            progress.advance(first + len(piece))
    out.mkdir(parents=True, exist_ok=True)
    summary = summarise(verdicts)
    results: dict[str, Any] = {
        "model": model, "method": method, "seconds": seconds, "seed": seed, "prompts": prompts,
        "summary": summary, "by_kind": by_kind(verdicts), "clips": [verdict.as_json() for verdict in verdicts],
    }  # fmt: skip
    (out / "results.json").write_text(json.dumps(results, indent=1))
    if rows:
        Image.fromarray(np.concatenate(rows, axis=0)).save(out / "sheet.png")
    for name, numbers in summary.items():
        rate, low, high = (100 * numbers[key] for key in ("rate", "low", "high"))
        typer.echo(f"{name:22s} {rate:5.1f} %   [{low:.0f}, {high:.0f}]   of {numbers['count']:.0f}")
    typer.echo(f"wrote {out / 'results.json'}")
