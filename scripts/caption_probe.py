"""Asks a trained transformer which of two captions fits a clip: the right one or one with another direction.

A diffusion model is a classifier (Li et al. 2023, arXiv 2303.16203): with the same noise, the flow loss of a clip is
lower under the caption that describes it. For each kind of scene with directions and each noise level, prints the share
of clips whose right caption has the lower loss (0.5: a guess) and how many standard errors the losses are apart. Where
nothing is told apart at any level, the prompt does not decide which way a generated clip goes. Shorter clips
(`--frames`) tell something of a network only while it is trained on such clips.
"""

import itertools
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from reward_forcing.data.captions import caption
from reward_forcing.data.dataset import clip, world_scene
from reward_forcing.data.scenes import KINDS, Scene
from reward_forcing.flow import TIMESTEPS, add_noise
from reward_forcing.models.attention import TextContext
from reward_forcing.models.wan_dit import WanDiT
from reward_forcing.training.networks import load_transformer, load_vae
from reward_forcing.training.prompts import PromptEncoder

FRAMES = 81
WORDINGS = 200


def other_way(scene: Scene, right: str) -> str:
    """A caption of the scene going the other way that shares as many words as can be with the right one."""
    directions = KINDS[scene.kind].directions
    other = replace(scene, direction=next(one for one in directions if one != scene.direction))
    wordings = (caption(other, np.random.default_rng(seed), held_out=True).text for seed in range(WORDINGS))
    return min(wordings, key=lambda text: len(set(text.split()) ^ set(right.split())))


def loss_gap(network: WanDiT, x0: Tensor, read: TextContext, sigma: float, seed: int) -> float:
    """Flow loss of latents [1, F, C, h, w] under the second caption less that under the first, with the same noise."""
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed))
    level = torch.tensor([sigma])
    noisy = add_noise(x0, noise, level).expand(2, -1, -1, -1, -1)
    with torch.autocast("cpu", torch.bfloat16):
        velocity, _ = network(noisy, TIMESTEPS * level.expand(2), read)
    right, wrong = (velocity.float() - (noise - x0)).square().mean(dim=(1, 2, 3, 4)).tolist()
    return wrong - right


@torch.inference_mode()
def main(
    transformer: Annotated[Path, typer.Argument(help="A transformer's folder.")],
    text: Annotated[Path, typer.Option(help="Folder with text_encoder/ and tokenizer/.")],
    vae: Annotated[Path, typer.Option(help="The VAE's folder.")],
    clips: Annotated[int, typer.Option(help="Clips of each kind.")] = 16,
    levels: Annotated[str, typer.Option(help="Noise levels, comma-separated.")] = "0.98,0.95,0.9,0.8,0.65,0.5",
    noises: Annotated[int, typer.Option(help="Draws of noise for each clip and level.")] = 2,
    frames: Annotated[int, typer.Option(help="Latent frames of each clip that are looked at.")] = 21,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the numbers.")] = None,
) -> None:
    """Print and write which captions the transformer tells apart."""
    device = torch.device("cpu")
    network, prompts, encoder = load_transformer(transformer, device), PromptEncoder(text, device), load_vae(vae)
    sigmas = [float(level) for level in levels.split(",")]
    gaps: dict[tuple[str, float], list[float]] = defaultdict(list)
    for kind, number in itertools.product((kind for kind, one in KINDS.items() if one.directions), range(clips)):
        scene = world_scene(number, "validation", kind)
        right = caption(scene, np.random.default_rng(number), held_out=True).text
        x0 = encoder.encode(clip(scene, FRAMES)[None])[0][:, :frames]
        read = network.encode_text(prompts([right, other_way(scene, right)]))
        for (place, sigma), draw in itertools.product(enumerate(sigmas), range(noises)):
            seed = (number * 100 + place) * 100 + draw
            gaps[kind, sigma].append(loss_gap(network, x0, read, sigma, seed))
    rows: dict[str, dict[float, dict[str, float]]] = {}
    for (kind, sigma), found in gaps.items():
        gap = np.array(found)
        rows.setdefault(kind, {})[sigma] = {
            "right": float((gap > 0).mean()),
            "gap": float(gap.mean()),
            "standard_errors": float(gap.mean() / (gap.std(ddof=1) / len(gap) ** 0.5)),
        }
        one = rows[kind][sigma]
        shown = f"right {one['right']:.2f}  gap {one['gap']:+.5f}  {one['standard_errors']:+.1f} se"
        typer.echo(f"{kind:8} sigma {sigma:4}: {shown}")
    if out is not None:
        recipe = {"transformer": str(transformer), "clips": clips, "frames": frames, "noises": noises}
        out.write_text(json.dumps({**recipe, "kinds": rows}, indent=1))


if __name__ == "__main__":
    typer.run(main)
