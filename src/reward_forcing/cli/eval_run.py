"""`rforce eval run`, `drift` and `compare`: make and measure a suite's clips, and read what was measured."""

import json
import math
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reward_forcing.cli.generate import DECODED_TINY, Decoder
from reward_forcing.cli.shares import parse_share
from reward_forcing.cli.sources import form_of, open_model, open_pipeline, parse_named
from reward_forcing.config import unknown

if TYPE_CHECKING:
    from reward_forcing.evaluation.paired import PairedMeasure
    from reward_forcing.evaluation.results import EvalResults, Score, SetResults

MAIN_SCORES = ("tracked_motion", "flow_dynamic_degree", "flicker", "midpoint_error", "background_constancy",
               "subject_constancy", "border_effect", "first_chunk_copying", "sharpness", "colourfulness")  # fmt: skip
"""Metrics that `run` prints, on all parts of a clip, besides every rate; results.json has all."""
CURVE_WIDTH = 48

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]


def run(
    suite: Annotated[str, typer.Option(help="mini, mini-validation, a file of prompts, or a folder of videos.")],
    out: Annotated[Path, typer.Option(help="Folder to write to; the same command again goes on where it stopped.")],
    model: Annotated[str | None, typer.Option(help="Bundled name, folder or hub id. [default: mini]")] = None,
    weights: Annotated[str | None, typer.Option(help="Checkpoint in place of the model's transformer.")] = None,
    method: Annotated[str | None, typer.Option(help="How it streams; see rforce schedule.")] = None,
    decoder: Decoder = None,
    pipeline: Annotated[
        str | None, typer.Option(help="A diffusers pipeline in place of a model: [NAME=]folder or hub id.")
    ] = None,
    folder: Annotated[
        str | None, typer.Option(help="Videos of the suite's prompts in place of a model: [NAME=]folder.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SETTING=VALUE",
            help="Change a setting: 'sink.alpha=0.9', 'num_inference_steps=20'. Repeatable.",
        ),
    ] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT that clips are brought to before measuring.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames per second that clips are brought to, likewise.")] = None,
    prompts: Annotated[int | None, typer.Option(min=2, help="How many prompts. [default: the suite's]")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Clips of each prompt.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first prompt; the others count up.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Clips of 5 seconds made side by side; fewer of longer ones.")] = 8,
    share: Annotated[str, typer.Option(help="i/n: make only the i-th of n parts, from 0/n on.")] = "0/1",
    quick: Annotated[bool, typer.Option("--quick", help="16 prompts, and 4 of 20 s: to see that all works.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make the clips of a suite, measure them, and write results.json and a report of every score and its interval."""
    from reward_forcing.optical_flow import opencv

    opencv()
    from reward_forcing.evaluation.matching import WORLD_FORM
    from reward_forcing.evaluation.report import write_report
    from reward_forcing.evaluation.results import RESULTS
    from reward_forcing.evaluation.run import evaluate
    from reward_forcing.evaluation.suites import open_suite
    from reward_forcing.evaluation.video_source import videos_for

    part, form = parse_share(share), form_of(size, fps)
    wanted = open_suite(suite, prompts, seeds, quick)
    if wanted.is_made and any((model, weights, method, decoder, pipeline, folder, changes, seed)):
        raise ValueError(
            f"'{suite}' is a folder of videos, so nothing is generated; leave model, settings and seed out"
        )
    if sum(map(bool, (model or weights or method or decoder, pipeline, folder))) > 1 or (folder and changes):
        raise ValueError("--pipeline and --folder take the place of a model and its options; leave the others out")
    source, name = None, ""
    if pipeline is not None:
        name, place = parse_named(pipeline, "--pipeline")
        source = open_pipeline(place, changes or ())
    elif folder is not None:
        name, place = parse_named(folder, "--folder")
        source = videos_for(wanted, Path(place))
    elif not wanted.is_made:
        name = (model or "mini") + (f" with {weights}" if weights else "")
        source = open_model(model or "mini", method, weights, changes or (), decoder)
    if (pipeline or folder) and any(one.truth for one in wanted.sets):
        form = form or WORLD_FORM
    how = {"form": form, "name": name, "seed": seed, "batch": batch, "share": part, "quiet": as_json}
    results = evaluate(wanted, out, source, command=shlex.join(["rforce", *sys.argv[1:]]), **how)
    if results is None:
        text = f"share {share} is done; the results come with the last of {part[1]} shares"
        typer.echo(json.dumps({"results": None, "note": text}) if as_json else text)
        return
    page = write_report(results, out)
    paths = {"results": str(out / RESULTS), "report": str(page)}
    record = paths | results.model_dump(mode="json", exclude={"samples"})
    typer.echo(_as_json(record) if as_json else "\n".join([_table(results), *paths.values()]))


def _table(results: "EvalResults") -> str:
    lines = []
    for one in results.sets:
        clips = sum(sample.set == one.name for sample in results.samples)
        lines.append(f"{one.name}: {clips} clips of {one.prompts} prompts, {one.seconds:g} s")
        lines += [_score_line(name, score) for name, score in _main_scores(one).items()]
        for name, drift in one.drift.items():
            slope = f"slope {drift.slope.value:+.4g} [{drift.slope.low:.4g}, {drift.slope.high:.4g}] a minute"
            lines.append(f"  drift of {name:20s} {drift.drift:9.4g}   {slope}")
    if results.provenance.decoder is not None:
        lines.append(f"{results.provenance.decoder}: {DECODED_TINY}")
    return "\n".join(lines)


def _main_scores(one: "SetResults") -> dict[str, "Score"]:
    """Rates, distances and the main metrics on all parts of a clip; drift and slope have lines of their own."""
    shown = {name: score for name, score in one.scores.items() if score.kind != "mean"}
    for name, score in one.scores.items():
        base, _, part = name.partition("@")
        if base in MAIN_SCORES and part not in ("drift", "slope"):
            shown[name] = score
    return shown


def _score_line(name: str, score: "Score") -> str:
    if score.kind == "rate":
        rate = f"{100 * score.value:7.1f} %   [{100 * score.low:.0f}, {100 * score.high:.0f}]"
        return f"  {name:28s} {rate:28s} of {score.count} clips"
    value = f"{score.value:9.4g}   [{score.low:.4g}, {score.high:.4g}]"
    return f"  {name:28s} {value:28s} {score.unit}"


def drift(
    paths: Annotated[list[Path], typer.Argument(help="An evaluation, folders of videos, or video files.")],
    metric: Annotated[str, typer.Option(help="A metric of single frames.")] = "sharpness",
    segment: Annotated[float, typer.Option(help="Seconds of a segment.")] = 2.0,
    as_json: AsJson = False,
) -> None:
    """How much a metric drifts along long clips: Reward Forcing's Eqs. 12-13, its slope, and the curve."""
    from reward_forcing.evaluation.clip_scores import PER_FRAME
    from reward_forcing.evaluation.metrics import METRICS
    from reward_forcing.evaluation.results import RESULTS, read_results

    if metric not in PER_FRAME:
        raise ValueError(unknown("metric of single frames", metric, PER_FRAME))
    if not 0 < segment < math.inf:
        raise ValueError(f"--segment must be a positive number of seconds, got {segment:g}")
    if len(paths) == 1 and (paths[0] / RESULTS).is_file():
        found = _recorded_drift(read_results(paths[0]), metric, segment)
    else:
        found = {"videos": _drift_of_videos(paths, metric, segment)}
    unit = METRICS[metric].unit
    if as_json:
        typer.echo(_as_json({"metric": metric, "unit": unit, "segment_seconds": segment, "sets": found}))
        return
    for name, numbers in found.items():
        typer.echo(f"{metric} of {name}, in {unit}\n{_drift_text(numbers)}")


def _recorded_drift(results: "EvalResults", metric: str, segment: float) -> dict[str, dict[str, Any]]:
    from reward_forcing.evaluation.clip_scores import SEGMENT_SECONDS

    if segment != SEGMENT_SECONDS:
        raise ValueError(f"an evaluation holds curves in segments of {SEGMENT_SECONDS:g} s; for others name its videos")
    found = {one.name: one.drift[metric].model_dump(mode="json") for one in results.sets if metric in one.drift}
    if not found:
        raise ValueError("this evaluation has no long clips, so no curves; name its videos instead")
    return found


def _drift_of_videos(paths: list[Path], metric: str, segment: float) -> dict[str, Any]:
    """The fields of `results.DriftScore` for video files and folders of them; one video's slope has no interval."""
    from reward_forcing.evaluation.drift import measure_drift, video_drift
    from reward_forcing.evaluation.metrics import METRICS, Rhythm
    from reward_forcing.evaluation.suites import videos_in
    from reward_forcing.streaming.video_io import read_video

    rates, values = {}, []
    for file in [file for path in paths for file in (videos_in(path) if path.is_dir() else [path])]:
        frames, rates[file] = read_video(file)
        values.append(METRICS[metric].function(frames.permute(0, 2, 3, 1).numpy(), Rhythm(rates[file])).values)
    fps = next(iter(rates.values()))
    if other := next((file for file, rate in rates.items() if rate != fps), None):
        raise ValueError(f"'{other}' has {rates[other]:g} frames per second, the first video {fps:g}; give equal ones")
    if len(values) == 1:
        one = video_drift(values[0], fps, segment)
        slope = {"value": one.slope, "low": None, "high": None, "count": 1}
        curve = list(zip(one.seconds, one.means, strict=True))
        return {"drift": one.drift, "slope": slope, "change": one.change, "curve": curve}
    all_of_them = measure_drift(values, fps, segment)
    return {name: value for name, value in asdict(all_of_them).items() if name != "videos"}


def _drift_text(numbers: Mapping[str, Any]) -> str:
    slope, curve = numbers["slope"], numbers["curve"]
    interval = "one video, no interval" if slope["low"] is None else f"[{slope['low']:.4g}, {slope['high']:.4g}]"
    values = [value for _, value in curve]
    low, spread = min(values), max(values) - min(values)
    return "\n".join([
        f"  drift   {numbers['drift']:.4g}   (standard deviation of segments, mean over clips)",
        f"  slope   {slope['value']:+.4g} a minute   {interval}",
        f"  change  {numbers['change']:.4g}   (|last - first segment|)",
        *(f"  {seconds:6.1f} s  {value:9.4g}  {' ' * _column(value, low, spread)}o" for seconds, value in curve),
    ])  # fmt: skip


def _column(value: float, low: float, spread: float) -> int:
    return round((value - low) / spread * (CURVE_WIDTH - 1)) if spread else 0


def compare(
    a: Annotated[Path, typer.Argument(help="Folder of an evaluation.")],
    b: Annotated[Path, typer.Argument(help="Folder of another, of the same prompts and seeds.")],
    name: Annotated[str | None, typer.Option("--set", help="Only this set. [default: all that both have]")] = None,
    as_json: AsJson = False,
) -> None:
    """Two evaluations side by side, clip by clip: difference A - B, how often A wins, effect size and p value."""
    from reward_forcing.evaluation.paired import pair
    from reward_forcing.evaluation.results import read_results

    ours, theirs = read_results(a), read_results(b)
    found = pair(ours, theirs, name)
    if as_json:
        rows = [asdict(row) | {"difference": row.difference.model_dump(), "verdict": row.verdict} for row in found]
        typer.echo(_as_json({"a": str(a), "b": str(b), "measures": rows}))
        return
    for one in dict.fromkeys(row.set for row in found):
        clips = [sum(sample.set == one for sample in results.samples) for results in (ours, theirs)]
        typer.echo(f"{one}: A = {a} ({clips[0]} clips), B = {b} ({clips[1]} clips)")
        columns = f"{'A wins':>7s} {'effect':>7s} {'p':>7s} {'pairs':>6s}   {'better':8s} A is"
        typer.echo(f"  {'':28s} {'A - B':>9s}   {'interval':22s} {columns}")
        typer.echo("\n".join(_paired_line(row) for row in found if row.set == one))
    typer.echo("p: sign-flip test over prompts, each score by itself; not corrected for the number of scores")


def _paired_line(row: "PairedMeasure") -> str:
    interval = f"[{row.difference.low:.4g}, {row.difference.high:.4g}]"
    wins = "" if row.win_rate is None else f"{100 * row.win_rate:.0f} %"
    numbers = f"{wins:>7s} {row.effect_size:7.2f} {row.p_value:7.4f} {row.clips:6d}"
    return (
        f"  {row.measure:28s} {row.difference.value:+9.4g}   {interval:22s} {numbers}   {row.better:8s} {row.verdict}"
    )


def _as_json(value: Any) -> str:
    """Indented JSON; numbers that are not finite become null, as JSON has none."""
    return json.dumps(_finite(value), indent=1)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
