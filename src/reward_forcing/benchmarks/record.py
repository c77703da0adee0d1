"""The record of benchmarks: one JSON file that every sub-result is written to as soon as it is there.

Owns the format and how a speed is worded: no frames per second without what they count.
"""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from reward_forcing.benchmarks.clock import percentile
from reward_forcing.config import Settings
from reward_forcing.evaluation.environment import commit, machine, versions

FORMAT = 1


class Conditions(Settings):
    """What a speed counts and under which settings.

    scope: the transformer's passes and commits alone, the decoder alone, or everything from prompt to encoded file.
    passes: denoising passes of a chunk and its clean pass, `4+1`, or `4+0` without one. size: rows and columns, of
    latents for 'DiT only', else of pixels. average: over chunks with the window full, or over a whole clip from its
    prompt on. text: tokens of the prompt, and of the text with its padding. compiled, graphs, weights, attention: how
    our network is run, see `Acceleration`.
    """

    model: str
    method: str
    scope: Literal["DiT only", "decoder only", "end to end"]
    window_frames: int | None
    passes: str
    precision: str
    decoder: str
    size: tuple[int, int]
    batch: int = 1
    device: str = "cpu"
    threads: int = 1
    average: Literal["steady state", "clip"] = "steady state"
    text: tuple[int, int]
    compiled: bool = False
    graphs: bool = False
    weights: str = "exact"
    attention: str = "exact"

    def __str__(self) -> str:
        window = "no window" if self.window_frames is None else f"window {self.window_frames}"
        rows, columns = self.size
        of = "latents" if self.scope == "DiT only" else "pixels"
        parts = [self.scope, window, f"{self.passes} passes", self.precision, f"decoder {self.decoder}", self.average]
        parts += [f"{rows}x{columns} {of}", f"text {self.text[0]} of {self.text[1]} tokens", f"batch {self.batch}"]
        parts += [f"{self.device} with {self.threads} threads", *["compiled"] * self.compiled]
        parts += [*["CUDA graphs"] * self.graphs, *[f"weights {self.weights}"] * (self.weights != "exact")]
        parts += [f"attention {self.attention}"] * (self.attention != "exact")
        return ", ".join(parts)


class Speed(Settings):
    """Frames per second with all that they count. cpu: frames per CPU second, None on a GPU."""

    wall: float
    cpu: float | None
    conditions: Conditions

    def __str__(self) -> str:
        cpu = "" if self.cpu is None else f", {self.cpu:.3g} frames per CPU second"
        return f"{self.wall:.3g} FPS{cpu} ({self.conditions})"


class Series(Settings):
    """Seconds of every repetition, in the order they were measured; medians can be computed again, lost samples not."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]

    def quantiles(self) -> dict[str, float]:
        """p50, p95 and p99 of the wall seconds."""
        return {f"p{percent}": percentile(self.wall, percent) for percent in (50, 95, 99)}


class SideBySide(Settings):
    """The fast path and an opponent on the same weights and noise, alternating in one process.

    ratio_cpu, ratio_wall: median over pairs of theirs / ours. errors: relative error of the opponent's latents of each
    pair against ours. valid: every error is below `tolerance`; otherwise the ratios say nothing. flops: of one of our
    chunks by formula, `counted` as counted. peak_cpu, peak_wall: FLOP/s of a matrix product, median over the pairs, in
    CPU and in wall seconds. fraction, of_opponent: what `flops` in the median chunk are of the peak that `fraction_of`
    names.
    """

    kind: Literal["side by side"] = "side by side"
    opponent: Literal["naive", "diffusers"]
    conditions: Conditions
    ours: Series
    theirs: Series
    ratio_cpu: float
    ratio_wall: float
    errors: tuple[float, ...]
    tolerance: float
    valid: bool
    flops: int
    counted: int
    peak_cpu: float
    peak_wall: float
    fraction: float
    of_opponent: float
    fraction_of: Literal["peak_cpu", "peak_wall"] = "peak_cpu"
    notes: str = ""


class DecoderBeside(Settings):
    """A tiny decoder beside the VAE on the same latents, chunk by chunk, alternating in one process.

    psnr: of its frames against the VAE's, in dB for frames in [0, 1], 100 at most; chunk_psnr: of each chunk's.
    conditions: the tiny decoder's, and how the latents were made. ours: the tiny decoder's seconds, theirs: the VAE's,
    which `reference` names. ratio_cpu, ratio_wall: median over the chunks of theirs / ours.
    """

    kind: Literal["decoder beside the VAE"] = "decoder beside the VAE"
    conditions: Conditions
    reference: str
    psnr: float
    chunk_psnr: tuple[float, ...]
    ours: Series
    theirs: Series
    ratio_cpu: float
    ratio_wall: float


class NaiveClip(Settings):
    """A whole clip the naive way, end to end: all passes, then all frames decoded, then all encoded.

    stages: stage -> wall seconds. first_frame: seconds from the prompt to the first frame, which is after the last
    chunk's passes and the decoding of them all.
    """

    kind: Literal["naive clip"] = "naive clip"
    chunks: int
    stages: dict[str, float]
    first_frame: float
    clip: Speed
    peak_memory_mib: float


class Streamed(Settings):
    """A stream, chunk by chunk: seconds by stage, the time to the first frames, and speeds.

    stages: stage -> wall seconds of each chunk, one after the other. chunks: of all stages together. first_frame:
    seconds from the prompt to the first chunk's frames (of DiT only: latents), everything loaded and warm. steady: over
    the chunks after the window is full. clip: from the prompt to the last frame. quantiles: of the steady chunks' wall
    seconds. held_bytes: of cache and decoder state after the last chunk. flops: of a steady chunk's passes by formula;
    fraction, of the peak that `fraction_of` names: what they reach in the median steady chunk's dit and commit.
    """

    kind: Literal["stream"] = "stream"
    stages: dict[str, tuple[float, ...]]
    chunks: Series
    first_frame: float
    steady: Speed
    clip: Speed
    quantiles: dict[str, float]
    peak_memory_mib: float
    held_bytes: int
    flops: int
    peak_cpu: float
    peak_wall: float
    fraction: float
    fraction_of: Literal["peak_cpu", "peak_wall"] = "peak_cpu"


class WayMeasured(Settings):
    """One way of running a network (`benchmarks/ways.py`), the same steady chunk every time.

    error: the largest relative error of a chunk's latents against the exact, uncompiled, ungraphed way. preparing: wall
    seconds of storing weights, compiling, capturing, and the chunks that do not count.
    """

    kind: Literal["way"] = "way"
    name: str
    chunks: Series
    speed: Speed
    error: float
    preparing: float
    peak_memory_mib: float


class Point(Settings):
    """One value of a sweep."""

    value: str
    speed: Speed
    chunks: Series
    flops: int


class Sweep(Settings):
    """The speed of the fast path over one setting, all else the same."""

    kind: Literal["sweep"] = "sweep"
    over: str
    points: tuple[Point, ...]


class Table(Settings):
    """Numbers of another kind by name, such as the ceilings of a GPU; unit: of all of them."""

    kind: Literal["table"] = "table"
    name: str
    unit: str
    values: dict[str, float | None]
    notes: str = ""


AnyResult = SideBySide | DecoderBeside | Streamed | NaiveClip | WayMeasured | Sweep | Table
"""One sub-result of a command."""

Result = Annotated[AnyResult, Field(discriminator="kind")]


class BenchResults(Settings):
    """Everything that one command measured.

    failures: what could not be measured and why, in words. machine: processor and GPU; state: clocks, power and
    temperature of a GPU as its tool told them, before and after, and by which backends it computed attention.
    """

    format: Literal[1] = FORMAT
    command: str
    created: str
    commit: str
    versions: dict[str, str]
    machine: str
    seed: int
    state: tuple[str, ...] = ()
    results: tuple[Result, ...] = ()
    failures: tuple[str, ...] = ()


class Recorder:
    """The record in a file that grows by sub-results; whoever is killed keeps what was measured until then."""

    def __init__(self, path: Path, command: str, seed: int) -> None:
        if not path.parent.is_dir():
            raise FileNotFoundError(f"no folder '{path.parent}' to write '{path.name}' into")
        created = datetime.now(UTC).isoformat(timespec="seconds")
        about: dict[str, Any] = {"commit": commit(), "versions": versions(), "machine": machine()}
        self.path = path
        self.record = BenchResults(command=command, created=created, seed=seed, **about)
        self._write()

    def add(self, result: AnyResult) -> None:
        """Append a result and write the file; a sweep replaces the shorter one over the same setting."""
        kept = [one for one in self.record.results if not _continues(result, one)]
        self._update(results=(*kept, result))

    def fail(self, message: str) -> None:
        """Note what could not be measured."""
        self._update(failures=(*self.record.failures, message))

    def note_state(self, state: str) -> None:
        """Note clocks, power and temperature."""
        self._update(state=(*self.record.state, state))

    def _update(self, **changes: Any) -> None:
        self.record = self.record.model_copy(update=changes)
        self._write()

    def _write(self) -> None:
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        temporary.write_text(self.record.model_dump_json(indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, self.path)


def _continues(result: object, earlier: object) -> bool:
    if not (isinstance(result, Sweep) and isinstance(earlier, Sweep)):
        return False
    return result.over == earlier.over and result.points[: len(earlier.points)] == earlier.points


def read_record(path: Path) -> BenchResults:
    """The record in a file. Raises FileNotFoundError, and ValueError for a file of another kind."""
    return BenchResults.model_validate_json(path.read_text(encoding="utf-8"))


def bench_schema() -> str:
    """The JSON schema of a record."""
    return json.dumps(BenchResults.model_json_schema(), indent=1) + "\n"


def threads() -> int:
    """Threads that torch computes with on the CPU."""
    return torch.get_num_threads()
