"""Any text-to-video pipeline of diffusers as a source of clips: by folder or hub id, with its own settings.

Owns what the pipelines do not agree on: the name of the number of frames, and how many are shown in a second. Knows
no model: whatever class `model_index.json` names is called with a prompt, a generator and the user's settings.
"""

from __future__ import annotations

import inspect
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from pydantic import PositiveFloat, ValidationError

from reward_forcing.checkpoints.files import read_content
from reward_forcing.checkpoints.hub import resolve
from reward_forcing.config import Settings, apply_override, describe, nearest, unknown
from reward_forcing.evaluation.metrics import Rhythm
from reward_forcing.evaluation.sources import MadeWith, hash_once
from reward_forcing.streaming.model_folder import INDEX, PIPELINES
from reward_forcing.streaming.stream import VideoChunk

HUB_FILES = (INDEX, "*/*.json", "*/*.safetensors", "*/*.model", "*/*.txt")
FRAME_COUNTS = ("num_frames", "video_length", "frames")
RATES = ("frame_rate", "fps")
"""What pipelines call the number of frames, and the rate where they ask for one."""
DENOISERS = ("transformer", "unet")
GIVEN = ("prompt", "generator", "latents", "output_type", "return_dict", "num_videos_per_prompt", *RATES)
FRAME_STEP = 8
"""Frames are asked for as 1 plus a multiple of it, so that every VAE with a temporal factor of 2, 4 or 8 gives them."""

NATIVE_FPS: dict[str, float] = {
    "AllegroPipeline": 15,
    "AnyFlowFARPipeline": 16,
    "AnyFlowPipeline": 16,
    "CogVideoXPipeline": 8,
    "EasyAnimatePipeline": 8,
    "HeliosPipeline": 24,
    "HeliosPyramidPipeline": 24,
    "HunyuanVideoPipeline": 15,
    "HunyuanVideo15Pipeline": 15,
    "Kandinsky5T2VPipeline": 24,
    "MotifVideoPipeline": 24,
    "SanaVideoPipeline": 16,
    "SkyReelsV2Pipeline": 24,
    "WanPipeline": 16,
}
"""Frames per second of pipelines that take no rate: those at which the examples in diffusers 0.42.1 write the video."""


class PipelineSettings(Settings):
    """How a pipeline is called. fps: frames shown in a second. call: its arguments besides prompt and generator.

    dtype: of the weights; None takes bfloat16 on a GPU and float32 on a CPU.
    """

    fps: PositiveFloat
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    call: dict[str, Any] = {}  # noqa: RUF012 - frozen


@dataclass(frozen=True)
class PipelineSource:
    """Clips of a diffusers pipeline, each made as a whole from `torch.Generator().manual_seed(seed)`.

    path: its folder. class_name: of the pipeline. rate_name: the argument that takes the rate, '' without one.
    count_name: the argument that takes the number of frames.
    """

    path: Path
    class_name: str
    count_name: str
    rate_name: str
    settings: PipelineSettings

    streams = False

    @property
    def place(self) -> tuple[str, ...]:
        """The folder."""
        return (str(self.path),)

    @property
    def rhythm(self) -> Rhythm:
        """The rate; the clip has no chunks, so that metrics of borders take those of `WAN_RHYTHM`."""
        return Rhythm(self.settings.fps)

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width as set, or those that the pipeline takes by itself."""
        defaults = _parameters(_pipeline_class(self.path, self.class_name))
        sides = [self.settings.call.get(name) or defaults[name].default for name in ("height", "width")]
        return None if None in sides else (sides[0], sides[1])

    def frames_for(self, seconds: float) -> int:
        """The fewest frames that last `seconds`, or what was set if that is less."""
        frames = math.ceil(round(seconds * self.settings.fps, 6))
        return min(frames, self.settings.call.get(self.count_name, frames))

    @property
    def notes(self) -> tuple[str, ...]:
        """None: the pipeline streams as it was published."""
        return ()

    def made_with(self) -> MadeWith:
        """Hashes of every component with weights, and the arguments of the call."""
        parts = {folder.name: hash_once(files) for folder, files in _weights(self.path).items()}
        denoiser = next((name for name in DENOISERS if name in parts), "")
        settings = {"pipeline": self.class_name} | self.settings.model_dump(mode="json", exclude_none=True)
        return MadeWith(weights=parts.pop(denoiser, None), parts=parts, settings=settings)

    def load(self) -> Any:
        """The pipeline on the GPU, where there is one; raises ValueError for parts that diffusers cannot read."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = getattr(torch, self.settings.dtype or ("bfloat16" if device == "cuda" else "float32"))
        pipeline_class = _pipeline_class(self.path, self.class_name)
        try:
            pipeline = pipeline_class.from_pretrained(self.path, dtype=dtype, use_safetensors=True)
        except (OSError, AttributeError, RuntimeError) as error:
            raise ValueError(f"diffusers cannot load '{self.path}': {str(error).strip().splitlines()[0]}") from error
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(device)

    @torch.inference_mode()
    def chunks(
        self,
        loaded: Any,
        prompts: Sequence[str],
        seeds: Sequence[int],
        seconds: float,
        at: Sequence[tuple[float, str]] = (),
    ) -> Iterator[VideoChunk]:
        """One piece, the whole clip; the pipeline is asked for as many frames as its VAE can give, and cut."""
        assert len(prompts) == len(seeds) == 1, (prompts, seeds)
        assert not at, at
        wanted = self.frames_for(seconds)
        call = {self.count_name: 1 + -(-(wanted - 1) // FRAME_STEP) * FRAME_STEP, **self.settings.call}
        if self.rate_name:
            call[self.rate_name] = self.settings.fps
        started = time.perf_counter()
        generator = torch.Generator().manual_seed(seeds[0])
        made = loaded(prompt=prompts[0], generator=generator, output_type="np", **call)[0]
        frames = torch.as_tensor(made)
        if frames.ndim != 5 or frames.shape[0] != 1 or frames.shape[4] != 3:
            raise ValueError(f"expected frames [1, T, H, W, 3] of a {self.class_name}, got {list(frames.shape)}")
        if frames.shape[1] < wanted:
            raise ValueError(
                f"a {self.class_name} made {frames.shape[1]} of the {wanted} frames that {seconds:g} s at "
                f"{self.settings.fps:g} frames per second take; set {self.count_name} to what it can make"
            )
        seconds_taken = {"pipeline": time.perf_counter() - started}
        yield VideoChunk(0, frames[:, :wanted].permute(0, 1, 4, 2, 3), 0, 0.0, tuple(prompts), seconds_taken)


def open_pipeline(name: str | Path, changes: Sequence[str] | Mapping[str, Any] = ()) -> PipelineSource:
    """The diffusers pipeline in a folder or under a hub id, looked through before any weights are read.

    changes: its settings, as a mapping or as `name=value`: any argument of the pipeline's call, `fps` and `dtype`.
    Raises FileNotFoundError if a part is missing or the hub cannot be reached, ValueError for another kind of folder,
    a pipeline that does not make videos of prompts, and unknown settings.
    """
    path = resolve(name, HUB_FILES)
    class_name = _class_name(path)
    parameters = _parameters(_pipeline_class(path, class_name))
    count_name = next((name for name in FRAME_COUNTS if name in parameters), None)
    needed = [name for name, one in parameters.items() if one.default is one.empty and name != "prompt"]
    if "prompt" not in parameters or count_name is None or needed:
        needs = f"; it needs {', '.join(needed)}" if needed else ""
        raise ValueError(f"'{path}' holds a {class_name}, which makes no video of a prompt alone{needs}")
    rate_name = next((name for name in RATES if name in parameters), "")
    values: dict[str, Any] = {}
    if isinstance(changes, Mapping):
        values |= changes
    else:
        for change in changes:
            apply_override(values, change)
    own = {name: values.pop(name) for name in ("fps", "dtype") if name in values}
    _check_arguments(class_name, values, {name: one for name, one in parameters.items() if name not in GIVEN})
    if "fps" not in own:
        rate = parameters[rate_name].default if rate_name else NATIVE_FPS.get(class_name)
        if not rate:
            raise ValueError(f"a {class_name} does not say how many frames it shows in a second; set fps, such as 24")
        own["fps"] = rate
    try:
        settings = PipelineSettings(**own, call=values)
    except ValidationError as error:
        raise ValueError(f"settings of a {class_name}: {describe(error)}") from None
    return PipelineSource(path, class_name, count_name, rate_name, settings)


def _class_name(path: Path) -> str:
    """The pipeline's class; raises unless the folder is whole, as far as names tell."""
    if not (path / INDEX).is_file():
        raise FileNotFoundError(f"no {INDEX} in '{path}'; expected the folder of a diffusers pipeline")
    try:
        index = json.loads((path / INDEX).read_text(encoding="utf-8"))
        class_name = index["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"'{path / INDEX}' is damaged: no class is named there") from error
    if class_name == PIPELINES[0]:
        raise ValueError(f"'{path}' is a model of this package, which streams; name it as a model")
    if not isinstance(class_name, str):
        raise ValueError(f"'{path}' brings code of its own for its pipeline, which is not run")
    parts = [name for name, of in index.items() if name[0] != "_" and isinstance(of, list) and all(of)]
    if missing := [name for name in parts if not (path / name).is_dir()]:
        raise FileNotFoundError(f"'{path}' is not whole: {', '.join(missing)} is missing")
    if missing := [folder.name for folder, files in _weights(path).items() if not files]:
        raise FileNotFoundError(f"'{path}' is not whole: no .safetensors in {', '.join(missing)}")
    for files in _weights(path).values():
        for file in files:
            read_content(file)  # a damaged header is told now
    return class_name


def _weights(path: Path) -> dict[Path, list[Path]]:
    """Component with a network -> its weight files."""
    folders = sorted(config.parent for config in path.glob("*/config.json"))
    return {folder: sorted(folder.glob("*.safetensors")) for folder in folders}


def _pipeline_class(path: Path, class_name: str) -> type[DiffusionPipeline]:
    """A pipeline class of the installed diffusers."""
    try:
        found = getattr(diffusers, class_name)
    except (AttributeError, RuntimeError) as error:
        known = [name for name in dir(diffusers) if name.endswith("Pipeline")]
        near = nearest(class_name, known)
        hint = f"the nearest is {near}" if near else "another version may"
        raise ValueError(
            f"'{path}' needs a {class_name}, which diffusers {diffusers.__version__} cannot give ({hint})"
        ) from error
    if not (isinstance(found, type) and issubclass(found, DiffusionPipeline)):
        raise ValueError(f"'{path}' names {class_name} of diffusers, which is no pipeline")
    return found


def _parameters(pipeline_class: type[DiffusionPipeline]) -> dict[str, inspect.Parameter]:
    """The arguments of a pipeline's call."""
    return {name: one for name, one in inspect.signature(pipeline_class.__call__).parameters.items() if name != "self"}


def _check_arguments(class_name: str, values: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> None:
    """Raise ValueError for arguments that the call does not take, or whose default is of another kind."""
    for name, value in values.items():
        if name not in parameters:
            raise ValueError(unknown(f"setting of a {class_name}", name, [*parameters, "fps", "dtype"]))
        default = parameters[name].default
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if isinstance(default, int | float) and not isinstance(default, bool) and not is_number:
            raise ValueError(f"{name} of a {class_name} must be a number like its default {default}, got {value!r}")
    for name in (*FRAME_COUNTS, "num_inference_steps", "height", "width"):
        if name in values and (not isinstance(values[name], int) or values[name] < 1):
            raise ValueError(f"{name} must be a whole number of at least 1, got {values[name]!r}")
