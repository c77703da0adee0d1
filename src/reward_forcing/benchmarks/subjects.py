"""What is measured: networks of random weights in three sizes, or the transformer of any model folder.

L text tokens, C latent channels, h, w latent rows and columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from reward_forcing.benchmarks.naive import NaiveRollout
from reward_forcing.benchmarks.record import Conditions, threads
from reward_forcing.benchmarks.work import chunk_flops
from reward_forcing.config import unknown
from reward_forcing.geometry import Geometry
from reward_forcing.models.attention import TextContext
from reward_forcing.models.cuda_graphs import GraphedForward
from reward_forcing.models.denoiser import Denoiser
from reward_forcing.models.sizes import WAN_1_3B, Size
from reward_forcing.models.wan_dit import WanDiT
from reward_forcing.rollout import KVCache, Rollout, SeededNoise
from reward_forcing.streaming.acceleration import Acceleration, Attention, Weights
from reward_forcing.streaming.methods import Method, method_named, streaming_settings
from reward_forcing.streaming.model_folder import open_model_folder
from reward_forcing.streaming.pipeline import StreamingVideoPipeline, read_text
from reward_forcing.training.plan_costs import Shape


@dataclass(frozen=True)
class Config:
    """A network of random weights: its size, and rows and columns of its latents."""

    size: Size
    latent_size: tuple[int, int]
    about: str


def _size(width: int, hidden: int, heads: int, layers: int) -> Size:
    return {
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "ffn_dim": hidden,
        "num_layers": layers,
    }


CONFIGS: dict[str, Config] = {
    "A": Config(_size(512, 2976, 4, 4), (40, 52), "attention and products share the time as in the 1.3B network"),
    "B": Config(_size(1536, 8960, 12, 2), (30, 52), "the widths of the 1.3B network, two of its layers"),
    "D": Config(_size(256, 1536, 2, 8), (16, 16), "a chunk takes a fraction of a second"),
    "wan-1.3b": Config(WAN_1_3B, (60, 104), "Wan2.1 1.3B at 832x480; needs a GPU to finish"),
}
"""Every random network by name."""

TEXT_LENGTH = 512
TEXT_TOKENS = 120
"""Tokens of a random network's prompt: a paragraph, as these models are prompted; the rest of the text is padding."""
PROMPT = "a red ball bounces over a blue floor"
PRECISIONS = ("float32", "bfloat16", "mixed")
"""float32; everything bfloat16, as the published code runs; matrices bfloat16 and the rest float32, as models are
loaded here."""


@dataclass(frozen=True)
class Subject:
    """A network with all that a rollout of it needs. text: embeddings [1, L, text_dim]. pipeline: of a model folder.

    length: latent frames of a clip, where a whole one is measured. compiled: whether the network's blocks are. graphed:
    computes the fast path's passes in place of the network. weights, attention: how they are
    computed, see `Acceleration`.
    """

    name: str
    network: WanDiT
    method: Method
    method_name: str
    precision: str
    latent_size: tuple[int, int]
    text: Tensor
    seeds: tuple[int, ...] = (0,)
    pipeline: StreamingVideoPipeline | None = None
    length: int | None = None
    compiled: bool = False
    graphed: GraphedForward | None = None
    weights: Weights = "exact"
    attention: Attention = "exact"

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.network.patch_embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What its matrix products compute in."""
        return self.network.patch_embedding.weight.dtype

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w) of a latent frame."""
        return (self.network.config["in_channels"], *self.latent_size)

    @property
    def flops(self) -> int:
        """FLOPs of a steady-state chunk by formula."""
        shape = Shape.of(self.network, self.latent_size)
        return chunk_flops(shape, self.method, self.context().keys.shape[2], len(self.seeds))

    @property
    def passes(self) -> str:
        """Denoising and clean passes of a chunk."""
        return f"{len(self.method.sigmas)}+{int(self.method.clean_pass)}"

    @property
    def frames_per_chunk(self) -> int:
        """Pixel frames that a chunk after the first stands for, in all samples."""
        return self.geometry.chunk_frames_of(1) * len(self.seeds)

    @property
    def geometry(self) -> Geometry:
        """Sizes in pixels: the model folder's, else those of Wan2.1's VAE."""
        if self.pipeline is not None:
            return self.pipeline.geometry
        rows, columns = (8 * size for size in self.latent_size)
        return Geometry(rows, columns, self.method.chunk_frames, patch=self.network.patch)

    @property
    def chunks_to_fill(self) -> int:
        """Chunks after which the window is full and one has been evicted; of a method without one, seven."""
        return -(-(self.method.window_frames or 21) // self.method.chunk_frames)

    def with_method(self, **changes: object) -> "Subject":
        """The same with other numbers of the method, checked."""
        return replace(self, method=type(self.method).model_validate(self.method.model_dump() | changes))

    def fast(self) -> Rollout:
        """A fresh rollout of the fast path."""
        noise, cache = SeededNoise(self.seeds), KVCache.empty(self.method.cache)
        return Rollout(
            Denoiser(self.network, self.graphed),
            self.method.passes(),
            cache,
            noise,
            self.context(),
            self.shape,
            device=self.device,
            dtype=self.dtype,
            context_noise=self.method.context_noise,
            clean_pass=self.method.clean_pass,
        )

    def context(self) -> TextContext:
        """The text's keys and values for all samples, read as a stream reads them."""
        with torch.inference_mode(False), torch.no_grad():
            return read_text(self.network, self.text).expand(len(self.seeds))

    def naive(self) -> NaiveRollout:
        """A fresh rollout of the naive mode on the same weights, noise and text."""
        noise, method = SeededNoise(self.seeds), self.method
        where = (self.network, method.passes(), method.cache, noise, self.text, self.shape)
        return NaiveRollout(*where, context_noise=method.context_noise, clean_pass=method.clean_pass)

    def given(self, chunks: int) -> Tensor:
        """Latents [B, F, C, h, w] of `chunks` chunks to fill a cache with: noise, for only their size costs time."""
        generator = torch.Generator().manual_seed(self.seeds[0] + 1)
        size = (len(self.seeds), chunks * self.method.chunk_frames, *self.shape)
        return torch.randn(size, generator=generator).to(self.device)

    def conditions(self) -> Conditions:
        """What a speed of this subject's transformer alone counts."""
        return Conditions(
            model=self.name,
            method=self.method_name,
            scope="DiT only",
            window_frames=self.method.window_frames,
            passes=self.passes,
            precision=self.precision,
            decoder="none",
            size=self.latent_size,
            batch=len(self.seeds),
            device=self.device.type,
            threads=threads(),
            text=(int(self.text.any(-1).sum()), self.text.shape[1]),
            compiled=self.compiled,
            graphs=self.graphed is not None,
            weights=self.weights,
            attention=self.attention,
        )


def check_subject(
    model: str, precision: str, method: str | None, changes: Sequence[str] = (), decoder: str | None = None
) -> None:
    """Raise ValueError or FileNotFoundError for what `open_subject` would refuse, before any weights are drawn."""
    if precision not in PRECISIONS:
        raise ValueError(unknown("precision", precision, PRECISIONS))
    if method is not None:
        method_named(method)
    if model in CONFIGS and decoder is not None:
        raise ValueError(f"'{model}' is a transformer only; a decoder needs a model folder, such as mini")
    if model in CONFIGS:
        streaming_settings(None, method, changes)
    elif len(model) == 1:
        raise ValueError(unknown("configuration", model, CONFIGS))
    else:
        open_model_folder(model, method, None, changes, decoder)


def open_subject(
    model: str,
    precision: str = "float32",
    method: str | None = None,
    changes: Sequence[str] = (),
    seed: int = 0,
    batch: int = 1,
    device: torch.device | str = "cpu",
    decoder: str | None = None,
    text_tokens: int = TEXT_TOKENS,
    compiled: bool = False,
    graphs: bool = False,
) -> Subject:
    """A configuration of `CONFIGS` with random weights, or a model folder's transformer, ready to be measured.

    changes: of the method, as `window_frames=6`. The output projection, which untrained networks have at zero, is drawn
    like the others: an error would not show otherwise. decoder: a tiny one for a model folder's frames. text_tokens:
    of a random network's prompt, the rest of its `TEXT_LENGTH` is padding. compiled: the fast path runs compiled
    blocks. graphs: and replays its passes as CUDA graphs.
    Raises what `check_subject` raises, and ValueError for graphs without a GPU.
    """
    check_subject(model, precision, method, changes, decoder)
    Acceleration(graphs=graphs).check(torch.device(device))
    seeds, pipeline = tuple(range(seed, seed + batch)), None
    if model in CONFIGS:
        config = CONFIGS[model]
        network = random_network(config.size, seed, device if config.size == WAN_1_3B else "cpu")
        numbers, latent_size = streaming_settings(None, method, changes), config.latent_size
        generator = torch.Generator().manual_seed(seed)
        text = torch.randn(1, TEXT_LENGTH, network.config["text_dim"], generator=generator)
        text[:, text_tokens:] = 0
    else:
        pipeline = StreamingVideoPipeline.load(open_model_folder(model, method, None, changes, decoder), device)
        network, numbers, geometry = pipeline.transformer, pipeline.settings, pipeline.geometry
        latent_size = (geometry.latent_height, geometry.latent_width)
        text = pipeline.text_encoder([PROMPT])
    cast_network(network, precision, device)
    text = text.to(device, network.condition_embedder.text_embedder.linear_1.weight.dtype)
    if compiled:
        network.compile_blocks()
    graphed = GraphedForward(network) if graphs else None
    if pipeline is not None:
        pipeline.graphed = graphed
    how = {"compiled": compiled, "graphed": graphed}
    return Subject(model, network, numbers, numbers.method, precision, latent_size, text, seeds, pipeline, **how)


def random_network(size: Size, seed: int, device: torch.device | str = "cpu") -> WanDiT:
    """A frozen network of random weights, the same for the same seed and device, none of them zero by design."""
    torch.manual_seed(seed)
    with torch.device(device):
        network = WanDiT(**size)
        nn.init.xavier_uniform_(network.proj_out.weight)
    return network.eval().requires_grad_(False)


def cast_network(network: WanDiT, precision: str, device: torch.device | str = "cpu") -> WanDiT:
    """`network` in one of `PRECISIONS` on a device, frozen."""
    if precision == "mixed":
        network.to_mixed(torch.bfloat16)
    else:
        nn.Module.to(network, getattr(torch, precision))
    nn.Module.to(network, device)
    return network.requires_grad_(False)
