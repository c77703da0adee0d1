"""Patterns as data: their execution equals a dense mask, and malformed ones are refused."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from reward_forcing import remembered
from reward_forcing.models import cpu_attention
from reward_forcing.models.attention import AttentionPattern, attend, attend_pattern
from reward_forcing.models.masks import block_causal, teacher_forcing

small = st.integers(1, 4)
patterns = st.one_of(
    st.builds(lambda frames, chunk, extra: block_causal(frames, chunk, chunk + extra), st.integers(1, 9), small, small),
    st.builds(block_causal, st.integers(1, 9), small, st.none(), small),
    st.builds(teacher_forcing, st.integers(1, 6), small),
)


@given(pattern=patterns, tokens=small)
def test_a_pattern_computes_what_its_dense_mask_computes(pattern, tokens):
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, pattern.frames, tokens, 2, 4, generator=generator)
    flat = (tensor.flatten(1, 2).transpose(1, 2) for tensor in (query, key, value))
    expected = scaled_dot_product_attention(*flat, attn_mask=pattern.dense(tokens)).transpose(1, 2)
    out = attend_pattern(query, key, value, pattern)
    torch.testing.assert_close(out.flatten(1, 2), expected, atol=1e-6, rtol=1e-5)


@given(frames=st.integers(1, 12), chunk=small, window=st.integers(4, 8))
def test_a_window_only_hides_frames_that_are_too_old(frames, chunk, window):
    full, local = block_causal(frames, chunk).dense(), block_causal(frames, chunk, window).dense()
    for query in range(frames):
        end = min((query // chunk + 1) * chunk, frames)
        assert local[query].nonzero().flatten().tolist() == list(range(max(0, end - window), end))
        assert full[query].sum() == end


@given(frames=st.integers(1, 9), chunk=small)
def test_teacher_forcing_shows_a_noisy_chunk_itself_and_the_clean_frames_before(frames, chunk):
    pattern = teacher_forcing(frames, chunk)
    clean, noisy = pattern.dense().split(frames)
    assert pattern.positions == (*range(frames), *range(frames))
    assert torch.equal(clean[:, :frames], block_causal(frames, chunk).dense())
    assert not clean[:, frames:].any()
    own = torch.arange(frames) // chunk
    assert torch.equal(noisy[:, frames:], own[:, None] == own[None])
    assert torch.equal(noisy[:, :frames], own[:, None] > own[None])


@given(frames=st.integers(1, 12), chunk=small, window=st.integers(4, 8))
def test_a_window_hides_the_same_frames_from_clean_and_noisy_chunks(frames, chunk, window):
    clean, noisy = teacher_forcing(frames, chunk, window).dense().split(frames)
    assert torch.equal(clean[:, :frames], block_causal(frames, chunk, window).dense())
    own = (torch.arange(frames) // chunk)[:, None] == torch.arange(frames) // chunk
    assert torch.equal(noisy[:, :frames] | own, clean[:, :frames])
    assert not (noisy[:, :frames] & own).any()


def test_impossible_patterns_are_refused():
    with pytest.raises(ValueError, match="window must hold at least one chunk of 3 frames, got 2"):
        block_causal(9, 3, window=2)
    with pytest.raises(ValueError, match="at least 1"):
        teacher_forcing(0, 3)
    with pytest.raises(ValueError, match="from frame 0"):
        AttentionPattern((((1, 2), ((0, 2),)),), (0, 1))
    with pytest.raises(ValueError, match=r"within \(0, 2\)"):
        AttentionPattern((((0, 2), ((0, 3),)),), (0, 1))
    with pytest.raises(ValueError, match="3 positions given for 2 query frames"):
        AttentionPattern((((0, 2), ((0, 2),)),), (0, 1, 2))


@pytest.mark.parametrize("products", [True, False])
@pytest.mark.parametrize("at_once", [1 << 24, 700])
def test_either_kernel_for_bfloat16_on_a_cpu_agrees_with_float32(
    products: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_attention, "SCORES_AT_ONCE", at_once)
    monkeypatch.setattr(cpu_attention, "measure_heads", lambda width: products)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, n, 3, 16, generator=generator, dtype=torch.bfloat16) for n in (20, 33, 33))
    counts = torch.randint(1, 400, (2, 33), generator=generator)
    for log_counts in (None, counts.log()):
        exact = attend(query.float(), key.float(), value.float(), log_counts)
        for enabled in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                out = attend(query, key, value, log_counts)
            assert out.dtype == torch.bfloat16
            assert float((out.float() - exact).norm() / exact.norm()) < 1e-2


def test_a_key_that_counts_for_several_is_as_good_as_several() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, n, 2, 8, generator=generator) for n in (5, 3, 3))
    counts = torch.tensor([1, 4, 2])
    several = attend(query, key.repeat_interleave(counts, dim=1), value.repeat_interleave(counts, dim=1))
    torch.testing.assert_close(attend(query, key, value, counts[None].float().log()), several, atol=1e-6, rtol=1e-5)


def test_the_kernel_is_measured_once_on_a_machine_and_in_no_mode_of_the_callers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "answers_file", lambda: tmp_path / "new" / "measured.json")
    query = torch.randn(1, 5, 2, 24, dtype=torch.bfloat16)
    outs = []
    for is_first in (True, False):
        monkeypatch.setattr(cpu_attention.KERNEL, "found", {})  # as in a new process
        if not is_first:
            monkeypatch.setattr(cpu_attention.KERNEL, "measure", lambda width: pytest.fail("measured again"))
        with FlopCounterMode(display=False) as counter:
            outs.append(attend(query, query, query))
        assert counter.get_total_flops() <= 4 * 2 * 5 * 5 * 24
    assert torch.equal(*outs)


def test_with_gradients_products_are_chosen() -> None:
    query = torch.randn(1, 5, 2, 24, dtype=torch.bfloat16, requires_grad=True)
    assert cpu_attention.products_are_chosen(query, query, query)
    assert not cpu_attention.products_are_chosen(query.float(), query, query)


def test_under_autocast_products_are_chosen_without_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    query = torch.zeros(1, 1, 4, 8, dtype=torch.bfloat16)
    monkeypatch.setattr(cpu_attention, "measure_heads", lambda width: pytest.fail("measured"))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert cpu_attention.products_are_chosen(query, query, query)
