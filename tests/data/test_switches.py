"""Switched scenes: one scene and then another that carries on, with prompts that say what changes."""

import numpy as np
import pytest
import torch

from reward_forcing.data.captions import UNSAID, caption
from reward_forcing.data.dataset import clip, is_held_out
from reward_forcing.data.scenes import FPS, KINDS, sprites
from reward_forcing.data.switches import changes, switch_captions, switched_scene


def test_a_switch_is_one_scene_and_then_the_other() -> None:
    switch = switched_scene(7, at=33)
    frames = switch.clip(33, 81)
    assert torch.equal(frames[:33], clip(switch.before, 33))
    assert torch.equal(frames[33:], clip(switch.after, 81)[33:])
    assert switched_scene(7, at=33) == switch
    with pytest.raises(ValueError, match="within the clip's 81 frames"):
        switch.clip(81, 81)


def test_something_changes_and_nothing_held_out_comes_in() -> None:
    switches = [switched_scene(index, at=33) for index in range(300)]
    assert all(switch.before != switch.after and changes(switch) for switch in switches)
    assert not any(is_held_out(switch.after) for switch in switches)
    same_kind = sum(switch.before.kind == switch.after.kind for switch in switches)
    assert 75 < same_kind < 225, "edits and new scenes are both common"


def test_an_edit_leaves_the_object_where_it_is() -> None:
    edits = [switched_scene(index, at=33) for index in range(300)]
    edits = [s for s in edits if s.before.kind == s.after.kind and s.before.direction == s.after.direction
             and s.before.setting == s.after.setting and KINDS[s.before.kind].has_object]  # fmt: skip
    assert len(edits) > 30
    for switch in edits:
        t = np.array([33 / FPS])
        before, after = sprites(switch.before, t)[-1], sprites(switch.after, t)[-1]
        assert np.hypot(before.x - after.x, before.y - after.y) < 1e-6


def test_the_second_prompt_says_what_changes() -> None:
    said = 0
    for index in range(200):
        switch = switched_scene(index, at=33)
        first, second = switch_captions(switch, seed=index)
        assert first.text
        assert switch_captions(switch, seed=index) == (first, second)
        if switch.after.colour != switch.before.colour and "colour" in changes(switch):
            assert switch.after.colour in second.text
            said += 1
    assert said > 40


def test_wordings_that_leave_a_change_out_are_passed_over() -> None:
    switch = next(s for s in (switched_scene(i, at=33) for i in range(50)) if list(changes(s)) == ["colour"])
    silent = [caption(switch.after, np.random.default_rng(i)).says["colour"] == UNSAID for i in range(200)]
    assert any(silent), "some wordings name no colour"
    assert all(switch.after.colour in switch_captions(switch, seed)[1].text for seed in range(50))
