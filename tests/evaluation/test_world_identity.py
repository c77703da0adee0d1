"""How far a clip goes away from its first chunk: known changes of background, colour and number are found."""

import numpy as np
import pytest

from reward_forcing.data.palette import BACKGROUND_COLOURS, OBJECT_COLOURS
from reward_forcing.data.scenes import Scene, render
from reward_forcing.evaluation.world_identity import IDENTITY_DOCS, identity_shifts
from reward_forcing.evaluation.world_tracking import follow

BALL = Scene("orbit", colour="red", background="gray")


def shifts(clip: np.ndarray) -> dict[str, np.ndarray]:
    return identity_shifts(clip, follow(clip), 9)


def test_a_clip_that_stays_itself_shifts_nowhere() -> None:
    found = shifts(render(BALL, 60))
    assert found.keys() == IDENTITY_DOCS.keys()
    for values in found.values():
        assert values.shape == (60,)
        assert values.max() < 0.05


@pytest.mark.parametrize(
    ("changed", "name", "palette", "pair"),
    [
        ({"background": "blue"}, "background_shift", BACKGROUND_COLOURS, ("gray", "blue")),
        ({"colour": "green"}, "colour_shift", OBJECT_COLOURS, ("red", "green")),
    ],
)
def test_a_new_colour_is_as_far_as_the_palette_says(
    changed: dict[str, str], name: str, palette: dict[str, tuple[int, int, int]], pair: tuple[str, str]
) -> None:
    later = Scene(**{"kind": "orbit", "colour": "red", "background": "gray", **changed})
    found = shifts(np.concatenate([render(BALL, 30), render(later, 30, start=30)]))
    apart = np.linalg.norm(np.subtract(*(np.array(palette[one]) for one in pair))) / 255
    corners = 2**0.5 if name == "background_shift" else 1  # the upper and the lower corners
    assert found[name][:30].max() < 0.05
    assert found[name][31:].mean() == pytest.approx(apart * corners, rel=0.05)
    for other in found.keys() - {name, "colour_shift"}:
        assert found[other].max() < 0.05


def test_a_lost_object_changes_the_number_and_keeps_its_colour() -> None:
    clip = render(BALL, 60)
    clip[30:] = clip[0, 0, 0]
    found = shifts(clip)
    assert found["count_shift"].tolist() == 30 * [0] + 30 * [1]
    assert found["colour_shift"].max() < 0.05
    clip[:9] = clip[0, 0, 0]
    assert "colour_shift" not in shifts(clip), "the first chunk has no colour to keep"
