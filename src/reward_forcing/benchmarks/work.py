"""What computing chunks takes, in counts that no clock and no other job can touch: operations, FLOPs, bytes held.

f latent frames of a chunk. Owns the counting and the formula beside it. Knows no time.
"""

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import reward_forcing
from reward_forcing.models.attention import KV
from reward_forcing.rollout import KVCache
from reward_forcing.streaming.methods import Method
from reward_forcing.training.plan_costs import Attended, Shape, forward_flops, kv_flops, time_flops

PACKAGE = Path(reward_forcing.__file__).parent
HOST_SYNCS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2")
"""Operators whose result the host must wait for: a number, or a size that depends on data."""


class Operations(TorchDispatchMode):
    """Counts the operators of a with-block, and says where those are that a steady-state pass must not have.

    counts: operator -> calls. syncs, doubles, complexes: place, as `file.py:function` of this package -> calls that
    wait for the device, that read or write float64, that read or write complex numbers. allocated: bytes of tensors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.syncs: Counter[str] = Counter()
        self.doubles: Counter[str] = Counter()
        self.complexes: Counter[str] = Counter()
        self.allocated = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and note it."""
        out = func(*args, **(kwargs or {}))
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        written = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        name = func.overloadpacket.__name__
        self.counts[name] += 1
        at = place()
        if name in HOST_SYNCS:
            self.syncs[at] += 1
        dtypes = {tensor.dtype for tensor in (*read, *written)}
        if torch.float64 in dtypes:
            self.doubles[at] += 1
        if any(dtype.is_complex for dtype in dtypes):
            self.complexes[at] += 1
        known = {tensor.untyped_storage()._cdata for tensor in read}
        new = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in written}
        self.allocated += sum(size for storage, size in new.items() if storage not in known)
        return out


def place() -> str:
    """The innermost function of this package, but for its measurements, that is on the stack: `file.py:function`."""
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE) and path != Path(__file__) and frame.f_code.co_name[0] != "<":
            return f"{path.name}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


def count_flops(run: Callable[[], object]) -> int:
    """Floating-point operations of matrix products, attention and convolutions while `run` is called once.

    A product of [a, b] and [b, c] counts 2 a b c, everything else nothing. No gradients are recorded, and nothing runs
    compiled, where the counter sees nothing.
    """
    counter = FlopCounterMode(display=False, custom_mapping=cpu_formulas())
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), counter:
        run()
    return counter.get_total_flops()


def cpu_formulas() -> dict[Any, Callable[..., int]]:
    """Operators that only CPUs have, and their floating-point operations, for torch's counter, which knows neither."""
    formulas: dict[Any, Callable[..., int]] = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops
    }
    if torch.backends.mkldnn.is_available():
        formulas[torch.ops.mkldnn._linear_pointwise] = _linear_flops
    return formulas


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _linear_flops(x: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return 2 * math.prod(x) * weight[0]


def steady_passes(method: Method) -> tuple[list[Attended], list[Attended]]:
    """The denoising passes of one chunk once the window is full, and its clean pass, if the method has one.

    A method without a window has no steady state; what it does once 21 latent frames are cached is taken.
    """
    chunk, cache = method.chunk_frames, KVCache.empty(method.cache)
    kv = KV(*((torch.empty(1, chunk, 1, 1, 1, device="meta"),) for _ in range(2)))
    for _ in range(-(-(method.window_frames or 21) // chunk) + 1):
        cache = cache.commit(kv)
    frames = method.chunks_at_once * chunk
    denoising = [_attended(cache, frames, True)] * (len(method.sigmas) if frames == chunk else 1)
    return denoising, [_attended(cache, chunk, method.clean_pass_sees_sink)] * method.clean_pass


def _attended(cache: KVCache, frames: int, with_sink: bool) -> Attended:
    past = cache.past(frames, with_sink)
    seen = 0 if past is None else past.frames
    return Attended(frames, frames * (seen + frames), past=seen)


def chunk_flops(shape: Shape, method: Method, text_tokens: int, batch: int = 1, published: bool = False) -> int:
    """FLOPs that one steady-state chunk takes, by formula: all its passes over the window, a clean one included.

    For each pass of s query and kv key tokens: N (s E (12 E + 4 F) + 4 s E (kv + L)) and the small ends, E width,
    F feed-forward width, L text tokens. published: with what published code and the naive mode do for nothing, which is
    to embed timesteps in every pass and to run the clean pass beyond the last layer's keys and values.
    """
    denoising, clean = steady_passes(method)
    if published:
        return batch * sum(forward_flops(shape, seen, text_tokens) for seen in (*denoising, *clean))
    total = sum(forward_flops(shape, seen, text_tokens) for seen in denoising)
    total += sum(kv_flops(shape, seen, text_tokens) for seen in clean)
    return batch * (total - sum(time_flops(shape, seen.frames) for seen in (*denoising, *clean)))


def held_bytes(value: object) -> int:
    """Bytes of all tensor storages that a value of dataclasses, sequences and mappings holds, each counted once."""
    return sum(
        {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in _tensors(value)}.values()
    )


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
