"""Wan2.1's video transformer, for bidirectional, pattern-masked and cached streaming use.

B batch, F latent frames, S tokens per latent frame, C latent channels, N layers, H heads, D head width, L text tokens,
E model width (H D). The network maps tokens to velocities and returns its keys and values; which past it sees and at
which positions is its caller's choice. Parameter names and configuration are those of diffusers'
`WanTransformer3DModel`, so a `transformer/` folder serves both classes.
"""

import json
import math
from collections.abc import Iterable
from typing import cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn.functional import silu

from reward_forcing.models.attention import KV, AttentionPattern, Past, Text, TextContext, WantKV
from reward_forcing.models.cpu_attention import measure_heads
from reward_forcing.models.cuda_attention import measure_attention
from reward_forcing.models.fastest import is_training
from reward_forcing.models.layers import EmbeddingMLP, LayerPast, PatchEmbedding, TimeContext, WanBlock, modulate
from reward_forcing.models.rope import Rotation, rotate, rotation
from reward_forcing.models.sequence_parallel import ALL, SequenceShare

QK_NORM = "rms_norm_across_heads"
SHAPES_COMPILED = 64
"""Shapes of input that a compiled block is specialised on before it runs uncompiled: windows, batches, texts."""
TEXT_STEP = 32
"""Lengths of merged text are multiples of this, so that a compiled network meets few of them."""


class ConditionEmbedder(nn.Module):
    """Embeddings of time and text, with diffusers' parameter names."""

    def __init__(self, width: int, freq_dim: int, text_dim: int) -> None:
        super().__init__()
        self.freq_dim = freq_dim
        self.time_embedder = EmbeddingMLP(freq_dim, width, nn.SiLU())
        self.time_proj = nn.Linear(width, 6 * width)
        self.text_embedder = EmbeddingMLP(text_dim, width, nn.GELU(approximate="tanh"))

    def time(self, timestep: Tensor) -> TimeContext:
        """Embedding [..., E] of timesteps [...] for the head, and its projection [..., 6, E] for the blocks.

        Outside autocast: a bfloat16 sinusoid cannot tell neighbouring timesteps apart.
        """
        with torch.autocast(timestep.device.type, enabled=False):
            embedding = self.time_embedder(sinusoid(timestep, self.freq_dim))
            projection = self.time_proj(silu(embedding).to(self.time_proj.weight.dtype))
        return TimeContext(embedding, projection.unflatten(-1, (6, -1)))


class WanDiT(ModelMixin, ConfigMixin):
    """Transformer from noisy latents, timesteps and text to velocities.

    Arguments are diffusers' configuration keys. `rope_max_seq_len` is kept for the file format only: positions here
    have no upper limit. Raises ValueError for the image-to-video keys and for other norms, which are not implemented.

    Precision follows the parameters. `from_pretrained(..., torch_dtype=torch.bfloat16)` and `to_mixed` keep the time
    embedding, modulation and norms in float32 as Wan2.1 does; `.to(torch.bfloat16)` makes everything bfloat16 as the
    Self Forcing and Reward Forcing reference code does.

    Sharding wrappers must register `encode_text` of this class and of every block as forward methods.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["WanBlock"]  # noqa: RUF012
    _repeated_blocks = ["WanBlock"]  # noqa: RUF012
    _keep_in_fp32_modules = ["time_embedder", "time_proj", "scale_shift_table", "norm2"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        in_channels: int = 16,
        out_channels: int | None = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 13824,
        num_layers: int = 40,
        cross_attn_norm: bool = True,
        qk_norm: str | None = QK_NORM,
        eps: float = 1e-6,
        image_dim: int | None = None,
        added_kv_proj_dim: int | None = None,
        rope_max_seq_len: int = 1024,
        pos_embed_seq_len: int | None = None,
    ) -> None:
        super().__init__()
        _check_supported(patch_size, attention_head_dim, freq_dim, qk_norm)
        if image_dim is not None or added_kv_proj_dim is not None or pos_embed_seq_len is not None:
            raise ValueError("image-to-video networks (image_dim, added_kv_proj_dim) are not supported; use a T2V one")
        width = num_attention_heads * attention_head_dim
        _, rows, columns = patch_size
        self.patch = (1, rows, columns)
        self.head_dim = attention_head_dim
        self.eps = eps
        self.patch_embedding = PatchEmbedding(in_channels, width, self.patch)
        self.condition_embedder = ConditionEmbedder(width, freq_dim, text_dim)
        self.blocks = nn.ModuleList(
            WanBlock(width, ffn_dim, num_attention_heads, cross_attn_norm, eps) for _ in range(num_layers)
        )
        self.proj_out = nn.Linear(width, (out_channels or in_channels) * math.prod(self.patch))
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, width) / width**0.5)
        self.gradient_checkpointing = False
        self._rotate = rotate
        self._is_compiled = False
        self.share: SequenceShare = ALL
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights of an untrained network as Wan2.1 does.

        Xavier-uniform matrices with zero bias; text and time embedders N(0, 0.02^2); zero output projection. The
        modulation tables, N(0, 1 / E), are drawn where they are made.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | PatchEmbedding):
                nn.init.xavier_uniform_(module.weight.flatten(1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for embedder in (self.condition_embedder.text_embedder, self.condition_embedder.time_embedder):
            nn.init.normal_(embedder.linear_1.weight, std=0.02)
            nn.init.normal_(embedder.linear_2.weight, std=0.02)
        nn.init.zeros_(self.proj_out.weight)

    def to_mixed(self, dtype: torch.dtype) -> "WanDiT":
        """This network with its matrices in `dtype` and the time embedding, modulation and norms in float32."""
        for name, parameter in self.named_parameters():
            keep = any(part in name for part in self._keep_in_fp32_modules)
            parameter.data = parameter.data.to(torch.float32 if keep else dtype)
        return self

    def compute_only(self, share: SequenceShare) -> None:
        """Let every forward compute `share`, together with the processes that compute the others."""
        self.share = share
        for block in cast(Iterable[WanBlock], self.blocks):
            block.share = share

    def compile_blocks(self) -> "WanDiT":
        """This network with its blocks and `rotate` compiled: fused kernels, made anew for each shape that they meet.

        On a CPU compiling needs a C++ compiler. Names and values of parameters stay as they are.
        """
        weight = self.patch_embedding.weight
        if weight.device.type == "cpu" and weight.dtype == torch.bfloat16:
            measure_heads(self.head_dim)
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES_COMPILED)
        for block in self.blocks:
            block.compile(dynamic=False)
        self._rotate = torch.compile(rotate, dynamic=False)
        self._is_compiled = True
        return self

    def encode_text(self, embeddings: Tensor, merge_padding: bool = False) -> TextContext:
        """Cross-attention keys and values of prompts, for all passes that use these weights and prompts.

        embeddings: [B, L, text_dim] from the text encoder, padded to its length with zero rows: nothing is masked, and
        padding takes part in the attention. Gradients flow where enabled. merge_padding: zero rows, whose keys are all
        alike, become a few that count for many. Attention gives the same with less work; how many there are is read
        from the embeddings, which a GPU would have to be waited for.
        """
        counts = None
        if merge_padding:
            embeddings, counts = _merge_padding(embeddings)
        text = self.condition_embedder.text_embedder(embeddings)
        pairs = [block.encode_text(text) for block in cast(Iterable[WanBlock], self.blocks)]
        return TextContext(torch.stack([key for key, _ in pairs]), torch.stack([value for _, value in pairs]), counts)

    def encode_time(self, timestep: Tensor) -> TimeContext:
        """What forwards at timesteps [B] or, one per frame, [B, F] read of them, for all that use these weights."""
        return self.condition_embedder.time(timestep if timestep.ndim == 2 else timestep[:, None])

    def rotate(self, past: Past, latent_size: tuple[int, int]) -> Past:
        """`past` with RoPE applied to its keys, in the network's dtype, for all passes of a chunk.

        latent_size: rows and columns (h, w) of the latents. A past that is already rotated comes back as it is.
        """
        if past.rotated:
            return past
        weight = self.patch_embedding.weight
        by = self.rotation_at(past.key_positions, latent_size, weight.device)
        return past.with_rotated(lambda keys: self._rotate(keys, by).to(weight.dtype))

    def rotation_at(self, positions: Tensor, latent_size: tuple[int, int], device: torch.device) -> Rotation:
        """RoPE of frames at time `positions` [F]; latent_size is (h, w) of the latents."""
        return rotation(positions, self._grid(latent_size), self.head_dim, device)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor | TimeContext,
        text: Text,
        *,
        past: Past | None = None,
        pattern: AttentionPattern | None = None,
        positions: Tensor | Rotation | None = None,
        want_kv: WantKV = False,
    ) -> tuple[Tensor, KV | None]:
        """Velocities [B, F, C, h, w], and with `want_kv` the keys and values of these frames; "only" these: F is 0.

        x: noisy latents [B, F, C, h, w]. timestep: [B] or, one per frame, [B, F], in [0, 1000], or `encode_time` of it.
        Without `past` and `pattern` all frames see each other (bidirectional). `past`: frames that all of x also sees.
        `pattern`: who sees whom inside x, for training. text: of one prompt, or of several in turn or at once.
        positions [F]: time positions of x for RoPE, on the CPU, or `rotation_at` them; otherwise the past's, the
        pattern's, or 0 .. F - 1.
        """
        grid = self._check(x, timestep, text, past, pattern)
        if positions is None:
            positions = _positions(x, past, pattern)
        size = (x.shape[3], x.shape[4])
        by = positions if isinstance(positions, Rotation) else self.rotation_at(positions, size, x.device)
        if past is not None:
            past = self.rotate(past, size)
        time = self.encode_time(timestep) if isinstance(timestep, Tensor) else timestep
        if self._is_compiled and pattern is None:
            self._choose_attention(x, attention_lengths(x.shape[1], math.prod(grid), past, text))

        tokens = self.share.split(self.patch_embedding(x).to(self.patch_embedding.weight.dtype))  # [B, F, S, E]
        checkpointing = self.gradient_checkpointing and torch.is_grad_enabled()
        checkpointed = self._gradient_checkpointing_func if checkpointing else None
        keys, values = [], []
        for layer, block in enumerate(self.blocks):
            layer_text = text.layer(layer, x.shape[1])
            layer_past = None if past is None else LayerPast(past.keys[layer], past.values[layer])
            stop = want_kv == "only" and layer == len(self.blocks) - 1
            inputs = (tokens, time.modulation, layer_text, by, layer_past, pattern, stop)
            tokens, key, value = checkpointed(block, *inputs) if checkpointed else block(*inputs)
            if want_kv:
                keys.append(key)
                values.append(value)
        kv = KV(tuple(keys), tuple(values)) if want_kv else None
        if want_kv == "only":
            return x.new_empty(x.shape[0], 0, *x.shape[2:], dtype=torch.float32), kv
        patches = self.share.join(self._head(tokens, time.embedding), math.prod(grid))
        return self._unpatchify(patches, grid), kv

    def to_json_string(self) -> str:
        """The configuration as JSON under diffusers' class name, so that either class loads the folder."""
        return json.dumps(json.loads(super().to_json_string()) | {"_class_name": "WanTransformer3DModel"}, indent=2)

    def _choose_attention(self, x: Tensor, lengths: Iterable[tuple[int, int, bool]]) -> None:
        """Let the GPU's backends be measured ahead of blocks that are compiled, in which nothing can be."""
        weight = self.patch_embedding.weight
        if x.device.type == "cuda" and not is_training((x, weight)):
            for queries, keys, is_biased in lengths:
                measure_attention(x.device, weight.dtype, self.head_dim, queries, keys, is_biased)

    def _head(self, tokens: Tensor, embedding: Tensor) -> Tensor:
        table = (self.scale_shift_table + embedding.unsqueeze(2)).unsqueeze(3)  # [B, F or 1, 2, 1, E]
        shift, scale = table.unbind(2)
        return self.proj_out(modulate(tokens, shift, scale, self.eps))

    def _unpatchify(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        _, rows, columns = self.patch
        pixels = tokens.unflatten(3, (rows, columns, -1)).unflatten(2, grid)  # [B, F, y, x, rows, columns, C]
        return pixels.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)

    def _grid(self, latent_size: tuple[int, int]) -> tuple[int, int]:
        height, width = latent_size
        _, rows, columns = self.patch
        if height % rows or width % columns:
            raise ValueError(f"latents of {height} x {width} do not divide into patches of {rows} x {columns}")
        return height // rows, width // columns

    def _check(
        self,
        x: Tensor,
        timestep: Tensor | TimeContext,
        text: Text,
        past: Past | None,
        pattern: AttentionPattern | None,
    ) -> tuple[int, int]:
        batch, frames = x.shape[:2]
        times = timestep.shape if isinstance(timestep, Tensor) else timestep.embedding.shape[:2]
        if times not in ((batch,), (batch, 1), (batch, frames)):
            raise ValueError(f"timestep must be [{batch}] or [{batch}, {frames}], got {list(times)}")
        if text.batch != batch or text.depth != len(self.blocks):
            raise ValueError(
                f"text context is of {text.batch} prompts and {text.depth} layers; the latents have {batch} "
                f"samples and the network {len(self.blocks)} layers. Compute it with this network's encode_text and "
                "share one prompt with .expand(batch)"
            )
        if past is not None and pattern is not None:
            raise ValueError("give either a past (streaming) or a pattern (training), not both")
        if pattern is not None and pattern.frames != frames:
            raise ValueError(f"pattern is made for {pattern.frames} frames, got {frames}")
        if past is not None and past.query_positions.numel() != frames:
            raise ValueError(f"past gives positions to {past.query_positions.numel()} frames, got {frames}")
        return self._grid((x.shape[3], x.shape[4]))


def attention_lengths(frames: int, tokens: int, past: Past | None, text: Text) -> set[tuple[int, int, bool]]:
    """What a block attends to in a forward of so many frames of `tokens`: queries, keys, whether scores are biased."""
    seen = frames if past is None else frames + past.frames
    read = {
        (span * tokens, reading.keys.shape[1], reading.log_counts is not None)
        for span, readings in text.layer(0, frames)
        for reading in readings
    }
    return {(frames * tokens, seen * tokens, False), *read}


def sinusoid(timestep: Tensor, width: int) -> Tensor:
    """Features [..., width] of timesteps [...]: cos, then sin of t 10000^(-j / half), j < half = width / 2; float64."""
    half = width // 2
    exponent = torch.arange(half, dtype=torch.float64, device=timestep.device) / half
    angle = timestep.double().unsqueeze(-1) * 10000.0**-exponent
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def _merge_padding(embeddings: Tensor) -> tuple[Tensor, Tensor | None]:
    """Embeddings [B, L', text_dim] with fewer zero rows, and the logarithms [B, L'] of how many each row stands for."""
    padded = embeddings.shape[1]
    numbers = torch.arange(1, padded + 1, device=embeddings.device)
    ends = (embeddings.any(-1) * numbers).amax(dim=1, keepdim=True)  # [B, 1], the length of each prompt
    kept = TEXT_STEP * (int(ends.max()) // TEXT_STEP + 1)  # at least one zero row more than the longest
    if kept >= padded:
        return embeddings, None
    counts = torch.where(numbers[:kept] > ends, (padded - ends) / (kept - ends), 1.0)
    return embeddings[:, :kept], counts.log()


def _positions(x: Tensor, past: Past | None, pattern: AttentionPattern | None) -> Tensor:
    if past is not None:
        return past.query_positions
    if pattern is not None:
        return torch.tensor(pattern.positions, device="cpu")
    return torch.arange(x.shape[1], device="cpu")


def _check_supported(patch: tuple[int, ...], head_dim: int, freq_dim: int, qk_norm: str | None) -> None:
    if len(patch) != 3 or patch[0] != 1:
        raise ValueError(f"patch_size must be (1, rows, columns): a token lies within one frame; got {tuple(patch)}")
    if head_dim % 2 or freq_dim % 2:
        raise ValueError(f"attention_head_dim and freq_dim must be even, got {head_dim} and {freq_dim}")
    if qk_norm != QK_NORM:
        raise ValueError(f"qk_norm must be {QK_NORM!r}, got {qk_norm!r}")
