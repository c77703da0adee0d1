"""From a prompt to frames: a model, read once, and the streams made with it.

B batch, T pixel frames, H W pixel size. Owns the loading of a model, the batch of prompts and seeds, and what is said
about prompts that the model cannot read. A method's numbers stand in `methods`, a running video in `stream`.
"""

import difflib
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self, TypedDict, Unpack

import torch
from torch import Tensor

from reward_forcing.checkpoints.tiny_vae import load_tiny_decoder
from reward_forcing.models.attention import TextContext
from reward_forcing.models.cuda_graphs import GraphedForward
from reward_forcing.models.denoiser import Denoiser
from reward_forcing.models.text import TextEncoder
from reward_forcing.models.vae import FrameDecoder, StreamingVAE
from reward_forcing.models.wan_dit import WanDiT
from reward_forcing.processes import ALONE, World, computed_by_first, from_first
from reward_forcing.rollout import KVCache, Rollout, SeededNoise, Storage, SwitchPolicy
from reward_forcing.streaming.acceleration import Acceleration, LowBitLinear, load_accelerated
from reward_forcing.streaming.clips import Clips
from reward_forcing.streaming.given import Clip, Given, Picture, open_given
from reward_forcing.streaming.methods import StreamingSettings
from reward_forcing.streaming.model_folder import BUNDLED, ModelFolder, open_model_folder, write_model_folder
from reward_forcing.streaming.processes import SharedVAE, check_divides, share_network
from reward_forcing.streaming.prompts import At, Prompts, Timeline
from reward_forcing.streaming.stream import VideoStream, one_ahead

EMBEDDINGS_KEPT = 16
"""Prompts whose embeddings a pipeline remembers (8 MiB each for Wan2.1), so that none is encoded twice in a row."""

UNTRAINED_TO_CONTINUE = (
    "nothing says that this model's weights were trained to go on from given frames, so what follows may not fit them; "
    "where they were, say trained_to_continue=true among its settings"
)

NO_CLEAN_PASS = (
    "clean_pass=false: finished chunks enter the cache as their last denoising pass saw them, which changes what "
    "follows (`rforce bench quality --change clean_pass=false` measures it)"
)

logger = logging.getLogger(__name__)


class StreamOptions(TypedDict, total=False):
    """The arguments of `StreamingVideoPipeline.stream` that go by name."""

    at: At | None
    switch: SwitchPolicy | None
    seed: int | None
    seeds: Sequence[int] | None
    height: int | None
    width: int | None
    image: Picture | None
    video: Clip | None
    video_seconds: float | None
    latents: Tensor | None
    shows_given: bool


class StreamingVideoPipeline:
    """A model ready to stream videos of prompts.

    Made by `from_pretrained`. settings: the method's numbers and the frame size. decoder: what makes the frames in
    place of the VAE, which encodes in any case; None for the VAE itself. The parts may be replaced by others of the
    same kind; several streams may run side by side, for each holds its own cache and decoder state.

    world: the processes that make every video together, each with a pipeline like this one on which the same is called
    in the same order; see `streaming.processes`. storage: how caches keep the local past. graphed: computes the passes
    of all streams in place of the transformer, of which it is.
    """

    def __init__(
        self,
        transformer: WanDiT,
        vae: StreamingVAE,
        text_encoder: TextEncoder,
        settings: StreamingSettings,
        decoder: FrameDecoder | None = None,
        world: World = ALONE,
        storage: Storage = "exact",
        graphed: GraphedForward | None = None,
    ) -> None:
        share_network(transformer, world)
        self.world = world
        self.storage: Storage = storage
        self.transformer = transformer
        self.vae = vae if world.size == 1 else SharedVAE(vae, world)
        self.decoder = decoder
        self.graphed = graphed
        self.text_encoder = text_encoder
        self.settings = settings
        self.geometry = settings.geometry(vae.spatial_factor, vae.temporal_factor, transformer.patch)
        self._embeddings: OrderedDict[str, Tensor] = OrderedDict()

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = BUNDLED,
        *,
        method: str | None = None,
        weights: str | Path | None = None,
        settings: Sequence[str] | Mapping[str, Any] = (),
        decoder: str | Path | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        vae_device: torch.device | str | None = None,
        world: World = ALONE,
        acceleration: Acceleration | None = None,
    ) -> Self:
        """The pipeline of a model folder, a bundled model or a hub id; see `open_model_folder` and `load`.

        settings: in place of the method's and the model's, such as `{"sink": EmaSink(alpha=0.9)}`.
        """
        folder = open_model_folder(model, method, weights, settings, decoder)
        return cls.load(folder, device, dtype, vae_device, world, acceleration)

    @classmethod
    def load(
        cls,
        folder: ModelFolder,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        vae_device: torch.device | str | None = None,
        world: World = ALONE,
        acceleration: Acceleration | None = None,
        notes: bool = True,
    ) -> Self:
        """The pipeline of a folder that has been looked through; this is what reads the weights.

        device: None takes a GPU where there is one. dtype: of the transformer, the VAE and a decoder in its place; None
        takes bfloat16 on a GPU and float32 on a CPU, where the VAE and the decoder take the fastest. vae_device: where
        frames are decoded, None for `device`; on another GPU a chunk is decoded while the next one is denoised.
        acceleration: how the parts are kept in memory, all on the device as they are if not given; `memory_plan`
        chooses one. Of several processes the first one's counts. notes: whether to log the folder's.
        Raises ValueError for more processes in `world` than the model can be shared by, and for an acceleration that
        this machine cannot give.
        """
        check_divides(folder, world)
        how = from_first(acceleration or Acceleration(), world)
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        how.check(device, world.size)
        for note in folder.notes if notes else ():
            logger.warning(note)
        if not folder.settings.clean_pass:
            logger.warning(NO_CLEAN_PASS)
        network_dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        text_encoder = TextEncoder.from_pretrained(folder.path, device=device, offload=how.offload_text)
        of_file = {"heads": folder.heads, "dtype": network_dtype, "device": device}
        transformer = load_accelerated(folder.transformer, how, **of_file)
        decodes_on = vae_device or device if world.is_first else "meta"
        vae = StreamingVAE.from_pretrained(folder.path / "vae", dtype, decodes_on)
        vae.pass_frames = how.decode_frames
        if world.is_first and not how.offload_text:
            text_encoder.load()
        decoder = None
        if folder.decoder is not None:
            decoder = load_tiny_decoder(folder.decoder, dtype, decodes_on)
            decoder.pass_frames = how.decode_frames
        graphed = GraphedForward(transformer) if how.graphs else None
        return cls(transformer, vae, text_encoder, folder.settings, decoder, world, how.cache, graphed)

    def save_pretrained(self, out: str | Path, model_card: str = "", dtype: torch.dtype | None = None) -> Path:
        """`out`, now a model folder of this pipeline; dtype None stores networks as they are loaded.

        Raises ValueError for weights in few bits, which have no file format here.
        """
        if any(isinstance(module, LowBitLinear) for module in self.transformer.modules()):
            raise ValueError("weights in few bits are made while loading and never written; load with weights=exact")
        out = Path(out)
        self.text_encoder.save_pretrained(out)
        parts = (self.transformer, self.vae.vae, out / "text_encoder", out / "tokenizer")
        return write_model_folder(out, *parts, self.settings, model_card, dtype)

    def stream(
        self,
        prompt: str | Sequence[str],
        *,
        at: At | None = None,
        switch: SwitchPolicy | None = None,
        seed: int | None = None,
        seeds: Sequence[int] | None = None,
        height: int | None = None,
        width: int | None = None,
        image: Picture | None = None,
        video: Clip | None = None,
        video_seconds: float | None = None,
        latents: Tensor | None = None,
        shows_given: bool = True,
    ) -> VideoStream:
        """The endless video of `prompt`, or a batch of them: one prompt for each sample, or one that all share.

        at: prompt changes, such as `{5.0: "a blue ball"}`. switch: what a new prompt does to the cache, in place of the
        method's policy, such as `Blend(chunks=2)`. seed: of every sample (0 if not given); seeds: one for each. A
        sample depends on its own prompt and seed only, and the frames of a shorter video begin a longer one.
        height, width: pixels, in place of the model's own.

        image, video or latents: what the video begins with, for all samples or one for each; see `open_given` for how
        files are read, cropped, resampled and cut. video_seconds: take the last so many of the video. latents:
        [1 or B, F, C, h, w], such as a rollout made. The video shows what is given, as the decoder renders it, and
        times count from its beginning; with shows_given False both begin with the first new frame.
        Raises ValueError for empty prompts, bad times, counts that do not fit, sizes that do not divide, and as
        `open_given` does.
        """
        if not isinstance(switch, SwitchPolicy | None):
            raise ValueError(f"switch must be a policy such as Blend(chunks=2), got {switch!r}")
        timeline = Timeline.of(prompt, at)
        geometry = self.geometry if height is None else replace(self.geometry, height=height)
        geometry = geometry if width is None else replace(geometry, width=width)
        channels = self.transformer.config["in_channels"]
        sources = {"image": image, "video": video, "latents": latents}
        given = open_given(geometry, channels, **sources, seconds=video_seconds, shown=shows_given)
        noise = SeededNoise(_samples([prompts for _, prompts in timeline.changes], seed, seeds, given))
        if given is not None and given.kind != "latents" and not self.settings.trained_to_continue:
            logger.warning(UNTRAINED_TO_CONTINUE)
        for text in dict.fromkeys(text for _, prompts in timeline.changes for text in prompts):
            self.warn_of_unknown_words(text)
        weight = self.transformer.patch_embedding.weight
        shape = (channels, geometry.latent_height, geometry.latent_width)

        def make_rollout(text: TextContext) -> Rollout:
            denoiser = Denoiser(self.transformer, self.graphed)
            cache = KVCache.empty(self.settings.cache, self.storage)
            enters = {"context_noise": self.settings.context_noise, "clean_pass": self.settings.clean_pass}
            where = {"device": weight.device, "dtype": weight.dtype}
            passes = self.settings.passes()
            policy = switch or self.settings.switch
            return Rollout(denoiser, passes, cache, noise, text, shape, switch=policy, **enters, **where)

        def encode(prompts: Prompts) -> TextContext:
            return self.encode(prompts).expand(len(noise.seeds))

        decoder = self.decoder or self.vae
        clips = Clips(self.settings.clips, self.vae, decoder, geometry)
        batch, tell = len(noise.seeds), self.warn_of_unknown_words
        makers = make_rollout, encode, self.vae, decoder
        return VideoStream(*makers, geometry, timeline, batch, clips, tell, given, self.world)

    def generate(self, prompt: str | Sequence[str], seconds: float, **options: Unpack[StreamOptions]) -> Tensor:
        """Frames [B, T, 3, H, W] in [0, 1], float32 on the CPU, that last `seconds`; arguments as in `stream`.

        What is given counts for `seconds` if it is shown. Of several processes the first gets the frames.
        Raises ValueError, before anything is computed, also for `seconds` that are not positive and finite or end
        within what is given, and for a prompt that would begin after the last chunk.
        """
        stream = self.stream(prompt, **options)
        stream.timeline.check_reached(stream.last_start(seconds))
        pieces = (chunk.frames for chunk in one_ahead(stream.until(seconds)))
        return torch.cat([frames.cpu() if self.world.is_first else frames for frames in pieces], dim=1)

    @torch.inference_mode()
    def encode(self, prompts: Prompts) -> TextContext:
        """The text context of `prompts`; the embeddings of the latest are remembered, each encoded by itself."""
        rows = []
        for prompt in prompts:
            embedding = self._embeddings.pop(prompt, None)
            if embedding is None:
                embedding = computed_by_first(partial(self.text_encoder, [prompt]), self.world)
            self._embeddings[prompt] = embedding.to(self.transformer.device)
            rows.append(self._embeddings[prompt])
            if len(self._embeddings) > EMBEDDINGS_KEPT:
                self._embeddings.popitem(last=False)
        return read_text(self.transformer, torch.cat(rows))

    def warn_of_unknown_words(self, prompt: str) -> None:
        """Log what `explain_unknown_words` says, if it says anything."""
        if message := self.explain_unknown_words(prompt):
            logger.warning(message)

    def explain_unknown_words(self, prompt: str) -> str | None:
        """Which words of `prompt` the model cannot read, with the nearest it can, and what it can show; else None.

        Only a miniature's tokenizer has unknown words; that of Wan2.1 spells every word.
        """
        unknown_words = self.text_encoder.unknown_words(prompt)
        if not unknown_words:
            return None
        known = set(self.text_encoder.tokenizer.get_vocab()) - set(self.text_encoder.tokenizer.all_special_tokens)
        # a closer match than for settings: any word may be meant, not one of a few
        named = [(word, difflib.get_close_matches(word.lower(), known, 1, cutoff=0.75)) for word in unknown_words]
        listed = ", ".join(f"'{word}' (did you mean '{near[0]}'?)" if near else f"'{word}'" for word, near in named)
        return f"this model does not know {listed} and makes a video of the rest. {self.settings.hint}".rstrip()


def read_text(transformer: WanDiT, embeddings: Tensor) -> TextContext:
    """The text context of embeddings [B, L, text_dim], padding merged on a CPU, where asking how much costs nothing."""
    return transformer.encode_text(embeddings, merge_padding=embeddings.device.type == "cpu")


def _samples(
    prompts: Sequence[Prompts], seed: int | None, seeds: Sequence[int] | None, given: Given | None
) -> tuple[int, ...]:
    """One seed for each sample of the batch that all prompts, seeds and what is given agree on."""
    if seed is not None and seeds is not None:
        raise ValueError("give either seed, for all samples, or seeds, one for each")
    counts = {len(several) for several in prompts if len(several) > 1}
    if seeds is not None:
        counts |= {len(seeds)}
    if given is not None and given.batch > 1:
        counts |= {given.batch}
    if len(counts) > 1:
        several = "prompts as seeds" if given is None else "prompts, seeds and given beginnings"
        raise ValueError(f"expected as many {several}, or a single one; got {sorted(counts)}")
    batch = counts.pop() if counts else 1
    return tuple(seeds) if seeds is not None else (seed or 0,) * batch
