"""What a stream holds in memory, told before any weights are read.

B batch, F latent frames, N layers, S tokens per latent frame, H heads, D head width, L text tokens. Nothing is guessed
by formula that the code itself can tell: the passes of one block, the commit of all and the decoder run on the meta
device, where `LiveBytes` counts what they hold. Knows no device and chooses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from transformers import UMT5EncoderModel

from reward_forcing.checkpoints.detect import open_checkpoint
from reward_forcing.checkpoints.files import read_weights
from reward_forcing.checkpoints.load import open_network
from reward_forcing.checkpoints.tiny_vae import TinyCheckpoint, open_tiny_vae
from reward_forcing.config import unknown
from reward_forcing.geometry import Geometry
from reward_forcing.models.attention import KV, Past, Prediction, Text, TextContext, WantKV
from reward_forcing.models.denoiser import Denoiser
from reward_forcing.models.layers import TimeContext
from reward_forcing.models.live_bytes import LiveBytes
from reward_forcing.models.meta_networks import meta_text_encoder, meta_transformer, meta_vae
from reward_forcing.models.sizes import PUBLISHED, SIZES
from reward_forcing.models.tiny_vae import TinyDecoder, TinyVAE
from reward_forcing.models.vae import StreamingVAE, VAEState
from reward_forcing.models.wan_dit import WanDiT
from reward_forcing.rollout import KVCache, Rollout, SeededNoise, Storage
from reward_forcing.streaming.methods import StreamingSettings, streaming_settings
from reward_forcing.streaming.model_folder import ModelFolder, find_decoder

UNLIMITED_FRAMES = 21
"""Latent frames of the past that are counted for a method without a window, whose cache grows with the video."""


@dataclass(frozen=True, eq=False)
class Model:
    """The parts of a model without storage, and how it streams. text_dtype: what the text encoder's file holds.

    decoder: a tiny one in place of the VAE's, unread.
    """

    name: str
    network: WanDiT
    vae: AutoencoderKLWan
    text_encoder: UMT5EncoderModel
    text_dtype: torch.dtype
    text_tokens: int
    settings: StreamingSettings
    geometry: Geometry
    decoder: TinyCheckpoint | None = None

    @cached_property
    def text_bytes(self) -> int:
        """Bytes of the text encoder as it is stored."""
        return sum(part.numel() for part in self.text_encoder.parameters()) * self.text_dtype.itemsize

    @cached_property
    def text_layer_bytes(self) -> int:
        """Bytes of one of its layers."""
        return sum(part.numel() for part in self.text_encoder.encoder.block[0].parameters()) * self.text_dtype.itemsize

    def changed(self, **changes: Any) -> Model:
        """The same at another size or with another window; raises ValueError where these do not fit together."""
        settings = StreamingSettings.model_validate(self.settings.model_dump() | changes)
        patch = self.geometry.patch
        geometry = settings.geometry(self.geometry.spatial_factor, self.geometry.temporal_factor, patch)
        return replace(self, settings=settings, geometry=geometry)


@dataclass(frozen=True)
class Precision:
    """What a device computes in: the transformer's matrices and the VAE."""

    transformer: torch.dtype
    vae: torch.dtype


@dataclass(frozen=True)
class Needs:
    """Bytes that a stream holds beside the weights, its window full.

    cache: keys, values and the sink. shown: what is made of it for all passes of a chunk, keys rotated. context: keys
    and values of the prompt. past: keys and values that passes see, of which the cache holds most. state: of the
    decoder. encoding, denoising, committing, decoding: the most that each stage holds beside all these; decoding by the
    number of latent frames decoded at a time.
    """

    cache: int
    shown: int
    context: int
    past: int
    state: int
    encoding: int
    denoising: int
    committing: int
    decoding: Mapping[int, int]

    @property
    def standing(self) -> int:
        """What lies there all along."""
        return self.cache + self.shown + self.context + self.state

    @property
    def graphed(self) -> int:
        """What `GraphedForward` adds, at most: copies of what passes see, and room of its own for what they make."""
        return self.past + self.context + max(self.denoising, self.committing)


def model_of_folder(folder: ModelFolder) -> Model:
    """The parts of a model folder, from its configurations and headers."""
    network, _ = open_network(open_checkpoint(folder.transformer), heads=folder.heads)
    encoder, tokens = meta_text_encoder(folder.path)
    (dtype,) = {tensor.dtype for tensor in read_weights(folder.path / "text_encoder")[1].values()}
    vae = meta_vae(folder.path / "vae")
    tiny = None if folder.decoder is None else open_tiny_vae(folder.decoder)
    return Model(folder.path.name, network, vae, encoder, dtype, tokens, folder.settings, folder.geometry, tiny)


def model_of_size(
    name: str, method: str | None = None, changes: Sequence[str] = (), decoder: str | Path | None = None
) -> Model:
    """A published size, one of `SIZES`, with Wan2.1's VAE and its text encoder in bfloat16.

    decoder: a tiny one that makes the frames. Raises ValueError for an unknown name, and as `streaming_settings` and
    `find_decoder` do.
    """
    if name not in SIZES:
        raise ValueError(unknown("size", name, SIZES))
    network, vae = meta_transformer(Path(name)), meta_vae(Path(PUBLISHED))
    encoder, tokens = meta_text_encoder(Path(PUBLISHED))
    settings = streaming_settings(None, method, changes)
    streaming = StreamingVAE(vae)
    geometry = settings.geometry(streaming.spatial_factor, streaming.temporal_factor, network.patch)
    tiny = None if decoder is None else open_tiny_vae(find_decoder(decoder, streaming))
    return Model(name, network, vae, encoder, torch.bfloat16, tokens, settings, geometry, tiny)


@lru_cache(maxsize=8)
def needs_of(
    model: Model,
    precision: Precision,
    batch: int = 1,
    decode_frames: tuple[int, ...] = (3, 1),
    storage: Storage = "exact",
) -> Needs:
    """What a stream of `batch` videos holds beside the weights.

    decode_frames: the numbers of latent frames decoded at a time that are asked for. storage: of the cache.
    """
    with torch.no_grad(), _FusedAttention():
        cache, context, shown, past, denoising = _passes(model, precision.transformer, batch, storage)
        committing = _commit(model, precision.transformer, batch, storage, shown, denoising)
        state, decoding = 0, {}
        for frames in decode_frames:
            state, decoding[frames] = _decoder(model, precision.vae, batch, frames)
        encoding = _encoder(model)
        if not model.settings.clean_pass:  # the last pass gives keys and values; a chunk's wait for the next one
            layers, together = model.network.config["num_layers"], model.settings.chunks_at_once
            chunk = _chunk(model, precision.transformer, batch, layers)
            waiting = sum(layer.nbytes for layer in (*chunk.keys, *chunk.values))
            committing = max(committing, denoising + waiting * (together + (together > 1)))
            encoding, decoding = encoding + waiting, {frames: size + waiting for frames, size in decoding.items()}
        return Needs(cache, shown, context, past, state, encoding, denoising, committing, decoding)


class _FusedAttention(TorchFunctionMode):
    """Attention as a kernel that keeps no scores, which is what every device runs and the meta device does not."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The result of `func`; of attention only its shape."""
        if func is scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


def _passes(model: Model, dtype: torch.dtype, batch: int, storage: Storage) -> tuple[int, int, int, int, int]:
    """Bytes of cache, text, shown past and all that is seen of it in all layers, and the most a pass holds beside them:
    that of one block."""
    config = dict(model.network.config) | {"num_layers": 1}
    with torch.device("meta"):
        network = WanDiT.from_config(config)
    assert isinstance(network, WanDiT)
    network.eval().requires_grad_(False).to_mixed(dtype)
    _without_autocast(network)
    settings, geometry = model.settings, model.geometry
    if settings.chunks_at_once == 1:
        settings = settings.model_copy(update={"denoising_steps": settings.denoising_steps[:1]})
    shape = (config["in_channels"], geometry.latent_height, geometry.latent_width)
    denoiser, shown_frames = Denoiser(network), settings.chunks_at_once * settings.chunk_frames
    past = _filled(model, dtype, batch, 1, storage).past(shown_frames)
    if past is not None:  # angles are computed once for good
        denoiser.rotate(past, shape[1:])
        network.rotation_at(past.query_positions, shape[1:], network.patch_embedding.weight.device)
    with LiveBytes() as live:
        before = live.live
        cache = _filled(model, dtype, batch, 1, storage)
        held = live.live - before
        text = TextContext(*(_meta(model, dtype, (1, batch, model.text_tokens)) for _ in range(2)))
        context = live.live - before - held
        past = cache.past(shown_frames)
        rotated = None if past is None else denoiser.rotate(past, shape[1:])
        shown = live.live - before - held - context
        seen = 0 if rotated is None else rotated.keys[0].nbytes + rotated.values[0].nbytes
        del past, rotated

        def noise(chunk: int, draw: int, shape: Sequence[int]) -> Tensor:
            return torch.empty(batch, *shape, device="meta")

        where = {"device": "meta", "dtype": dtype}
        rollout = Rollout(denoiser, settings.passes(), cache, noise, text, shape, **where)
        del cache
        live.peak = live.live
        next(rollout)
        beside = live.peak - before - held - context - shown
    layers = model.network.config["num_layers"]
    return layers * held, layers * context, layers * shown, layers * seen, beside


@dataclass(frozen=True)
class _CleanPass:
    """Stands for all layers in a clean pass: what these return, without what they compute it from."""

    model: Model
    dtype: torch.dtype

    def __call__(
        self, x: Tensor, sigma: Tensor, text: Text, past: Past | None = None, want_kv: WantKV = False
    ) -> Prediction:
        """Keys and values of the frames of x."""
        return Prediction(x, x, _chunk(self.model, self.dtype, x.shape[0], self.model.network.config["num_layers"]))

    def rotate(self, past: Past, latent_size: tuple[int, int]) -> Past:
        """`past` with other keys of the same size."""
        return past.with_rotated(torch.empty_like)


def _commit(model: Model, dtype: torch.dtype, batch: int, storage: Storage, shown: int, denoising: int) -> int:
    """The most that a clean pass and its commit hold beside the cache and what of it is shown to other passes: a pass
    beside the keys and values so far, or what a rollout holds while it makes the next cache of them."""
    layers, frames, geometry = model.network.config["num_layers"], model.settings.chunk_frames, model.geometry
    shape = (model.network.config["in_channels"], geometry.latent_height, geometry.latent_width)
    denoiser, text = _CleanPass(model, dtype), TextContext(*(_meta(model, dtype, (1, batch, 1)) for _ in range(2)))
    where = {"device": "meta", "dtype": dtype}
    with LiveBytes() as live:
        cache = _filled(model, dtype, batch, layers, storage)
        standing = live.live + shown
        kv, past = _chunk(model, dtype, batch, layers), cache.past(frames, cache.settings.clean_pass_sees_sink)
        rotated = None if past is None else denoiser.rotate(past, shape[1:])
        in_pass = live.live + denoising
        del kv, past, rotated
        rollout = Rollout(denoiser, (), cache, SeededNoise((0,) * batch), text, shape, **where)
        del cache
        live.peak = live.live
        rollout.prime(torch.empty(batch, frames, *shape, device="meta"))
        return max(in_pass, live.peak) - standing


@lru_cache(maxsize=8)  # the same for every storage of the cache
def _decoder(model: Model, dtype: torch.dtype, batch: int, frames: int) -> tuple[int, int]:
    """Bytes of the decoder's state, and the most that decoding a chunk holds beyond it."""
    with torch.device("meta"):
        tiny = None if model.decoder is None else TinyVAE(model.decoder.sizes)
        network = tiny or AutoencoderKLWan.from_config(model.vae.config)
    assert isinstance(network, AutoencoderKLWan | TinyVAE)
    nn.Module.to(network.eval().requires_grad_(False), dtype)
    decoder = TinyDecoder(network) if isinstance(network, TinyVAE) else StreamingVAE(network)
    decoder.pass_frames = frames
    rows, columns = model.geometry.latent_height, model.geometry.latent_width
    latents = torch.empty(batch, model.settings.chunk_frames, model.vae.config["z_dim"], rows, columns, device="meta")
    with LiveBytes() as live:
        before = live.live
        held: list[VAEState] = [decoder.decode(latents[:, :1])[1]]
        state = live.live - before
        live.peak = live.live
        made, _ = decoder.decode(latents, held.pop())
        made.clone()
        return state, live.peak - before - state


@lru_cache(maxsize=4)
def _encoder(model: Model) -> int:
    """The most that encoding one prompt holds: the work of one layer."""
    config = type(model.text_encoder.config).from_dict(model.text_encoder.config.to_dict() | {"num_layers": 1})
    with torch.device("meta"):
        encoder = UMT5EncoderModel(config).eval().to(model.text_dtype)  # pyright: ignore[reportArgumentType]
        words = torch.empty(1, model.text_tokens, config.d_model, dtype=model.text_dtype)
    with LiveBytes() as live:
        before = live.live
        encoder(inputs_embeds=words)
        return live.peak - before


def _filled(model: Model, dtype: torch.dtype, batch: int, layers: int, storage: Storage) -> KVCache:
    """A cache that has evicted a chunk, without contents."""
    cache, chunk = KVCache.empty(model.settings.cache, storage), model.settings.chunk_frames
    frames = model.settings.window_frames
    for _ in range(-(-(frames or UNLIMITED_FRAMES) // chunk) + (frames is not None)):
        cache = cache.commit(_chunk(model, dtype, batch, layers))
    return cache


def _chunk(model: Model, dtype: torch.dtype, batch: int, layers: int) -> KV:
    """Keys and values of a chunk."""
    lead = (batch, model.settings.chunk_frames, model.geometry.tokens_per_frame)
    return KV(*(tuple(_meta(model, dtype, lead) for _ in range(layers)) for _ in range(2)))


def _meta(model: Model, dtype: torch.dtype, lead: tuple[int, ...]) -> Tensor:
    """A tensor [*lead, H, D] without contents."""
    config = model.network.config
    return torch.empty(*lead, config["num_attention_heads"], config["attention_head_dim"], dtype=dtype, device="meta")


def _without_autocast(network: WanDiT) -> None:
    """Let a network give embedded timesteps by their shape alone: it turns autocast off, which meta does not know."""
    width = prod(network.config[key] for key in ("num_attention_heads", "attention_head_dim"))

    def encode_time(timestep: Tensor) -> TimeContext:
        lead = timestep.shape
        return TimeContext(torch.empty(*lead, width, device="meta"), torch.empty(*lead, 6, width, device="meta"))

    network.encode_time = encode_time
