"""Reading a caption gives back what its writer meant."""

import numpy as np
import pytest

from reward_forcing.data.caption_reader import read_caption
from reward_forcing.data.captions import TRAITS, UNSAID, caption
from reward_forcing.data.dataset import FIRST_HELD_OUT, world_scene


@pytest.mark.parametrize("held_out", [False, True])
def test_every_caption_is_read_as_it_was_meant(held_out: bool) -> None:
    for index in range(4000):
        scene = world_scene(index, "held_out" if held_out else "train")
        written = caption(scene, np.random.default_rng(index), held_out)
        assert read_caption(written.text) == written.says, written.text


def test_a_caption_that_was_not_drawn_is_read_too() -> None:
    assert read_caption(FIRST_HELD_OUT) == dict.fromkeys(TRAITS, UNSAID) | {
        "kind": "bounce", "colour": "red", "shape": "ball", "background": "blue", "setting": "floor",
    }  # fmt: skip
    assert read_caption("A Red ball, rolling from left to right")["direction"] == "right"


@pytest.mark.parametrize("text", ["", "a cat on a sofa", "a red ball", "bounces"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="names no scene of the world"):
        read_caption(text)
