"""`rforce doctor`: what is installed, what this machine computes with, and how fast the bundled model streams here."""

import importlib.metadata as metadata
import json
import os
import platform
import time
from typing import Annotated, Any

import typer
from packaging.requirements import Requirement

PACKAGE = "reward-forcing"
LIBRARIES = ("torch", "diffusers", "transformers", "tokenizers", "safetensors", "huggingface-hub", "av", "numpy")
ENCODERS = ("libx264", "libx265", "libvpx-vp9", "libsvtav1", "ffv1", "gif")
PROMPT = "a red ball bounces over a blue floor"
_MATRIX = 256  # rows of the square matrices that are multiplied to time a dtype


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    speed: Annotated[bool, typer.Option("--speed/--no-speed", help="Time the bundled model.")] = True,
) -> None:
    """Report versions, extras, devices, dtypes, video encoders and the bundled model, and time it."""
    report = {
        "versions": versions(),
        "extras": extras(),
        "devices": devices(),
        "encoders": encoders(),
        "bundled": bundled_models(speed),
    }
    print(json.dumps(report, indent=2) if as_json else describe(report))


def versions() -> dict[str, str]:
    """Name -> version of Python, this package and the libraries it stands on."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    return found | {name: metadata.version(name) for name in (PACKAGE, *LIBRARIES)}


def extras() -> dict[str, dict[str, Any]]:
    """Extra -> the distributions it lacks here and the pip line that installs them (None if it is complete)."""
    required = [Requirement(line) for line in metadata.requires(PACKAGE) or []]
    found = {}
    for extra in metadata.metadata(PACKAGE).get_all("Provides-Extra") or []:
        named = [r for r in required if r.marker and r.marker.evaluate({"extra": extra})]
        missing = [r.name for r in named if r.name != PACKAGE and not _satisfied(r)]
        found[extra] = {
            "missing": missing,
            "install": f"pip install -e '.[{extra}]' in its checkout" if missing else None,
        }
    return found


def devices() -> list[dict[str, Any]]:
    """Every device that torch can use: its name, memory in GiB, and the speed of matrix products by dtype."""
    import torch

    cpu = {"device": "cpu", "name": platform.processor() or platform.machine(), "memory_gib": _memory_gib()}
    cpu |= {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "simd": torch.backends.cpu.get_cpu_capability(),
    }
    found = [cpu]
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        memory = round(about.total_memory / 2**30, 1)
        found.append({"device": f"cuda:{index}", "name": about.name, "memory_gib": memory})
    if torch.backends.mps.is_available():
        found.append({"device": "mps", "name": platform.machine(), "memory_gib": _memory_gib()})
    return [device | {"gflops": _matmul_speed(device["device"])} for device in found]


def encoders() -> list[str]:
    """The video encoders among `ENCODERS` that PyAV brings."""
    from av.codec import Codec
    from av.codec.codec import UnknownCodecError

    found = []
    for name in ENCODERS:
        try:
            Codec(name, "w")
        except UnknownCodecError:
            continue
        found.append(name)
    return found


def bundled_models(speed: bool) -> dict[str, dict[str, Any]]:
    """Name -> folder, weights' SHA-256 and, if `speed`, the timing of each bundled model."""
    from reward_forcing.checkpoints.files import files_hash, find_weights
    from reward_forcing.checkpoints.hub import bundled

    found = {}
    for name, folder in bundled().items():
        hashes = {file.name: files_hash([file]) for file in find_weights(folder)}
        found[name] = {"folder": str(folder), "sha256": hashes, "speed": time_model(name) if speed else None}
    return found


def time_model(name: str, chunks: int = 4) -> dict[str, Any]:
    """Seconds to load, seconds to the first frames, and frames per second over the chunks after the first two.

    A speed above the model's frame rate, which is given beside it, means real time.
    """
    from reward_forcing.streaming.pipeline import StreamingVideoPipeline

    start = time.perf_counter()
    pipeline = StreamingVideoPipeline.from_pretrained(name)
    loaded = time.perf_counter()
    stream = pipeline.stream(PROMPT)
    marks, frames = [], []
    for _ in range(max(3, chunks)):
        frames.append(next(stream).frames.cpu().shape[1])
        marks.append(time.perf_counter())
    return {
        "load_seconds": round(loaded - start, 3),
        "first_frames_seconds": round(marks[0] - loaded, 3),
        "frames_per_second": round(sum(frames[2:]) / (marks[-1] - marks[1]), 1),
        "real_time_at": pipeline.geometry.fps,
        "device": str(pipeline.transformer.device),
    }


def describe(report: dict[str, Any]) -> str:
    """A report as lines of text."""
    lines = ["versions"] + [f"  {name:16} {version}" for name, version in report["versions"].items()]
    lines.append("extras")
    for name, extra in report["extras"].items():
        state = f"missing {', '.join(extra['missing'])}: {extra['install']}" if extra["missing"] else "installed"
        lines.append(f"  {name:16} {state}")
    lines.append("devices")
    for device in report["devices"]:
        memory = f"{device['memory_gib']} GiB" if device["memory_gib"] else "memory unknown"
        threads = f", {device['threads']} of {device['cores']} cores, {device['simd']}" if "cores" in device else ""
        lines.append(f"  {device['device']:16} {device['name']}, {memory}{threads}")
        speeds = [f"{dtype} {speed if speed else 'not supported'}" for dtype, speed in device["gflops"].items()]
        lines.append(f"  {'':16} GFLOP/s: {', '.join(speeds)}")
    lines += ["video encoders", f"  {', '.join(report['encoders']) or 'none'}"]
    lines.append("bundled models" if report["bundled"] else "bundled models: none in this installation")
    for name, model in report["bundled"].items():
        lines.append(f"  {name:16} {model['folder']}")
        lines += [f"  {'':16} sha256 {digest}  {file}" for file, digest in model["sha256"].items()]
        if model["speed"]:
            lines.append(f"  {'':16} {_verdict(model['speed'])}")
    return "\n".join(lines)


def _verdict(speed: dict[str, Any]) -> str:
    pace = "real time" if speed["frames_per_second"] >= speed["real_time_at"] else "slower than real time"
    return (
        f"{speed['frames_per_second']} frames/s on {speed['device']} ({pace}: plays at {speed['real_time_at']}), "
        f"first frames after {speed['first_frames_seconds']} s, loaded in {speed['load_seconds']} s"
    )


def _satisfied(requirement: Requirement) -> bool:
    try:
        return requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False


def _memory_gib() -> float | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _matmul_speed(device: str) -> dict[str, float | None]:
    """dtype -> GFLOP/s of a matrix product, None where the device has none."""
    import torch

    speeds: dict[str, float | None] = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        try:
            matrix = torch.ones(_MATRIX, _MATRIX, device=device, dtype=dtype)
            (matrix @ matrix)[0, 0].item()
            start = time.perf_counter()
            (matrix @ matrix)[0, 0].item()
            speed = 2 * _MATRIX**3 / (time.perf_counter() - start) / 1e9
        except RuntimeError:
            speed = None
        speeds[str(dtype).removeprefix("torch.")] = None if speed is None else round(speed, 1)
    return speeds
