"""Laws of every registered schedule, for any noise levels and number of chunks."""

from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from reward_forcing.rollout.schedule import SCHEDULES, Pass, chunks_at_once

schedules = st.sampled_from(sorted(SCHEDULES)).map(SCHEDULES.__getitem__)
levels = st.sets(st.floats(0.001, 1.0), min_size=1, max_size=6).map(lambda some: tuple(sorted(some, reverse=True)))
lengths = st.integers(1, 12)


def levels_of(passes: list[Pass], chunk: int) -> list[tuple[float, float | None]]:
    """The noise before and after each pass of a chunk."""
    mine = [(step, step.chunks.index(chunk)) for step in passes if chunk in step.chunks]
    return [(step.sigma[place], step.sigma_next[place]) for step, place in mine]


@given(schedules, levels, lengths)
def test_every_chunk_goes_through_every_level_once_and_in_order(schedule, sigmas, chunks):
    passes = list(schedule(sigmas, chunks=chunks))
    for chunk in range(chunks):
        assert levels_of(passes, chunk) == list(zip(sigmas, (*sigmas[1:], None), strict=True))


@given(schedules, levels, lengths)
def test_every_chunk_finishes_once_and_in_order(schedule, sigmas, chunks):
    passes = list(schedule(sigmas, chunks=chunks))
    assert [step.chunks[0] for step in passes if step.finishes] == list(range(chunks))


@given(schedules, levels, lengths)
def test_a_pass_begins_with_the_oldest_unfinished_chunk_and_later_chunks_are_noisier(schedule, sigmas, chunks):
    done = 0
    for step in schedule(sigmas, chunks=chunks):
        assert step.chunks[0] == done
        assert list(step.sigma) == sorted(set(step.sigma))
        done += step.finishes


@given(schedules, levels, lengths, lengths)
def test_longer_schedules_agree_on_all_chunks_that_never_see_the_shorter_ones_end(schedule, sigmas, chunks, more):
    """Chunk-wise these are all chunks; of a joint window of T chunks the last T - 1 are not among them."""
    alike = chunks + 1 - chunks_at_once(schedule(sigmas, chunks=len(sigmas)))
    passes = list(schedule(sigmas, chunks=chunks))
    shared = [place for place, step in enumerate(passes, start=1) if step.finishes and step.chunks[0] < alike]
    until = shared[-1] if shared else 0
    assert len(shared) == max(0, alike)
    assert list(islice(schedule(sigmas), until)) == passes[:until]
    assert list(islice(schedule(sigmas, chunks=chunks + more), until)) == passes[:until]
