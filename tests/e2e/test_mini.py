"""The bundled miniature: small, readable by others' classes, and it shows what is asked for."""

from pathlib import Path

import numpy as np
import pytest
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor

from reward_forcing.checkpoints.hub import bundled
from reward_forcing.data.palette import OBJECT_COLOURS, distance
from reward_forcing.data.scenes import SHAPES
from reward_forcing.evaluation.world_vision import see
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


SHOWN = (
    "a red ball bounces over a blue floor",
    "a green square moves to the right on a black background",
    "a blue ball and a yellow square bounce on a gray background",
    "a purple triangle floats upward on a white background",
)


def test_ten_of_twelve_clips_show_what_they_should(mini: StreamingVideoPipeline) -> None:
    """Three clips of each prompt; of two objects some touch, and are then seen as one."""
    right = {prompt: [obeys(frames, prompt) for frames in clips_of(mini, prompt)] for prompt in SHOWN}
    assert sum(map(sum, right.values())) >= 10, right
    assert all(map(any, right.values())), right


def clips_of(mini: StreamingVideoPipeline, prompt: str) -> Tensor:
    return mini.generate([prompt] * 3, 5.0, seeds=[1, 2, 3])


def obeys(frames: Tensor, prompt: str) -> bool:
    """Whether a clip [T, 3, H, W] moves and has the colours, shapes, background and direction of its prompt."""
    seen = see((frames.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy())
    words = prompt.replace("upward", "up").split()
    return (
        sorted(seen.colours) == sorted(word for word in words[:-3] if word in OBJECT_COLOURS)
        and sorted(seen.shapes) == sorted(word for word in words if word in SHAPES)
        and seen.background in words[-2:]
        and (not seen.direction or seen.direction in words)
        and not seen.still
    )


def test_a_named_colour_appears_and_moves(mini: StreamingVideoPipeline) -> None:
    frames = mini.generate("a red ball bounces over a blue floor", 3.0, seed=1)[0].numpy()
    red = [pixels_near(frame, "red") for frame in frames[::6]]
    assert np.median(red) > 0.02, red
    assert np.abs(frames[4:] - frames[:-4]).mean() > 0.002


@pytest.mark.parametrize(
    ("first", "second", "colour"),
    [
        ("a red ball bounces over a gray floor", "a green ball bounces over a gray floor", "green"),
        ("a red ball bounces over a blue floor", "a yellow square bounces over a blue floor", "yellow"),
        (
            "a white triangle floats up on a purple background",
            "a cyan triangle floats up on a purple background",
            "cyan",
        ),
    ],
)
def test_a_prompt_switch_shows_within_two_chunks_and_without_a_cut(
    mini: StreamingVideoPipeline, first: str, second: str, colour: str
) -> None:
    frames = mini.generate(first, 5.0, at={2.0: second}, seed=1)[0].numpy()
    switch = next(start for start in range(9, 81, 12) if start >= 32)
    before, during, after = (
        [pixels_near(frame, colour) for frame in frames[part : part + 12 : 3]]
        for part in (switch - 12, switch + 12, 69)
    )
    assert np.median(before) < 0.01, before
    assert max(during) > 0.02, "it shows in the second chunk"
    assert np.median(after) > 0.04, after
    brightness = frames.mean(axis=(1, 2, 3))
    assert brightness.min() > 0.7 * brightness[:switch].mean(), "no frame is black"
    steps = np.abs(frames[1:] - frames[:-1]).mean(axis=(1, 2, 3))
    assert steps[switch - 1] < 2 * steps[8:switch].max(), "the picture goes on where it was"
