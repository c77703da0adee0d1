"""From a folder of one's own videos and one's own reward to a streamed video, with the configurations of the docs.

The commands and the order of docs/training.md, "Your own videos, your own reward", on a tiny random model.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import rforce
from data.videos import write_levels

from reward_forcing.streaming.video_io import read_video
from reward_forcing.training.latents import JoinedLatents, open_latents
from reward_forcing.training.ode_pairs import read_prompts

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs/train/own"
SIZES = ("--size", "32x32", "--frames", "21", "--shard-size", "2", "--device", "cpu")
FEW_STEPS = ("train.steps=2", "train.sample_every=2", "train.log_every=1", "train.precision=fp32")


pytestmark = pytest.mark.usefixtures("workplace")


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Six captioned videos to train with and one to validate with."""
    folder = tmp_path / "videos"
    words = ("red", "blue", "green")
    for number in range(6):
        write_levels(folder / f"train/{number}.mp4", frames=24, fps=16)
        (folder / f"train/{number}.txt").write_text(f"a {words[number % 3]} ball bounces\na {words[number % 3]} ball")
    write_levels(folder / "validation/7.mp4", frames=24, fps=16, title="a red square slides")
    return folder


def logged(run: Path, key: str) -> list[float]:
    """The logged values of one key."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if key in row]


def test_a_folder_of_videos_and_a_reward_become_a_student_that_streams(
    videos: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    text, latents = tiny_model_folder, tmp_path / "runs/own/latents"

    def train(config: str, *changes: object) -> None:
        out = f"runs/own/{config}"
        assert rforce("train", CONFIGS / f"{config}.yaml", *FEW_STEPS, *changes, "--out", out) == 0

    train("1_vae", f"init={tiny_model_folder / 'vae'}", "size=32", "validation_clips=1", "validation_frames=5",
          "phases=[{share: 1, frames: 1, batch: 2}, {share: 1, frames: 5, batch: 2}]")  # fmt: skip
    for part in ("train", "validation"):
        arguments = ("--vae", "runs/own/1_vae/final/vae", "--text", text, "--out", latents / part, *SIZES)
        assert rforce("data", "encode", videos / part, *arguments) == 0
    short = "phases=[{share: 1, frames: 1, batch: 2}, {share: 1, frames: 6, batch: 2}]"
    start = f"init={tiny_model_folder / 'transformer'}"
    train("2_teacher", f"text={text}", start, short, "sample_steps=2")
    train("3_causal", f"text={text}", "phases=[{share: 1, frames: 6, batch: 2}]", "sample_steps=2",
          "objective={kind: teacher_forcing, frames: 4, chunk_frames: 2, sink_frames: 1}")  # fmt: skip
    shutil.copy(CONFIGS / "rewards.py", tmp_path / "calm_reward.py")
    cache = "cache={window_frames: 4, chunk_frames: 2, sink: {kind: ema, frames: 1}}"
    small = (cache, "latent_size=[4, 4]", "frames=6", "batch=2", "group=2", "watch_clips=2", "validation_prompts=2")
    calm = "{kind: 'calm_reward:Calm'}"
    train("4_re_dmd", f"text={text}", *small, f"reward={calm}", f"watched={{same: {calm}}}")
    for run, key in (
        ("1_vae", "vae/psnr"), ("2_teacher", "transformer/loss"), ("2_teacher", "validation/loss"),
        ("3_causal", "transformer/loss"), ("4_re_dmd", "generator/loss"), ("4_re_dmd", "validation/reward/same"),
    ):  # fmt: skip
        assert all(abs(value) < 1e4 for value in logged(tmp_path / "runs/own" / run, key)), (run, key)
        assert logged(tmp_path / "runs/own" / run, key), (run, key)
    assert all(reward < 0 for reward in logged(tmp_path / "runs/own/4_re_dmd", "validation/reward/same"))

    settings = tmp_path / "streaming.yaml"
    settings.write_text((ROOT / "configs/generate/own.yaml").read_text().replace("64", "32"))
    assert rforce("models", "bundle", "--out", "model", "--transformer", "runs/own/4_re_dmd/final/transformer",
                  "--vae", "runs/own/1_vae/final/vae", "--text", text, "--settings", settings) == 0  # fmt: skip
    assert rforce("generate", "a red ball", "--model", "model", "--seconds", "1", "--out", "ball.mp4") == 0
    assert len(read_video(tmp_path / "ball.mp4")[0]) == 16


def test_wans_teacher_is_tuned_to_a_folder_by_its_configuration(
    videos: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    parts = ("--vae", tiny_model_folder / "vae", "--text", tiny_model_folder)
    for part in ("train", "validation"):
        out = tmp_path / "runs/wan_own/latents" / part
        assert rforce("data", "encode", videos / part, *parts, "--out", out, *SIZES) == 0
    folders = (f"text={tiny_model_folder}", f"vae={tiny_model_folder / 'vae'}")
    init = f"init={tiny_model_folder / 'transformer'}"
    changes = (*folders, init, "phases=[{share: 1, frames: 6, batch: 2}]", "train.accumulate=1", "sample_steps=2")
    config = ROOT / "configs/train/wan_1_3b/teacher.yaml"
    assert rforce("train", config, *FEW_STEPS, *changes, "--out", "teacher") == 0
    assert (tmp_path / "teacher/final/transformer/config.json").is_file()


def test_a_store_holds_every_clip_with_its_captions_and_its_place(
    videos: Path, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = ("--vae", tiny_model_folder / "vae", "--text", tiny_model_folder)
    arguments = ("data", "encode", videos / "train", *parts, *SIZES, "--stride", "3")
    out = tmp_path / "latents"
    assert rforce(*arguments, "--out", out, "--share", "1/2") == 0
    assert "part 1/2 is done; 3 of 6 shards are there" in capsys.readouterr().out
    assert rforce(*arguments, "--out", out, "--share", "0/2") == 0
    assert f"{out}: 12 clips of 21 frames as latents 6 x 4 x 4 x 4, 0 skipped" in capsys.readouterr().out
    store = open_latents(out)
    assert (len(store), store.shape) == (12, (6, 4, 4, 4))
    assert {store.caption(2, seed) for seed in range(4)} == {"a blue ball bounces", "a blue ball"}
    rows = [json.loads(line) for line in (out / "clips.jsonl").read_text().splitlines()]
    assert [(row["name"], row["start"]) for row in rows[:3]] == [("0.mp4", 0.0), ("0.mp4", 3 / 16), ("1.mp4", 0.0)]
    assert read_prompts(out / "prompts.txt")[:2] == ("a red ball bounces", "a red ball")
    whole = store.read([0, 1, 11], 6)
    assert torch.equal(store.read([11], 2), whole[2:, :2])
    joined = JoinedLatents([store, store])
    assert torch.equal(joined.read([12, 23], 6), whole[[0, 2]])
    assert joined.caption(14, 0) == store.caption(2, 0)
    assert store.examples == ("a red ball bounces", "a blue ball bounces", "a green ball bounces")
    # resumed: what is there stays, what lacks is made again, and a changed caption is taken over
    shard = out / "shard_00001.safetensors"
    before = shard.read_bytes()
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 1 of 6 shards, shard_00001\.safetensors first"):
        open_latents(out)
    (videos / "train/1.txt").write_text("a blue square")
    assert rforce(*arguments, "--out", out) == 0
    assert shard.read_bytes() == before
    assert open_latents(out).caption(2, 5) == "a blue square"
    capsys.readouterr()
    assert rforce(*arguments[:-1], "1", "--out", out) == 2
    assert "holds another store" in capsys.readouterr().err


def test_what_cannot_be_used_is_skipped_listed_and_told_by_the_exit_code(
    videos: Path, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = videos / "train"
    (folder / "broken.mp4").write_bytes(b"nothing")
    cut = folder / "1.mp4"
    cut.write_bytes(_with_damaged_end(cut.read_bytes()))
    write_levels(folder / "short.mp4", frames=8, fps=16, title="a red ball")
    (folder / "2.txt").unlink()
    (folder / "notes.pdf").write_text("nothing")
    parts = ("--vae", tiny_model_folder / "vae", "--text", tiny_model_folder)
    arguments = ("data", "encode", folder, *parts, *SIZES, "--out", tmp_path / "latents")
    for _ in range(2):  # told again by a command that has nothing left to do
        assert rforce(*arguments) == 3
        said = capsys.readouterr()
        skipped = [line for line in said.err.splitlines() if line.startswith("skipped ")]
        assert [line.split(":")[0] for line in skipped] == [
            "skipped 2.mp4", "skipped broken.mp4", "skipped short.mp4", "skipped 1.mp4 at 0.00 s",
        ]  # fmt: skip
        assert "other files, not looked at: 1 .pdf" in said.err
        assert "4 clips of 21 frames as latents 6 x 4 x 4 x 4, 4 skipped" in said.out
    store = open_latents(tmp_path / "latents")
    assert [store.caption(index, 0) for index in range(4)] == [
        f"a {word} ball bounces" for word in ("red", "red", "blue", "green")
    ]


def _with_damaged_end(video: bytes) -> bytes:
    """An .mp4 whose index is whole and whose later frames are not."""
    start = video.index(b"mdat")
    size = int.from_bytes(video[start - 4 : start], "big")
    half = start + size // 2
    return video[:half] + b"\0" * (start - 4 + size - half) + video[start - 4 + size :]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"--frames": "20"}, "frames must be 1 plus a multiple of 4, got 20"),
        ({"--size": "40x32"}, "width must be a positive multiple of 16, got 40"),
        ({"--vae": "none"}, "no VAE in 'none'"),
        ({"--text": "none"}, "no text_encoder/config.json under 'none'"),
        ({"--share": "2/2"}, "--share must be i/n"),
        ({"--frames": "81"}, "no video in 'videos/train' can be used, the first: 0.mp4: too short"),
    ],
)
def test_a_mistake_is_one_line_before_any_weights_load(
    videos: Path,
    tiny_model_folder: Path,
    changes: dict[str, str],
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("weights were about to be read")

    monkeypatch.setattr("reward_forcing.training.video_latents.load_vae", refuse)
    options = dict(zip(SIZES[::2], SIZES[1::2], strict=True))
    options |= {"--vae": str(tiny_model_folder / "vae"), "--text": str(tiny_model_folder), "--out": "out"} | changes
    assert rforce("data", "encode", "videos/train", *[word for pair in options.items() for word in pair]) == 2
    said = capsys.readouterr().err.strip()
    assert says in said
    assert "\n" not in said
    assert not Path("out").exists()


def test_words_that_the_text_encoder_does_not_know_are_an_error_unless_allowed(
    videos: Path,
    tiny_model_folder: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    (videos / "train/3.txt").write_text("a red dog\na blue dog barks\na red ball")
    parts = ("--vae", tiny_model_folder / "vae", "--text", tiny_model_folder, *SIZES)
    assert rforce("data", "encode", "videos/train", *parts, "--out", "out") == 2
    assert "2 of 8 captions have words" in (said := capsys.readouterr().err)
    assert "does not know: 'dog' (2), 'barks' (1); reword them" in said
    assert rforce("data", "encode", "videos/train", *parts, "--out", "out", "--unknown-words") == 0
    assert "'dog' (2), 'barks' (1)" in caplog.text
