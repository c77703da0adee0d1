"""Attention on an NVIDIA GPU by the fastest of torch's backends: found by measuring, then remembered.

H heads, D head width. Which one wins depends on the GPU, on the head's width and on how long queries and keys are; all
give the same result but for rounding.
"""

import warnings
from collections.abc import Callable
from functools import partial
from math import log2
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from reward_forcing.models.fastest import Choice, fastest, is_training

OWN = "torch's own choice"
BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
ORDERS = {
    name: [first, *(other for other in BACKENDS.values() if other is not first), SDPBackend.MATH]
    for name, first in BACKENDS.items()
}
"""Backends from the chosen one on, for torch to go down where one refuses an input."""
MARGIN = 0.03
"""Part of the time by which a backend must beat torch's own choice, which costs the host nothing."""
SHORTEST, LONGEST = 64, 32768
"""Numbers of tokens below and above which no difference is made."""
HEADS = 12
"""Heads that are measured with: those of the 1.3B network."""


class AttentionCase(NamedTuple):
    """What a backend is chosen for. queries, keys: numbers of tokens as powers of two. biased: whether scores are."""

    device: torch.device
    dtype: torch.dtype
    width: int
    queries: int
    keys: int
    biased: bool

    @classmethod
    def of(
        cls, device: torch.device, dtype: torch.dtype, width: int, queries: int, keys: int, biased: bool
    ) -> "AttentionCase":
        """The case of so many query and key tokens."""
        return cls(device, dtype, width, _length(queries), _length(keys), biased)


def attend_on_gpu(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention over [B, H, tokens, D]; bias: added to the scores, in the dtype of `query`.

    Training, and what is neither float16 nor bfloat16, takes torch's own choice. A compiled network asks as it is
    compiled and a captured one as it is captured, when nothing can be measured: they get what this process has found
    (see `measure_attention`), else torch's own choice.
    """
    chosen = OWN
    if not is_training((query, key, value)):
        of = (query.device, query.dtype, query.shape[-1], query.shape[2], key.shape[2], bias is not None)
        chosen = _known(*of) if torch.compiler.is_compiling() else measure_attention(*of)
    if chosen == OWN:
        return scaled_dot_product_attention(query, key, value, attn_mask=bias)
    with sdpa_kernel(ORDERS[chosen], set_priority=True):
        return scaled_dot_product_attention(query, key, value, attn_mask=bias)


def measure_attention(
    device: torch.device, dtype: torch.dtype, width: int, queries: int, keys: int, biased: bool = False
) -> str:
    """The backend for so many query and key tokens in heads of `width`, one of `ORDERS` or `OWN`.

    A fraction of a second the first time on a machine, then remembered, so that one seed gives one video in every
    process. Afterwards nothing is waited for. Where memory does not suffice for measuring, this process makes no
    choice.
    """
    case = AttentionCase.of(device, dtype, width, queries, keys, biased)
    known = BACKEND.found.get(case)
    if known is not None:
        return known
    if dtype not in (torch.float16, torch.bfloat16) or _is_capturing(device):
        return OWN
    try:
        return BACKEND(case)
    except torch.OutOfMemoryError:
        BACKEND.found[case] = OWN
        return OWN


@torch.compiler.assume_constant_result
def _known(device: torch.device, dtype: torch.dtype, width: int, queries: int, keys: int, biased: bool) -> str:
    """What has been found until now; a compiled network keeps the answer, and is not compiled anew for another."""
    return BACKEND.found.get(AttentionCase.of(device, dtype, width, queries, keys, biased), OWN)


def _length(tokens: int) -> int:
    return min(max(1 << round(log2(max(tokens, 1))), SHORTEST), LONGEST)


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _question(case: AttentionCase) -> str:
    lengths = f"{case.queries} queries, {case.keys} keys{', biased' * case.biased}"
    of = f"{torch.cuda.get_device_name(case.device)}, cuDNN {torch.backends.cudnn.version()}"
    return f"attention in {case.dtype}, heads of {case.width}, {lengths}, on {of}"


@torch.inference_mode()
def _measure(case: AttentionCase) -> str:
    with torch.cuda.device(case.device), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says in words why a backend refuses
        return fastest(_candidates(case), _gpu_milliseconds, margin=MARGIN) or OWN


def _candidates(case: AttentionCase) -> dict[str, Callable[[], Tensor]]:
    """Attention by torch's own choice and by each backend alone, over tensors laid out as the network's."""
    generator = torch.Generator(case.device).manual_seed(0)
    query, key, value = (
        torch.randn(1, tokens, HEADS, case.width, generator=generator, device=case.device, dtype=case.dtype)
        for tokens in (case.queries, case.keys, case.keys)
    )
    bias = torch.zeros(1, 1, 1, case.keys, device=case.device, dtype=case.dtype) if case.biased else None

    def by(backend: SDPBackend | None) -> Tensor:
        tensors = (tensor.transpose(1, 2) for tensor in (query, key, value))
        if backend is None:
            return scaled_dot_product_attention(*tensors, attn_mask=bias)
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(*tensors, attn_mask=bias)

    return {OWN: partial(by, None)} | {name: partial(by, backend) for name, backend in BACKENDS.items()}


def _gpu_milliseconds(run: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


BACKEND: Choice[AttentionCase] = Choice(_question, (OWN, *BACKENDS), _measure)
"""Which backend for which case."""
