"""Settings are strict, and every mistake is answered in one line that says how to mend it."""

from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from reward_forcing.config import Settings, first_few, load_settings, nearest, unknown


class Circle(Settings):
    kind: Literal["circle"] = "circle"
    radius: float = 1.0


class Square(Settings):
    kind: Literal["square"] = "square"
    side: float = 1.0


class Drawing(Settings):
    width: int
    shape: Annotated[Circle | Square, Field(discriminator="kind")] = Circle()
    steps: tuple[int, ...] = (1000, 500)


def test_settings_cannot_be_changed_after_they_are_made():
    with pytest.raises(ValidationError):
        Circle().radius = 2.0  # pyright: ignore[reportAttributeAccessIssue]


def test_unknown_setting_names_the_nearest_one():
    with pytest.raises(ValueError, match=r"unknown setting 'raduis'; did you mean 'radius'\? \(kind, radius\)"):
        Circle(raduis=2.0)  # pyright: ignore[reportCallIssue]


def test_unknown_lists_the_choices_even_when_none_is_close():
    assert unknown("sampler", "roling", ["chunkwise", "rolling"]) == (
        "unknown sampler 'roling'; did you mean 'rolling'? (chunkwise, rolling)"
    )
    assert unknown("sampler", "xyz", ["chunkwise", "rolling"]).endswith("expected one of (chunkwise, rolling)")
    assert nearest("xyz", ["chunkwise"]) is None


def test_a_long_list_is_cut_and_says_by_how_much():
    assert first_few(["a", "b", "c"], 2) == "a, b and 1 more"
    assert first_few(["a", "b"], 2) == "a, b"


def test_file_and_overrides_make_the_settings(tmp_path):
    path = tmp_path / "drawing.yaml"
    path.write_text("width: 4\nshape: {kind: circle, radius: 1e-3}\n")
    drawing = load_settings(Drawing, path, ["width=5", "shape.radius=2.5", "steps=[10, 5]"])
    assert drawing == Drawing(width=5, shape=Circle(radius=2.5), steps=(10, 5))


def test_overrides_alone_make_the_settings():
    assert load_settings(Drawing, None, ["width=5", "shape.kind=square"]) == Drawing(width=5, shape=Square())


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("width: 4\nwidht: 5", [], "unknown setting 'widht'; did you mean 'width'?"),
        (
            "width: 4\nshape: {kind: circel}",
            [],
            "shape: unknown kind 'circel'; did you mean 'circle'? (circle",
        ),
        ("width: 4\nshape: {radius: 2}", [], "shape: missing 'kind', which says which variant is meant"),
        ("width: 4\nshape: {kind: square, radius: 2}", [], "shape.square: unknown setting 'radius'"),
        ("width: wide", [], "width: input should be a valid integer"),
        ("{}", [], "width: this setting is required"),
        ("- 1", [], "expected a mapping of settings, got list"),
        ("width: 4\nwidth: 5", [], "'width' is set twice"),
        ("width: [4", [], "not valid YAML"),
        ("width: 4", ["width"], "override 'width' must have the form group.name=value"),
        ("width: 4", ["width.a=3"], "'width' is a value, not a group of settings"),
        ("width: 4", ["width=[3"], "the value is not valid YAML"),
    ],
)
def test_mistakes_are_answered_in_one_line(tmp_path, text, overrides, message):
    path = tmp_path / "drawing.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is compared below)
        load_settings(Drawing, path, overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.yaml: no such settings file"):
        load_settings(Drawing, tmp_path / "nowhere.yaml")
