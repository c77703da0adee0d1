"""Loading holds one copy of a network in memory, whatever file it comes from, and inspecting none."""

import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints.layouts import LAYOUTS, lora_of, original

from reward_forcing.checkpoints import inspect, load_transformer
from reward_forcing.checkpoints.diffusers import empty_network
from reward_forcing.cli.models import describe
from reward_forcing.models.wan_dit import WanDiT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def held_storages(files_under: Path) -> dict[int, int]:
    """Address -> bytes of the memory that living tensors hold, but for what is mapped from files under a folder."""
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(files_under) in line]
    mapped = [tuple(int(end, 16) for end in parts[0].split("-")) for parts in maps]
    tensors = [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor) and item.device.type == "cpu"]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return {at: size for at, size in storages.items() if not any(start <= at < end for start, end in mapped)}


@pytest.mark.parametrize(
    ("layout", "lora"),
    [
        ("diffusers shards", False),
        ("Wan2.1", False),
        ("Self Forcing", False),
        ("LongLive's base", True),
        ("ComfyUI, prefixed", True),
        ("a file before torch 1.6", False),
    ],
)
def test_one_copy_of_a_network_is_in_memory(
    layout: str, lora: bool, network: WanDiT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = LAYOUTS[layout].write(tmp_path / "checkpoint", network)
    if lora:
        torch.save(lora_of(network, ""), tmp_path / "lora.pt")
    fill: Callable[..., Any] = WanDiT.load_state_dict
    taken = {}

    def measure(self: WanDiT, *args: Any, **kwargs: Any) -> Any:
        taken.update(held_storages(tmp_path))
        return fill(self, *args, **kwargs)

    monkeypatch.setattr(WanDiT, "load_state_dict", measure)
    gc.collect()
    before = held_storages(tmp_path)
    load_transformer(path, heads=2, lora=tmp_path / "lora.pt" if lora else None)
    new = sum(size for at, size in taken.items() if at not in before)
    assert new == sum(tensor.nbytes for tensor in network.state_dict().values())


SIZES = {"Wan2.1 1.3B": (12, 8960, 30), "Wan2.1 14B": (40, 13824, 40)}


@pytest.mark.parametrize("size", SIZES)
def test_a_file_of_real_size_is_recognised_from_its_header(size: str, tmp_path: Path) -> None:
    """The file is as long as the real one and has its names and shapes, but nothing is stored in it."""
    heads, ffn, layers = SIZES[size]
    sizes = {"num_attention_heads": heads, "attention_head_dim": 128, "ffn_dim": ffn, "num_layers": layers}
    shapes = original(empty_network(sizes | {"text_dim": 4096, "freq_dim": 256, "in_channels": 16, "out_channels": 16}))
    header, end = {}, 0
    for name, tensor in shapes.items():
        start, end = end, end + 2 * tensor.numel()
        header[f"model.{name}"] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (tmp_path / "student.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    info = inspect(tmp_path / "student.safetensors", hashes=False)
    assert info.roles["generator"].nbytes == end
    assert f"{layers} layers, width {heads * 128}, {heads} heads of 128, feed-forward {ffn} (as {size})" in describe(
        info
    )
