"""Every method for ten minutes: does it run past any table of positions, does memory stay flat, and what drifts?

    python benchmarks/long_streams.py [--model mini] [--seconds 600] [--prompts 4] [--methods reward,rolling]
        [--processes 2] [--out runs/long_streams]

Streams the first held-out prompts side by side, a method in a process of its own, with the network that the model has,
whatever method it was trained for. The first 5 seconds, and the last 5 of each minute, are measured and judged, and the
process's memory is read there. OUT/METHOD.json holds what was found, OUT/table.md all of it; methods that are there
are not streamed again.
"""

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil

from reward_forcing.evaluation import environment
from reward_forcing.evaluation.metrics import METRICS, measure
from reward_forcing.evaluation.statistics import bootstrap_mean, wilson_interval
from reward_forcing.evaluation.suites import distinct_prompts
from reward_forcing.evaluation.world_suite import judge
from reward_forcing.logs import silence_imports
from reward_forcing.streaming.methods import METHODS
from reward_forcing.streaming.pipeline import StreamingVideoPipeline
from reward_forcing.streaming.video_io import to_uint8

MINUTE, WINDOW = 60.0, 5.0
MIB = 2**20
SCORES = ("sharpness", "contrast", "colourfulness", "noise_level")


def stream(model: str, method: str, seconds: float, prompts: int) -> dict[str, object]:
    """Streams `prompts` videos side by side; the windows' scores, verdicts and memory, one list entry each."""
    wanted = distinct_prompts(prompts)
    pipeline = StreamingVideoPipeline.from_pretrained(model, method=method)
    fps = pipeline.settings.fps
    ends = [WINDOW, *np.arange(MINUTE, seconds + 0.5, MINUTE).tolist()]
    spans = [(round((end - WINDOW) * fps), round(end * fps)) for end in ends]
    held: list[np.ndarray] = []
    windows: list[dict[str, object]] = []
    began, frames = time.monotonic(), 0
    for chunk in pipeline.stream([one.text for one in wanted], seeds=list(range(prompts))).until(seconds):
        start, stop = spans[len(windows)] if len(windows) < len(spans) else (sys.maxsize, sys.maxsize)
        first, frames = frames, frames + chunk.frames.shape[1]
        if frames > start:
            held.append(to_uint8(chunk.frames[:, max(0, start - first) :]).permute(0, 1, 3, 4, 2).numpy())
        if frames >= stop:
            clips = np.concatenate(held, axis=1)[:, : stop - start]
            held = []
            scores = [{name: found.score for name, found in measure(clip, SCORES).items()} for clip in clips]
            right = [judge(one, clip).right for one, clip in zip(wanted, clips, strict=True)]
            resident = psutil.Process().memory_info().rss / MIB
            windows.append({"end": ends[len(windows)], "scores": scores, "right": right, "resident_mib": resident})
    return {
        "method": method,
        "model": model,
        "frames": frames,
        "videos": prompts,
        "wall_seconds": time.monotonic() - began,
        "commit": environment.commit(),
        "machine": environment.machine(),
        "windows": windows,
    }


def row(found: dict) -> str:
    """A method's line of the table: memory, drift per minute with intervals over videos, what is right at both ends."""
    windows = found["windows"]
    resident = [window["resident_mib"] for window in windows]
    cells = [f"{resident[1]:.0f}, {resident[-1]:.0f} ({100 * (resident[-1] / resident[1] - 1):+.1f} %)"]
    minutes = np.array([window["end"] / MINUTE for window in windows])
    away = (minutes - minutes.mean()) / np.square(minutes - minutes.mean()).sum()
    for name in SCORES:
        courses = np.array([[scores[name] for scores in window["scores"]] for window in windows])
        slope = bootstrap_mean([[float(one)] for one in away @ courses])
        cells.append(f"{slope.value:+.3g} [{slope.low:+.2g}, {slope.high:+.2g}]")
    for window in (windows[0], windows[-1]):
        named = [right for of_clip in window["right"] for name, right in of_clip.items() if name != "aligned"]
        rate = wilson_interval(sum(named), len(named))
        cells.append(f"{100 * rate.value:.0f} % of {rate.count}")
    speed = found["frames"] * found["videos"] / found["wall_seconds"]
    return f"| {found['method']} | {found['frames']} | {speed:.0f} | " + " | ".join(cells) + " |"


def table(found: list[dict]) -> str:
    """All methods in one table."""
    minutes = found[0]["windows"][-1]["end"] / MINUTE
    heads = ["method", "frames", "frames per second, all videos", "memory after 1 min and at the end, MiB"]
    heads += [f"{name} per minute ({METRICS[name].unit or '0 to 1'})" for name in SCORES]
    heads += ["named and right in the first 5 s", f"in the last 5 s of {minutes:g} min"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *map(row, found)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Stream what is missing, then write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/long_streams"))
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    methods = options.methods.split(",")
    if options.one:
        silence_imports()
        print(json.dumps(stream(options.model, methods[0], options.seconds, options.prompts)))
        return
    options.out.mkdir(parents=True, exist_ok=True)

    def make(method: str) -> None:
        path = options.out / f"{method}.json"
        if not path.exists():
            given = ["--model", options.model, "--seconds", str(options.seconds), "--prompts", str(options.prompts)]
            command = [sys.executable, __file__, "--one", "--methods", method, *given]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            path.write_text(done.stdout.strip().rpartition("\n")[2] + "\n", encoding="utf-8")

    with ThreadPoolExecutor(options.processes) as pool:
        list(pool.map(make, methods))
    text = table([json.loads((options.out / f"{method}.json").read_text()) for method in methods])
    (options.out / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
