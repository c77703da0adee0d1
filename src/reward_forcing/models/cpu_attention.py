"""Attention in bfloat16 on a CPU: two kernels, of which the faster one is found by measuring and then remembered.

H heads, D head width. torch's fused kernel is the faster one where it uses the processor's matrix units (AMX), and up
to three times slower than two matrix products where it computes bfloat16 at the speed of float32.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from reward_forcing.models.fastest import Choice, fastest, is_training

SCORES_AT_ONCE = 1 << 23
"""Bound on the scores that `attend_by_products` holds, 16 MiB: from 32 on, glibc takes fresh pages for every tensor."""


def attend_by_products(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention over [B, H, tokens, D] in bfloat16 as two matrix products around a softmax, some queries at a time.

    bias: added to the scores, in float32. Scores are rounded to bfloat16: the result's relative error is 4e-3, against
    2e-3 for torch's fused kernel.
    """
    with torch.autocast("cpu", enabled=False):  # which would take the softmax to float32 and back
        return _products(query, key, value, bias)


def _products(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    batch, heads, _, width = query.shape
    block = max(1, SCORES_AT_ONCE // (batch * heads * key.shape[2]))
    keys = key.mT * width**-0.5

    def weights(scores: Tensor) -> Tensor:
        return scores.softmax(-1) if bias is None else (scores + bias).softmax(-1).to(value.dtype)

    out = [weights(piece @ keys) @ value for piece in query.split(block, dim=2)]
    return out[0] if len(out) == 1 else torch.cat(out, dim=2)


def products_are_chosen(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether `attend_by_products` is the kernel for these, which any attention may be asked.

    In training it always is, which autocast or gradients tell: forward and backward took at most 3 % longer where the
    fused kernel is fast, and less than half of its time where it is not; and a resumed run must not be computed by
    another kernel than it began with. A compiled network asks as it is compiled, when nothing can be measured: it gets
    what this process has found (see `measure_heads`), else products.
    """
    tensors = (query, key, value)
    if query.device.type != "cpu" or any(tensor.dtype != torch.bfloat16 for tensor in tensors):
        return False
    if is_training(tensors):
        return True
    width = query.shape[-1]
    if torch.compiler.is_compiling():
        return KERNEL.found.get(width, "products") == "products"
    return measure_heads(width)


def measure_heads(width: int) -> bool:
    """Whether products beat the fused kernel without gradients for heads of this width.

    Some 20 ms the first time on a machine, then remembered, so that one seed gives one video in every process.
    """
    return KERNEL(width) == "products"


@torch.inference_mode()
def _measure(width: int) -> str:
    """Leaves autocast alone: its cache of weights is one for all threads."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, 2, tokens, width, generator=generator).bfloat16() for tokens in (256, 1024, 1024)
    )
    candidates = {
        "fused": lambda: scaled_dot_product_attention(query, key, value),
        "products": lambda: _products(query, key, value),
    }
    found = fastest(candidates, _thread_seconds)
    assert found is not None, "neither kernel computes bfloat16"
    return found


def _thread_seconds(run: Callable[[], object]) -> float:
    start = time.thread_time()
    run()
    return time.thread_time() - start


KERNEL: Choice[int] = Choice(lambda width: f"attention in bfloat16, heads of {width}", ("fused", "products"), _measure)
"""Which kernel for heads of which width."""
