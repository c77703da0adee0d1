"""A whole model, transformer, VAE, text encoder and tokenizer: as diffusers' folder or as the original Wan repository.

Owns what the two call their parts and where they keep them. Each part is recognised by its content.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from reward_forcing.checkpoints.convert import check_destination, in_dtype, write_folder, write_json, write_shards
from reward_forcing.checkpoints.detect import open_checkpoint
from reward_forcing.checkpoints.diffusers import check_fit
from reward_forcing.checkpoints.files import LazyTensor, companions, read_weights
from reward_forcing.checkpoints.hub import MODEL_FILES, TRANSFORMER_FILES, resolve
from reward_forcing.checkpoints.load import open_network, with_lora
from reward_forcing.checkpoints.wan_text import umt5_config, umt5_to_wan_text, wan_text_to_umt5
from reward_forcing.checkpoints.wan_vae import wan_vae_config, wan_vae_key_map, wan_vae_names

INDEX = "model_index.json"
COMPONENTS = {
    "transformer": ("diffusers", "WanTransformer3DModel"),
    "vae": ("diffusers", "AutoencoderKLWan"),
    "text_encoder": ("transformers", "UMT5EncoderModel"),
    "tokenizer": ("transformers", "T5TokenizerFast"),
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
}
ORIGINAL_FILES = ("Wan2.1_VAE.*", "models_t5_*", "google/*/*")
VAE_FILE = "Wan2.1_VAE.pth"
TEXT_ENCODER_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
TOKENIZER_FOLDER = "google/umt5-xxl"
SHIFT = 5.0  # of the noise schedule, in the index that diffusers' own pipeline reads


@dataclass(frozen=True)
class _Parts:
    """The parts of a model beside its transformer, unread and by diffusers' and transformers' names."""

    vae: dict[str, LazyTensor]
    vae_config: dict[str, Any]
    text_encoder: dict[str, LazyTensor]
    tokenizer: Path


def convert_model(
    source: str | Path,
    destination: str | Path,
    to: Literal["diffusers", "wan"],
    *,
    weights: str | Path | None = None,
    which: str | None = None,
    heads: int | None = None,
    lora: str | Path | None = None,
    lora_alpha: float | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """`destination`, now a whole model folder as diffusers has it, or a repository as the original Wan is.

    source: a folder of either kind, a bundled name or a hub id. weights: a checkpoint whose transformer replaces the
    source's, of role `which`; the other options are those of `convert`, dtype of the transformer's parameters. The
    parts of the original (`.pth`) are in memory one after the other, everything else one tensor at a time.
    Raises FileNotFoundError if a part is missing, ValueError if one is damaged, foreign or, to the original, no Wan2.1
    VAE with the published statistics of latents, which its file does not hold.
    """
    destination = check_destination(destination, to)
    folder = resolve(source, MODEL_FILES + TRANSFORMER_FILES + ORIGINAL_FILES)
    transformer = open_checkpoint(folder if weights is None else resolve(weights, TRANSFORMER_FILES))
    network, parameters = open_network(transformer, which, heads)
    if lora is not None:
        parameters = with_lora(parameters, lora, lora_alpha)
    parameters = in_dtype(parameters, dtype)
    parts = _find_parts(folder)
    original_vae = _as_original_vae(parts) if to == "wan" else {}
    destination.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".convert-", dir=destination.parent) as scratch:
        out = Path(scratch) / destination.name
        out.mkdir()
        write_folder(out if to == "wan" else out / "transformer", network, parameters, original=to == "wan")
        if to == "wan":
            _write_original(out, parts, original_vae)
        else:
            _write_diffusers(out, parts, folder)
        return out.replace(destination)


def _find_parts(folder: Path) -> _Parts:
    paths: dict[str, Path] = {}
    states: dict[str, dict[str, LazyTensor]] = {}
    for path in companions(folder):
        state = read_weights(path)[1]
        part = "vae" if "decoder.conv1.weight" in state or "decoder.conv_in.weight" in state else "text_encoder"
        paths[part], states[part] = path, state
    for part, file in (("vae", VAE_FILE), ("text_encoder", TEXT_ENCODER_FILE)):
        if part not in paths:
            raise FileNotFoundError(f"no {part}/ and no {file} in '{folder}', so it is not a whole model")
    tokenizer = folder / ("tokenizer" if (folder / "tokenizer").is_dir() else TOKENIZER_FOLDER)
    if not (tokenizer / "tokenizer_config.json").is_file():
        raise FileNotFoundError(f"no tokenizer_config.json in '{tokenizer}', so '{folder}' is not a whole model")
    try:
        vae, vae_config = _as_diffusers_vae(paths["vae"], states["vae"])
    except ValueError as error:
        raise ValueError(f"'{paths['vae']}': {error}") from error
    try:
        text = states["text_encoder"]
        text = wan_text_to_umt5(text) if "token_embedding.weight" in text else text
        umt5_config(text)
    except ValueError as error:
        raise ValueError(f"'{paths['text_encoder']}': {error}") from error
    return _Parts(vae, vae_config, text, tokenizer)


def _as_diffusers_vae(path: Path, state: dict[str, LazyTensor]) -> tuple[dict[str, LazyTensor], dict[str, Any]]:
    """A VAE by diffusers' names, with its configuration; checked against each other."""
    if path.is_dir():
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    else:
        config = wan_vae_config(state)
        names = wan_vae_key_map(state)
        state = {names[name]: tensor for name, tensor in state.items()}
    vae = _vae_of(config)
    check_fit(vae, state)
    if len(vae.config["latents_mean"]) != vae.config["z_dim"]:
        raise ValueError(
            f"statistics are published for {len(vae.config['latents_mean'])} latent channels, not {vae.config['z_dim']}"
        )
    return state, config


def _vae_of(config: Mapping[str, Any]) -> AutoencoderKLWan:
    with torch.device("meta"):
        return AutoencoderKLWan.from_config(dict(config))  # pyright: ignore[reportReturnType]


def _write_diffusers(out: Path, parts: _Parts, source: Path) -> None:
    """Write all but the transformer; the index, which makes the folder whole, last."""
    (out / "vae").mkdir()
    _vae_of(parts.vae_config).save_config(out / "vae")
    write_shards(out / "vae", "diffusion_pytorch_model", parts.vae)
    (out / "text_encoder").mkdir()
    umt5_config(parts.text_encoder).save_pretrained(out / "text_encoder")
    write_shards(out / "text_encoder", "model", parts.text_encoder)
    shutil.copytree(parts.tokenizer, out / "tokenizer")
    if (source / INDEX).is_file():
        shutil.copytree(source / "scheduler", out / "scheduler")
        shutil.copy(source / INDEX, out / INDEX)
    else:
        FlowMatchEulerDiscreteScheduler(shift=SHIFT).save_pretrained(out / "scheduler")
        write_json(out / INDEX, {"_class_name": "WanPipeline", **COMPONENTS})


def _as_original_vae(parts: _Parts) -> dict[str, LazyTensor]:
    """The VAE by its original names; raises ValueError for one whose configuration its file would lose."""
    names = wan_vae_names(parts.vae)
    original = {names[name]: tensor for name, tensor in parts.vae.items()}
    own, implied = _vae_of(parts.vae_config).config, _vae_of(wan_vae_config(original)).config
    if lost := [name for name in implied if not name.startswith("_") and own[name] != implied[name]]:
        raise ValueError(f"the original file of a Wan2.1 VAE cannot hold {lost[0]} = {own[lost[0]]}")
    return original


def _write_original(out: Path, parts: _Parts, vae: Mapping[str, LazyTensor]) -> None:
    """Write all but the transformer as the original repository keeps it."""
    torch.save({name: tensor.read() for name, tensor in vae.items()}, out / VAE_FILE)
    text = umt5_to_wan_text(parts.text_encoder)
    torch.save({name: tensor.read() for name, tensor in text.items()}, out / TEXT_ENCODER_FILE)
    shutil.copytree(parts.tokenizer, out / TOKENIZER_FOLDER)
