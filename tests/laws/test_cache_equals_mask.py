"""Law: passes over a cache, chunk by chunk, compute what one masked forward computes."""

import pytest
import torch
from rollout.toy import joined

from reward_forcing.models.attention import KV, Past, TextTimeline
from reward_forcing.models.masks import block_causal, teacher_forcing

FRAMES, CHUNK = 8, 3
CHUNKS = [(0, 3), (3, 6), (6, 8)]


def past_of(clean: KV, first: int, start: int, stop: int, shift: int) -> Past | None:
    """The past [first, start) of a chunk [start, stop), with all positions moved by `shift`."""
    if first == start:
        return None
    seen = clean.map(lambda layer: layer[:, first:start])
    return Past(seen.keys, seen.values, torch.arange(first, start) + shift, torch.arange(start, stop) + shift)


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "window-relative"])
@pytest.mark.parametrize("window", [None, 3, 5, 6])
@torch.no_grad()
def test_cached_clean_passes_equal_one_block_causal_forward(tiny_dit, window, relative):
    network = tiny_dit()
    x = torch.randn(2, FRAMES, 4, 4, 6)
    text = network.encode_text(torch.randn(2, 5, 12))
    masked, kv = network(x, torch.zeros(2, FRAMES), text, pattern=block_causal(FRAMES, CHUNK, window), want_kv=True)
    cache = kv.map(lambda layer: layer[:, :0])
    for start, stop in CHUNKS:
        first = 0 if window is None else max(0, stop - window)
        past = past_of(cache, first, start, stop, shift=-first if relative else 0)
        out, new = network(x[:, start:stop], torch.zeros(2, stop - start), text, past=past, want_kv=True)
        torch.testing.assert_close(out, masked[:, start:stop], atol=1e-5, rtol=1e-5)
        cache = joined(cache, new)
    torch.testing.assert_close(cache.keys, kv.keys, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(cache.values, kv.values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 3, 5, 6])
@torch.no_grad()
def test_a_noisy_pass_over_a_clean_cache_equals_the_teacher_forcing_forward(tiny_dit, window):
    network = tiny_dit()
    clean, noisy = torch.randn(2, 2, FRAMES, 4, 4, 6)
    timestep = 1000 * torch.rand(2, FRAMES)
    text = network.encode_text(torch.randn(2, 5, 12))
    both, times = torch.cat([clean, noisy], dim=1), torch.cat([torch.zeros(2, FRAMES), timestep], dim=1)
    forced, kv = network(both, times, text, pattern=teacher_forcing(FRAMES, CHUNK, window), want_kv=True)
    for start, stop in CHUNKS:
        first = 0 if window is None else min(start, max(0, stop - window))
        past = past_of(kv, first, start, stop, shift=0)
        positions = torch.arange(start, stop)
        out, _ = network(noisy[:, start:stop], timestep[:, start:stop], text, past=past, positions=positions)
        torch.testing.assert_close(out, forced[:, FRAMES + start : FRAMES + stop], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_prompt_switched_between_chunks_equals_a_timeline_of_texts(tiny_dit):
    network = tiny_dit()
    x = torch.randn(2, FRAMES, 4, 4, 6)
    first, second = (network.encode_text(torch.randn(2, 5, 12)) for _ in range(2))
    timeline = TextTimeline(((3, first), (5, second)))
    masked, kv = network(x, torch.zeros(2, FRAMES), timeline, pattern=block_causal(FRAMES, CHUNK), want_kv=True)
    unswitched, _ = network(x, torch.zeros(2, FRAMES), first, pattern=block_causal(FRAMES, CHUNK))
    assert (masked - unswitched)[:, 3:].abs().mean() > 1e-3, "the second text is read"
    cache = kv.map(lambda layer: layer[:, :0])
    for (start, stop), text in zip(CHUNKS, (first, second, second), strict=True):
        past = past_of(cache, 0, start, stop, shift=0)
        out, new = network(x[:, start:stop], torch.zeros(2, stop - start), text, past=past, want_kv=True)
        torch.testing.assert_close(out, masked[:, start:stop], atol=1e-5, rtol=1e-5)
        cache = joined(cache, new)


@torch.no_grad()
def test_the_same_text_twice_is_no_switch(tiny_dit):
    network = tiny_dit()
    x, text = torch.randn(2, FRAMES, 4, 4, 6), network.encode_text(torch.randn(2, 5, 12))
    plain, _ = network(x, torch.zeros(2), text)
    timeline, _ = network(x, torch.zeros(2), TextTimeline(((2, text), (6, text))))
    torch.testing.assert_close(timeline, plain, atol=1e-5, rtol=1e-5)


def test_texts_that_do_not_fit_the_frames_are_refused(tiny_dit):
    network = tiny_dit()
    text = network.encode_text(torch.randn(2, 5, 12))
    with pytest.raises(ValueError, match=r"span \[3\] frames, the latents have 8"):
        network(torch.randn(2, FRAMES, 4, 4, 6), torch.zeros(2), TextTimeline(((3, text),)))
    with pytest.raises(ValueError, match="one batch"):
        TextTimeline(((3, text), (5, text.select(slice(0, 1)))))
    with pytest.raises(ValueError, match="at least one frame"):
        TextTimeline(((0, text), (8, text)))
