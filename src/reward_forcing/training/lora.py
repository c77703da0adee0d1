"""Low-rank adapters (LoRA) for training: W + (alpha / rank) B A, in which W is frozen and A and B are trained.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021); LongLive's long tuning uses rank 256 on every
matrix of the blocks. Owns which layers are adapted and the files that hold adapters alone, in peft's layout, which
`checkpoints` reads. Knows no stage.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from safetensors.torch import save_file
from torch import Tensor, nn

from reward_forcing.config import Settings, unknown
from reward_forcing.models.wan_dit import WanDiT

PEFT_PREFIX = "base_model.model."
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


class LoraSettings(Settings):
    """How a network is adapted; the defaults are LongLive's.

    rank: of the updates. alpha: updates are scaled by alpha / rank. layers: which linear layers of every block, by
    their name in it or a part of that name between dots: `attn1` is all of self-attention, `to_q` the queries of both
    attentions, `attn2.to_k` one layer.
    """

    rank: PositiveInt = 256
    alpha: PositiveFloat = 256.0
    layers: tuple[str, ...] = Field(("attn1", "attn2", "ffn"), min_length=1)


class LoraLinear(nn.Linear):
    """A linear layer with an update of low rank: y = W x + b + (alpha / rank) B A x.

    weight and bias are those of `base`, which it takes the place of; lora_A [rank, inputs] and lora_B [outputs, rank]
    are float32 and on its device, without values of meaning until `initial_adapter` gives them.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.rank, self.alpha = rank, alpha
        place = {"device": base.weight.device, "dtype": torch.float32}
        self.lora_A = nn.Linear(base.in_features, rank, bias=False, **place)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False, **place)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Outputs [..., outputs] of x [..., inputs]."""
        return super().forward(x) + (self.alpha / self.rank) * self.lora_B(self.lora_A(x))


def layers_of_block(network: WanDiT) -> list[str]:
    """The names, in a block, of its linear layers."""
    return [name for name, module in network.blocks[0].named_modules() if _is_plain(module)]


def _is_plain(module: nn.Module) -> bool:
    return type(module) is nn.Linear


def chosen_layers(network: WanDiT, settings: LoraSettings) -> list[str]:
    """Those of `layers_of_block` that are adapted. Raises ValueError for a name that none of them has."""
    names = layers_of_block(network)
    for asked in settings.layers:
        if not any(_has(name, asked) for name in names):
            raise ValueError(f"lora.layers: {unknown('layer', asked, names)}")
    return [name for name in names if any(_has(name, asked) for asked in settings.layers)]


def _has(name: str, part: str) -> bool:
    return f".{part}." in f".{name}."


def adapt(network: WanDiT, settings: LoraSettings) -> WanDiT:
    """The same network with adapters beside its chosen layers; everything else is frozen.

    Raises ValueError for layers that it does not have.
    """
    chosen = chosen_layers(network, settings)
    network.requires_grad_(False)
    for index in range(len(network.blocks)):
        for name in chosen:
            _wrap(network, f"blocks.{index}.{name}", settings.rank, settings.alpha)
    return network


def adapt_like(copy: WanDiT, network: WanDiT) -> WanDiT:
    """`copy` with adapters where `network` has some."""
    for name, layer in adapters(network).items():
        _wrap(copy, name, layer.rank, layer.alpha)
    return copy


def _wrap(network: WanDiT, name: str, rank: int, alpha: float) -> None:
    holder, _, own = name.rpartition(".")
    base = network.get_submodule(name)
    assert isinstance(base, nn.Linear), (name, type(base))
    setattr(network.get_submodule(holder), own, LoraLinear(base, rank, alpha))


def adapters(network: nn.Module) -> dict[str, LoraLinear]:
    """The adapted layers of a network by name; none of one that is trained whole."""
    return {name: module for name, module in network.named_modules() if isinstance(module, LoraLinear)}


def adapter_names(network: nn.Module) -> list[str]:
    """The names of the parameters of a network's adapters."""
    return [f"{name}.{side}.weight" for name in adapters(network) for side in ("lora_A", "lora_B")]


def initial_adapter(name: str, parameter: Tensor, generator: torch.Generator) -> Tensor:
    """The values an adapter's parameter starts with: A uniform in +-1 / sqrt(inputs), B zero, so that nothing changes.

    The initialisation of peft. name: the parameter's. generator: on the CPU.
    """
    if ".lora_B." in name:
        return torch.zeros(parameter.shape)
    return (2 * torch.rand(parameter.shape, generator=generator) - 1) / parameter.shape[1] ** 0.5


def save_adapter(network: nn.Module, folder: Path) -> None:
    """Write a network's adapters alone, as peft does: `load_transformer(base, lora=folder)` is the tuned network."""
    layers = adapters(network)
    state = network.state_dict()
    tensors = {f"{PEFT_PREFIX}{name}": state[name].detach().cpu().contiguous() for name in adapter_names(network)}
    first = next(iter(layers.values()))
    config = {
        "peft_type": "LORA",
        "r": first.rank,
        "lora_alpha": first.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(layers),
        "base_model_name_or_path": None,
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
