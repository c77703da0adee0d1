"""Attention in bfloat16 on a CPU: two kernels, of which the faster one is found by measuring and then remembered.

H heads, D head width. torch's fused kernel is the faster one where it uses the processor's matrix units (AMX), and up
to three times slower than two matrix products where it computes bfloat16 at the speed of float32.
"""

import time
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from reward_forcing.remembered import remembered

SCORES_AT_ONCE = 1 << 24
"""Bound on the scores that `attend_by_products` holds, 32 MiB."""


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
    if torch.is_autocast_enabled("cpu"):
        return True
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return True
    width = query.shape[-1]
    if torch.compiler.is_compiling():
        return _found.get(width, True)
    return measure_heads(width)


_found: dict[int, bool] = {}
"""Head width -> whether products beat the fused kernel here."""


def measure_heads(width: int) -> bool:
    """Whether products beat the fused kernel without gradients for heads of this width.

    Some 20 ms the first time on a machine, then remembered, so that one seed gives one video in every process.
    """
    if width not in _found:
        answers = ("fused", "products")
        answer = remembered(f"attention in bfloat16, heads of {width}", answers, lambda: answers[_measured(width)])
        _found[width] = answer == "products"
    return _found[width]


def _measured(width: int) -> bool:
    with ThreadPoolExecutor(1) as apart:  # none of the caller's modes, such as autocast or a profiler, holds there
        return apart.submit(_compare, width).result()


@torch.inference_mode()
def _compare(width: int, repeats: int = 5) -> bool:
    """Whether products take less time. Leaves autocast alone: its cache of weights is one for all threads."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, 2, tokens, width, generator=generator).bfloat16() for tokens in (256, 1024, 1024)
    )
    kernels = (_products, scaled_dot_product_attention)
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for kernel, seconds in zip(kernels, taken, strict=True):
            start = time.thread_time()
            kernel(query, key, value)
            seconds.append(time.thread_time() - start)
    return min(taken[0]) < min(taken[1])
