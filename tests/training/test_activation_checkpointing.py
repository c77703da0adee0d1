"""Checkpointed gradients are the plain ones to the last bit, through the cache too, in both precisions."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ode_stores import stage as ode_regression
from ode_stores import write_tars
from tiny_stages import distilling, flow_matching, write_latents

from reward_forcing.training.parallel import checkpoint_activations
from reward_forcing.training.stage import Draw, Stage


def gradients(stage: Stage[Any], role: str, precision: torch.dtype, checkpointed: bool) -> dict[str, torch.Tensor]:
    network = stage.networks()[role]
    if checkpointed:
        checkpoint_activations([network])
    draw = Draw.at(stage.seed, role, 0)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        loss, _ = stage.loss(role, 0, draw)
    loss.backward()
    found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    assert found
    return found


ROLLING: dict[str, Any] = {
    "rolling_share": 1.0,
    "cache": {"window_frames": 8, "chunk_frames": 2, "sink": {"kind": "ema", "frames": 2, "alpha": 0.9}},
}


@pytest.fixture
def build(tiny_model_folder: Path, tmp_path: Path) -> Any:
    """A stage by its name and the number of times it has been built."""
    latents = write_latents(tmp_path / "latents")
    pairs = write_tars(tmp_path / "pairs", torch.randn(4, 3, 6, 4, 4, 4), (900, 400, 0))
    transformer = tiny_model_folder / "transformer"
    return {
        "flow_matching": lambda: flow_matching(tiny_model_folder, latents),
        "causal": lambda: flow_matching(tiny_model_folder, latents, causal=True),
        "ode_regression": lambda: ode_regression(pairs, tiny_model_folder, transformer),
        "dmd none": lambda: distilling(tiny_model_folder, kv_grad="none"),
        "dmd clean": lambda: distilling(tiny_model_folder, kv_grad="clean"),
        "dmd stale": lambda: distilling(tiny_model_folder, kv_grad="stale"),
        "rolling none": lambda: distilling(tiny_model_folder, kv_grad="none", **ROLLING),
        "rolling clean": lambda: distilling(tiny_model_folder, kv_grad="clean", **ROLLING),
        "rolling stale": lambda: distilling(tiny_model_folder, kv_grad="stale", **ROLLING),
        "lora": lambda: distilling(tiny_model_folder, lora={role: {"rank": 3} for role in ("generator", "fake_score")}),
        "re_dmd": lambda: distilling(tiny_model_folder, reward=True, longest_frames=14),
    }


CASES = [
    ("flow_matching", "transformer"),
    ("causal", "transformer"),
    ("ode_regression", "generator"),
    *((f"{name} {kv_grad}", "generator") for name in ("dmd", "rolling") for kv_grad in ("none", "clean", "stale")),
    ("dmd none", "fake_score"),
    ("lora", "generator"),
    ("lora", "fake_score"),
    ("re_dmd", "generator"),
]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "role"), CASES)
def test_checkpointed_gradients_are_the_plain_ones(build: Any, name: str, role: str, precision: torch.dtype) -> None:
    plain = gradients(build[name](), role, precision, checkpointed=False)
    checkpointed = gradients(build[name](), role, precision, checkpointed=True)
    assert plain.keys() == checkpointed.keys()
    assert [name for name in plain if not torch.equal(plain[name], checkpointed[name])] == []
