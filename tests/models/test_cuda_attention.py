"""Which backend an NVIDIA GPU attends by, as far as a CPU can tell: fake measurements, and the order torch is given."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from reward_forcing import remembered
from reward_forcing.models import cuda_attention, layers
from reward_forcing.models.attention import Past, TextContext, TextMix
from reward_forcing.models.cuda_attention import BACKEND, OWN, AttentionCase, attend_on_gpu, measure_attention
from reward_forcing.models.wan_dit import WanDiT, attention_lengths

Asked = list[AttentionCase]
Q, K, V = torch.randn(3, 1, 2, 70, 16, generator=torch.Generator().manual_seed(0)).bfloat16()


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """The cases that are measured; every answer is flash."""
    cases: Asked = []

    def measure(case: AttentionCase) -> str:
        cases.append(case)
        return "flash"

    monkeypatch.setattr(remembered, "answers_file", lambda: tmp_path / "measured.json")
    monkeypatch.setattr(BACKEND, "found", {})
    monkeypatch.setattr(BACKEND, "question", str)
    monkeypatch.setattr(BACKEND, "measure", measure)
    return cases


@pytest.fixture
def orders(monkeypatch: pytest.MonkeyPatch) -> list[list[SDPBackend]]:
    """The orders that torch is given."""
    given = []
    real = cuda_attention.sdpa_kernel

    def sdpa_kernel(order: list[SDPBackend], set_priority: bool = False):
        assert set_priority
        given.append(order)
        return real(order, set_priority=set_priority)

    monkeypatch.setattr(cuda_attention, "sdpa_kernel", sdpa_kernel)
    return given


def own(*tensors: Tensor) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(*tensors)


@torch.no_grad()
def test_a_class_of_lengths_is_measured_once_and_then_attended_by_what_was_found(
    asked: Asked, orders: list[list[SDPBackend]]
) -> None:
    for _ in range(3):
        assert torch.equal(attend_on_gpu(Q, K, V), own(Q, K, V))
    attend_on_gpu(Q[:, :, :60], K, V)  # the same class
    assert [(case.queries, case.keys, case.biased) for case in asked] == [(64, 64, False)]
    assert [order[0] for order in orders] == [SDPBackend.FLASH_ATTENTION] * 4
    assert set(orders[0]) == {*cuda_attention.BACKENDS.values(), SDPBackend.MATH}
    attend_on_gpu(Q, K.repeat(1, 1, 3, 1), V.repeat(1, 1, 3, 1))
    attend_on_gpu(Q, K, V, torch.zeros(1, 1, 1, 70, dtype=torch.bfloat16))
    attend_on_gpu(Q.half(), K.half(), V.half())
    assert [(case.keys, case.biased, case.dtype) for case in asked[1:]] == [
        (256, False, torch.bfloat16),
        (64, True, torch.bfloat16),
        (64, False, torch.float16),
    ]


def test_what_another_process_found_is_not_measured_again(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    of = (torch.device("cpu"), torch.bfloat16, 128, 4680, 14040)
    measure_attention(*of)
    monkeypatch.setattr(BACKEND, "found", {})
    assert measure_attention(*of) == "flash"
    assert len(asked) == 1
    assert (asked[0].queries, asked[0].keys) == (4096, 16384)


def test_training_and_float32_take_torchs_own_choice(asked: Asked, orders: list[list[SDPBackend]]) -> None:
    attend_on_gpu(Q.clone().requires_grad_(), K, V)
    attend_on_gpu(Q.float(), K.float(), V.float())
    with torch.autocast("cpu", torch.bfloat16):
        attend_on_gpu(Q, K, V)
    assert (asked, orders) == ([], [])


def test_nothing_is_measured_while_a_graph_is_captured(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    of = (torch.device("cpu"), torch.bfloat16, 16, 70, 70)
    with monkeypatch.context() as capturing:
        capturing.setattr(cuda_attention, "_is_capturing", lambda device: True)
        assert measure_attention(*of) == OWN
    assert asked == []
    assert measure_attention(*of) == "flash"


def test_where_memory_is_short_torch_chooses_and_nothing_is_remembered(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    def starve(case: AttentionCase) -> str:
        raise torch.OutOfMemoryError("out of memory")

    of = (torch.device("cpu"), torch.bfloat16, 16, 70, 70)
    with monkeypatch.context() as starving:
        starving.setattr(BACKEND, "measure", starve)
        assert measure_attention(*of) == measure_attention(*of) == OWN
    monkeypatch.setattr(BACKEND, "found", {})  # as in a new process
    assert measure_attention(*of) == "flash"


@torch.no_grad()
def test_a_compiled_network_takes_what_was_found_before_and_is_not_compiled_again_for_more(asked: Asked) -> None:
    compilations = []

    def compiler(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        compilations.append(module.code)
        return module

    compiled = torch.compile(attend_on_gpu, dynamic=False, fullgraph=True, backend=compiler)
    compiled(Q, K, V)
    assert asked == []
    assert "sdpa_kernel" not in compilations[0]
    measure_attention(Q.device, Q.dtype, 16, 70, 70)
    compiled(Q, K, V)
    assert len(compilations) == 1
    torch.compiler.reset()
    assert torch.equal(compiled(Q, K, V), own(Q, K, V))
    assert "sdpa_kernel" in compilations[1]


@torch.no_grad()
def test_lengths_told_ahead_are_those_that_blocks_attend_to(
    tiny_dit: Callable[..., WanDiT], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, met = tiny_dit(num_layers=1), set()
    real = layers.attend_text.__globals__["attend"]

    def attend(query: Tensor, key: Tensor, value: Tensor, log_counts: Tensor | None = None) -> Tensor:
        met.add((query.shape[1], key.shape[1], log_counts is not None))
        return real(query, key, value, log_counts)

    monkeypatch.setattr(layers, "attend", attend)
    monkeypatch.setitem(layers.attend_text.__globals__, "attend", attend)
    embeddings = torch.randn(1, 80, 12)
    embeddings[:, 5:] = 0
    plain, merged = network.encode_text(embeddings[:, :7]), network.encode_text(embeddings, merge_padding=True)
    kept = torch.randn(2, 1, 1, 4, 6, 2, 16)
    past = Past(*kept, torch.arange(4), torch.arange(4, 6), rotated=True)
    x = torch.randn(1, 2, 4, 4, 6)
    cases: list[tuple[Past | None, TextContext | TextMix]] = [
        (None, plain),
        (past, merged),
        (past, TextMix(((0.5, plain), (0.5, merged)))),
    ]
    for seen, text in cases:
        met.clear()
        network(x, torch.zeros(1), text, past=seen)
        assert attention_lengths(2, 6, seen, text) == met


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_backends_are_measured_on_a_gpu() -> None:
    case = AttentionCase.of(torch.device("cuda", 0), torch.bfloat16, 64, 512, 512, False)
    assert cuda_attention._measure(case) in (OWN, *cuda_attention.BACKENDS)
