"""What attention reads and returns, as values, and the one function that computes it.

B batch, F latent frames of the queries, P latent frames of the past, S tokens per latent frame, N layers, H heads,
D head width, L text tokens. Knows neither how a cache evicts nor which network the keys came from.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from reward_forcing.models.cpu_attention import attend_by_products, products_are_chosen
from reward_forcing.models.cuda_attention import attend_on_gpu


@dataclass(frozen=True)
class KV:
    """Self-attention keys and values for the frames of one forward, a tensor for each of the N layers.

    keys, values: N of [B, F, S, H, D]; keys are RMS-normalised but not rotated.
    """

    keys: Sequence[Tensor]
    values: Sequence[Tensor]

    @property
    def frames(self) -> int:
        """Number of frames F."""
        return self.keys[0].shape[1]

    def map(self, change: Callable[[Tensor], Tensor]) -> "KV":
        """These keys and values with every layer's changed."""
        return KV(*(tuple(change(layer) for layer in layers) for layers in (self.keys, self.values)))

    def stacked(self) -> tuple[Tensor, Tensor]:
        """Keys and values of all layers as two tensors [N, B, F, S, H, D], copies."""
        return torch.stack(tuple(self.keys)), torch.stack(tuple(self.values))


class OnDemand(Sequence[Tensor]):
    """Layers that are made whenever they are read, and kept by nobody: `make` of each of `sources`."""

    def __init__(self, sources: Sequence[Any], make: Callable[[Any], Tensor]) -> None:
        self._sources, self._make = sources, make

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, layer: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] no slices
        return self._make(self._sources[layer])


@dataclass(frozen=True)
class Past:
    """What the frames of a chunk can see besides themselves, and where in time everything sits.

    keys, values: N of [B, P, S, H, D], a tensor for each layer. key_positions [P] and query_positions [F] are integer
    time positions for RoPE, of the past frames and of the frames being denoised, on the CPU, where reading them waits
    for nothing; only their differences matter to the result. `rotated` tells that RoPE at `key_positions` has been
    applied to `keys` (see `WanDiT.rotate`), which several passes can then share.
    """

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    key_positions: Tensor
    query_positions: Tensor
    rotated: bool = False

    @property
    def frames(self) -> int:
        """Number of frames P."""
        return len(self.key_positions)

    def with_rotated(self, rotate: Callable[[Tensor], Tensor]) -> "Past":
        """This past with `rotate` applied to every layer's keys; itself where that has happened before."""
        if self.rotated:
            return self
        keys = OnDemand(self.keys, rotate) if isinstance(self.keys, OnDemand) else tuple(map(rotate, self.keys))
        return replace(self, keys=keys, rotated=True)


@dataclass(frozen=True)
class TextContext:
    """Cross-attention keys and values of a prompt, computed once and read by every pass.

    keys, values: [N, B, L, H, D]. log_counts: [B, L] float32, the logarithm of how many tokens alike each key stands
    for (`WanDiT.encode_text` merges padding), None where each is one. Valid for the network weights and the prompt it
    was computed from, no others.
    """

    keys: Tensor
    values: Tensor
    log_counts: Tensor | None = None

    @property
    def batch(self) -> int:
        """Number of prompts B."""
        return self.keys.shape[1]

    def expand(self, batch: int) -> "TextContext":
        """The context of a single prompt seen by `batch` samples, without copying."""
        if self.batch not in (1, batch):
            raise ValueError(f"cannot expand a text context of {self.batch} prompts to {batch} samples; only 1 expands")
        return self._samples(lambda tensor, axis: tensor.expand(*tensor.shape[:axis], batch, *tensor.shape[axis + 1 :]))

    @property
    def depth(self) -> int:
        """Number of layers N."""
        return self.keys.shape[0]

    def layer(self, index: int, frames: int) -> "LayerText":
        """Keys and values of one layer, read by all of `frames` frames."""
        return ((frames, (self.reading(index),)),)

    def reading(self, index: int, weight: float = 1.0) -> "Reading":
        """What a frame reads in one layer where this text counts `weight`."""
        return Reading(weight, self.keys[index], self.values[index], self.log_counts)

    def select(self, samples: slice | Tensor) -> "TextContext":
        """The contexts of some samples, chosen by a slice or an index tensor."""
        return self._samples(lambda tensor, axis: tensor[samples] if axis == 0 else tensor[:, samples])

    def detach(self) -> "TextContext":
        """The same numbers without their graph."""
        return self._samples(lambda tensor, _: tensor.detach())

    def _samples(self, change: Callable[[Tensor, int], Tensor]) -> "TextContext":
        """This context with every tensor changed, given with the axis of its samples."""
        counts = None if self.log_counts is None else change(self.log_counts, 0)
        return TextContext(change(self.keys, 1), change(self.values, 1), counts)


@dataclass(frozen=True)
class TextTimeline:
    """Text that changes within the frames of one forward: for training on videos whose prompt is switched.

    spans: (frames, context) in the order of the frames. Raises ValueError for an empty span and for contexts of
    different batches or networks.
    """

    spans: tuple[tuple[int, TextContext], ...]

    def __post_init__(self) -> None:
        if not self.spans or any(frames < 1 for frames, _ in self.spans):
            raise ValueError(f"every text needs at least one frame, got {[frames for frames, _ in self.spans]}")
        _check_alike([context for _, context in self.spans])

    @property
    def batch(self) -> int:
        """Number of samples B."""
        return self.spans[0][1].batch

    @property
    def depth(self) -> int:
        """Number of layers N."""
        return self.spans[0][1].depth

    def layer(self, index: int, frames: int) -> "LayerText":
        """Keys and values of one layer for each span of frames. Raises ValueError if the spans do not add up."""
        if sum(count for count, _ in self.spans) != frames:
            raise ValueError(f"the texts span {[count for count, _ in self.spans]} frames, the latents have {frames}")
        return tuple(span for count, context in self.spans for span in context.layer(index, count))


@dataclass(frozen=True)
class TextMix:
    """Several prompts read at once by all frames of a forward: for a prompt that gives way to another over some chunks.

    parts: (weight, context). Every cross-attention reads each prompt by itself and adds up what it got, weighted. So
    each reading is one that the network knows, the way from one prompt to another is straight in every layer, and its
    ends are the prompts themselves. Mixed embeddings, keys or values would be texts that nobody wrote: words that
    happen to have the same number in two prompts have nothing in common.
    Raises ValueError unless the weights are positive and add up to 1, and for contexts of different batches or
    networks.
    """

    parts: tuple[tuple[float, TextContext], ...]

    def __post_init__(self) -> None:
        weights = [weight for weight, _ in self.parts]
        if any(weight <= 0 for weight in weights) or abs(sum(weights) - 1) > WEIGHT_SLACK:
            raise ValueError(f"the weights of mixed prompts must be positive and add up to 1, got {weights}")
        _check_alike([context for _, context in self.parts])

    @property
    def batch(self) -> int:
        """Number of samples B."""
        return self.parts[0][1].batch

    @property
    def depth(self) -> int:
        """Number of layers N."""
        return self.parts[0][1].depth

    def layer(self, index: int, frames: int) -> "LayerText":
        """Weights, keys and values of one layer, read by all of `frames` frames."""
        return ((frames, tuple(text.reading(index, weight) for weight, text in self.parts)),)


WEIGHT_SLACK = 1e-6
"""How far the weights of mixed prompts may be from 1 in sum."""


def _check_alike(contexts: Sequence[TextContext]) -> None:
    kinds = {(context.batch, context.depth) for context in contexts}
    if len(kinds) > 1:
        raise ValueError(f"the texts must have one batch and one number of layers, got {sorted(kinds)}")


class Reading(NamedTuple):
    """One prompt in one layer: what it counts, keys and values [B, L, H, D], and `TextContext.log_counts`."""

    weight: float
    keys: Tensor
    values: Tensor
    log_counts: Tensor | None


Readings = tuple[Reading, ...]
"""What a frame reads in one layer of each of its prompts."""

LayerText = tuple[tuple[int, Readings], ...]
"""Cross-attention of one layer: for each span of frames their number and what they read."""

Text = TextContext | TextTimeline | TextMix
"""One prompt for all frames of a forward, several in turn, or several at once."""

Frames = tuple[int, int]
"""A half-open span of frames [start, stop)."""


@dataclass(frozen=True)
class AttentionPattern:
    """Which frames see which: for each span of query frames, the spans of key frames it attends to.

    spans: ((query, (key, ...)), ...) in frames, the queries in order and without gaps. Attention inside a pair of spans
    is full. positions: the RoPE time position of each frame of the sequence.
    """

    spans: tuple[tuple[Frames, tuple[Frames, ...]], ...]
    positions: tuple[int, ...]

    def __post_init__(self) -> None:
        frame = 0
        for (start, stop), keys in self.spans:
            if start != frame or stop <= start:
                raise ValueError(f"query spans must follow each other from frame 0, got {[q for q, _ in self.spans]}")
            if not keys or any(not 0 <= a < b <= self.frames for a, b in keys):
                raise ValueError(f"queries {(start, stop)} need key spans within {(0, self.frames)}, got {keys}")
            frame = stop
        if frame != self.frames:
            raise ValueError(f"{self.frames} positions given for {frame} query frames")

    @property
    def frames(self) -> int:
        """Length of the sequence in frames."""
        return len(self.positions)

    def dense(self, tokens_per_frame: int = 1) -> Tensor:
        """Boolean mask [F S, F S] of queries x keys, True where a query sees a key; for tests and pictures."""
        mask = torch.zeros(self.frames, self.frames, dtype=torch.bool)
        for (start, stop), keys in self.spans:
            for a, b in keys:
                mask[start:stop, a:b] = True
        return mask.repeat_interleave(tokens_per_frame, 0).repeat_interleave(tokens_per_frame, 1)


WantKV = bool | Literal["only"]
"""Whether a forward returns keys and values of its frames; with "only" it stops as soon as the last layer has them."""


@dataclass(frozen=True)
class Prediction:
    """What a denoiser thinks of noisy latents x [B, F, C, H, W].

    x0: clean latents, float32. velocity: noise - x0 as the network put it out, float32. kv: of these frames, if asked.
    Where only kv was asked for, x0 and velocity may be of no frames.
    """

    x0: Tensor
    velocity: Tensor
    kv: KV | None = None


class DenoiserProtocol(Protocol):
    """What the rollout asks of a network: `models.denoiser.Denoiser`, or anything that answers likewise."""

    def __call__(
        self, x: Tensor, sigma: Tensor, text: Text, past: Past | None = None, want_kv: WantKV = False
    ) -> Prediction:
        """Predict from x [B, F, C, h, w] at noise level sigma [F] or [B, F], which a rollout gives on the CPU."""
        ...

    def rotate(self, past: Past, latent_size: tuple[int, int]) -> Past:
        """Apply RoPE to the past's keys once for all passes of a chunk; latent_size is (h, w) of the latents."""
        ...


def attend(query: Tensor, key: Tensor, value: Tensor, log_counts: Tensor | None = None) -> Tensor:
    """Softmax attention without a mask over tokens: [B, Q, H, D] x [B, K, H, D] -> [B, Q, H, D].

    log_counts [B, K]: of how many keys alike each one stands for, which adds to its scores; None for one each.
    """
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    bias = None if log_counts is None else log_counts[:, None, None, :]
    if products_are_chosen(query, key, value):
        return attend_by_products(query, key, value, bias).transpose(1, 2)
    if bias is not None and query.device.type != "cpu":  # where kernels want one dtype
        bias = bias.to(query.dtype)
    if query.device.type == "cuda":
        return attend_on_gpu(query, key, value, bias).transpose(1, 2)
    return scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2)


def attend_text(query: Tensor, readings: Readings) -> Tensor:
    """What tokens [B, Q, H, D] get from the prompts they read, weighted: [B, Q, H, D]."""
    read = [attend(query, text.keys, text.values, text.log_counts) for text in readings]
    if len(read) == 1:
        return read[0]
    return torch.stack([text.weight * each for text, each in zip(readings, read, strict=True)]).sum(dim=0)


def attend_pattern(query: Tensor, key: Tensor, value: Tensor, pattern: AttentionPattern) -> Tensor:
    """Attention among frames [B, F, S, H, D] under `pattern`, shaped like `query`.

    One mask-free call per span of queries, so memory-efficient kernels apply and masked scores are never computed.
    """
    out = []
    for (start, stop), spans in pattern.spans:
        keys, values = (_frames(tensor, spans).flatten(1, 2) for tensor in (key, value))
        out.append(attend(query[:, start:stop].flatten(1, 2), keys, values))
    return torch.cat(out, dim=1).unflatten(1, query.shape[1:3])


def _frames(tensor: Tensor, spans: tuple[Frames, ...]) -> Tensor:
    parts = [tensor[:, start:stop] for start, stop in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
