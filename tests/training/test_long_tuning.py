"""Streaming long tuning: which frames an update adds and counts, where prompts switch, and that runs resume exactly."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import in_processes
from tiny_stages import SEED, distilling
from torch import Tensor
from toy import learned

from reward_forcing.logs import JsonLines
from reward_forcing.processes import ALONE, World
from reward_forcing.rollout import SWITCHES, CacheSettings, Recache, Rollout, StaticSink
from reward_forcing.training import dmd
from reward_forcing.training.dmd import DmdStage
from reward_forcing.training.long_tuning import LongTuning, Stretch
from reward_forcing.training.prompts import PromptTimeline
from reward_forcing.training.rollouts import course_at
from reward_forcing.training.stage import Draw
from reward_forcing.training.trainer import Trainer

FRAMES, STARTS = 8, (0, 8, 14, 20)
LONG: dict[str, Any] = {
    "max_frames": 27,
    "overlap_frames": 2,
    "switch": {"kind": "recache", "global_sink": False, "frames": 8},
}
CACHE = {"window_frames": 6, "chunk_frames": 2, "sink": {"kind": "ema", "frames": 2, "alpha": 0.9}}
LORA = {role: {"rank": 3, "alpha": 3.0} for role in ("generator", "fake_score")}


def tuning(folder: Path, world: World = ALONE, **changes: Any) -> Any:
    """The tiny DMD stage, whose videos have four stretches of 8, 6, 6 and 6 frames and are switched."""
    return distilling(folder, world, **{"long": LONG, "switch_share": 1.0, **changes})


def in_turn(stage: DmdStage) -> list[tuple[str, int]]:
    """The roles and steps of the updates of two videos."""
    return [(role, step) for step in range(8) for role in stage.updates(step)][: 2 * len(STARTS)]


def draw_of(role: str, step: int) -> Draw:
    return Draw.at(SEED, role, step)


def drawn_switch(stage: DmdStage, video: int = 0) -> int:
    """Where the video's prompt is switched."""
    assert stage.settings.long is not None
    switch = stage.settings.long.draw_switch(FRAMES, stage.settings.switch_share, Draw.at(SEED, "video", video).shared)
    assert switch is not None
    return switch


def test_stretches_and_switches_are_longlives() -> None:
    long = LongTuning()
    stretches = [long.stretch(21, update) for update in range(14)]
    assert stretches[:2] == [Stretch(0, 0, 21, False), Stretch(0, 21, 18, False)]
    assert [at.start for at in stretches] == [0, *range(21, 220, 18), 0]
    assert [at.start + at.frames for at in stretches][11:] == [219, 237, 21], "another 18 would exceed 240"
    assert [at.is_last for at in stretches] == 12 * [False] + [True, False]
    assert stretches[-1].video == 1
    assert long.switches(21) == (21, 39, 57, 75, 93, 111, 129, 147, 165, 183, 201)
    assert long.switch == Recache(global_sink=False, frames=21)
    long.check_fit(21, CacheSettings(window_frames=12, sink=StaticSink()), 5, 1.0)


def test_every_stretch_comes_up_for_both_roles(tiny_model_folder: Path) -> None:
    stage = tuning(tiny_model_folder)
    updates = [(role, step) for step in range(24) for role in stage.updates(step)]
    assert [stage._updates_before(role, step) for role, step in updates] == list(range(len(updates)))
    for name in stage.networks():
        places = [stage.settings.long.stretch(FRAMES, i).start for i, (role, _) in enumerate(updates) if role == name]
        assert {places.count(start) for start in STARTS} == {len(places) // 4}


@pytest.mark.parametrize("kind", [kind for kind in SWITCHES if kind != "blend"])
@pytest.mark.parametrize("switch", [None, 8, 14])
def test_a_video_in_stretches_is_one_rollout(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, switch: int | None, kind: str
) -> None:
    """With the same weights and all steps throughout, to the last bit; the policy is asked at the switch."""
    monkeypatch.setattr(dmd, "draw_exit", lambda settings, shared: len(settings.sigmas) - 1)
    long = LONG | {"switch": LONG["switch"] if kind == "recache" else {"kind": kind}}
    long |= {} if switch is None else {"switch_frames": [switch]}
    stage = tuning(
        tiny_model_folder, long=long, switch_share=float(switch is not None), cache=CACHE | {"positions": "absolute"}
    )
    pieces, said = [], []
    with torch.no_grad():
        for role, step in in_turn(stage)[:4]:
            rolled, prompts, _ = stage._next_stretch(role, step, draw_of(role, step))
            pieces.append(rolled.clip[:, 2 if pieces else 0 :])
            said.append(prompts.first)
        seeds = stage._samples_of("generator", Draw.at(SEED, "video", 0))[0]
        course = course_at(stage.settings, 26, exit_step=1, rolls=False)
        rollout: Rollout = stage._new_rollout(PromptTimeline(said[0]), seeds, course, stage.settings.long.switch)
        whole = []
        for chunk in rollout:
            whole.append(chunk.latents)
            if rollout.state.start == switch:
                rollout.text = stage.generator.encode_text(said[-1])
    assert [piece.shape[1] for piece in pieces] == [8, 6, 6, 6]
    assert torch.equal(torch.cat(pieces, dim=1), torch.cat(whole, dim=1))
    assert torch.equal(said[0], said[-1]) == (switch is None)


def test_a_clip_shows_frames_that_count_for_neither_role(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, masks = tuning(tiny_model_folder), []
    for name in ("dmd_loss", "flow_loss"):
        original = getattr(dmd, name)
        monkeypatch.setattr(dmd, name, lambda *given, o=original: masks.append(given[-1]) or o(*given))
    for role, step in in_turn(stage)[:5]:
        stage.loss(role, step, draw_of(role, step))
    of_a_later = [[False] * 2 + [True] * 6] * 4
    assert [None if mask is None else mask.tolist() for mask in masks] == [None, *3 * [of_a_later], None]


def test_a_clip_begins_with_its_first_frame_encoded_as_an_image(tiny_model_folder: Path) -> None:
    stage = tuning(tiny_model_folder)
    (one, zero), (two, _) = in_turn(stage)[:2]
    with torch.no_grad():
        before = stage._next_stretch(one, zero, draw_of(one, zero))[0].clip
        rolled = stage._next_stretch(two, 0, draw_of(two, 0))[0]
    assert torch.equal(rolled.clip[:, 1], before[:, 7]), "the second is the last of the update before"
    frame = stage.vae.decode(before[:, :7])[0][:, -1:].clamp(0, 1)
    torch.testing.assert_close(rolled.clip[:, :1], stage.vae.encode(frame)[0])


@pytest.mark.parametrize("kv_grad", ["none", "clean", "stale"])
def test_no_graph_outlives_its_stretch(tiny_model_folder: Path, kv_grad: str) -> None:
    stage = tuning(tiny_model_folder, kv_grad=kv_grad)
    for role, step in in_turn(stage):
        loss, _ = stage.loss(role, step, draw_of(role, step))
        loss.backward()  # would fail on a graph that the update before has freed
        assert not any(tensor.requires_grad for tensor in stage.tensors().values())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in stage.generator.parameters())


def test_prompts_change_and_the_cache_is_computed_anew_at_the_drawn_frame(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, list[int]]] = []
    original = Recache.cache

    def cache(self: Recache, cache: Any, recent: tuple[Tensor, ...], clean: Any) -> Any:
        asked.append((cache.committed, [piece.shape[1] for piece in recent]))
        return original(self, cache, recent, clean)

    monkeypatch.setattr(Recache, "cache", cache)
    stage, captions = tuning(tiny_model_folder), []
    stage.weight = lambda role, rolled, said, again: captions.append(said) or (None, {})
    for role, step in in_turn(stage):
        stage.loss(role, step, draw_of(role, step))
    switches = [drawn_switch(stage, video) for video in (0, 1)]
    assert set(switches) <= {8, 14}
    assert asked == [(switch, [2, 2, 2, 2]) for switch in switches]
    for video, switch in enumerate(switches):
        said = [prompts for (prompts,) in captions[4 * video : 4 * video + 4]]
        changed = [now != said[0] for now in said]
        assert changed == [start >= switch for start in STARTS]
        assert len({tuple(now) for now in said}) == 2


def run(folder: Path, out: Path, world: World = ALONE, **changes: Any) -> None:
    Trainer(tuning(folder, world, **changes), out, world).run()


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected.keys() - {"counts"} if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lora": LORA, "kv_grad": "clean", "activation_checkpointing": True},
        {
            "cache": {"window_frames": 6, "chunk_frames": 2, "sink": {"kind": "static", "frames": 2}},
            "precision": "bf16",
        },
        {"reward": True},
        {"cache": {"window_frames": 4, "chunk_frames": 2, "sink": {"kind": "none"}}, "save_async": True},
        {"long": LONG | {"switch": {"kind": "cut"}, "switch_frames": [8]}},
    ],
    ids=["dmd", "lora", "static", "re_dmd", "no sink", "cut"],
)
def test_a_resumed_run_is_the_uninterrupted_one(
    tiny_model_folder: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Interrupted in each of a video's stretches, and between two videos."""
    run(tiny_model_folder, tmp_path / "whole", steps=6, **changes)
    places = []
    for steps in (1, 2, 3, 5, 6):
        run(tiny_model_folder, tmp_path / "parts", steps=steps, **changes)
        kept = learned(tmp_path / "parts")
        places.append({name for name in kept if name.startswith("stage.video.")})
    assert [bool(names) for names in places] == [True, True, True, False, True]
    has_sink = changes.get("cache", {}).get("sink", {}).get("kind") != "none"
    assert any("sink_keys" in name for name in places[0]) == has_sink
    assert_equal(kept, learned(tmp_path / "whole"))
    logged = [JsonLines(tmp_path / name / "log.jsonl").rows() for name in ("whole", "parts")]
    losses = [[row["fake_score/loss"] for row in rows if "fake_score/loss" in row] for rows in logged]
    assert losses[0] == losses[1]


def test_a_run_is_the_same_on_one_process_and_on_two(tiny_model_folder: Path, tmp_path: Path) -> None:
    """Also with the batch in parts, and where the number of processes changes in the midst of a video."""
    run(tiny_model_folder, tmp_path / "one", steps=6)
    run(tiny_model_folder, tmp_path / "one, then two", steps=2)

    def in_two(world: World) -> None:
        shared = partial(run, tiny_model_folder, world=world, steps=6)
        shared(tmp_path / "two")
        shared(tmp_path / "one, then two", accumulate=2)

    in_processes(2, tmp_path, in_two)
    expected = learned(tmp_path / "one")
    assert {name.split(".")[2] for name in expected if name.startswith("stage.")} == set("0123")
    for name in ("two", "one, then two"):
        found = learned(tmp_path / name)
        assert found.keys() == expected.keys()
        for key in expected.keys() - {"counts"}:
            torch.testing.assert_close(
                found[key], expected[key], atol=1e-5, rtol=1e-5, msg=lambda m, k=key: f"{k}: {m}"
            )


def test_an_update_out_of_turn_is_refused(tiny_model_folder: Path) -> None:
    stage = tuning(tiny_model_folder)
    with pytest.raises(ValueError, match="goes on at frame 8, but the one before it has not been made"):
        stage.loss("fake_score", 0, draw_of("fake_score", 0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"long": {**LONG, "overlap_frames": 3}}, "overlap_frames=3 must be whole chunks"),
        ({"long": {**LONG, "overlap_frames": 8}}, "overlap_frames=8 must be whole chunks"),
        ({"long": {**LONG, "max_frames": 13}}, "holds no second stretch; use at least 14"),
        ({"long": {**LONG, "switch_frames": [8, 10]}}, r"no stretch begins at switch_frames=\[10\]"),
        ({"long": {**LONG, "switch": {"kind": "recache", "global_sink": False, "frames": 10}}}, "looks back 10"),
        ({"long": {**LONG, "switch": {"kind": "recache", "frames": 8}}}, "frames=8 needs global_sink=false"),
        ({"long": {**LONG, "switch": {"kind": "blend"}}}, "the switch 'blend' mixes two"),
        ({"long": LONG, "generator_every": 3}, "every 4th stretch only; change generator_every or max_frames"),
        ({"long": {**LONG, "max_frames": 14}}, "switch_share=1 needs switch_frames, or a larger max_frames"),
        ({"long": LONG, "longest_frames": 12}, "give one"),
        ({"long": LONG, "rolling_share": 0.5, "cache": CACHE | {"window_frames": 8}}, "rolling_share=0.5 some would"),
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """By the settings alone: nothing lies in the folder."""
    with pytest.raises(ValueError, match=message):
        tuning(tmp_path / "nothing", **changes)
