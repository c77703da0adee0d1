"""Peak memory of streaming videos of several lengths, each in a process of its own: constant memory, measured.

    python benchmarks/memory.py [--model mini] [--seconds 15 90 600]

Prints the peak resident set of each and its ratio to the first; the figures hold the whole process: Python, torch, the
model, the cache, the decoder's state and the video encoder.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

CHILD = """
import json, resource, sys
from reward_forcing.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    assert not stop.code, stop.code
print(json.dumps({"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def measure(model: str, seconds: float, folder: Path) -> dict[str, float]:
    """Peak resident memory in MiB and frames per second of one streamed video."""
    arguments = ["generate", "a red ball bounces over a blue floor", "--model", model, "--seconds", str(seconds)]
    arguments += ["--seed", "1", "--out", str(folder / f"{seconds:g}.mp4"), "--json"]
    done = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, check=True)
    video, _, peak = done.stdout.strip().rpartition("\n")
    told = json.loads(video)
    return {"seconds": seconds, "frames": told["frames"], "fps": told["speed"]["fps"], **json.loads(peak)}


def main() -> None:
    """Measure and print, one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seconds", type=float, nargs="+", default=[15, 90, 600])
    options = parser.parse_args()
    first = None
    with tempfile.TemporaryDirectory() as folder:
        for seconds in options.seconds:
            row = measure(options.model, seconds, Path(folder))
            first = first or row["peak_mib"]
            print(json.dumps(row | {"ratio_to_first": row["peak_mib"] / first}), flush=True)


if __name__ == "__main__":
    main()
