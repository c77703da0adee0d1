"""A model on disk: diffusers' layout with one more key, `streaming`, in `model_index.json`.

Owns what the folder holds, and finds what is wrong with it before any weights are read. Networks themselves are read by
`checkpoints` and `models`.
"""

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from pydantic import ValidationError
from torch import nn

from reward_forcing.checkpoints.detect import Checkpoint, open_checkpoint
from reward_forcing.checkpoints.diffusers import check_fit, read_config
from reward_forcing.checkpoints.files import LazyTensor, find_weights, read_weights
from reward_forcing.checkpoints.hub import TRANSFORMER_FILES, bundled, resolve
from reward_forcing.checkpoints.load import open_network
from reward_forcing.checkpoints.repository import COMPONENTS, INDEX, VAE_FILE
from reward_forcing.checkpoints.tiny_vae import open_tiny_vae
from reward_forcing.checkpoints.wan_text import TIED
from reward_forcing.config import describe
from reward_forcing.geometry import Geometry
from reward_forcing.models.meta_networks import meta_text_encoder
from reward_forcing.models.vae import StreamingVAE
from reward_forcing.models.wan_dit import WanDiT
from reward_forcing.streaming.methods import StreamingSettings, streaming_settings

PIPELINES = ("StreamingVideoPipeline", "WanPipeline")
BUNDLED = "mini"
CALLED = ("schedule", "sink", "switch")
"""Settings that name a policy."""


@dataclass(frozen=True)
class ModelFolder:
    """A model folder that has been looked through: its place, how it streams, and its sizes in pixels and latents.

    transformer: where the network's weights are, the folder itself unless others were named. heads: of its attention.
    trained_for: the method that the weights were trained for, None where that is not known. can_stream: False where
    the weights are those of a folder that says nothing of streaming, as the published Wan2.1's are. own_size: height
    and width that the folder's settings say. decoder: where the weights of a tiny decoder are that makes the frames,
    None for the VAE's own.
    """

    path: Path
    transformer: Path
    heads: int
    settings: StreamingSettings
    geometry: Geometry
    latent_channels: int
    trained_for: str | None = None
    can_stream: bool = True
    own_size: tuple[int, int] | None = None
    decoder: Path | None = None

    @property
    def decoder_name(self) -> str | None:
        """The file name of the tiny decoder's weights, None where the VAE makes the frames."""
        return None if self.decoder is None else find_weights(self.decoder)[0].name

    @property
    def notes(self) -> list[str]:
        """What one should know before trusting the video: uses that the weights were not trained for."""
        method, size = self.settings.method, (self.settings.height, self.settings.width)
        told = []
        if not self.can_stream:
            told.append(
                f"'{self.path}' says nothing of streaming: a bidirectional Wan2.1 in few steps gives poor video; name "
                "a student's checkpoint as its weights"
            )
        if self.trained_for not in (None, method):
            told.append(f"this model's weights were trained for the method '{self.trained_for}', not for '{method}'")
        if self.own_size not in (None, size):
            own, other = (f"{width}x{height}" for height, width in (self.own_size, size))
            told.append(f"this model's weights were trained at {own}, not at {other}; what it shows may fall apart")
        return told

    def resized(self, height: int, width: int) -> "ModelFolder":
        """This model at another frame size; raises ValueError, with the nearest, for one that does not divide."""
        settings = self.settings.model_copy(update={"height": height, "width": width})
        return replace(self, settings=settings, geometry=replace(self.geometry, height=height, width=width))


def find_model(name: str | Path) -> Path:
    """The folder of a model: a path, a bundled name, or a hub id, which is downloaded into the hub's cache.

    Raises FileNotFoundError, with the nearest name, if there is no such model.
    """
    if str(name) == BUNDLED and BUNDLED not in bundled() and not Path(name).exists():
        raise FileNotFoundError(
            f"the bundled model '{BUNDLED}' is not part of this installation; "
            "name a model folder or a hub id, such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
        )
    return resolve(name)


def find_decoder(name: str | Path, vae: StreamingVAE) -> Path:
    """Where the tiny decoder called `name` is; raises ValueError unless it is one for the latents of `vae`."""
    path = resolve(name, TRANSFORMER_FILES)
    sizes = open_tiny_vae(path).sizes
    for what, has, needs in (
        ("latent channels", sizes.latent_channels, vae.vae.config["z_dim"]),
        ("frames of a latent frame", sizes.temporal_factor, vae.temporal_factor),
        ("rows of pixels of a row of latents", sizes.spatial_factor, vae.spatial_factor),
    ):
        if has != needs:
            raise ValueError(f"'{path}' decodes {has} {what}, this model has {needs}; name a decoder for its VAE")
    return path


def open_model_folder(
    name: str | Path,
    method: str | None = None,
    weights: str | Path | None = None,
    changes: Sequence[str] | Mapping[str, Any] = (),
    decoder: str | Path | None = None,
) -> ModelFolder:
    """The model called `name` (see `find_model`), checked as far as headers and configurations tell.

    method: one of `METHODS`; None takes the model's own. weights: a checkpoint of any known format whose transformer
    replaces the folder's; where it does not tell its number of heads, they are the folder's, and what the folder says
    its own were trained for does not hold for it. changes: settings over the method's and the model's, see
    `streaming_settings`. decoder: a tiny VAE, whose decoder makes the frames in place of the folder's own.
    Raises FileNotFoundError if a part is missing, ValueError for a folder of another kind, parts
    that do not fit together, damaged weights and settings that make no sense.
    """
    path = find_model(name)
    index = _read_index(path)
    transformer = path if weights is None else resolve(weights)
    checkpoint = open_checkpoint(transformer)
    network, _ = open_network(checkpoint, heads=None if weights is None else _heads_of(path, checkpoint))
    vae = _check_vae(path / "vae")
    text_dim = _check_text_encoder(path)
    for part, has, other, needs in (
        ("VAE", vae.vae.config["z_dim"], "latent channels", network.config["in_channels"]),
        ("text encoder", text_dim, "text features", network.config["text_dim"]),
    ):
        if has != needs:
            raise ValueError(f"'{path}': the transformer expects {needs} {other}, the {part} gives {has}")
    own = index.get("streaming", {})
    if weights is not None:
        told = {"trained_to_continue"}
        if method not in (None, own.get("method")):
            told |= {"denoising_steps", "shift"}  # those of the method are likelier theirs
        own = {name: value for name, value in own.items() if name not in told}
    tiny = None if decoder is None else find_decoder(decoder, vae)
    settings = _settings(path / INDEX, own, method, changes)
    geometry = settings.geometry(vae.spatial_factor, vae.temporal_factor, network.patch)
    heads = network.config["num_attention_heads"]
    trained_for = own.get("method") if weights is None else None
    channels = network.config["in_channels"]
    return ModelFolder(
        path,
        transformer,
        heads,
        settings,
        geometry,
        channels,
        trained_for,
        can_stream=weights is not None or "streaming" in index,
        own_size=None if weights is not None or "height" not in own else (own["height"], own["width"]),
        decoder=tiny,
    )


def write_model_folder(
    out: str | Path,
    transformer: WanDiT,
    vae: AutoencoderKLWan,
    text_encoder: str | Path,
    tokenizer: str | Path,
    settings: StreamingSettings | Mapping[str, Any],
    model_card: str = "",
    dtype: torch.dtype | None = torch.bfloat16,
) -> Path:
    """`out`, now a whole model folder that `StreamingVideoPipeline.from_pretrained` and diffusers' classes read.

    text_encoder, tokenizer: folders to copy. settings: the key `streaming`; what a mapping leaves out is its method's.
    model_card: the README.md, if any. dtype: of the stored transformer and VAE, None for as they are; both networks
    are left unchanged. `model_index.json` is written last, so a folder that has one is whole.
    Raises ValueError for settings that make no sense and FileNotFoundError if a folder to copy is missing.
    """
    out = Path(out)
    settings = settings if isinstance(settings, StreamingSettings) else streaming_settings(settings)
    for source, file in ((Path(text_encoder), "config.json"), (Path(tokenizer), "tokenizer_config.json")):
        if not (source / file).is_file():
            raise FileNotFoundError(f"no {file} in '{source}'")
    out.mkdir(parents=True, exist_ok=True)
    (out / INDEX).unlink(missing_ok=True)
    if dtype is not None:
        vae = copy.deepcopy(vae)
        nn.Module.to(vae, dtype)
    _save(transformer, out / "transformer", dtype)
    vae.save_pretrained(out / "vae")
    for source, part in ((Path(text_encoder), "text_encoder"), (Path(tokenizer), "tokenizer")):
        if source.resolve() != (out / part).resolve():
            shutil.copytree(source, out / part, dirs_exist_ok=True)
    for config in out.glob("*/config.json"):
        _forget_origin(config)
    FlowMatchEulerDiscreteScheduler(shift=settings.shift).save_pretrained(out / "scheduler")
    if model_card:
        (out / "README.md").write_text(model_card, encoding="utf-8")
    index = {"_class_name": PIPELINES[0], "streaming": settings.model_dump(), **COMPONENTS}
    (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return out


def write_teacher(out: str | Path, teacher: WanDiT, dtype: torch.dtype | None = torch.bfloat16) -> Path:
    """`out`/teacher: the network that a model folder's transformer was distilled from, for those who train another.

    It is no part of the pipeline: nothing that streams reads it. dtype: as in `write_model_folder`.
    """
    _save(teacher, Path(out) / "teacher", dtype)
    _forget_origin(Path(out) / "teacher" / "config.json")
    return Path(out) / "teacher"


def _save(network: WanDiT, folder: Path, dtype: torch.dtype | None) -> None:
    """Write a transformer, its matrices in `dtype`; the network itself stays as it is."""
    (network if dtype is None else copy.deepcopy(network).to_mixed(dtype)).save_pretrained(folder)


def _read_index(path: Path) -> dict[str, Any]:
    """The content of `model_index.json`, of a kind that can be streamed."""
    if path.is_file():
        raise ValueError(
            f"'{path}' is a file; expected a model folder with {INDEX}. A transformer's file goes in as the weights of "
            "such a folder"
        )
    if not (path / INDEX).is_file():
        parts = [part for part in COMPONENTS if (path / part).is_dir()]
        found = f"it has {', '.join(parts)}" if parts else "it has none of a model's parts"
        if (path / VAE_FILE).is_file():
            found = "it is the original Wan's: `rforce models convert SRC NEW --whole` makes one of it"
        raise FileNotFoundError(f"no {INDEX} in '{path}', so it is not a whole model folder ({found})")
    index = _read_json(path / INDEX)
    if index.get("_class_name") not in PIPELINES:
        raise ValueError(
            f"'{path / INDEX}' describes a {index.get('_class_name')}; expected one of {', '.join(PIPELINES)}"
        )
    if not isinstance(index.get("streaming", {}), dict):
        raise ValueError(f"'{path / INDEX}': streaming must be a group of settings, got {index['streaming']!r}")
    return index


def _settings(
    index: Path, own: Mapping[str, Any], method: str | None, changes: Sequence[str] | Mapping[str, Any]
) -> StreamingSettings:
    """The settings of a folder with the user's changes; a folder by itself can name no code to import."""
    if not isinstance(own.get("method", ""), str):
        raise ValueError(f"'{index}': streaming: method must be a name, got {own['method']!r}")
    for name, value in own.items():
        called = value.get("kind") if isinstance(value, Mapping) else value if name in CALLED else None
        if ":" in str(called):
            raise ValueError(f"'{index}' asks for the {name} '{called}', which is code; only your own settings may")
    try:
        unchanged = streaming_settings(own, method)
    except ValidationError as error:
        raise ValueError(f"'{index}': streaming: {describe(error)}") from None
    try:
        return streaming_settings(own, method, changes) if changes else unchanged
    except ValidationError as error:
        raise ValueError(describe(error)) from None


def _check_vae(folder: Path) -> StreamingVAE:
    """The VAE of `folder` without memory; raises unless the weights there fit its configuration."""
    config = _read_json(folder / "config.json")
    if config.get("_class_name") != "AutoencoderKLWan":
        raise ValueError(f"'{folder}' holds a {config.get('_class_name')}; expected an AutoencoderKLWan")
    try:
        with torch.device("meta"):
            vae = cast(AutoencoderKLWan, AutoencoderKLWan.from_config(config))
        check_fit(vae, _headers(folder))
        statistics = {len(vae.config["latents_mean"]), len(vae.config["latents_std"])}
        if statistics != {vae.config["z_dim"]}:
            raise ValueError(f"latents_mean and latents_std must hold z_dim = {vae.config['z_dim']} numbers each")
    except (ValueError, TypeError) as error:
        raise ValueError(f"'{folder}': {error}") from error
    return StreamingVAE(vae)


def _check_text_encoder(path: Path) -> int:
    """The width of the text encoder's output; raises unless its parts are there and their files whole."""
    config = _read_json(path / "text_encoder" / "config.json")
    if config.get("model_type") != "umt5" or "d_model" not in config:
        kind = config.get("model_type")
        raise ValueError(f"'{path / 'text_encoder'}' holds a text encoder of type {kind}; expected umt5")
    if "auto_map" in _read_json(path / "tokenizer" / "tokenizer_config.json"):
        raise ValueError(f"'{path / 'tokenizer'}' asks for code of its own (auto_map), which is not run; take that out")
    held = _headers(path / "text_encoder")
    if table := held.get("shared.weight", held.get(TIED)):
        held = {**held, "shared.weight": table, TIED: table}
    try:
        check_fit(meta_text_encoder(path)[0], held, "text encoder")
    except Exception as error:  # a configuration may be wrong in any way
        raise ValueError(f"'{path / 'text_encoder'}': {error}") from error
    return config["d_model"]


def _headers(folder: Path) -> dict[str, LazyTensor]:
    """The parameters in the weight files of a component, unread."""
    return read_weights(folder)[1]


def _heads_of(path: Path, checkpoint: Checkpoint) -> int | None:
    """The heads of the folder's own network, for weights that are as wide and do not tell theirs; else None."""
    own = read_config(path / "transformer" / "config.json") or {}
    heads, head_dim = own.get("num_attention_heads"), own.get("attention_head_dim")
    if not (heads and head_dim) or checkpoint.config is not None or checkpoint.format == "lora":
        return None
    width = checkpoint.roles[checkpoint.role()]["patch_embedding.weight"].shape[0]
    return heads if heads * head_dim == width else None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in '{path.parent}'; the model folder is not whole")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"'{path}' is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' must hold a JSON object, got {type(content).__name__}")
    return content


def _forget_origin(config: Path) -> None:
    """Drop from a configuration where its network was once read from, which is nobody's business."""
    content = _read_json(config)
    if content.pop("_name_or_path", None) is not None:
        config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
