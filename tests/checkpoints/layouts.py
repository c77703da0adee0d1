"""A tiny random network and the exact file layouts in which the field publishes such networks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from reward_forcing.checkpoints.detect import Format
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


def random_network(seed: int = 0, config: Mapping[str, Any] = CONFIG) -> WanDiT:
    """A network in which no two parameters are alike."""
    torch.manual_seed(seed)
    network = WanDiT(**config)
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


def fsdp(network: WanDiT) -> dict[str, Tensor]:
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


def write_diffusers_shards(folder: Path, network: WanDiT) -> Path:
    """A diffusers transformer in several shards with their index."""
    network.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
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


def write_wan_pth(folder: Path, network: WanDiT) -> Path:
    """The original repository with its transformer as a torch file too."""
    write_wan(folder, network)
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(original(network), folder / "wan.pth")
    return folder


def write_torch(content: Callable[[WanDiT], Any], **options: Any) -> Callable[[Path, WanDiT], Path]:
    """A writer of one torch file with `content(network)`."""

    def write(path: Path, network: WanDiT) -> Path:
        torch.save(content(network), path, **options)
        return path

    return write


def write_comfy(prefix: str, dtype: torch.dtype) -> Callable[[Path, WanDiT], Path]:
    """A writer of one safetensors file as lies in ComfyUI's `models/diffusion_models`, every parameter in `dtype`."""

    def write(path: Path, network: WanDiT) -> Path:
        path = path.with_suffix(".safetensors")
        save_file({prefix + name: tensor.to(dtype) for name, tensor in original(network).items()}, path)
        return path

    return write


def write_all_in_one(path: Path, network: WanDiT) -> Path:
    """One safetensors file with the transformer, VAE and text encoder, as ComfyUI's "save checkpoint" makes."""
    state = {f"model.diffusion_model.{name}": tensor for name, tensor in original(network).items()}
    others = {"vae.decoder.conv1.weight": torch.zeros(1), "text_encoders.umt5xxl.shared.weight": torch.zeros(2, 2)}
    save_file(state | others, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def by_role(**roles: Callable[[WanDiT], dict[str, Tensor]]) -> Callable[[WanDiT], dict[str, Any]]:
    """The content of a file with a state dict for each role; the critic is another network."""

    def content(network: WanDiT) -> dict[str, Any]:
        return {role: state(random_network(9) if role == "critic" else network) for role, state in roles.items()}

    return content


@dataclass(frozen=True)
class Layout:
    """A way in which the network is published: what it is recognised as, and its writer."""

    format: Format
    write: Callable[[Path, WanDiT], Path]


LAYOUTS: dict[str, Layout] = {
    "diffusers model": Layout("diffusers", write_diffusers_model),
    "diffusers transformer": Layout("diffusers", lambda path, net: write_diffusers_model(path, net) / "transformer"),
    "diffusers shards": Layout("diffusers", write_diffusers_shards),
    "Wan2.1": Layout("wan", write_wan),
    "Wan2.1 shards, as 14B": Layout("wan", write_wan_shards),
    "Wan2.1 folder with a .pth": Layout("wan", write_wan_pth),
    "Wan2.1 .pth": Layout("wan", write_torch(original)),
    "Self Forcing": Layout("forcing", write_torch(by_role(generator=prefixed, critic=prefixed, generator_ema=fsdp))),
    "Self Forcing's ode_init": Layout("forcing", write_torch(by_role(generator=prefixed))),
    "Reward Forcing's release": Layout("forcing", write_torch(prefixed)),
    "Reward Forcing's training": Layout(
        "forcing", write_torch(by_role(generator=prefixed, critic=prefixed, generator_ema=fsdp))
    ),
    "Rolling Forcing": Layout("forcing", write_torch(by_role(generator=prefixed, generator_ema=fsdp))),
    "LongLive's base": Layout("forcing", write_torch(by_role(generator=prefixed))),
    "CausVid": Layout("forcing", write_torch(by_role(generator=prefixed))),
    "CausVid, sharded": Layout("forcing", write_torch(by_role(generator=fsdp, critic=fsdp))),
    "a trainer's model key": Layout("forcing", write_torch(lambda network: {"model": prefixed(network), "step": 7})),
    "an average alone": Layout("forcing", write_torch(by_role(generator_ema=fsdp))),
    "a file before torch 1.6": Layout("forcing", write_torch(prefixed, _use_new_zipfile_serialization=False)),
    "ComfyUI, bare names": Layout("wan", write_comfy("", torch.float32)),
    "ComfyUI, prefixed": Layout("comfy", write_comfy("model.diffusion_model.", torch.float32)),
    "ComfyUI, all in one": Layout("comfy", write_all_in_one),
}


def assert_same(found: WanDiT, expected: WanDiT) -> None:
    """Assert that two networks have the same configuration, dtypes and bits."""
    assert {name: found.config[name] for name in CONFIG} == CONFIG
    wanted = expected.state_dict()
    assert found.state_dict().keys() == wanted.keys()
    for name, tensor in found.state_dict().items():
        assert tensor.dtype == wanted[name].dtype, name
        assert torch.equal(tensor, wanted[name]), name


def output(network: WanDiT) -> Tensor:
    """The network's velocity for a fixed input."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 2, 4, 4, 6, generator=generator)
    text = network.encode_text(torch.randn(1, 5, 10, generator=generator))
    with torch.no_grad():
        return network(x, torch.tensor([400.0]), text)[0]


def lora_of(network: WanDiT, prefix: str, rank: int = 3) -> dict[str, torch.Tensor]:
    """A random low-rank update of every matrix in the blocks, in peft's naming."""
    state = {}
    for name, tensor in original(network).items():
        if name.startswith("blocks.") and name.endswith(".weight") and tensor.ndim == 2:
            module = prefix + name.removesuffix(".weight")
            state[f"{module}.lora_A.weight"] = torch.randn(rank, tensor.shape[1])
            state[f"{module}.lora_B.weight"] = torch.randn(tensor.shape[0], rank)
    return state
