"""VideoAlign models of any size as folders on disk, in the published layout, from weights under the published names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import Qwen2VLConfig, Qwen2VLModel

REWARDS = ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")
OTHERS = ("<|im_end|>", "<|endoftext|>", "<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
PROJECTIONS += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
NORM = {"VQ_mean": 0.3, "VQ_std": 2.0, "MQ_mean": -0.2, "MQ_std": 0.5, "TA_mean": 0.1, "TA_std": 4.0}
CONFIG: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
    "vision_config": {"depth": 1, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2, "num_heads": 2},
}
NO_ENDS = {"bos_token_id": None, "eos_token_id": None}
RANK, ALPHA = 2, 6


def byte_tokenizer(special: Sequence[str]) -> Tokenizer:
    """One token for each byte, in the order of GPT-2's letters for them, then the special tokens."""
    vocabulary = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def write_folder(
    folder: Path,
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any] = CONFIG,
    *,
    special: Sequence[str] = OTHERS + REWARDS,
    norm: Mapping[str, float] = NORM,
    lora: tuple[int, float] = (RANK, ALPHA),
    max_pixels: int = 4704,
    step: int = 7,
) -> dict[str, Any]:
    """Settings of the reward of `weights`, written below `folder` with the configuration of its base model."""
    checkpoint, base = folder / f"checkpoint-{step}", folder / "base"
    (checkpoint / "tokenizer").mkdir(parents=True)
    base.mkdir(exist_ok=True)
    parts = {
        "data_config": {"fps": 2.0, "max_frame_pixels": max_pixels, "eval_dim": ["VQ", "MQ", "TA"], "num_frames": None},
        "model_config": {"use_special_tokens": True, "reward_token": "special"},
        "peft_lora_config": {"lora_enable": True, "lora_r": lora[0], "lora_alpha": lora[1]},
        "inference_config": dict(norm),
    }
    (folder / "model_config.json").write_text(json.dumps(parts))
    (base / "config.json").write_text(json.dumps({"model_type": "qwen2_vl", **NO_ENDS, **config}))
    byte_tokenizer(special).save(str(checkpoint / "tokenizer" / "tokenizer.json"))
    torch.save(dict(weights), checkpoint / "model.pth")
    return {"path": folder, "base": str(base), "min_pixels": 3136}


def random_weights(rows: int = 1, seed: int = 0, spread: float = 0.4) -> dict[str, Tensor]:
    """Random weights of `CONFIG` with a head of `rows` rows, under the published names and with LoRA apart."""
    vocabulary = byte_tokenizer(OTHERS + REWARDS).get_vocab_size()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        shapes = Qwen2VLModel(Qwen2VLConfig(**CONFIG, **NO_ENDS, vocab_size=vocabulary)).state_dict()
        weights = {}
        for name, value in shapes.items():
            old = name.replace("language_model.", "model.")
            is_wrapped = any(f".{projection}." in old for projection in PROJECTIONS)
            module, leaf = old.rsplit(".", 1)
            noise = torch.randn(value.shape) * spread + (leaf == "weight" and value.ndim == 1)
            weights[f"base_model.model.{module}.base_layer.{leaf}" if is_wrapped else f"base_model.model.{old}"] = noise
            if is_wrapped and leaf == "weight":
                for side, shape in (("A", (RANK, value.shape[1])), ("B", (value.shape[0], RANK))):
                    weights[f"base_model.model.{module}.lora_{side}.default.weight"] = torch.randn(shape) * 0.3
        weights["base_model.model.lm_head.weight"] = torch.zeros(vocabulary, CONFIG["hidden_size"])
        weights["base_model.model.rm_head.weight"] = torch.randn(rows, CONFIG["hidden_size"]) * 0.2
    return weights
