"""How far a set of generated clips is from rendered ones, in the features of the bundled network.

Only for clips of the procedural world: the network knows nothing else. Features are of the first or the last 5 seconds
of a clip, at the network's own number of frames; D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import reward_forcing
from reward_forcing.data.dataset import world_scene
from reward_forcing.data.scenes import Scene, render
from reward_forcing.evaluation.frechet import frechet_distance, kernel_distance
from reward_forcing.evaluation.metrics.clips import Pixels
from reward_forcing.evaluation.statistics import Estimate, jackknife
from reward_forcing.models.video_features import VideoFeatures

Array = NDArray[np.floating]

BUNDLED = Path(reward_forcing.__file__).parent / "assets" / "video_features"
WINDOW_SECONDS = 5.0
REFERENCE_CLIPS = 256
FRECHET, KERNEL = "frechet_distance", "kernel_distance"
DISTANCES: dict[str, Callable[[Array, Array], float]] = {FRECHET: frechet_distance, KERNEL: kernel_distance}
DOCS = {
    FRECHET: "Frechet distance of the clips' features to those of rendered clips; grows as clips get fewer.",
    KERNEL: "Squared kernel distance of the clips' features to those of rendered clips; 0 for like sets of any size.",
}
RENDERED_DOC = "What a perfect model would have: rendered clips of the same prompts in place of generated ones."


@cache
def bundled_features() -> VideoFeatures:
    """The bundled network, float32, in evaluation mode. Raises FileNotFoundError where it is not installed."""
    if not BUNDLED.is_dir():
        raise FileNotFoundError(f"no video_features in {BUNDLED.parent}; train it with scripts/mini.sh")
    return VideoFeatures.from_pretrained(BUNDLED).eval().requires_grad_(False)


@torch.inference_mode()
def features_of(frames: Pixels) -> tuple[float, ...]:
    """The features [D] of a clip uint8 [T, H, W, 3] of about 5 seconds, whose number of frames is `window_frames`.

    In one thread: sums over several differ in their last bits with their number.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return tuple(bundled_features()(pixels[None])[0].tolist())
    finally:
        torch.set_num_threads(threads)


def window_frames(fps: float) -> int:
    """The frames of 5 seconds, both ends included, as the network was trained: 81 at 16 fps."""
    return round(WINDOW_SECONDS * fps) + 1


def rendered_features(scenes: Sequence[Scene], start: float = 0) -> Array:
    """The features [N, D] of 5 seconds of rendered scenes from second `start` on."""
    network = bundled_features()
    fps = (network.length - 1) / WINDOW_SECONDS
    clips = (render(scene, network.length, network.size, start * fps, fps) for scene in scenes)
    return np.array([features_of(clip) for clip in clips])


@cache
def reference_features(start: float = 0) -> Array:
    """The features [256, D] of validation scenes: none is trained on, none is of a held-out combination."""
    return rendered_features([world_scene(index, "validation") for index in range(REFERENCE_CLIPS)], start)


def distances(features: Sequence[Sequence[Sequence[float]]], start: float = 0) -> dict[str, Estimate]:
    """The distances of clips to rendered ones, with jackknife intervals over prompts.

    Features are in standard deviations of the rendered ones, so that none of them decides alone. What the network was
    taught to overlook, noise above all, and what happens between the frames it takes changes little.
    features: [prompts][seeds][D] of clips from second `start` on. Left out are the Frechet distance for no more clips
    than features, whose covariance could not be known, and all for fewer than 3 prompts.
    """
    reference = standardised(reference_features(start), start)
    prompts = [standardised(seeds, start) for seeds in features]
    clips = sum(map(len, prompts)) - max(map(len, prompts), default=0)
    return {
        name: jackknife(prompts, lambda kept, distance=distance: distance(np.concatenate(kept), reference))
        for name, distance in DISTANCES.items()
        if clips >= least_clips(name) and len(prompts) > 2
    }


def beside_rendered(
    features: Sequence[Sequence[Sequence[float]]], scenes: Sequence[Scene], start: float = 0
) -> dict[str, dict[str, Estimate]]:
    """The `distances` of clips, under '', and under 'rendered_' those of rendered clips of their scenes.

    features: as in `distances`. scenes: what each prompt was worded from.
    """
    rendered = [[row] for row in rendered_features(scenes, start).tolist()]
    return {"": distances(features, start), "rendered_": distances(rendered, start)}


def standardised(features: Sequence[Sequence[float]] | Array, start: float = 0) -> Array:
    """Features [N, D] of clips from second `start` on, in standard deviations of the rendered ones."""
    rendered = reference_features(start)
    return (np.asarray(features) - rendered.mean(0)) / rendered.std(0)


def least_clips(name: str) -> int:
    """The clips that a distance needs: for the Frechet one more than features, or their covariance is not known."""
    return reference_features().shape[1] + 1 if name == FRECHET else 2
