"""What is generated: held-out prompts, prompt files, and folders of videos made elsewhere."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from reward_forcing.data.dataset import is_held_out, wording, world_scene
from reward_forcing.data.scenes import KINDS, Scene
from reward_forcing.evaluation.suites import (
    PromptSet,
    Suite,
    bundled_suite,
    open_suite,
    suite_of_file,
    suite_of_folder,
)
from reward_forcing.evaluation.world_suite import underspecified_prompts
from reward_forcing.streaming.video_io import open_writer


def combination(scene: Scene) -> tuple[object, ...]:
    return scene.kind, scene.shape, scene.colour, scene.background, scene.second


def write_video(path: Path, seconds: float = 0.5, title: str | None = None) -> None:
    with open_writer(path, 16, (32, 32), title=title) as writer:
        writer.write(torch.zeros(round(16 * seconds), 3, 32, 32))


def test_256_held_out_prompts_share_no_wording_and_no_combination_with_training() -> None:
    truth = bundled_suite(256).sets[0].truth
    assert len({prompt.text for prompt in truth}) == 256
    seen = {wording(index, "train", seed) for index in range(2000) for seed in (0, 1)}
    assert len(seen) > 3000
    assert not seen & {prompt.text for prompt in truth}
    trained = {combination(world_scene(index, "train")) for index in range(2000)}
    with_object = [prompt for prompt in truth if KINDS[prompt.scene.kind].has_object]
    assert len(with_object) > 200
    assert not trained & {combination(prompt.scene) for prompt in with_object}


def test_underspecified_prompts_leave_out_what_they_should_in_turn_and_nothing_else() -> None:
    prompts = underspecified_prompts(9, [("background",), ("colour",), ("background", "colour")])
    for number, prompt in enumerate(prompts):
        silent = {name for name in ("background", "colour") if prompt.says[name] == "unsaid"}
        assert silent == [{"background"}, {"colour"}, {"background", "colour"}][number % 3], prompt.text
        words = prompt.text.split()
        assert all((getattr(prompt.scene, name) in words) == (name not in silent) for name in ("background", "colour"))
        assert prompt.scene.second is None
        assert is_held_out(prompt.scene)
    assert underspecified_prompts(4, [("background",), ("colour",), ("background", "colour")]) == prompts[:4]
    with pytest.raises(ValueError, match="unknown trait to leave out 'color'; did you mean 'colour'"):
        underspecified_prompts(1, [("color",)])


def test_the_bundled_suite_streams_the_first_quarter_for_a_minute() -> None:
    short, long = open_suite("mini").sets
    assert (short.name, len(short.prompts), short.seconds) == ("short", 64, 5)
    assert (long.name, len(long.prompts), long.seconds) == ("long", 16, 60)
    assert long.prompts == short.prompts[:16]
    assert all(truth.text == text for truth, text in zip(short.truth, short.prompts, strict=True))
    assert short.prompts[0] == "a red ball bounces over a blue floor"
    assert [len(one.prompts) for one in open_suite("mini", prompts=6).sets] == [6, 2]


def test_the_validation_suite_has_prompts_as_training_draws_them_and_shares_no_scene_with_the_held_out_one() -> None:
    (short,) = open_suite("mini-validation").sets
    assert (short.name, len(short.prompts), short.seconds) == ("short", 192, 5)
    assert [truth.index for truth in short.truth] == list(range(200, 392))
    assert not any(is_held_out(truth.scene) for truth in short.truth if KINDS[truth.scene.kind].has_object)
    assert not set(short.prompts) & set(open_suite("mini", prompts=256).sets[0].prompts)
    assert open_suite("mini-validation", prompts=6).sets[0].prompts == short.prompts[:6]


def test_quick_keeps_few_prompts_and_shortens_the_long_ones() -> None:
    suite = open_suite("mini", quick=True)
    assert [(len(one.prompts), len(one.truth), one.seconds) for one in suite.sets] == [(16, 16, 5), (4, 4, 20)]
    assert suite.is_quick
    assert not open_suite("mini").is_quick


def test_no_two_prompts_share_a_seed_and_more_seeds_keep_the_first() -> None:
    prompts = PromptSet("some", ("a", "b", "c"), 5, seeds=4)
    seeds = [prompts.seeds_of(index, seed=7) for index in range(3)]
    assert len({seed for one in seeds for seed in one}) == 12
    assert [one[:1] for one in seeds] == [PromptSet("some", ("a", "b", "c"), 5).seeds_of(i, 7) for i in range(3)]


def test_a_prompt_file_may_hold_lengths_and_makes_a_set_of_each(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    lines = ["a red ball", "", '{"prompt": "a blue ball", "seconds": 60}', " a square ", '{"prompt": "a triangle"}']
    path.write_text("\n".join([*lines, '{"prompt": "snow", "seconds": 60}']))
    suite = open_suite(str(path), seeds=2)
    assert suite.name == "file"
    assert [(one.name, one.prompts, one.seconds, one.seeds) for one in suite.sets] == [
        ("5s", ("a red ball", "a square", "a triangle"), 5, 2),
        ("60s", ("a blue ball", "snow"), 60, 2),
    ]
    assert all(one.truth == () for one in suite.sets)
    assert [len(one.prompts) for one in open_suite(str(path), prompts=2).sets] == [2, 2]
    assert [one.seconds for one in open_suite(str(path), quick=True).sets] == [5, 20]


def test_the_prompts_hash_sees_wording_and_order() -> None:
    hashes = {Suite("file", (PromptSet("5s", texts, 5),)).prompts_hash() for texts in (("a", "b"), ("b", "a"))}
    assert len(hashes) == 2
    assert Suite("mini", (PromptSet("x", ("a", "b"), 60),)).prompts_hash() in hashes


BAD_FILES = [
    ("", "holds no prompts"),
    ("one prompt", "set '5s' has 1 prompt; intervals need at least 2"),
    ('a ball\n{"prompt": "a ball", "second": 3}', "line 2: .*unknown setting 'second'; did you mean 'seconds'"),
    ('a ball\n{"prompt": 3}', "line 2: prompt"),
    ('a ball\n{"seconds": 3}', "line 2: "),
    ("a ball\n{a ball", "line 2 is not valid JSON"),
    ('a ball\n{"prompt": " "}', "line 2: expected a prompt"),
    ('a ball\n{"prompt": "a ball", "seconds": 0}', "line 2: expected a prompt and a positive length"),
]


@pytest.mark.parametrize(("text", "message"), BAD_FILES)
def test_a_bad_prompt_file_names_the_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        suite_of_file(path)


def test_a_name_that_is_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no suite 'minni'; expected 'mini', 'mini-validation', a file"):
        open_suite("minni")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "a/b"}, "a set's name"),
        ({"prompts": ("a", " ")}, "an empty prompt"),
        ({"seconds": np.inf}, "a positive time"),
        ({"seeds": 0}, "at least 1 seed"),
        ({"videos": ((Path("a"),),)}, "2 prompts but 1 entries"),
    ],
)
def test_a_set_that_makes_no_sense_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptSet(**{"name": "5s", "prompts": ("a", "b"), "seconds": 5, **values})  # pyright: ignore[reportArgumentType]


def test_suites_without_sets_or_with_equal_names_are_refused() -> None:
    one = PromptSet("5s", ("a", "b"), 5)
    for sets in ((), (one, one)):
        with pytest.raises(ValueError, match="sets of different names"):
            Suite("file", sets)


@pytest.mark.parametrize("listing", ["prompts.json", "prompts.txt", "titles"])
def test_the_prompts_of_a_folder_are_listed_or_titles(tmp_path: Path, listing: str) -> None:
    prompts = {"a.mp4": "a red ball", "a b.webm": "a blue ball", "c.gif": "a red ball"}
    for name, prompt in prompts.items():
        # a .gif holds no title
        write_video(tmp_path / name, title=prompt if listing == "titles" else None)
    if listing == "prompts.json":
        (tmp_path / listing).write_text(json.dumps(prompts))
    elif listing == "prompts.txt":
        (tmp_path / listing).write_text("a.mp4: a red ball\n\na b.webm\ta blue ball\nc.gif  a red ball\n")
    else:
        (tmp_path / "prompts.txt").write_text("c.gif: a red ball")
    suite = open_suite(str(tmp_path))
    assert (suite.name, suite.is_made) == ("folder", True)
    (only,) = suite.sets
    assert (only.name, only.prompts) == ("0.5s", ("a blue ball", "a red ball"))
    assert [[file.name for file in files] for files in only.videos] == [["a b.webm"], ["a.mp4", "c.gif"]]
    assert [only.seeds_of(index, seed=5) for index in (0, 1)] == [[0], [0, 1]]


def test_videos_of_two_lengths_make_two_sets(tmp_path: Path) -> None:
    for name, seconds in (("a", 1), ("b", 1.25), ("c", 3), ("d", 3.1)):
        write_video(tmp_path / f"{name}.mp4", seconds, title=name)
    suite = suite_of_folder(tmp_path)
    assert [(one.name, one.prompts) for one in suite.sets] == [("1s", ("a", "b")), ("3s", ("c", "d"))]
    assert [one.seconds for one in suite.quick().sets] == [1, 3]


def test_a_matroska_file_is_a_video(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as source, av.open(str(tmp_path / "b.mkv"), "w") as copy:
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    (tmp_path / "prompts.txt").write_text("a.mp4: a ball\nb.mkv: a square")
    assert suite_of_folder(tmp_path).sets[0].prompts == ("a ball", "a square")


BAD_FOLDERS = [
    ({}, "holds no videos"),
    ({"prompts.txt": "a.mp4: a ball"}, "no prompt for .*b.mp4'; add a line 'b.mp4: PROMPT'"),
    ({"prompts.txt": "a.mp4: a ball\nc.mp4: a square"}, "line 2: expected 'FILE: PROMPT'"),
    ({"prompts.json": '{"a.mp5": "a ball"}'}, "unknown video 'a.mp5'; did you mean 'a.mp4'"),
    ({"prompts.json": '["a ball"]'}, "must map file names to prompts"),
    ({"prompts.json": "{"}, "not valid JSON"),
    ({"prompts.txt": "a.mp4: a ball\nb.mp4: a ball"}, "has 1 prompt; intervals need at least 2"),
    ({"prompts.txt": "a.mp4: a ball\nb.mp4: a square", "b.mp4": "nothing"}, "b.mp4' is not a video"),
]


@pytest.mark.parametrize(("files", "message"), BAD_FOLDERS)
def test_a_bad_folder_names_the_file(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name in ("a.mp4", "b.mp4") if files else ():
        write_video(tmp_path / name)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        suite_of_folder(tmp_path)


def test_a_folder_takes_no_number_of_seeds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leave the number of seeds out"):
        open_suite(str(tmp_path), seeds=2)
