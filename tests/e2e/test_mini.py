"""The bundled miniature: small, readable by others' classes, and it shows what is asked for."""

from pathlib import Path

import numpy as np
import pytest
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

from reward_forcing.checkpoints.hub import bundled
from reward_forcing.data.palette import OBJECT_COLOURS, distance
from reward_forcing.streaming.pipeline import StreamingVideoPipeline


@pytest.fixture(scope="module")
def mini() -> StreamingVideoPipeline:
    """The pipeline of the bundled model."""
    return StreamingVideoPipeline.from_pretrained("mini")


def pixels_near(frame: np.ndarray, colour: str) -> float:
    """Part of a frame's [3, H, W] pixels whose nearest object colour is `colour`, closer than 80 of 255."""
    rgb = frame.reshape(3, -1).T * 255
    away = np.array([[distance(tuple(c), tuple(p)) for c in OBJECT_COLOURS.values()] for p in rgb])
    return float(((away.argmin(1) == list(OBJECT_COLOURS).index(colour)) & (away.min(1) < 80)).mean())


def test_the_bundle_is_small_and_whole() -> None:
    folder = bundled()["mini"]
    assert sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()) < 30e6
    for part in ("transformer", "vae", "text_encoder", "tokenizer", "scheduler", "README.md", "model_index.json"):
        assert (Path(folder) / part).exists(), part


def test_diffusers_own_classes_read_the_bundle() -> None:
    folder = bundled()["mini"]
    assert WanTransformer3DModel.from_pretrained(folder, subfolder="transformer").config["num_layers"] == 8
    assert AutoencoderKLWan.from_pretrained(folder, subfolder="vae").config["z_dim"] == 16


def test_a_named_colour_appears_and_moves(mini: StreamingVideoPipeline) -> None:
    frames = mini.generate("a red ball bounces over a blue floor", 3.0, seed=1)[0].numpy()
    red = [pixels_near(frame, "red") for frame in frames[::6]]
    assert np.median(red) > 0.02, red
    assert np.abs(frames[4:] - frames[:-4]).mean() > 0.002
