"""The original Wan2.1 text encoder (`models_t5_umt5-xxl-enc-bf16.pth`) as transformers' `UMT5EncoderModel`.

Owns names and configuration, in both directions; values are the same in both.
"""

import re
from collections.abc import Mapping
from typing import TypeVar

import torch
from transformers import UMT5Config, UMT5EncoderModel

from reward_forcing.checkpoints.diffusers import check_fit
from reward_forcing.checkpoints.files import LazyTensor

T = TypeVar("T")

_WAN_TO_UMT5 = {
    "token_embedding": "shared",
    "norm": "encoder.final_layer_norm",
    "blocks.{}.norm1": "encoder.block.{}.layer.0.layer_norm",
    "blocks.{}.pos_embedding.embedding": "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias",
    **{f"blocks.{{}}.attn.{part}": f"encoder.block.{{}}.layer.0.SelfAttention.{part}" for part in "qkvo"},
    "blocks.{}.norm2": "encoder.block.{}.layer.1.layer_norm",
    "blocks.{}.ffn.gate.0": "encoder.block.{}.layer.1.DenseReluDense.wi_0",  # the gate, through the GELU
    "blocks.{}.ffn.fc1": "encoder.block.{}.layer.1.DenseReluDense.wi_1",
    "blocks.{}.ffn.fc2": "encoder.block.{}.layer.1.DenseReluDense.wo",
}
_UMT5_TO_WAN = {umt5: wan for wan, umt5 in _WAN_TO_UMT5.items()}
TIED = "encoder.embed_tokens.weight"  # the same as shared.weight; some files hold both


def wan_text_to_umt5(state: Mapping[str, T]) -> dict[str, T]:
    """State dict with transformers' names from one with Wan2.1's. Raises ValueError at an unknown name."""
    return {_rename(name, _WAN_TO_UMT5): value for name, value in state.items()}


def umt5_to_wan_text(state: Mapping[str, T]) -> dict[str, T]:
    """State dict with Wan2.1's names from one with transformers'; the inverse of `wan_text_to_umt5`."""
    return {_rename(name, _UMT5_TO_WAN): value for name, value in state.items() if name != TIED}


def umt5_config(state: Mapping[str, LazyTensor]) -> UMT5Config:
    """The configuration of an encoder whose parameters, by transformers' names, are `state`: all sizes are in shapes.

    Raises ValueError if the parameters are not those of a whole encoder.
    """
    block = "encoder.block.0.layer"
    needed = {
        "shared": "shared.weight",
        "q": f"{block}.0.SelfAttention.q.weight",
        "bias": f"{block}.0.SelfAttention.relative_attention_bias.weight",
        "wi": f"{block}.1.DenseReluDense.wi_0.weight",
    }
    if missing := [name for name in needed.values() if name not in state or len(state[name].shape) != 2]:
        raise ValueError(f"not the weights of a UMT5 encoder: the matrix '{missing[0]}' is missing")
    shapes = {short: state[name].shape for short, name in needed.items()}
    buckets, heads = shapes["bias"]
    config = UMT5Config(
        vocab_size=shapes["shared"][0],
        d_model=shapes["shared"][1],
        d_kv=shapes["q"][0] // heads,
        d_ff=shapes["wi"][0],
        num_heads=heads,
        num_layers=len({name.split(".")[2] for name in state if name.startswith("encoder.block.")}),
        relative_attention_num_buckets=buckets,
        feed_forward_proj="gated-gelu",
        architectures=["UMT5EncoderModel"],
    )
    with torch.device("meta"):
        encoder = UMT5EncoderModel(config)
    check_fit(encoder, {**state, TIED: state["shared.weight"]})
    return config


def _rename(name: str, names: Mapping[str, str]) -> str:
    module, _, kind = name.rpartition(".")
    number = re.search(r"blocks?\.(\d+)\.", module)
    general = re.sub(r"(blocks?)\.\d+\.", r"\1.{}.", module, count=1)
    if kind != "weight" or general not in names:
        raise ValueError(
            f"unknown parameter '{name}' of a text encoder; expected one such as '{next(iter(names))}.weight'"
        )
    return f"{names[general].format(number[1] if number else '')}.weight"
