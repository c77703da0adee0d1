"""A model in less memory or time: matrices in fewer bits, blocks that visit the device, compiled or graphed ones.

Owns what a network's weights are stored as and where its blocks lie; how much that saves is `memory_plan`'s to tell.
Everything happens while weights are read, block by block, so that the whole network in full precision is never on the
device.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from reward_forcing.checkpoints.load import load_transformer
from reward_forcing.config import Settings
from reward_forcing.models.float8_attention import attend_in_float8, check_kernel
from reward_forcing.models.layers import WanBlock
from reward_forcing.models.wan_dit import WanDiT
from reward_forcing.rollout.storage import Storage

Weights = Literal["exact", "int8", "fp8", "int8-dynamic", "fp8-dynamic"]
Attention = Literal["exact", "fp8"]


class Acceleration(Settings):
    """How a model is kept and run, beside what it computes.

    weights: of the blocks' matrices. int8 and fp8 store them with one scale per row and multiply in the network's own
    precision; the dynamic ones round what they are multiplied with as well. Everything but 'exact' changes the videos
    (docs/performance.md says by how much).
    attention: fp8 rounds queries, keys and values of self-attention to float8, for FlashAttention 3's kernel on a
    Hopper GPU (`attend_in_float8`); on a CPU it only shows what that changes.
    cache: how the KV cache keeps the local past. lean makes what a layer reads anew in every pass, which changes no
    video; int8 does so too, and stores the local past in 8 bits with one scale per frame and channel, which does. The
    sink stays float32 and the current chunk as it is.
    offload_text: the text encoder lies in host memory, see `TextEncoder`. offload_blocks: so many of the transformer's
    blocks lie in host memory and visit the device in turn, each copied while the one before it computes; more than
    there are means all. decode_frames: latent frames that are decoded at a time. These three change no video.
    compile: fused kernels for the blocks, made anew for every shape that they meet, which takes up to minutes where
    none are kept from before, and on a CPU a C++ compiler; videos change as another order of rounding changes them.
    graphs: on an NVIDIA GPU, once the window is full, passes are replayed as CUDA graphs (`GraphedForward`), which hold
    a copy of what passes see and change no video; one process alone, and an exact cache.
    Raises ValueError for blocks in host memory that are to be compiled or graphed as well, and for graphs with another
    cache, of which they would copy the whole.
    """

    weights: Weights = "exact"
    attention: Attention = "exact"
    cache: Storage = "exact"
    offload_text: bool = False
    offload_blocks: NonNegativeInt = 0
    decode_frames: PositiveInt = 3
    compile: bool = False
    graphs: bool = False

    @model_validator(mode="after")
    def _graphs_and_compiled_blocks_have_their_place(self) -> Self:
        for name, what in (("compile", "compiled"), ("graphs", "graphed")):
            if getattr(self, name) and self.offload_blocks:
                raise ValueError(f"{what} blocks cannot visit the device in turn; use {name}=false or offload_blocks=0")
        if self.graphs and self.cache != "exact":
            raise ValueError(f"graphs would copy a {self.cache} cache as a whole; use graphs=false or cache=exact")
        return self

    @property
    def is_exact(self) -> bool:
        """Whether videos are those of the stored weights, of exact attention and of an exact cache."""
        return self.weights == "exact" and self.attention == "exact" and self.cache != "int8"

    def check(self, device: torch.device, processes: int = 1) -> None:
        """Raise ValueError where this machine, or so many processes of one video, cannot do it."""
        if self.graphs and device.type != "cuda":
            raise ValueError(f"graphs=true needs an NVIDIA GPU, not {device}; use graphs=false")
        if self.graphs and processes > 1:
            raise ValueError(
                f"graphs=true is for one process, not for {processes} that share a video; use graphs=false"
            )
        if self.attention == "fp8":
            check_kernel(device)
        if self.weights == "exact":
            return
        try:
            import torchao  # noqa: F401
        except ImportError:
            raise ValueError(
                f"weights={self.weights} needs torchao; run: pip install -e '.[quant]' in its checkout, or use "
                "weights=exact"
            ) from None
        if self.weights == "fp8-dynamic" and not _multiplies_float8(device):
            raise ValueError(f"weights=fp8-dynamic needs a GPU that multiplies float8 (8.9 or newer), not {device}")


class LowBitLinear(nn.Linear):
    """A linear layer whose weight torchao stores; no shortcut for layers of exactly `nn.Linear` may take it."""


def load_accelerated(
    path: Path, acceleration: Acceleration, *, heads: int | None, dtype: torch.dtype, device: torch.device
) -> WanDiT:
    """The frozen network of a checkpoint, see `load_transformer`, kept as `acceleration` says.

    Raises ValueError also as `Acceleration.check` does, before any weights are read.
    """
    acceleration.check(device)
    of_file: dict[str, Any] = {"heads": heads, "dtype": dtype, "device": device}
    if acceleration.weights == "exact" and not acceleration.offload_blocks:
        network = load_transformer(path, **of_file).requires_grad_(False)
        for block in network.blocks:
            set_attention(block, acceleration.attention)
        return network.compile_blocks() if acceleration.compile else network
    staged: list[nn.Module] = []

    def settle(blocks: nn.ModuleList, number: int) -> None:
        block = blocks[number].requires_grad_(False).to(device)
        quantise(block, acceleration.weights)
        set_attention(block, acceleration.attention)
        if is_offloaded(number, len(blocks), acceleration.offload_blocks):
            staged.append(_to_host(block, pinned=device.type == "cuda"))

    network = load_transformer(path, **of_file, settle=settle).requires_grad_(False)
    if staged:
        _Stage(staged, device)
    return network.compile_blocks() if acceleration.compile else network


def is_offloaded(number: int, blocks: int, offloaded: int) -> bool:
    """Whether a block lies in host memory where so many of all do, spread evenly, so that copies have time to hide."""
    share = min(offloaded, blocks)
    return (number + 1) * share // blocks > number * share // blocks


def is_big(module: nn.Module) -> bool:
    """Whether a module of a block is one of the matrices that `quantise` stores in few bits."""
    return isinstance(module, nn.Linear)


def quantise(block: nn.Module, weights: Weights) -> None:
    """Store the matrices of a block as `weights` says, where they lie."""
    if weights == "exact":
        return
    from torchao.quantization import quantize_

    quantize_(block, _config(weights), lambda module, _: is_big(module))
    for module in block.modules():
        if is_big(module):
            module.__class__ = LowBitLinear


def set_attention(block: nn.Module, attention: Attention) -> None:
    """Have a block of the network attend as `attention` says."""
    if attention == "fp8":
        assert isinstance(block, WanBlock)
        block.attend = attend_in_float8


def stored_tensors(module: nn.Module) -> Iterator[Tensor]:
    """The plain tensors that hold the parameters of a module, of those in few bits the numbers and their scales."""
    for parameter in module.parameters():
        if is_traceable_wrapper_subclass(parameter):
            names, _ = parameter.__tensor_flatten__()
            yield from (getattr(parameter, name) for name in names)
        else:
            yield parameter.data


def _config(weights: Weights) -> Any:
    """What torchao calls it. fp8 is e4m3; a dynamic scale of what is multiplied is one per row too."""
    from torchao import quantization as ao

    match weights:
        case "int8":
            return ao.Int8WeightOnlyConfig()
        case "int8-dynamic":
            return ao.Int8DynamicActivationInt8WeightConfig()
        case "fp8":
            return ao.Float8WeightOnlyConfig()
        case _:
            return ao.Float8DynamicActivationFloat8WeightConfig(granularity=ao.PerRow())


def _multiplies_float8(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def _to_host(block: nn.Module, pinned: bool) -> nn.Module:
    """The block with its weights in host memory, page-locked so that a GPU can fetch them while it computes."""
    block.to("cpu")
    for parameter in block.parameters() if pinned else ():
        if is_traceable_wrapper_subclass(parameter):
            for name in parameter.__tensor_flatten__()[0]:
                setattr(parameter, name, getattr(parameter, name).pin_memory())
        else:
            parameter.data = parameter.data.pin_memory()
    return block


@dataclass
class _Place:
    """Room on the device for one block. holds: which one. filled, free: reached when it is copied, and computed."""

    block: nn.Module
    tensors: list[Tensor]
    holds: int | None = None
    filled: torch.cuda.Event | None = None
    free: torch.cuda.Event | None = None


class _Stage:
    """Two places on the device in which blocks of host memory compute in turn, the next copied meanwhile.

    Takes over `forward` and `encode_text` of the blocks, whose parameters stay where they are. diffusers' group
    offloading serves `forward` alone, and in the one order that it has seen; here text is encoded block by block as
    well, and a clean pass ends early. Where the device is the host the copies are made all the same, one by one.
    """

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        self._hosts = [list(stored_tensors(block)) for block in blocks]
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._places = [self._new_place(blocks[0], device) for _ in blocks[:2]]
        self._last = self._places[0]
        for number, block in enumerate(blocks):
            for method in ("forward", "encode_text"):
                setattr(block, method, partial(self._run, number, method))

    def _run(self, number: int, method: str, *inputs: Any, **named: Any) -> Any:
        """What a method of a block returns, computed in one of the places while the other one is filled."""
        self._last = place = self._fetch(number)
        self._fetch((number + 1) % len(self._hosts))
        if place.filled is None or place.free is None:
            return getattr(place.block, method)(*inputs, **named)
        torch.cuda.current_stream().wait_event(place.filled)
        out = getattr(place.block, method)(*inputs, **named)
        place.free.record()
        return out

    def _fetch(self, number: int) -> _Place:
        """The place that holds a block; filled now, and not the one last computed in, if none does."""
        for place in self._places:
            if place.holds == number:
                return place
        place = next(place for place in reversed(self._places) if place is not self._last or place.holds is None)
        with nullcontext() if self._side is None else torch.cuda.stream(self._side):
            if self._side is not None and place.free is not None:
                self._side.wait_event(place.free)
            for there, here in zip(place.tensors, self._hosts[number], strict=True):
                there.copy_(here, non_blocking=True)
            if place.filled is not None:
                place.filled.record()
        place.holds = number
        return place

    def _new_place(self, like: nn.Module, device: torch.device) -> _Place:
        block = copy.deepcopy(like).to(device)
        place = _Place(block, list(stored_tensors(block)))
        if self._side is not None:
            place.filled, place.free = torch.cuda.Event(), torch.cuda.Event()
            place.free.record()
        return place
