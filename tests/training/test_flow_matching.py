"""The flow-matching stage refuses what it could not train, before it reads a network."""

from pathlib import Path
from typing import Any

import pytest
from tiny_stages import flow_matching, write_latents


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    return write_latents(tmp_path / "latents")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"phases": [{"share": 1, "frames": 21, "batch": 4}]},
            "latents are clips of 8 latent frames, and 21 are asked",
        ),
        (
            {"causal": True, "phases": [{"share": 1, "frames": 4, "batch": 4}]},
            "objective.frames=6 are cut from each clip",
        ),
        (
            {"phases": [{"share": 1, "frames": 4, "batch": 4}, {"share": 1, "frames": 8, "batch": 3}], "accumulate": 2},
            "batch size 3 does not divide into 2 shards",
        ),
        ({"optimizers": {"transfomer": {"kind": "adamw", "lr": 0.1}}}, "did you mean 'transformer'"),
    ],
)
def test_unfit_phases_and_roles_are_refused(
    tiny_model_folder: Path, latents: Path, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "reward_forcing.training.flow_matching.place_transformer", lambda *given, **more: pytest.fail("was read")
    )
    with pytest.raises(ValueError, match=message):
        flow_matching(tiny_model_folder, latents, **changes)


def test_a_missing_vae_is_told_at_once(tiny_model_folder: Path, latents: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no VAE in"):
        flow_matching(tiny_model_folder, latents, vae="nowhere")
