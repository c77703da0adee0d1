"""Command 1 of the GPU protocol: is the arithmetic right here, and what is the most this GPU can do?

    python benchmarks/gpu/1_ceilings.py --out 1_ceilings.json

Equality first: a tiny network fast against naive, and a layer in bfloat16 against float32. If that fails nothing is
timed and the exit status is 1. Then copies, matrix products at the network's shapes in bfloat16 and float8, attention
by backend, and the decoder's convolutions by layout.
"""

import sys
from collections.abc import Callable, Iterator

import torch
from protocol import TINY, Protocol, begin, finish
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import conv3d, scaled_dot_product_attention

from reward_forcing.benchmarks.pairs import side_by_side
from reward_forcing.benchmarks.subjects import Subject, cast_network, random_network
from reward_forcing.models.sizes import WAN_1_3B
from reward_forcing.streaming.methods import METHODS

PRODUCTS = (
    (4680, 1536, 1536),
    (4680, 1536, 4608),
    (4680, 1536, 8960),
    (4680, 8960, 1536),
    (512, 4096, 1536),
    (8192,) * 3,
)
"""Rows, inner length, columns: output and query, merged QKV, both of the feed-forward, text, and a large square."""
ATTENTION = ((4680, 14040), (4680, 512))
CONVOLUTIONS = ((192, 192, 240, 416), (96, 96, 480, 832), (384, 384, 120, 208))
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
Rows = Iterator[tuple[str, Callable[[], float]]]


def equal(run: Protocol) -> bool:
    """Whether a tiny network gives the same fast and naive, and bfloat16 stays near float32; recorded."""
    torch.backends.cuda.matmul.allow_tf32 = False
    size = TINY if run.tiny else {**WAN_1_3B, "num_layers": 1}
    right = True
    for precision, sizes in (("float32", TINY), ("bfloat16", size)):
        network = cast_network(random_network(sizes, run.seed), precision, run.device)
        text = torch.randn(1, 8, 4096, device=run.device).to(getattr(torch, precision))
        subject = Subject(f"equality, {precision}", network, METHODS["reward"], "reward", precision, (8, 8), text)
        found = side_by_side(subject, "naive", 1)
        run.recorder.add(found)
        print(f"{precision}: error {found.errors[0]:.1e}, allowed {found.tolerance:.0e}", flush=True)
        right = right and found.valid
    return right


def copies(run: Protocol) -> Rows:
    """GB/s of reading and writing a large tensor."""
    source = run.randn(1 << (16 if run.tiny else 30))
    target = torch.empty_like(source)
    yield "copy", lambda: 2 * source.nbytes / run.time(lambda: target.copy_(source)) / 1e9


def products(run: Protocol) -> Rows:
    """TFLOP/s of every shape of `PRODUCTS`."""
    for shape in PRODUCTS:
        rows, inner, columns = (max(16, size // 64 // 16 * 16) if run.tiny else size for size in shape)
        left, right = run.randn(rows, inner), run.randn(columns, inner)
        operations = 2 * rows * inner * columns / 1e12
        name = "x".join(str(size) for size in shape)
        yield f"{name} bfloat16", lambda left=left, right=right, n=operations: n / run.time(lambda: left @ right.T)
        yield f"{name} float8, one scale", lambda a=left, b=right, n=operations: n / run.time(_scaled(a, b, False))
        yield f"{name} float8, a scale per row", lambda a=left, b=right, n=operations: n / run.time(_scaled(a, b, True))


def _scaled(left: torch.Tensor, right: torch.Tensor, by_row: bool) -> Callable[[], torch.Tensor]:
    """A float8 product with one scale for each matrix, or one for each row and column."""
    eight = (left.to(torch.float8_e4m3fn), right.to(torch.float8_e4m3fn).T)
    sizes = ((left.shape[0], 1), (1, right.shape[0])) if by_row else ((), ())
    scales = [torch.ones(size, device=left.device) for size in sizes]
    return lambda: torch._scaled_mm(*eight, scale_a=scales[0], scale_b=scales[1], out_dtype=torch.bfloat16)


def attention(run: Protocol) -> Rows:
    """TFLOP/s of self- and cross-attention by backend."""
    for queries, keys in ATTENTION:
        q, k = (size // 64 if run.tiny else size for size in (queries, keys))
        heads, width = (2, 16) if run.tiny else (12, 128)
        tensors = [run.randn(1, heads, tokens, width) for tokens in (q, k, k)]
        operations = 4 * heads * q * k * width / 1e12
        for name, backend in BACKENDS.items():

            def attend(backend: SDPBackend = backend, tensors: list = tensors) -> None:
                with sdpa_kernel(backend):
                    scaled_dot_product_attention(*tensors)

            yield f"{queries} x {keys} {name}", lambda attend=attend, n=operations: n / run.time(attend)


def convolutions(run: Protocol) -> Rows:
    """TFLOP/s of the decoder's dominant 3x3x3 convolutions over 4 frames, in both layouts."""
    for inputs, outputs, rows, columns in CONVOLUTIONS:
        if run.tiny:
            inputs, outputs, rows, columns = inputs // 24, outputs // 24, rows // 30, columns // 26
        x, weight = run.randn(1, inputs, 6, rows, columns), run.randn(outputs, inputs, 3, 3, 3)
        operations = 2 * 27 * inputs * outputs * 4 * (rows - 2) * (columns - 2) / 1e12
        for name, layout in (("NCDHW", torch.contiguous_format), ("channels last", torch.channels_last_3d)):
            both = [tensor.to(memory_format=layout) for tensor in (x, weight)]
            label = f"{inputs} to {outputs} at {rows}x{columns}, {name}"
            yield label, lambda both=both, n=operations: n / run.time(lambda: conv3d(*both))


def main() -> None:
    """Equality, then every ceiling."""
    run = begin(__doc__ or "", minutes=6)
    if not equal(run):
        run.recorder.fail("the fast path does not equal the naive mode here: nothing was timed")
        finish(run)
        sys.exit(1)
    with torch.no_grad():
        run.table("memory", "GB/s", copies(run))
        run.table("matrix products", "TFLOP/s", products(run))
        run.table("attention", "TFLOP/s", attention(run))
        run.table("convolutions", "TFLOP/s", convolutions(run))
    finish(run)


if __name__ == "__main__":
    main()
