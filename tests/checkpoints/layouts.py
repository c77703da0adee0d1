"""A tiny random network and the exact file layouts in which the field publishes such networks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from reward_forcing.checkpoints.wan import diffusers_to_wan
from reward_forcing.models.wan_dit import WanDiT

CONFIG: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 10,
    "freq_dim": 8,
    "ffn_dim": 20,
    "num_layers": 2,
}
WAN_CONFIG = '{"_class_name": "WanModel", "model_type": "t2v", "dim": 24, "num_heads": 2, "eps": 1e-6}'


def random_network(seed: int = 0) -> WanDiT:
    """A network of `CONFIG` in which no two parameters are alike."""
    torch.manual_seed(seed)
    network = WanDiT(**CONFIG)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
    return network


def original(network: WanDiT) -> dict[str, Tensor]:
    """The network's parameters by their original Wan names."""
    return diffusers_to_wan(network.state_dict())


def prefixed(network: WanDiT) -> dict[str, Tensor]:
    """The network's parameters as the forcing family saves them."""
    return {f"model.{name}": tensor for name, tensor in original(network).items()}


def sharded_by_fsdp(network: WanDiT) -> dict[str, Tensor]:
    """The parameters as an average kept by name under FSDP, checkpointing and torch.compile saves them."""
    marks = ["model._fsdp_wrapped_module.", "_orig_mod.model.", "model._checkpoint_wrapped_module._orig_mod."]
    names = {}
    for i, (name, tensor) in enumerate(original(network).items()):
        inner = name.replace("blocks.0.", "blocks.0._fsdp_wrapped_module._checkpoint_wrapped_module.")
        names[marks[i % 3] + inner] = tensor
    return names


def write_diffusers_model(folder: Path, network: WanDiT) -> Path:
    """A diffusers model folder, of which only the transformer is there."""
    network.save_pretrained(folder / "transformer")
    return folder


def write_wan(folder: Path, network: WanDiT) -> Path:
    """The original repository with one weight file, and beside it the VAE and text encoder that it also holds."""
    folder.mkdir()
    save_file(original(network), folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(WAN_CONFIG)
    torch.save({"x": torch.zeros(1)}, folder / "Wan2.1_VAE.pth")
    torch.save({"x": torch.zeros(1)}, folder / "models_t5_umt5-xxl-enc-bf16.pth")
    return folder


def write_wan_shards(folder: Path, network: WanDiT) -> Path:
    """The original repository with two shards and their index."""
    folder.mkdir()
    (folder / "config.json").write_text(WAN_CONFIG)
    names = sorted(original(network))
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"diffusion_pytorch_model-0000{i}-of-00002.safetensors"
        save_file({name: original(network)[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(repr(index).replace("'", '"'))
    return folder


def write_torch(content: Callable[[WanDiT], Any], **options: Any) -> Callable[[Path, WanDiT], Path]:
    """A writer of one torch file with `content(network)`."""

    def write(path: Path, network: WanDiT) -> Path:
        torch.save(content(network), path, **options)
        return path

    return write


LAYOUTS: dict[str, Callable[[Path, WanDiT], Path]] = {
    "diffusers model": write_diffusers_model,
    "diffusers transformer": lambda path, network: write_diffusers_model(path, network) / "transformer",
    "wan": write_wan,
    "wan shards": write_wan_shards,
    "wan pth": write_torch(original),
    "forcing generator": write_torch(lambda network: {"generator": prefixed(network)}),
    "forcing flat": write_torch(prefixed),
    "forcing model key": write_torch(lambda network: {"model": prefixed(network), "step": 7}),
    "forcing ema only": write_torch(lambda network: {"generator_ema": sharded_by_fsdp(network)}),
    "forcing legacy pickle": write_torch(prefixed, _use_new_zipfile_serialization=False),
}


def assert_same(found: WanDiT, expected: WanDiT) -> None:
    """Assert that two networks have the same configuration, dtypes and bits."""
    assert {name: found.config[name] for name in CONFIG} == CONFIG
    wanted = expected.state_dict()
    assert found.state_dict().keys() == wanted.keys()
    for name, tensor in found.state_dict().items():
        assert tensor.dtype == wanted[name].dtype, name
        assert torch.equal(tensor, wanted[name]), name


def lora_of(network: WanDiT, prefix: str, rank: int = 3) -> dict[str, torch.Tensor]:
    """A random low-rank update of every matrix in the blocks, in peft's naming."""
    state = {}
    for name, tensor in original(network).items():
        if name.startswith("blocks.") and name.endswith(".weight") and tensor.ndim == 2:
            module = prefix + name.removesuffix(".weight")
            state[f"{module}.lora_A.weight"] = torch.randn(rank, tensor.shape[1])
            state[f"{module}.lora_B.weight"] = torch.randn(tensor.shape[0], rank)
    return state
