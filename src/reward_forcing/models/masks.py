"""Attention patterns for training without a cache. All sizes are latent frames; tokens do not appear here."""

from reward_forcing.models.attention import AttentionPattern, Frames


def block_causal(
    frames: int, chunk: int, window: int | None = None, first_chunk: int | None = None
) -> AttentionPattern:
    """Pattern in which a chunk sees itself and the chunks before it: what a cache shows when streaming.

    window: a chunk sees only the last `window` frames up to its own end (None: all). first_chunk: size of the first
    chunk if it differs, 1 for models that start from an image. The last chunk may be shorter.
    The training masks of CausVid and Self Forcing. Raises ValueError for a window smaller than a chunk.
    """
    if window is not None and window < max(chunk, first_chunk or 0):
        raise ValueError(f"window must hold at least one chunk of {max(chunk, first_chunk or 0)} frames, got {window}")
    spans = tuple(
        ((start, stop), ((0 if window is None else max(0, stop - window), stop),))
        for start, stop in _chunks(frames, chunk, first_chunk)
    )
    return AttentionPattern(spans, tuple(range(frames)))


def teacher_forcing(
    frames: int, chunk: int, window: int | None = None, first_chunk: int | None = None
) -> AttentionPattern:
    """Pattern over `frames` clean frames followed by the same frames noisy, sharing their RoPE positions.

    A clean chunk sees the clean frames up to its end. A noisy chunk sees itself and the clean frames before it; both
    within the last `window` frames up to their end, as in `block_causal`. Self Forcing's teacher-forcing mask; the
    output for the second half is the prediction.
    """
    clean = block_causal(frames, chunk, window, first_chunk).spans
    noisy = []
    for (start, stop), ((first, _),) in clean:
        before, own = ((first, start),) if first < start else (), (frames + start, frames + stop)
        noisy.append((own, (*before, own)))
    return AttentionPattern((*clean, *noisy), tuple(range(frames)) * 2)


def _chunks(frames: int, chunk: int, first_chunk: int | None) -> list[Frames]:
    first = chunk if first_chunk is None else first_chunk
    if min(frames, chunk, first) < 1:
        raise ValueError(f"frames and chunks must be at least 1, got {frames=}, {chunk=}, {first_chunk=}")
    starts = [0, *range(first, frames, chunk)]
    return list(zip(starts, [*starts[1:], frames], strict=True))
