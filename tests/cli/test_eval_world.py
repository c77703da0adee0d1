"""`rforce eval world` judges a student, a teacher, the VAE and rendered clips by one table, in parts and again."""

import json
from collections.abc import Iterator
from pathlib import Path

import commands
import numpy as np
import pytest
import torch
from PIL import Image

from reward_forcing.data.scenes import render
from reward_forcing.evaluation import world_distance
from reward_forcing.evaluation.world_clips import DecodedClips, RenderedClips, ends_of
from reward_forcing.evaluation.world_distance import KERNEL, rendered_features
from reward_forcing.evaluation.world_suite import held_out_prompts, judge
from reward_forcing.models.vae import StreamingVAE
from reward_forcing.training.networks import load_transformer, save_transformer


def rforce(*arguments: object) -> int:
    """The exit code of `rforce eval world *arguments`."""
    return commands.rforce("eval", "world", *arguments)


@pytest.fixture(autouse=True)
def few_references(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(world_distance, "REFERENCE_CLIPS", 6)
    world_distance.reference_features.cache_clear()
    yield
    world_distance.reference_features.cache_clear()


def results(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def test_rendered_clips_are_right_and_as_far_as_a_perfect_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("--prompts", 5, "--seconds", 81 / 16, "--batch", 2, "--sheet", 3)  # the frames that features are taken of
    assert rforce("--rendered", *small, "--out", tmp_path) == 0
    said, found = capsys.readouterr().out, results(tmp_path)
    whole = found["parts"]["whole"]
    assert whole["summary"]["motion"]["count"] == 5
    assert whole["distances"][KERNEL] == pytest.approx(whole["distances"][f"rendered_{KERNEL}"], rel=0.02, abs=0.02)
    assert sum(of["aligned"]["count"] for of in whole["by_kind"].values()) == 5
    assert found["provenance"].keys() == {"command", "created", "commit", "versions", "machine"}
    assert (found["recipe"]["source"], found["recipe"]["seed"], found["recipe"]["weights"]) == ("rendered", 0, {})
    assert [clip["prompt"] for clip in found["clips"]] == [prompt.text for prompt in held_out_prompts(5)]
    assert np.asarray(Image.open(tmp_path / "sheet.png")).shape == (3 * 64, 10 * 64, 3)
    lines = [line.split() for line in said.splitlines()]
    assert ["motion", "100.0", "%", "[57,", "100]", "of", "5"] in lines
    assert any(line[:1] == ["bounce"] for line in lines)
    assert any(line[:1] == [f"rendered_{KERNEL}"] for line in lines)


def test_another_checkpoint_of_a_student_is_judged_in_its_place(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights that make the clips are the ones named, and the recipe holds their hash."""
    small = ("--model", tiny_model_folder, "--prompts", 2, "--seconds", 1, "--sheet", 0)
    other = tmp_path / "other"
    network = load_transformer(tiny_model_folder / "transformer", torch.device("cpu"))
    with torch.no_grad():
        network.proj_out.weight.neg_()
    save_transformer(network, other)
    for name, more in (("own", ()), ("other", ("--weights", other)), ("fewer", ("--set", "denoising_steps=[1000]"))):
        assert rforce(*small, *more, "--out", tmp_path / f"judged_{name}") == 0
    own, judged, fewer = (results(tmp_path / f"judged_{name}") for name in ("own", "other", "fewer"))
    assert fewer["recipe"]["streaming"]["denoising_steps"] == [1000]
    assert own["clips"][0]["parts"] != fewer["clips"][0]["parts"]
    assert own["recipe"]["weights"]["transformer"] != judged["recipe"]["weights"]["transformer"]
    assert own["recipe"]["weights"]["vae"] == judged["recipe"]["weights"]["vae"]
    assert own["clips"][0]["parts"] != judged["clips"][0]["parts"]
    capsys.readouterr()
    assert rforce(*small, "--weights", other, "--rendered", "--out", tmp_path / "none") == 2
    assert "--weights would change nothing when judging the rendered" in capsys.readouterr().err


def test_a_student_with_a_tiny_decoder_is_judged_by_its_frames(
    tmp_path: Path, tiny_model_folder: Path, tiny_decoder_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("--model", tiny_model_folder, "--prompts", 2, "--seconds", 1, "--sheet", 0)
    for name, more in (("own", ()), ("tiny", ("--decoder", tiny_decoder_file))):
        assert rforce(*small, *more, "--out", tmp_path / name) == 0
    assert "taetiny.pth: frames of a tiny decoder, not the VAE's" in capsys.readouterr().out
    own, tiny = (results(tmp_path / name) for name in ("own", "tiny"))
    assert (own["recipe"]["decoder"], tiny["recipe"]["decoder"]) == (None, "taetiny.pth")
    assert tiny["recipe"]["weights"].keys() - own["recipe"]["weights"].keys() == {"tiny_decoder"}
    assert own["clips"][0]["parts"]["whole"]["features"] != tiny["clips"][0]["parts"]["whole"]["features"]
    assert rforce(*small, "--decoder", tiny_decoder_file, "--rendered", "--out", tmp_path / "none") == 2
    assert "--decoder would change nothing when judging the rendered" in capsys.readouterr().err


def test_a_student_is_judged_alike_in_shares_and_by_the_same_command_again(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ("--model", tiny_model_folder, "--prompts", 3, "--seconds", 1, "--sheet", 1)
    assert rforce(*small, "--batch", 2, "--out", tmp_path / "whole") == 0
    assert rforce(*small, "--batch", 2, "--out", tmp_path / "parts", "--share", "1/2") == 0
    assert "share 1/2 is done; the results come with the last of 2 shares" in capsys.readouterr().out
    assert not (tmp_path / "parts/results.json").exists()
    assert rforce(*small, "--batch", 2, "--out", tmp_path / "parts", "--share", "0/2", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    whole, parts = results(tmp_path / "whole"), results(tmp_path / "parts")
    assert printed["parts"] == parts["parts"]
    assert "clips" not in printed
    assert whole["clips"] == parts["clips"]
    assert whole["parts"] == parts["parts"]
    assert rforce(*small, "--batch", 1, "--out", tmp_path / "single") == 0
    for one, other in zip(whole["clips"], results(tmp_path / "single")["clips"], strict=True):
        assert one["parts"]["whole"]["right"] == other["parts"]["whole"]["right"]
        np.testing.assert_allclose(*(clip["parts"]["whole"]["features"] for clip in (one, other)), atol=0.05)

    def refuse(*_: object) -> None:
        raise AssertionError("nothing is missing, so no weights are needed")

    monkeypatch.setattr("reward_forcing.streaming.pipeline.StreamingVideoPipeline.load", refuse)
    assert rforce(*small, "--batch", 2, "--out", tmp_path / "whole") == 0
    capsys.readouterr()
    assert rforce(*small, "--batch", 2, "--seed", 1, "--out", tmp_path / "whole") == 2
    assert "holds an evaluation of another recipe (seed: 0 -> 1)" in capsys.readouterr().err


def test_a_teacher_and_the_vae_are_judged_by_the_same_table(tmp_path: Path, tiny_model_folder: Path) -> None:
    small = ("--model", tiny_model_folder, "--prompts", 3, "--seconds", 1, "--batch", 3, "--sheet", 0)
    teacher = ("--teacher", tiny_model_folder / "transformer", "--steps", 2, "--guidance", 3)
    assert rforce(*small, *teacher, "--out", tmp_path / "teacher") == 0
    assert rforce(*small, "--only-vae", "--out", tmp_path / "vae") == 0
    found, vae = results(tmp_path / "teacher"), results(tmp_path / "vae")
    assert found["recipe"]["sampling"] == {"steps": 2, "shift": 5.0, "guidance": 3.0}
    assert found["recipe"]["weights"].keys() == {"transformer", "vae", "text_encoder"}
    assert vae["recipe"]["weights"] == {"vae": found["recipe"]["weights"]["vae"]}
    assert found["parts"]["whole"].keys() == vae["parts"]["whole"].keys() == {"summary", "by_kind", "distances"}
    assert found["clips"] != vae["clips"]


def test_of_a_long_clip_the_first_and_the_last_five_seconds_are_judged(tmp_path: Path) -> None:
    assert rforce("--rendered", "--prompts", 3, "--seconds", 12, "--sheet", 1, "--out", tmp_path) == 0
    found = results(tmp_path)
    assert found["parts"].keys() == {"start", "end"}
    prompt = held_out_prompts(2)[1]
    parts = found["clips"][1]["parts"]
    assert parts["end"]["right"] == judge(prompt, render(prompt.scene, 80, 64, 112)).right
    np.testing.assert_allclose(parts["start"]["features"], rendered_features([prompt.scene])[0], atol=1e-3)
    assert found["parts"]["end"]["distances"][KERNEL] == pytest.approx(
        found["parts"]["end"]["distances"][f"rendered_{KERNEL}"], rel=0.02, abs=0.02
    )


def test_the_ends_of_a_clip_are_those_of_the_whole_however_it_is_cut_into_pieces() -> None:
    clip = np.arange(200, dtype=np.uint8)[None, :, None, None, None]
    for size in (7, 80, 81, 200):
        ends = ends_of((clip[:, first : first + size] for first in range(0, 200, size)), 200)
        assert {name: (part[0, 0].item(), part[0, -1].item()) for name, part in ends.items()} == {
            "start": (0, 80), "end": (119, 199),
        }  # fmt: skip
    assert ends_of(iter([clip[:, :80], clip[:, 80:160]]), 160)["whole"].shape[1] == 160


def test_the_vae_sees_long_clips_as_one_stream(tiny_model_folder: Path) -> None:
    vae, rendered = StreamingVAE.from_pretrained(tiny_model_folder / "vae"), RenderedClips(32)
    prompts = held_out_prompts(2)
    pieces = list(DecodedClips(rendered, vae).pieces(prompts, 100))
    assert sum(piece.shape[1] for piece in pieces) == 100
    short = np.concatenate(list(DecodedClips(rendered, vae).pieces(prompts, 33)), axis=1)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1)[:, :33].astype(int), short.astype(int), atol=1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--teacher", "none"], "no transformer in 'none'"),
        (["--teacher", "none", "--rendered"], "exclude each other"),
        (["--only-vae", "--vae", "none"], "no VAE in 'none'"),
        (["--steps", "3"], "--steps would change nothing when judging the student"),
        (["--rendered", "--set", "window_frames=6"], "--set would change nothing when judging the rendered"),
        (["--set", "windows=6"], "windows"),
        (["--rendered", "--vae", "none"], "--vae would change nothing when judging the rendered"),
        (["--teacher", "none", "--seconds", "60"], "makes a clip as a whole: at most 10 s, got 60"),
        (["--seconds", "0"], "--seconds must be positive"),
        (["--share", "2/2"], "--share must be i/n"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, tiny_model_folder: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rforce(*arguments, "--model", tiny_model_folder, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err.strip()
    assert says in said
    assert "\n" not in said
    assert not (tmp_path / "out").exists()
