"""The whole recipe at test size, through the commands: world -> VAE -> text -> teacher -> student -> a video."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reward_forcing.streaming.video_io import read_video

ROOT = Path(__file__).parents[2]


def rforce(folder: Path, *arguments: str) -> str:
    """What a command of the recipe prints and reports, run in `folder`."""
    command = [sys.executable, "-m", "reward_forcing", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def losses(run: Path, key: str) -> list[float]:
    """The logged values of one key."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if key in row]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the test-sized recipe has been run from nothing."""
    folder = tmp_path_factory.mktemp("recipe")
    configs, runs = ROOT / "configs/train/test", Path("runs/test")

    def train(name: str) -> None:
        rforce(folder, "train", str(configs / f"{name}.yaml"), "train.log_every=1", "--out", str(runs / name))

    train("1_vae")
    train("2_text_encoder")
    vae = str(runs / "1_vae/final/vae")
    for split, count in (("train", 24), ("validation", 4)):
        sizes = ("--frames", "21", "--size", "32", "--shard-size", "8", "--count", str(count))
        rforce(folder, "data", "make", "--split", split, "--vae", vae, "--out", str(runs / "latents" / split), *sizes)
    switches = ("--switch-chunk", "2", "--frames", "21", "--size", "32", "--shard-size", "8", "--count", "12")
    rforce(folder, "data", "make", "--vae", vae, "--out", str(runs / "latents/switches"), *switches)
    train("3_teacher")
    parts = ("--teacher", str(runs / "3_teacher/final/transformer"), "--text", str(runs / "2_text_encoder/final"))
    sizes = ("--latent-shape", "6,8,4,4", "--count", "8", "--steps", "8", "--shard-size", "4")
    rforce(folder, "data", "ode-pairs", *parts, "--out", str(runs / "ode_pairs"), *sizes)
    for name in ("4_ode", "5_causal", "6_dmd", "7_re_dmd", "causal_teacher"):
        train(name)
    parts = ("--teacher", str(runs / "causal_teacher/final/transformer"), "--text", str(runs / "2_text_encoder/final"))
    given = ("--causal", "--cache", "chunk_frames=2", "--context", str(runs / "latents/train"))
    rforce(folder, "data", "ode-pairs", *parts, *given, "--out", str(runs / "ode_pairs_causal"), *sizes)
    train("ode_from_causal")
    return folder


def test_every_stage_learns_something_finite(trained: Path) -> None:
    runs = trained / "runs/test"
    for name, key in (
        ("1_vae", "vae/loss"), ("2_text_encoder", "text_encoder/loss"), ("3_teacher", "transformer/loss"),
        ("4_ode", "generator/loss"), ("5_causal", "transformer/loss"), ("6_dmd", "generator/loss"),
        ("7_re_dmd", "generator/loss"), ("7_re_dmd", "generator/reward"), ("7_re_dmd", "validation/reward/text"),
        ("causal_teacher", "validation/loss"), ("ode_from_causal", "validation/explained"),
    ):  # fmt: skip
        values = losses(runs / name, key)
        assert values, f"{name} logged no {key}"
        assert all(abs(value) < 1e4 for value in values), (name, values)
    vae = losses(runs / "1_vae", "vae/loss")
    assert sum(vae[140:160]) < 0.75 * sum(vae[:20]), "within the phase of single frames the loss falls"
    text = losses(runs / "2_text_encoder", "text_encoder/loss")
    assert text[-1] < 0.8 * text[0]
    assert list((runs / "causal_teacher/samples").iterdir()), "a causal network streams its samples"
    teacher = losses(runs / "3_teacher", "transformer/loss")
    assert sum(teacher[24:30]) < 0.9 * sum(teacher[:6])


def test_the_trained_parts_are_small_and_stream_a_video(trained: Path) -> None:
    runs = trained / "runs/test"
    settings = trained / "streaming.yaml"
    settings.write_text(
        "{method: reward, chunk_frames: 2, window_frames: 4, sink: {kind: ema, frames: 1}, height: 32, width: 32}"
    )
    rforce(trained, "models", "bundle", "--out", "model", "--transformer", str(runs / "6_dmd/final/transformer"),
           "--vae", str(runs / "1_vae/final/vae"), "--text", str(runs / "2_text_encoder/final"),
           "--settings", str(settings))  # fmt: skip
    assert sum(file.stat().st_size for file in (trained / "model").rglob("*") if file.is_file()) < 1e6
    rforce(trained, "generate", "a red ball bounces", "--model", "model", "--seconds", "1", "--out", "ball.mp4")
    frames, fps = read_video(trained / "ball.mp4")
    assert (len(frames), round(fps)) == (16, 16)


def test_the_same_commands_again_do_nothing_but_say_so(trained: Path) -> None:
    started = time.monotonic()
    said = rforce(trained, "train", str(ROOT / "configs/train/test/1_vae.yaml"), "train.log_every=1",
                  "--out", "runs/test/1_vae")  # fmt: skip
    assert "finished" in said
    assert time.monotonic() - started < 60


def test_a_store_of_latents_resumes_and_refuses_to_mix(trained: Path) -> None:
    latents = trained / "runs/test/latents/train"
    shards = sorted(latents.glob("shard_*.safetensors"))
    before = shards[1].read_bytes()
    shards[1].unlink()
    vae = str(Path("runs/test/1_vae/final/vae"))
    sizes = ("--frames", "21", "--size", "32", "--shard-size", "8", "--vae", vae)
    rforce(trained, "data", "make", "--out", str(latents), "--count", "24", *sizes)
    assert shards[1].read_bytes() == before
    with pytest.raises(AssertionError, match="another store"):
        rforce(trained, "data", "make", "--out", str(latents), "--count", "25", *sizes)


def test_videos_of_the_world_come_with_captions_and_truth(tmp_path: Path) -> None:
    rforce(tmp_path, "data", "make", "--out", "clips", "--count", "2", "--frames", "9", "--size", "32")
    truth = json.loads((tmp_path / "clips/000001.json").read_text())
    assert truth["caption"]
    assert truth["scene"]["kind"]
    frames, _ = read_video(tmp_path / "clips/000001.mp4")
    assert len(frames) == 9
    assert "wrote" in rforce(tmp_path, "data", "show", "--out", "world.png", "--kind", "bounce")
