"""The network of video features: any size and length, and a stage that learns to name what it sees."""

from pathlib import Path

import pytest
import torch

from reward_forcing.logs import JsonLines
from reward_forcing.models.video_features import VideoFeatures
from reward_forcing.training.trainer import Outcome, Trainer
from reward_forcing.training.video_features import LABELS, VideoFeaturesSettings, VideoFeaturesStage

SMALL = {"widths": (4, 8, 8, 8), "features": 12, "size": 32, "length": 9}


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 32, 32), (9, 32, 32), (81, 64, 48), (20, 480, 832)])
def test_videos_of_any_size_and_length_give_one_vector(frames: int, height: int, width: int) -> None:
    network = VideoFeatures(LABELS, **SMALL).eval()
    x = torch.rand(2, frames, 3, height, width)
    with torch.no_grad():
        features = network(x)
        assert features.shape == (2, 12)
        torch.testing.assert_close(network(x[1:]), features[1:], atol=1e-5, rtol=1e-5)
        assert {trait: tuple(v.shape) for trait, v in network.logits(features).items()} == {
            trait: (2, count) for trait, count in LABELS.items()
        }


def test_what_is_no_video_is_refused() -> None:
    with pytest.raises(ValueError, match="expected frames"):
        VideoFeatures(LABELS, **SMALL)(torch.rand(2, 3, 9, 32, 32))
    with pytest.raises(ValueError, match="four widths"):
        VideoFeatures(LABELS, widths=(4, 8))


def test_the_stage_learns_and_exports(tmp_path: Path) -> None:
    settings = VideoFeaturesSettings.model_validate(
        {"model": SMALL, "batch": 16, "train": {"steps": 120, "log_every": 1, "optimizers": {
            "video_features": {"kind": "adamw", "lr": 0.01}}}}
    )  # fmt: skip
    stage = VideoFeaturesStage(settings, seed=1, rank=0, world_size=1, device=torch.device("cpu"))
    assert Trainer(stage, tmp_path).run() == Outcome(120)
    losses = [
        row["video_features/loss"] for row in JsonLines(tmp_path / "log.jsonl").rows() if "video_features/loss" in row
    ]
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])
    network = VideoFeatures.from_pretrained(tmp_path / "final/video_features").eval()
    x = torch.rand(1, 9, 3, 32, 32)
    trained = {name: value.bfloat16().float() for name, value in stage.network.state_dict().items()}
    stage.network.load_state_dict(trained)
    with torch.no_grad():
        torch.testing.assert_close(network(x), stage.network.eval()(x), atol=1e-5, rtol=1e-5)
