"""What passes of a transformer cost, by formula: floating-point operations, and bytes that live meanwhile.

n query tokens, k key tokens, S tokens per latent frame, L text tokens, E model width, f width of the feed-forward,
N layers, H heads. All costs are of one sample. Bytes follow the order of operations in `models.layers`: weights and
the residual stream are float32, matrix products and attention in the compute dtype (bfloat16 under autocast), and
attention is a fused kernel that keeps no scores. Knows no stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import torch

from reward_forcing.models.attention import KV, AttentionPattern, Past
from reward_forcing.models.wan_dit import WanDiT
from reward_forcing.rollout.kv_cache import CacheSettings, KVCache
from reward_forcing.rollout.schedule import Pass, chunkwise
from reward_forcing.training.lora import adapters

WIDE = 4  # bytes of a float32 number
TEXT_LAYERS = (".attn2.to_k", ".attn2.to_v")  # what reads the text's tokens in place of the frames'


@dataclass(frozen=True)
class Shape:
    """A transformer as the numbers its costs depend on.

    inputs, outputs: numbers per token before and after the network. tokens: per latent frame. adapter, text_adapter:
    numbers of the adapters that are applied to tokens of frames and of text, of all blocks; everything else is frozen
    where there are any. ranks, text_ranks: sums of their ranks.
    """

    layers: int
    width: int
    hidden: int
    heads: int
    inputs: int
    outputs: int
    freq_dim: int
    text_dim: int
    tokens: int
    adapter: int = 0
    text_adapter: int = 0
    ranks: int = 0
    text_ranks: int = 0

    @classmethod
    def of(cls, network: WanDiT, latent_size: tuple[int, int]) -> Self:
        """The shape of a network that reads latents of `latent_size` (rows, columns).

        Raises ValueError for latents that do not divide into patches.
        """
        config, (_, rows, columns) = network.config, network.patch
        if latent_size[0] % rows or latent_size[1] % columns:
            raise ValueError(f"latent_size {latent_size} does not divide into patches of {(rows, columns)}")
        heads = config["num_attention_heads"]
        adapted = [(name.endswith(TEXT_LAYERS), layer) for name, layer in adapters(network).items()]
        numbers, ranks = (
            [sum(count(layer) for of_text, layer in adapted if of_text == which) for which in (False, True)]
            for count in (lambda layer: layer.rank * (layer.in_features + layer.out_features), lambda layer: layer.rank)
        )
        return cls(
            layers=config["num_layers"],
            width=heads * config["attention_head_dim"],
            hidden=config["ffn_dim"],
            heads=heads,
            inputs=config["in_channels"] * rows * columns,
            outputs=network.proj_out.out_features,
            freq_dim=config["freq_dim"],
            text_dim=config["text_dim"],
            tokens=(latent_size[0] // rows) * (latent_size[1] // columns),
            adapter=numbers[0],
            text_adapter=numbers[1],
            ranks=ranks[0],
            text_ranks=ranks[1],
        )

    @property
    def is_adapted(self) -> bool:
        """Whether only adapters are trained."""
        return self.adapter + self.text_adapter > 0


@dataclass(frozen=True)
class Attended:
    """Which latent frames one forward computes and sees.

    frames: computed, each with a timestep of its own. pairs: sum over them of the frames that each one sees. past: of
    a cache. spans: separate attention calls under a pattern, 0 without one.
    """

    frames: int
    pairs: int
    past: int = 0
    spans: int = 0


def bidirectional(frames: int) -> Attended:
    """All frames see each other."""
    return Attended(frames, frames * frames)


def patterned(pattern: AttentionPattern) -> Attended:
    """Frames that see each other under a pattern."""
    pairs = sum((stop - start) * sum(b - a for a, b in keys) for (start, stop), keys in pattern.spans)
    return Attended(pattern.frames, pairs, spans=len(pattern.spans))


def walked(settings: CacheSettings, passes: Iterable[Pass]) -> tuple[tuple[Attended, ...], tuple[Attended, ...]]:
    """The passes of a rollout with the past that the cache shows each, and the clean passes between them.

    The chunk that the last pass finishes has no clean pass: nobody reads it.
    """
    chunk, cache = settings.chunk_frames, KVCache.empty(settings)
    kv = KV(*((torch.empty(1, chunk, 1, 1, 1, device="meta"),) for _ in range(2)))
    seen: list[Attended] = []
    clean: list[Attended] = []
    is_pending = False
    for step in passes:
        if is_pending:
            clean.append(_over(cache.past(chunk, settings.clean_pass_sees_sink), chunk))
            cache = cache.commit(kv)
        frames = chunk * len(step.chunks)
        seen.append(_over(cache.past(frames), frames))
        is_pending = step.finishes
    return tuple(seen), tuple(clean)


def _over(past: Past | None, frames: int) -> Attended:
    """So many frames that see each other and a past."""
    before = 0 if past is None else past.frames
    return Attended(frames, frames * (before + frames), past=before)


def rolled_out(settings: CacheSettings, frames: int) -> tuple[Attended, ...]:
    """The chunks of a rollout of `frames` latent frames: one pass over each, with the past that the cache shows it."""
    return walked(settings, chunkwise((1.0,), chunks=-(-frames // settings.chunk_frames)))[0]


def forward_flops(shape: Shape, seen: Attended, text_tokens: int) -> int:
    """Operations of one forward; a product of [a, b] and [b, c] counts 2 a b c, everything else nothing.

    N (n E (12 E + 4 f) + 4 E (S^2 pairs + n L)) + 2 n E (inputs + outputs), `time_flops`, and 2 n for each number of an
    adapter.
    """
    width, n = shape.width, seen.frames * shape.tokens
    products = n * width * (12 * width + 4 * shape.hidden)
    attention = 4 * width * (shape.tokens**2 * seen.pairs + n * text_tokens)
    ends = 2 * n * width * (shape.inputs + shape.outputs)
    return shape.layers * (products + attention) + ends + time_flops(shape, seen.frames) + 2 * n * shape.adapter


def skipped_flops(shape: Shape, seen: Attended) -> int:
    """Operations that the backward of one forward is spared where only adapters are trained: 0 for a whole network.

    A matrix in a block then costs the gradient of its input and not its own, what comes before the blocks neither.
    """
    if not shape.is_adapted:
        return 0
    width, n = shape.width, seen.frames * shape.tokens
    products = shape.layers * n * width * (12 * width + 4 * shape.hidden)
    before = 2 * n * width * shape.inputs + time_flops(shape, seen.frames)
    return products + 2 * n * width * shape.outputs + 2 * before


def kv_flops(shape: Shape, seen: Attended, text_tokens: int) -> int:
    """Operations of a clean pass, a forward that ends with the last layer's keys and values.

    `forward_flops` without n E (8 E + 4 f) + 4 E (S^2 pairs + n L) in that layer, and without the output projection; of
    a network without adapters.
    """
    width, n = shape.width, seen.frames * shape.tokens
    attention = 4 * width * (shape.tokens**2 * seen.pairs + n * text_tokens)
    skipped = n * width * (8 * width + 4 * shape.hidden) + attention + 2 * n * width * shape.outputs
    return forward_flops(shape, seen, text_tokens) - skipped


def time_flops(shape: Shape, frames: int) -> int:
    """Operations that embed the timesteps of F frames: 2 F (freq_dim E + 7 E^2)."""
    return 2 * frames * shape.width * (shape.freq_dim + 7 * shape.width)


def text_flops(shape: Shape, text_tokens: int) -> int:
    """Operations of `WanDiT.encode_text` for one prompt: 2 L E (text_dim + E) + 4 N L E^2, and those of adapters."""
    width = shape.width
    products = 2 * text_tokens * width * (shape.text_dim + width + 2 * shape.layers * width)
    return products + 2 * text_tokens * shape.text_adapter


def skipped_text_flops(shape: Shape, text_tokens: int) -> int:
    """Operations that the backward of `encode_text` is spared where only adapters are trained: all but theirs."""
    return 2 * (text_flops(shape, text_tokens) - 2 * text_tokens * shape.text_adapter) if shape.is_adapted else 0


def layer_graph(shape: Shape, seen: Attended, compute: int) -> int:
    """Bytes that one block keeps for its backward, given `compute` bytes per number of its matrix products.

    What only the gradients of norms, modulation and gates need is not kept where these are frozen.
    """
    whole = 0 if shape.is_adapted else 1
    width, n = shape.width, seen.frames * shape.tokens
    keys = n + seen.past * shape.tokens
    mixed = compute < WIDE
    norm = WIDE + whole * compute  # of queries or keys: the input in float32, and the normalised
    stream = WIDE * (1 + whole)  # a layer norm's input and output
    gate = whole * WIDE  # what is gated
    self_attention = stream + (3 * compute if mixed else WIDE) + 2 * norm + 2 * compute + gate
    self_attention += compute if seen.spans > 1 else 0  # the outputs of all spans, joined
    cross_attention = WIDE + compute + norm + 2 * compute
    feed_forward = stream + compute + gate
    kept = n * width * (self_attention + cross_attention + feed_forward)
    kept += 2 * compute * keys * width  # keys and values
    kept += 2 * compute * n * shape.hidden  # before and after the activation
    kept += compute * n * shape.ranks // shape.layers  # what lies between an adapter's matrices
    return kept + WIDE * n * (2 * shape.heads + 9)  # log-sum-exps of both attentions, statistics of the norms


def text_graph(shape: Shape, text_tokens: int, compute: int) -> int:
    """Bytes that `encode_text` keeps for its backward."""
    mixed, whole = compute < WIDE, 0 if shape.is_adapted else 1
    norm = WIDE + whole * compute
    layer = (2 * compute if mixed else 0) + norm + 2 * compute  # inputs cast, norm of keys, stacked result
    embedder = (1 + 2 * whole) * compute * text_tokens * shape.width
    return text_tokens * (shape.width * layer * shape.layers + compute * shape.text_ranks) + embedder


def graph(shape: Shape, passes: Sequence[Attended], text_tokens: int, compute: int, checkpointed: bool) -> int:
    """Bytes kept for a backward through all `passes`, which share one text.

    checkpointed: of every block only its input is kept, and its past: a cache's keys as rotated in float32 and its
    values. Those belong to the chunk, so that every chunk keeps its own. Without it, a block keeps copies instead.
    """
    total = text_graph(shape, text_tokens, compute)
    for seen in passes:
        n = seen.frames * shape.tokens
        if checkpointed:
            past = seen.past * shape.tokens * shape.width * (WIDE + compute)
            total += shape.layers * (n * shape.width * WIDE + past)
        else:
            total += shape.layers * layer_graph(shape, seen, compute)
        if shape.is_adapted:
            total += n * shape.width * WIDE  # the last norm's input; beyond it all is frozen
        else:
            total += n * shape.width * (2 * WIDE + compute) + n * compute * (shape.inputs + shape.outputs)
    return total


def forward_work(shape: Shape, seen: Attended, text_tokens: int, compute: int) -> int:
    """Bytes alive at the peak of one forward without gradients: a block's largest moment, and the encoded text.

    That moment is the rotation of the keys, the attention, or the feed-forward with its hidden layer before and after
    the activation. All along the keys and values of this block and of the one before it are alive.
    """
    width, n = shape.width, seen.frames * shape.tokens
    joined = 2 * compute * width * (n + seen.past * shape.tokens) if seen.past else 0
    rotation = n * width * (4 * WIDE + 5 * compute)
    attention = n * width * (2 * WIDE + 7 * compute) + joined
    feed_forward = n * width * (3 * WIDE + 5 * compute) + 2 * compute * n * shape.hidden
    text = 2 * compute * shape.layers * text_tokens * width
    return max(rotation, attention, feed_forward) + text


def backward_work(shape: Shape, seen: Attended, text_tokens: int, compute: int, checkpointed: bool) -> int:
    """Bytes alive at the peak of a backward beside the graph: gradients, and the block computed again, if it is."""
    gradients = forward_work(shape, seen, text_tokens, compute)
    return gradients + (layer_graph(shape, seen, compute) if checkpointed else 0)


def cache_bytes(shape: Shape, settings: CacheSettings, frames: int, compute: int) -> int:
    """Bytes of the KV cache of a full window: keys and values, the sink in float32, and the rotated keys in float32."""
    shown = max(seen.past for seen in rolled_out(settings, frames))
    sink = min(settings.sink.frames, shown)
    kept = shown if settings.clean_pass_sees_sink else shown + sink
    return shape.layers * shape.tokens * shape.width * (kept * 2 * compute + shown * WIDE + sink * 2 * WIDE)
