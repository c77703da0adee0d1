"""What the five scripts of the GPU protocol share: options, the record, the state of the GPU, timing, sizes.

Every script runs on a GPU machine with torch and this package, downloads nothing, draws its weights from a seed, writes
its record after every result, and with `--tiny` does all of it at toy size on a CPU. Clocks, power and MIG are read and
left alone.
"""

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch
from torch import Tensor, nn

from reward_forcing.benchmarks.clock import measure
from reward_forcing.benchmarks.record import Recorder, Table
from reward_forcing.benchmarks.subjects import PROMPT, Subject, cast_network, open_subject, random_network
from reward_forcing.models.cuda_attention import BACKEND
from reward_forcing.models.sizes import Size
from reward_forcing.streaming.methods import streaming_settings

STATE = "name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu"
M = TypeVar("M", bound=nn.Module)
TINY: Size = {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 64, "num_layers": 2}


@dataclass
class Protocol:
    """One script's run."""

    tiny: bool
    device: torch.device
    recorder: Recorder
    seed: int
    began: float
    seconds: float

    @property
    def dtype(self) -> torch.dtype:
        """What is measured in."""
        return torch.bfloat16

    def late(self) -> bool:
        """Whether the time allowed is used up: what is left is then noted as not measured."""
        return self.left() < 0

    def left(self) -> float:
        """Seconds that are allowed still."""
        return self.began + self.seconds - time.monotonic()

    def attempt(self, name: str, measure: Callable[[], object], needs: float = 0.0) -> None:
        """Measure something that records itself; what fails, or needs more seconds than are left, is noted in words."""
        if self.left() <= needs:
            self.recorder.fail(f"{name}: no time left")
            return
        try:
            measure()
        except Exception as error:
            self.recorder.fail(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def time(self, run: Callable[[], object], repeats: int = 10) -> float:
        """Median wall seconds of `run`, after two calls that do not count."""
        for _ in range(2):
            run()
        return median(measure(run, self.device)[1].wall for _ in range(1 if self.tiny else repeats))

    def table(self, name: str, unit: str, rows: Iterable[tuple[str, Callable[[], float]]], notes: str = "") -> None:
        """Measure and record one number after the other; what fails is recorded as missing, with the reason."""
        values: dict[str, float | None] = {}
        for row, value in rows:
            if self.late():
                self.recorder.fail(f"{name}, {row}: no time left")
                values[row] = None
                continue
            try:
                values[row] = value()
            except (RuntimeError, TypeError, ValueError, AttributeError) as error:
                values[row] = None
                self.recorder.fail(f"{name}, {row}: {' '.join(str(error).split())[:300]}")
            print(f"{name}, {row}: {'failed' if values[row] is None else f'{values[row]:.4g} {unit}'}", flush=True)
        self.recorder.add(Table(name=name, unit=unit, values=values, notes=notes))

    def randn(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Random numbers on the device, of the spread of weights; never zeros, which run faster."""
        return (torch.randn(shape, device=self.device) * 0.02).to(dtype or self.dtype)

    def note_state(self) -> None:
        """Record clocks, power and temperature as the GPU's tool tells them."""
        if self.device.type == "cuda":
            asked = ["nvidia-smi", f"--query-gpu={STATE}", "--format=csv,noheader"]
            try:
                told = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
            except (OSError, subprocess.SubprocessError) as error:
                told = f"unknown: {error}"
            self.recorder.note_state(told)

    def subject(self, *changes: str) -> Subject:
        """The 1.3B network of random weights at 832x480, in bfloat16; `changes` are the method's."""
        if not self.tiny:
            return open_subject("wan-1.3b", "bfloat16", None, changes, self.seed, device=self.device)
        network = cast_network(random_network(TINY, self.seed), "bfloat16", self.device)
        settings = streaming_settings(None, None, ["height=64", "width=64", *changes])
        text = torch.randn(1, 8, network.config["text_dim"], device=self.device).to(torch.bfloat16)
        return Subject("tiny", network, settings, settings.method, "bfloat16", (8, 8), text, (self.seed,))


def begin(description: str, minutes: float) -> Protocol:
    """The run that the command line asks for; `minutes` is the default of `--minutes`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the record, written after every result")
    parser.add_argument("--tiny", action="store_true", help="toy size, for a CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=minutes, help="what begins later is left out and noted")
    options = parser.parse_args()
    if torch.device(options.device).type == "cpu" and not options.tiny:
        parser.error("no GPU here; --tiny runs the same at toy size on a CPU")
    torch.manual_seed(options.seed)
    recorder = Recorder(options.out, f"python {shlex.join(sys.argv)}", options.seed)
    device = torch.device(options.device)
    run = Protocol(options.tiny, device, recorder, options.seed, time.monotonic(), 60 * options.minutes)
    run.note_state()
    return run


def finish(run: Protocol) -> None:
    """Record the state once more, and by which backends attention was computed; say where everything is."""
    run.note_state()
    for case, backend in BACKEND.found.items():
        run.recorder.note_state(f"attention of {case.queries} queries, {case.keys} keys by {backend}")
    for failure in run.recorder.record.failures:
        print(f"not measured: {failure}")
    print(f"wrote {run.recorder.path}")


class RandomText:
    """In place of UMT5: the same random embeddings for the same prompt. Its time is not counted anywhere."""

    def __init__(self, tokens: int, width: int, device: torch.device, dtype: torch.dtype) -> None:
        self.shape, self.device, self.dtype = (tokens, width), device, dtype

    def __call__(self, prompts: list[str]) -> Tensor:
        """Embeddings [B, L, text_dim]."""
        rows = [torch.randn(self.shape, generator=torch.Generator().manual_seed(len(prompt))) for prompt in prompts]
        return torch.stack(rows).to(self.device, self.dtype)

    def unknown_words(self, prompt: str) -> list[str]:
        """None: nothing is read."""
        return []


def frozen(module: M, run: Protocol) -> M:
    """A network as it is measured: in bfloat16 on the device, without gradients."""
    nn.Module.to(module, run.device, run.dtype)
    return module.eval().requires_grad_(False)


__all__ = ["PROMPT", "Protocol", "RandomText", "begin", "finish", "frozen"]
