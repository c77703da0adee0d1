"""Golden cases: outputs of the published reference code on tiny networks, found in a folder and described by sidecars.

The folder is `REWARD_FORCING_GOLDEN`, by default `golden/` beside this file. A test marked
`@pytest.mark.golden("a_*")` runs once per matching `NAME.safetensors`, with the argument `case` and NAME in its id.
"""

import json
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from reward_forcing.checkpoints.wan import wan_to_diffusers
from reward_forcing.models.wan_dit import WanDiT

FOLDER = Path(os.environ.get("REWARD_FORCING_GOLDEN") or Path(__file__).parent / "golden")


@dataclass(frozen=True)
class GoldenCase:
    """One case: `sidecar` describes it, `tensors` holds its inputs and outputs."""

    path: Path

    @cached_property
    def sidecar(self) -> dict[str, Any]:
        return json.loads(self.path.with_suffix(".json").read_text())

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return load_file(self.path)

    def weights(self) -> dict[str, Tensor]:
        """The network's parameters under Wan2.1's original names; a sidecar may say more about the file it names."""
        (name,) = set(re.findall(r"[\w.]+\.safetensors", self.sidecar["weights"]))
        return load_file(self.path.parent / name)

    def network_settings(self) -> dict[str, Any]:
        """The network's configuration under diffusers' keys."""
        config = self.sidecar["config"]
        return {
            "num_attention_heads": config["num_heads"],
            "attention_head_dim": config["dim"] // config["num_heads"],
            "in_channels": config["in_dim"],
            "out_channels": config["out_dim"],
            **{key: config[key] for key in ("text_dim", "freq_dim", "ffn_dim", "num_layers")},
        }

    def network(self, scale: float = 1.0) -> WanDiT:
        """The network with its weights multiplied by `scale`: some cases derive a second network so."""
        network = WanDiT(**self.network_settings())
        network.load_state_dict(wan_to_diffusers({name: scale * w for name, w in self.weights().items()}))
        return network.eval()

    def text(self, name: str = "context") -> Tensor:
        """Text embeddings padded with zero rows to the network's text length."""
        context = self.tensors[name]
        padded = context.new_zeros(context.shape[0], self.sidecar["config"]["text_len"], context.shape[2])
        padded[:, : context.shape[1]] = context
        return padded


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "golden(pattern): run once per golden case whose file name matches")
    torch.set_num_threads(1)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("golden")
    if marker is not None:
        paths = sorted(path for pattern in marker.args for path in FOLDER.glob(f"{pattern}.safetensors"))
        metafunc.parametrize("case", [pytest.param(GoldenCase(path), id=path.stem) for path in paths])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests of cases that the folder does not hold; pytest says how many, where it would call them skipped."""
    empty = [item for item in items if item.get_closest_marker("golden") and "NOTSET" in item.name]
    if empty:
        config.hook.pytest_deselected(items=empty)
        items[:] = [item for item in items if item not in empty]
