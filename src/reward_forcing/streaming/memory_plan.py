"""Which `Acceleration` fits a device's memory, decided and explained before any weights are read.

`memory_needs` tells what a stream holds beside the weights; here come the weights, the candidates of each preset in the
order they are tried, and the words. Output-changing candidates are named as such in every line that tells of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

import psutil
import torch

from reward_forcing.config import unknown
from reward_forcing.models.vae import fastest_dtype
from reward_forcing.streaming.acceleration import Acceleration, Weights, is_big
from reward_forcing.streaming.memory_needs import Model, Needs, Precision, needs_of

RESERVE_BYTES = 2**29
"""Of a GPU, what the driver's context, kernels and their workspaces take; assumed, not measured."""
RESERVE_SHARE = 0.05
"""Of a GPU, what an allocator's gaps take; assumed, not measured."""
CPU_GROWTH = 2.4
"""Times what its tensors hold that a process on a CPU grows by, measured (docs/performance.md): its allocator gives
little back, and convolutions need room to work in."""
LOW_BIT_SCALE = {"int8": 5, "int8-dynamic": 5, "fp8": 4, "fp8-dynamic": 4}
"""Bytes that a row of a matrix takes beside its numbers: a float32 scale, and torchao's zero point of int8."""
SMALLER = (0.75, 0.5, 0.375)
"""Parts of the frame size that are tried for a hint where nothing fits."""

_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


class Preset(StrEnum):
    """How an acceleration is chosen: the first candidate that fits.

    auto: nothing given up; else the text encoder in host memory, then fewer latent frames decoded at a time, then a
    lean cache, then as many blocks in host memory as needed; else, said in its line, int8 weights. quality: the same
    without int8. fast: nothing in host memory; int8 weights, said in its line, only where it would not fit otherwise.
    low: the smallest memory in which the cache is exact: int8 weights, everything in host memory that can be.
    """

    AUTO = "auto"
    LOW = "low"
    FAST = "fast"
    QUALITY = "quality"


@dataclass(frozen=True)
class DeviceMemory:
    """A device's memory in bytes: what is free, and of that what a stream may hold."""

    device: torch.device
    free: int

    @property
    def usable(self) -> int:
        """Free memory without the reserve."""
        if self.device.type == "cpu":
            return int(self.free / CPU_GROWTH)
        return int(self.free * (1 - RESERVE_SHARE)) - RESERVE_BYTES


@dataclass(frozen=True)
class MemoryPlan:
    """What a stream takes on the device, in bytes. weights: by part. stages: everything alive at the worst moment of
    each. host: weights that lie in host memory beside it."""

    acceleration: Acceleration
    weights: Mapping[str, int]
    needs: Needs
    stages: Mapping[str, int]
    host: int

    @property
    def peak(self) -> int:
        """The worst moment of all."""
        return max(self.stages.values())


def precision_on(device: torch.device, dtype: torch.dtype | None = None) -> Precision:
    """What a pipeline computes in on a device, see `StreamingVideoPipeline.load`."""
    transformer = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    return Precision(transformer, dtype or fastest_dtype(device))


def free_memory(device: torch.device) -> DeviceMemory:
    """What is free on this machine's device now."""
    if device.type == "cuda":
        return DeviceMemory(device, torch.cuda.mem_get_info(device)[0])
    return DeviceMemory(device, psutil.virtual_memory().available)


def parse_bytes(text: str) -> int:
    """Bytes of `8GiB`, `24 GB` or `512MiB`; raises ValueError for another form."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]i?b|b)", text.strip().lower())
    if match is None:
        raise ValueError(f"memory must be a number with a unit, such as 8GiB or 24GB, got '{text}'")
    return int(float(match[1]) * _UNITS[match[2]])


def plan_of(
    model: Model, needs: Needs, acceleration: Acceleration, device: torch.device, precision: Precision
) -> MemoryPlan:
    """What a stream of a model takes on a device, kept as `acceleration` says."""
    ends, block, unpacked = _transformer_bytes(model, acceleration.weights, precision.transformer)
    layers = model.network.config["num_layers"]
    staged = min(acceleration.offload_blocks, layers)
    here = layers - staged + min(staged, 2)
    if device.type == "cpu":
        here, staged = here + staged, 0  # the host is the device
    released = acceleration.offload_text and device.type == "cpu"
    weights = {
        "transformer": ends + here * block,
        "text encoder": 0 if acceleration.offload_text else model.text_bytes,
        "VAE": sum(part.numel() for part in model.vae.parameters()) * precision.vae.itemsize,
    }
    if model.decoder is not None:
        numbers = sum(math.prod(part.shape) for part in model.decoder.parameters.values())
        weights[f"tiny decoder {model.decoder.path.stem}"] = numbers * precision.vae.itemsize
    standing = sum(weights.values()) + needs.standing + (needs.graphed if acceleration.graphs else 0)
    visiting = model.text_layer_bytes if acceleration.offload_text else 0
    if released:
        visiting = model.text_bytes
    stages = {
        "text": standing + visiting + needs.encoding,
        "denoise": standing + needs.denoising + unpacked,
        "commit": standing + needs.committing + unpacked,
        "decode": standing + needs.decoding[acceleration.decode_frames],
    }
    on_host = model.text_bytes if acceleration.offload_text and not released else 0
    return MemoryPlan(acceleration, weights, needs, stages, staged * block + on_host)


def choose(
    model: Model,
    preset: str,
    memory: DeviceMemory,
    batch: int = 1,
    fixed: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> MemoryPlan:
    """The plan of the first candidate of a preset that fits the memory.

    fixed: fields of `Acceleration` that are as the user says whatever the candidate. dtype: as for
    `StreamingVideoPipeline.load`. Raises ValueError for an unknown preset, and where nothing fits, with the numbers
    and with what would.
    """
    plans = []
    for plan in plans_of(model, preset, memory.device, batch, fixed, dtype):
        if plan.peak <= memory.usable:
            return plan
        plans.append(plan)
    least = min(plans, key=lambda plan: plan.peak)
    stage = max(least.stages, key=lambda name: least.stages[name])
    where = f"{_size(model)}, window {model.settings.window_frames}, batch {batch}"
    smallest = (
        f"{describe_acceleration(least.acceleration, model)}, takes {gib(least.peak)} at its worst moment ({stage})"
    )
    raise ValueError(
        f"preset {preset}: nothing fits {gib(memory.free)} of {memory.device.type} memory ({gib(memory.usable)} "
        f"without the reserve) with {model.name} at {where}; the smallest, {smallest}: weights "
        f"{gib(sum(least.weights.values()))}, cache {gib(least.needs.cache)}. "
        f"{_what_would_fit(model, preset, memory, batch, fixed, dtype)}"
    )


def plans_of(
    model: Model,
    preset: str,
    device: torch.device,
    batch: int = 1,
    fixed: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> Iterator[MemoryPlan]:
    """The plans of a preset's candidates in the order they are tried."""
    if preset not in list(Preset):
        raise ValueError(unknown("preset", preset, list(Preset)))
    layers = model.network.config["num_layers"] if device.type == "cuda" else 0
    fixed = dict(fixed or {})
    stay = {"offload_blocks": 0} if fixed.get("compile") or fixed.get("graphs") else {}
    stay |= {"cache": "exact"} if fixed.get("graphs") else {}
    asked = [Acceleration.model_validate(how.model_dump() | stay | fixed) for how in _candidates(preset, layers)]
    candidates = list(dict.fromkeys(asked))
    precision = precision_on(device, dtype)
    decode_frames = tuple(sorted({1, 3} | {how.decode_frames for how in candidates}))
    for how in candidates:
        yield plan_of(model, needs_of(model, precision, batch, decode_frames, how.cache), how, device, precision)


def describe_acceleration(how: Acceleration, model: Model) -> str:
    """An acceleration in words."""
    layers = model.network.config["num_layers"]
    parts = ["exact weights" if how.weights == "exact" else f"{how.weights} weights (which changes the output)"]
    if how.cache != "exact":
        parts.append("lean cache" if how.cache == "lean" else f"{how.cache} cache (which changes the output)")
    if how.offload_text:
        parts.append("text encoder offloaded")
    if how.offload_blocks:
        parts.append(f"{min(how.offload_blocks, layers)} of {layers} blocks offloaded")
    parts += [name for name, is_on in (("compiled blocks", how.compile), ("CUDA graphs", how.graphs)) if is_on]
    if how.decode_frames < model.settings.chunk_frames:
        parts.append(f"decoding {how.decode_frames} latent frame{'s' * (how.decode_frames > 1)} at a time")
    return ", ".join(parts)


def describe_plan(plan: MemoryPlan, model: Model, memory: DeviceMemory, batch: int = 1) -> str:
    """A plan as a table."""
    settings, needs = model.settings, plan.needs
    rows = [*((f"weights: {part}", size) for part, size in plan.weights.items())]
    rows += [("cache, with its sink", needs.cache), ("its keys rotated for a chunk", needs.shown)]
    rows += [("prompt's keys and values", needs.context), ("decoder's state", needs.state)]
    lines = [
        f"{model.name}, method {settings.method}, window {settings.window_frames}, {_size(model)}, batch {batch}, "
        f"on {memory.device.type} with {gib(memory.free)} free, {gib(memory.usable)} without the reserve",
        describe_acceleration(plan.acceleration, model),
        *(f"  {name:32}{gib(size):>12}" for name, size in rows),
        "everything at the worst moment of each stage",
        *(f"  {name:32}{gib(size):>12}{'  *' * (size == plan.peak)}" for name, size in plan.stages.items()),
        f"{'fits' if plan.peak <= memory.usable else 'does not fit'}; {gib(plan.host)} of weights in host memory",
    ]
    return "\n".join(lines)


def gib(size: int) -> str:
    """Bytes in GiB, or MiB where these are few."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**28 else f"{size / 2**20:.1f} MiB"


def _candidates(preset: str, layers: int) -> list[Acceleration]:
    """What a preset tries, in order; layers: that may lie in host memory."""
    plain, one = Acceleration(), Acceleration(decode_frames=1)
    sparing = Acceleration(offload_text=True, decode_frames=1)
    exact = [plain, Acceleration(offload_text=True), sparing]
    exact += [sparing.model_copy(update={"cache": "lean", "offload_blocks": count}) for count in range(layers + 1)]
    match preset:
        case "fast":
            return [plain, one, *(how.model_copy(update={"weights": "int8"}) for how in (plain, one))]
        case "quality":
            return exact
        case "low":
            return [exact[-1].model_copy(update={"weights": "int8"})]
        case _:
            return [*exact, *(how.model_copy(update={"weights": "int8"}) for how in exact[1:])]


def _what_would_fit(model: Model, preset: str, memory: DeviceMemory, *rest: Any) -> str:
    """The largest of some smaller sizes, and the shortest window, if they fit."""
    settings, geometry = model.settings, model.geometry
    found: list[str] = []

    def fits(other: Model) -> bool:
        return any(plan.peak <= memory.usable for plan in plans_of(other, preset, memory.device, *rest))

    for part in SMALLER:
        units = (geometry.spatial_factor * geometry.patch[1], geometry.spatial_factor * geometry.patch[2])
        height, width = (
            max(unit, int(size * part) // unit * unit)
            for unit, size in zip(units, (settings.height, settings.width), strict=True)
        )
        smaller = model.changed(height=height, width=width)
        if fits(smaller):
            found.append(f"--size {width}x{height}")
            break
    least = settings.sink.frames + settings.chunks_at_once * settings.chunk_frames
    shortest = max(least, 2 * settings.chunk_frames)  # something of the past should be seen
    if settings.window_frames is None or settings.window_frames > shortest:
        shorter = model.changed(window_frames=shortest)
        if fits(shorter):
            found.append(f"--set window_frames={shortest}")
    return f"This would fit: {' or '.join(found)}" if found else "No smaller size or window that was tried fits either"


@lru_cache(maxsize=8)
def _transformer_bytes(model: Model, weights: Weights, dtype: torch.dtype) -> tuple[int, int, int]:
    """Bytes of what is no block, of a block, and of the largest matrix unpacked from few bits."""
    network, block = model.network, model.network.blocks[0]
    names = () if weights == "exact" else (f"{name}.weight" for name, part in block.named_modules() if is_big(part))
    low_bit = frozenset(names)

    def size(name: str, parameter: torch.Tensor) -> int:
        if name in low_bit:
            return parameter.numel() + LOW_BIT_SCALE[weights] * parameter.shape[0]
        wide = any(part in name for part in network._keep_in_fp32_modules)
        return parameter.numel() * (torch.float32 if wide else dtype).itemsize

    ends = sum(size(name, part) for name, part in network.named_parameters() if not name.startswith("blocks."))
    each = sum(size(name, part) for name, part in block.named_parameters())
    unpacked = max((block.get_parameter(name).numel() for name in low_bit), default=0) * dtype.itemsize
    return ends, each, unpacked


def _size(model: Model) -> str:
    return f"{model.settings.width}x{model.settings.height}"
