"""The VAE's clips: of the world, and of a folder whose last files are kept to validate with."""

from pathlib import Path

import pytest
import torch
from data.videos import numbers_of, write_levels
from PIL import Image

from reward_forcing.config import load_settings
from reward_forcing.streaming.methods import StreamingSettings
from reward_forcing.training import load_stage_settings
from reward_forcing.training.clip_sources import FolderClips, WorldClips
from reward_forcing.training.vae import VaeStageSettings

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An image, videos of 24, 24, 8 and 24 frames at 8 fps, and a broken one."""
    Image.new("RGB", (32, 32), (16, 16, 16)).save(tmp_path / "a.png")
    for name, frames in (("b", 24), ("c", 24), ("d", 8), ("e", 24)):
        write_levels(tmp_path / f"{name}.mp4", frames=frames)
    (tmp_path / "f.mp4").write_bytes(b"nothing")
    return tmp_path


def drawn(source: FolderClips | WorldClips, seed: int, frames: int) -> torch.Tensor:
    return source.training(torch.Generator().manual_seed(seed), frames)


def test_a_folder_gives_stretches_of_what_is_long_enough_and_keeps_its_last_files(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = FolderClips(folder, 8, (16, 32), longest=20, kept=1, kept_frames=12)
    assert "skipped f.mp4" in caplog.text
    read = [numbers_of(drawn(source, seed, 20)) for seed in range(6)]
    assert all(numbers == list(range(numbers[0], numbers[0] + 20)) for numbers in read)
    assert len({numbers[0] for numbers in read}) > 1
    assert drawn(source, 0, 20).shape == (20, 3, 16, 32)
    assert torch.equal(drawn(source, 3, 5), drawn(source, 3, 5))
    assert numbers_of(source.validation(0, 12)) == list(range(12))
    assert torch.equal(source.validation(0, 12), source.validation(1, 12)), "over again if there are fewer"
    (folder / "e.mp4").unlink()  # the one that is kept: training reads the others
    assert len([drawn(source, seed, 1) for seed in range(20)]) == 20


def test_a_folder_with_too_little_says_what_it_has(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"hold 1 files of 12 frames at 8 fps .* the others have up to 24 frames"):
        FolderClips(folder, 8, (16, 16), longest=25, kept=1, kept_frames=12)
    with pytest.raises(ValueError, match="3 of its 5 could validate"):
        FolderClips(folder, 8, (16, 16), longest=20, kept=4, kept_frames=12)


def test_the_worlds_clips_are_square_and_repeat() -> None:
    source = WorldClips(32)
    assert drawn(source, 1, 5).shape == (5, 3, 32, 32)
    assert torch.equal(drawn(source, 1, 5), drawn(source, 1, 5))
    assert not torch.equal(source.validation(0, 1), source.validation(1, 1))
    values = {
        "train": {"steps": 1, "optimizers": {"vae": {"kind": "adamw", "lr": 0.1}}},
        "phases": [{"share": 1, "frames": 1, "batch": 1}],
    }
    with pytest.raises(ValueError, match="world's frames are square"):
        VaeStageSettings.model_validate(values | {"size": [32, 64]})


@pytest.mark.parametrize("name", ["own", "wan_1_3b"])
def test_the_models_of_the_docs_stream_as_they_are_trained(name: str) -> None:
    training = {"own": "own/4_re_dmd.yaml", "wan_1_3b": "wan_1_3b/re_dmd_8gpu.yaml"}[name]
    changes = ("reward={kind: motion}",)
    trained = load_stage_settings(CONFIGS / "train" / training, changes).model_dump()
    streamed = load_settings(StreamingSettings, CONFIGS / f"generate/{name}.yaml").model_dump()
    assert trained["denoising_steps"] == streamed["denoising_steps"]
    assert trained["shift"] == streamed["shift"]
    assert [8 * size for size in trained["latent_size"]] == [streamed["height"], streamed["width"]]
    for key in ("chunk_frames", "window_frames", "sink"):
        assert trained["cache"][key] == streamed[key], key
