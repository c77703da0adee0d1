"""The transformer stages at tiny size, built alike in any number of processes."""

from pathlib import Path
from typing import Any

import torch

from reward_forcing.processes import ALONE, World
from reward_forcing.training.dmd import DmdSettings, DmdStage
from reward_forcing.training.flow_matching import FlowMatchingSettings, FlowMatchingStage
from reward_forcing.training.re_dmd import ReDmdSettings, ReDmdStage
from reward_forcing.training.settings import TrainSettings
from reward_forcing.training.shards import write_shards
from reward_forcing.training.stage import Stage
from reward_forcing.training.world_latents import LatentsManifest

SEED = 3
ADAM = {"kind": "adamw", "lr": 1e-3, "eps": 1e-4}
"""With an epsilon above rounding errors: Adam makes steps of full length out of gradients that are nothing else."""


def distilling(folder: Path, world: World = ALONE, reward: bool = False, **changes: Any) -> Stage[Any]:
    """The DMD stage on a model's folder, or the Re-DMD stage; keys of `train` may be given flat."""
    values: dict[str, Any] = {
        "generator": folder / "transformer",
        "real_score": folder / "transformer",
        "vae": folder / "vae",
        "text": folder,
        "batch": 4,
        "frames": 8,
        "latent_size": [4, 4],
        "generator_every": 2,
        "denoising_steps": [1000, 500],
        "cache": {"window_frames": 6, "chunk_frames": 2, "sink": {"kind": "ema", "frames": 2, "alpha": 0.9}},
    }
    if reward:
        values |= {"reward": {"kind": "toy_rewards:Brightness", "mean": 0.5, "std": 0.01}, "running": 0.3, "group": 2}
        values["watch_clips"] = 2
    values["train"] = {"optimizers": {"generator": ADAM, "fake_score": ADAM}, "ema": {"generator": {"decay": 0.5}}}
    settings_class, stage_class = (ReDmdSettings, ReDmdStage) if reward else (DmdSettings, DmdStage)
    return stage_class(
        settings_class.model_validate(_changed(values, changes)), SEED, world.rank, world.size, world.device
    )


def flow_matching(
    folder: Path, latents: Path, world: World = ALONE, causal: bool = False, **changes: Any
) -> Stage[Any]:
    """The flow-matching stage from a model's transformer, on a store that `write_latents` made."""
    causally = {"kind": "teacher_forcing", "frames": 6, "chunk_frames": 2, "sink_frames": 2}
    values: dict[str, Any] = {
        "latents": latents,
        "validation_latents": latents,
        "text": folder,
        "vae": folder / "vae",
        "init": folder / "transformer",
        "objective": causally if causal else {"kind": "bidirectional"},
        "phases": [{"share": 1, "frames": 8, "batch": 4}],
        "sample_steps": 2,
        "train": {"optimizers": {"transformer": ADAM}, "ema": {"transformer": {"decay": 0.5}}},
    }
    settings = FlowMatchingSettings.model_validate(_changed(values, changes))
    return FlowMatchingStage(settings, SEED, world.rank, world.size, world.device)


def _changed(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    train = {"steps": 5, "clip_norm": 1.0, "log_every": 1, "save_minutes": None, **values["train"]}
    for key, value in changes.items():
        (train if key in TrainSettings.model_fields else values)[key] = value
    return values | {"train": train}


def write_latents(folder: Path) -> Path:
    """A store of 6 clips of 8 latent frames of noise."""
    manifest = LatentsManifest(count=6, split="train", frames=29, size=32, vae="none")
    noise = torch.randn(6, 8, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    list(write_shards(folder, manifest, lambda items: {"latents": noise[items.start : items.stop].half()}))
    return folder
