"""Owns the store of ODE pairs: what a bidirectional teacher makes of noise, with points on the way, for regression."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from reward_forcing.data.dataset import wording
from reward_forcing.flow import ode_sigmas, warp_denoising_steps
from reward_forcing.models.denoiser import Denoiser
from reward_forcing.rollout.noise import SeededNoise
from reward_forcing.training.networks import load_transformer
from reward_forcing.training.prompts import PromptEncoder
from reward_forcing.training.sampling import ode_trajectory
from reward_forcing.training.shards import Manifest, read_shards, write_shards


class OdePairsManifest(Manifest):
    """How the pairs were made. teacher: SHA-256 of its weights. latent_shape: (F, C, h, w).

    The teacher's ODE is solved in `steps` Euler steps with timestep shift `shift` and CFG weight `guidance`; kept are
    the points at the noise levels of a student with `denoising_steps` and the same shift, and the clean end. (The
    Self Forcing reference solves with shift 8 and 48 steps, then samples with shift 5; we keep one shift for both.)
    """

    teacher: str
    latent_shape: tuple[int, int, int, int]
    steps: int = 48
    shift: float = 5.0
    guidance: float = 4.0
    denoising_steps: tuple[int, ...] = (1000, 750, 500, 250)
    seed: int = 0

    def kept(self) -> list[int]:
        """Indices into the trajectory of the kept points, noisy to clean. Raises ValueError unless steps fit."""
        odd = [step for step in self.denoising_steps if step * self.steps % 1000]
        if odd:
            raise ValueError(f"denoising steps {odd} do not lie on {self.steps} ODE steps; use another number")
        return [self.steps - step * self.steps // 1000 for step in self.denoising_steps] + [self.steps]

    def sigmas(self) -> tuple[float, ...]:
        """Noise levels of the kept points, the clean end left out."""
        return warp_denoising_steps(self.denoising_steps, self.shift)


def make_ode_pairs(
    teacher: Path, text: Path, out: Path, manifest: OdePairsManifest, share: tuple[int, int] = (0, 1), batch: int = 16
) -> Iterator[int]:
    """Make part `share` (i of n) of the pairs; yields the shards done. Pair `i` is of caption `i` and noise `i`."""
    network = load_transformer(teacher, torch.device("cpu")).requires_grad_(False)
    denoiser, prompts = Denoiser(network), PromptEncoder(text, torch.device("cpu"))
    sigmas, kept = ode_sigmas(manifest.steps, manifest.shift), manifest.kept()

    @torch.inference_mode()
    def make(items: range) -> dict[str, Tensor]:
        pieces = []
        for first in range(items.start, items.stop, batch):
            piece = range(first, min(first + batch, items.stop))
            noise = SeededNoise(tuple(piece))(0, manifest.seed, manifest.latent_shape)
            captions = [wording(item, "train", manifest.seed) for item in piece]
            context = network.encode_text(prompts(captions))
            null = network.encode_text(prompts([""])).expand(len(piece))
            pieces.append(ode_trajectory(denoiser, noise, context, null, sigmas, manifest.guidance, kept).half())
        return {"trajectories": torch.cat(pieces)}

    return write_shards(out, manifest, make, share)


class OdePairs:
    """Trajectories [n, K, F, C, h, w] of a teacher, noisy to clean, with the captions they belong to."""

    def __init__(self, folder: Path) -> None:
        """Open a store. Raises FileNotFoundError if it is missing or not complete."""
        self.manifest, tensors = read_shards(folder, OdePairsManifest, f"rforce data ode-pairs --out {folder}")
        self.trajectories = tensors["trajectories"]

    def __len__(self) -> int:
        return self.manifest.count

    def caption(self, index: int) -> str:
        """The caption that pair `index` was made with."""
        return wording(index, "train", self.manifest.seed)
