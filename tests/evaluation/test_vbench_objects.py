"""Rules for detected objects, their colours and where they are."""

import pytest

from reward_forcing.evaluation.vbench_objects import colour_score, frame_relation, object_frames, pair_relation

LEFT, BELOW_LEFT = (0, 0, 10, 10), (2, 30, 12, 40)
RIGHT = (40, 0, 50, 10)


def test_every_wanted_class_must_be_in_the_frame():
    frames = [{"cat", "sofa"}, {"dog"}, {"cat", "dog"}, set()]
    assert object_frames(frames, {"cat"}) == 2
    assert object_frames(frames, {"cat", "dog"}) == 1


def test_colour_is_the_share_of_frames_where_the_object_has_any_colour():
    car, plain, other = ("a red car", "car"), ("a car", "car"), ("a blue car", "car")
    assert colour_score([[car], [other], [plain], []], "car", "red") == 0.5
    assert colour_score([[other, car]], "car", "red") == 1
    assert colour_score([[("a red rose", "rose")], [other]], "car", "red") == 0
    assert colour_score([[plain], [("a red rose", "rose")]], "car", "red") is None


@pytest.mark.parametrize(
    ("relation", "score"),
    [("on the left of", 1), ("on the right of", 1), ("on the top of", 0), ("on the bottom of", 0)],
)
def test_relations_ask_for_the_axis_and_not_the_side(relation, score):
    assert pair_relation(relation, LEFT, RIGHT) == pair_relation(relation, RIGHT, LEFT) == score


def test_boxes_equally_far_apart_along_both_axes_fit_neither():
    diagonal = (20, 20, 30, 30)
    assert pair_relation("on the left of", LEFT, diagonal) == pair_relation("on the top of", LEFT, diagonal) == 0


def test_overlap_lowers_the_score():
    """Two squares of 100, shifted by 5: overlap 50, union 150, IoU 1/3."""
    assert pair_relation("on the left of", LEFT, (5, 0, 15, 10)) == pytest.approx(0.3)
    assert pair_relation("on the left of", LEFT, (9, 0, 19, 10)) == 1


def test_a_frame_takes_its_best_pair_even_of_one_class():
    cats = [("cat", LEFT), ("cat", RIGHT)]
    assert frame_relation("on the left of", ("cat", "dog"), cats) == 1
    assert frame_relation("on the left of", ("cat", "dog"), [("cat", LEFT), ("dog", BELOW_LEFT), ("cow", RIGHT)]) == 0
    assert frame_relation("on the left of", ("cat", "dog"), [("cat", LEFT), ("dog", BELOW_LEFT), ("dog", RIGHT)]) == 1
    assert frame_relation("on the left of", ("cat", "dog"), [("cat", LEFT)]) == 0


def test_an_unknown_relation_is_refused():
    with pytest.raises(ValueError, match="did you mean 'on the left of'"):
        pair_relation("on the left", LEFT, RIGHT)
