"""VideoAlign's checkpoint as a network: settings, names, LoRA, tokenizer, all checked before weights are read.

A folder holds model_config.json and checkpoint-N/, and there either the whole state dict of the PEFT-wrapped network
(model.pth, or the same as model.safetensors) or what was trained alone (adapter_model.safetensors and
non_lora_state_dict.pth), which needs the weights of the base model too.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import init_empty_weights
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from pydantic import BaseModel, PositiveFloat, PositiveInt, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer
from torch import Tensor
from transformers import Qwen2VLConfig, Qwen2VLModel

from reward_forcing.config import describe
from reward_forcing.rewards.videoalign_network import RewardNetwork

REWARD_TOKENS = ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")
VIDEO_TOKEN = "<|video_pad|>"
HEAD = "rm_head.weight"
EMBEDDING = "language_model.embed_tokens.weight"
WHOLE = ("model.pth", "model.safetensors")
ADAPTER = ("adapter_model.safetensors", "non_lora_state_dict.pth")
_UNUSED = "lm_head.weight"  # the language model's own head, which the reward does not read


class DataConfig(BaseModel):
    """How clips and texts were made: frames per second, largest frame in pixels, the prompt and the reward tokens."""

    fps: PositiveFloat = 2.0
    max_frame_pixels: PositiveInt = 448 * 448
    sample_type: Literal["uniform"] = "uniform"
    num_frames: None = None
    prompt_template_type: Literal["detailed_special"] = "detailed_special"


class LoraConfig(BaseModel):
    """Rank, alpha, and whether the scale is alpha / sqrt(rank) (rank-stabilised LoRA) instead of alpha / rank."""

    lora_r: PositiveInt | None = None
    lora_alpha: PositiveFloat = 128
    use_rslora: bool = False

    def scale(self, rank: int) -> float:
        """The factor of an update B A of that rank."""
        return self.lora_alpha / (rank**0.5 if self.use_rslora else rank)


class ZScores(BaseModel):
    """Means and standard deviations of the three raw rewards: visual quality, motion quality, text alignment."""

    VQ_mean: float
    VQ_std: PositiveFloat
    MQ_mean: float
    MQ_std: PositiveFloat
    TA_mean: float
    TA_std: PositiveFloat

    def normalised(self, logits: Tensor) -> Tensor:
        """(logits - mean) / std of the first R rewards, [B, R]."""
        means, stds = (self.VQ_mean, self.MQ_mean, self.TA_mean), (self.VQ_std, self.MQ_std, self.TA_std)
        read = logits.shape[1]
        return (logits - logits.new_tensor(means[:read])) / logits.new_tensor(stds[:read])


class RewardConfig(BaseModel):
    """What this package reads of model_config.json."""

    data_config: DataConfig
    peft_lora_config: LoraConfig
    inference_config: ZScores


@dataclass(frozen=True)
class Parameter:
    """One parameter of the network: stored `weight`, and its LoRA update scale * up @ down where it has one."""

    weight: Tensor
    down: Tensor | None = None
    up: Tensor | None = None
    scale: float = 1.0

    def merged(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The weight with its update, computed in float32; a copy that does not depend on the file."""
        weight = self.weight.to(device, torch.float32)
        if self.up is not None and self.down is not None:
            weight = weight + self.scale * (self.up.to(device).float() @ self.down.to(device).float())
        return weight.to(dtype, copy=True)


@dataclass(frozen=True)
class RewardCheckpoint:
    """A checkpoint that fits its network. qwen: the network without memory. parameters: the head's too."""

    config: RewardConfig
    qwen: Qwen2VLModel
    tokenizer: Tokenizer
    parameters: dict[str, Parameter]

    def load(self, device: torch.device, dtype: torch.dtype) -> RewardNetwork:
        """The network on `device`; the memory of `qwen` is filled, so a checkpoint is loaded once."""
        state = {name: parameter.merged(device, dtype) for name, parameter in self.parameters.items()}
        head = state.pop(HEAD)
        self.qwen.load_state_dict(state, assign=True)
        qwen = self.qwen.to(device).eval().requires_grad_(False)  # pyright: ignore[reportArgumentType]
        rewards = tuple(token_id(self.tokenizer, token) for token in REWARD_TOKENS)
        return RewardNetwork(qwen, head, token_id(self.tokenizer, VIDEO_TOKEN), rewards)


def open_checkpoint(folder: Path, step: int | None, base: str) -> RewardCheckpoint:
    """The checkpoint of that step (None: the last) of `folder`, checked by names and shapes and not yet read.

    base: folder or hub id of Qwen2-VL, for its config.json, for its tokenizer where the checkpoint has none, and for
    the weights that an adapter leaves out. Raises FileNotFoundError for a part that is missing, ValueError for settings
    this package does not know, for files that are damaged or hold code, and for weights that do not fit the network.
    """
    config = read_config(folder)
    checkpoint = _step_folder(folder, step)
    tokenizer = _read_tokenizer(checkpoint, base)
    whole = next((checkpoint / name for name in WHOLE if (checkpoint / name).is_file()), None)
    if whole is not None:
        tensors = _named(_read_tensors(whole))
    else:
        missing = [name for name in ADAPTER if not (checkpoint / name).is_file()]
        if missing:
            raise FileNotFoundError(f"'{checkpoint}' holds no {' or '.join(WHOLE)}, and of an adapter no {missing[0]}")
        parts = [*_base_weights(base), *(checkpoint / name for name in ADAPTER)]
        tensors = {name: tensor for part in parts for name, tensor in _named(_read_tensors(part)).items()}
        if EMBEDDING in tensors:
            tensors[EMBEDDING] = tensors[EMBEDDING][: tokenizer.get_vocab_size()]  # the base's table has spare rows
    try:
        parameters = _merge(tensors, config.peft_lora_config)
        qwen = _empty_network(base, tokenizer.get_vocab_size())
        _check_fit(qwen, parameters)
    except ValueError as error:
        raise ValueError(f"'{checkpoint}': {error}") from None
    return RewardCheckpoint(config, qwen, tokenizer, parameters)


def read_config(folder: Path) -> RewardConfig:
    """model_config.json of `folder`. Raises FileNotFoundError, or ValueError for values that are not supported."""
    path = folder / "model_config.json"
    if not path.is_file():
        raise FileNotFoundError(f"no '{path}'; give the folder of a VideoAlign model, with model_config.json")
    try:
        return RewardConfig.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise ValueError(f"'{path}': {describe(error)}") from None
    except ValueError as error:
        raise ValueError(f"'{path}' is not valid JSON: {error}") from None


def network_name(name: str) -> str:
    """The name in transformers' Qwen2VLModel of a tensor of VideoAlign's or Qwen2-VL's files, old or new.

    `base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight` is
    `language_model.layers.0.self_attn.q_proj.weight`; adapter names (`lora_A.default.weight`) go likewise.
    """
    name = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
    name = re.sub(r"\.(lora_[AB])\.default\.", r".\1.", name)
    for old, new in (
        ("model.visual.", "visual."),
        ("model.language_model.", "language_model."),
        ("model.", "language_model."),
    ):
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token. Raises ValueError for a tokenizer that has no such token, so is none of Qwen2-VL."""
    found = tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"the tokenizer has no {token}; give the one of Qwen2-VL or of the VideoAlign checkpoint")
    return found


def _step_folder(folder: Path, step: int | None) -> Path:
    numbers = [re.fullmatch(r"checkpoint-(\d+)", path.name) for path in folder.iterdir() if path.is_dir()]
    steps = sorted(int(match[1]) for match in numbers if match)
    if not steps:
        raise FileNotFoundError(f"no checkpoint-N in '{folder}'; fetch a VideoAlign model whole")
    if step is not None and step not in steps:
        raise FileNotFoundError(f"no checkpoint-{step} in '{folder}'; there are steps {', '.join(map(str, steps))}")
    return folder / f"checkpoint-{steps[-1] if step is None else step}"


def _base_file(base: str, name: str) -> Path:
    if Path(base).is_dir():
        if not (Path(base) / name).is_file():
            raise FileNotFoundError(f"no {name} in the base model's folder '{base}'")
        return Path(base) / name
    try:
        return Path(hf_hub_download(base, name))
    except (OSError, HFValidationError, HfHubHTTPError):
        raise FileNotFoundError(
            f"no folder '{base}', and no {name} of such a model on the hub; give a folder"
        ) from None


def _base_weights(base: str) -> list[Path]:
    folder = Path(base)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(base, allow_patterns=["*.safetensors"]))
        except (OSError, HFValidationError, HfHubHTTPError):
            raise FileNotFoundError(f"no folder '{base}', and no such model on the hub; give a folder") from None
    if not (found := sorted(folder.glob("*.safetensors"))):
        raise FileNotFoundError(f"no .safetensors in '{base}', whose weights an adapter needs")
    return found


def _read_tokenizer(checkpoint: Path, base: str) -> Tokenizer:
    own = [checkpoint / "tokenizer" / "tokenizer.json", checkpoint / "tokenizer.json"]
    path = next((path for path in own if path.is_file()), None) or _base_file(base, "tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"'{path}' is no tokenizer: {error}") from None
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in REWARD_TOKENS])
    token_id(tokenizer, VIDEO_TOKEN)
    return tokenizer


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"'{path}' holds Python objects besides tensors, which could run code; it is not read"
        ) from None
    except (SafetensorError, RuntimeError, EOFError, KeyError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"'{path}' is damaged or incomplete ({reason}); fetch it again") from None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"'{path}' is no state dict; expected names and tensors")
    return content


def _named(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = {network_name(name): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in named.items() if name != _UNUSED}


def _merge(tensors: Mapping[str, Tensor], lora: LoraConfig) -> dict[str, Parameter]:
    parameters = {name: Parameter(tensor) for name, tensor in tensors.items() if ".lora_" not in name}
    for name in (name for name in tensors if ".lora_" in name):
        target = re.sub(r"\.lora_[AB]\.", ".", name)
        down, up = (tensors.get(target.replace(".weight", f".lora_{side}.weight")) for side in "AB")
        if down is None or up is None or target not in parameters:
            raise ValueError(f"'{name}' has no other half, or no weight to update")
        rank = len(down)
        shape = (*up.shape[:1], *down.shape[1:])
        if up.shape[1:] != (rank,) or shape != parameters[target].weight.shape or rank != (lora.lora_r or rank):
            found, wanted = f"{list(up.shape)} x {list(down.shape)}", list(parameters[target].weight.shape)
            raise ValueError(f"the LoRA of '{target}' is {found}; expected rank {lora.lora_r or rank} and {wanted}")
        parameters[target] = Parameter(tensors[target], down, up, lora.scale(rank))
    return parameters


def _empty_network(base: str, rows: int) -> Qwen2VLModel:
    path = _base_file(base, "config.json")
    values = json.loads(path.read_text(encoding="utf-8"))
    if values.get("model_type") != "qwen2_vl":
        raise ValueError(f"'{path}' is of the type {values.get('model_type')}; VideoAlign's base is a qwen2_vl")
    config = Qwen2VLConfig(**values)
    config.text_config.vocab_size = rows  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    with init_empty_weights(include_buffers=False):
        return Qwen2VLModel(config)


def _check_fit(qwen: Qwen2VLModel, parameters: Mapping[str, Parameter]) -> None:
    expected = {name: list(parameter.shape) for name, parameter in qwen.state_dict().items()}
    found = {name: list(parameter.weight.shape) for name, parameter in parameters.items()}
    width = expected[EMBEDDING][1]
    head = found.get(HEAD)
    if head not in ([1, width], [3, width]):
        raise ValueError(
            f"{HEAD} must be [1, {width}] or [3, {width}], found {head or 'none'}: no VideoAlign checkpoint?"
        )
    expected[HEAD] = head
    if missing := [name for name in expected if name not in found]:
        raise ValueError(f"{len(missing)} of {len(expected)} parameters are missing, the first is '{missing[0]}'")
    if unknown := [name for name in found if name not in expected]:
        raise ValueError(f"{len(unknown)} parameters have no place in the base model, the first is '{unknown[0]}'")
    for name, shape in expected.items():
        if found[name] != shape:
            hint = "; do tokenizer and checkpoint belong together?" if name == EMBEDDING else "; is base another model?"
            raise ValueError(f"'{name}' is {found[name]}; expected {shape}{hint}")
