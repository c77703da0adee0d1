"""Small stores of ODE pairs for tests: published LMDBs, tars with timesteps of one's choice, and a known student."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from reward_forcing.models.wan_dit import WanDiT
from reward_forcing.training.ode_pairs import CONTEXT, MEMBER, TRAJECTORY, OdePairsManifest
from reward_forcing.training.ode_regression import OdeRegressionSettings, OdeRegressionStage
from reward_forcing.training.tar_shards import write_tar_shards


def write_lmdb(folder: Path, latents: np.ndarray, prompts: Sequence[str], **changes: bytes | None) -> Path:
    """An LMDB in the published layout; changes: key -> other bytes, or None to leave it out."""
    content = {"latents_shape": " ".join(map(str, latents.shape)).encode(), "prompts_shape": f"{len(prompts)}".encode()}
    content |= {f"latents_{i}_data": row.tobytes() for i, row in enumerate(latents.astype(np.float16))}
    content |= {f"prompts_{i}_data": prompt.encode() for i, prompt in enumerate(prompts)}
    folder.mkdir(parents=True)
    environment = lmdb.open(str(folder), map_size=1 << 22)
    with environment.begin(write=True) as transaction:
        for key, value in (content | changes).items():
            if value is not None:
                transaction.put(key.encode(), value)
    environment.close()
    return folder


def write_tars(
    folder: Path, trajectories: Tensor, timesteps: Sequence[float], context: Tensor | None = None, **changes: Any
) -> Path:
    """Our own store of [n, K, F, C, h, w], in shards of two; its pairs say `timesteps`, whatever the manifest says.

    context: [n, F, C, h, w], the clean frames that a causal teacher was given. changes: of the manifest.
    """
    manifest = OdePairsManifest.model_validate(
        {"count": len(trajectories), "shard_size": 2, "teacher": "none", "latent_shape": trajectories.shape[2:],
         "steps": 1000, "denoising_steps": [1000 - i for i in range(trajectories.shape[1] - 1)]} | changes
    )  # fmt: skip
    about = {"prompt": "a red ball bounces", "timesteps": list(timesteps)}

    def make(items: range) -> list[dict[str, bytes]]:
        named = {TRAJECTORY: trajectories} | ({} if context is None else {CONTEXT: context})
        pieces = [{name: tensor[item].half().contiguous() for name, tensor in named.items()} for item in items]
        return [{MEMBER: save(piece), "json": json.dumps(about).encode()} for piece in pieces]

    list(write_tar_shards(folder, manifest, make))
    return folder


def constant_student(folder: Path, tiny_dit: Callable[..., WanDiT], velocity: float) -> Path:
    """A transformer's folder whose velocity is the same everywhere: it sees x - sigma velocity behind every x."""
    network = tiny_dit(text_dim=32)
    network.get_parameter("proj_out.weight").data.zero_()
    network.get_parameter("proj_out.bias").data.fill_(velocity)
    network.save_pretrained(folder)
    return folder


def stage(pairs: Path, text: Path, init: Path, **changes: Any) -> OdeRegressionStage:
    """The stage on a store, with chunks of one frame and batches of 4."""
    train = {"steps": 2, "optimizers": {"generator": {"kind": "adamw", "lr": 1e-3}}, "log_every": 1, "sample_every": 2}
    paths = {"pairs": pairs, "text": text, "init": init}
    values = {"batch": 4, "chunk_frames": 1, "train": train, **paths, **changes}
    settings = OdeRegressionSettings.model_validate(values)
    return OdeRegressionStage(settings, 0, 0, 1, torch.device("cpu"))
