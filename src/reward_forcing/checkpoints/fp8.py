"""Scaled fp8 weights, as single files for ComfyUI keep them: W = scale * q, q in 8 bits beside its float32 scale.

Two spellings are published: `<module>.scale_weight` with a tensor `scaled_fp8` as the mark, and `<module>.weight_scale`
(ComfyUI's QUANTIZATION.md). A scale holds for the whole matrix or for one row of it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from reward_forcing.checkpoints.files import LazyTensor

READ_AS = torch.bfloat16
"""What W is rounded to: 8 bits of precision against the 4 that fp8 has, at half of float32's memory."""

_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_MARK = "scaled_fp8"
_SCALES = ("scale_weight", "weight_scale")
_ASIDE = ("scale_input", "input_scale", "comfy_quant")  # scales of activations, the layout's name: no part of W


def is_scaled(state: Mapping[str, LazyTensor]) -> bool:
    """True if some of the weights in `state` stand beside scales."""
    return any(name == _MARK or name.rpartition(".")[2] in _SCALES for name in state)


def unscaled(state: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """`state` with every scaled weight as `READ_AS`, multiplied in float32 when it is read, and without the scales.

    Raises ValueError for a scale without its weight, an fp8 weight that lacks its scale, and any other quantisation.
    """
    scales: dict[str, LazyTensor] = {}
    weights: dict[str, LazyTensor] = {}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        if kind in _SCALES:
            scales[f"{module}.weight"] = tensor
        elif name != _MARK and kind not in _ASIDE:
            weights[name] = tensor
    for name, scale in scales.items():
        if name not in weights:
            raise ValueError(f"there is a scale for '{name}', but no such weight")
        weights[name] = _scaled(name, weights[name], scale)
    for name, tensor in weights.items():
        if not tensor.dtype.is_floating_point and not tensor.shape:
            raise ValueError(f"'{name}' is a number ({_name(tensor)}), no weight; take it out of the state dict")
        if not tensor.dtype.is_floating_point:
            raise ValueError(f"'{name}' is quantised to {_name(tensor)}; only fp8 is read, with or without scales")
        if is_scaled(state) and tensor.dtype in _FP8:
            raise ValueError(
                f"'{name}' is {_name(tensor)} and lacks its scale '{name.rpartition('.')[0]}.{_SCALES[0]}'"
            )
    return weights


def _scaled(name: str, q: LazyTensor, scale: LazyTensor) -> LazyTensor:
    rows = q.shape[:1]
    if q.dtype not in _FP8 or not scale.dtype.is_floating_point or scale.shape not in ((), (1,), rows, (*rows, 1)):
        raise ValueError(
            f"'{name}' is {_name(q)} {list(q.shape)} with scales {_name(scale)} {list(scale.shape)}; "
            "of quantised weights only fp8 with one scale, or one for each row, is read"
        )

    def product(stored: Tensor) -> Tensor:
        return (stored.float() * scale.read().float().reshape(-1, *[1] * (stored.ndim - 1))).to(READ_AS)

    return q.map(product, READ_AS)


def _name(tensor: LazyTensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
