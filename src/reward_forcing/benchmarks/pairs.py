"""The fast path beside an opponent: the same chunk of the same stream, in turns, in one process.

Every repetition begins at the same filled cache, so that errors do not add up and each pair does the same work.
"""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Literal, get_args

import torch
from torch import Tensor

from reward_forcing.benchmarks.clock import Ceiling, Spent, measure, median_of_pairs
from reward_forcing.benchmarks.plain_diffusers import PlainDiffusers
from reward_forcing.benchmarks.record import Series, SideBySide
from reward_forcing.benchmarks.subjects import Subject
from reward_forcing.benchmarks.work import count_flops

Opponent = Literal["naive", "diffusers"]
OPPONENTS: tuple[Opponent, ...] = get_args(Opponent)
Run = Callable[[], Tensor]
"""One chunk: its passes, and what keeps its keys and values for the next; returns its latents."""

Side = Callable[[], Run]
"""Goes back to where the chunk begins, which is not timed, and returns what is."""

NOTES = {
    "naive": "the same passes; ours and theirs each run the clean pass, if the method has one",
    "diffusers": "it encodes the whole window in every pass and needs no clean pass, which ours runs if the method "
    "has one; its time embedding is float32, which alone gives errors of some 1e-5",
}


def side_by_side(
    subject: Subject, opponent: Opponent, pairs: int = 5, tell: Callable[[str], None] | None = None
) -> SideBySide:
    """`pairs` pairs of chunks after one uncounted pair; who begins changes from pair to pair.

    tell: is given a line about every pair.
    Raises ValueError for what the opponent cannot run.
    """
    with torch.no_grad():
        sides = (against_naive if opponent == "naive" else against_diffusers)(subject)
        sides[0]()()  # embeds the noise levels, once
        counted = count_flops(sides[0]())
        sides[1]()()
        ceiling = Ceiling(subject.dtype, subject.device)
        taken: tuple[list[Spent], list[Spent]] = ([], [])
        errors, peaks = [], []
        for pair in range(pairs):
            latents: dict[int, Tensor] = {}
            for side in (0, 1) if pair % 2 == 0 else (1, 0):
                run = sides[side]()
                latents[side], spent = measure(run, subject.device)
                taken[side].append(spent)
            errors.append(((latents[1] - latents[0]).norm() / latents[0].norm()).item())
            peaks.append(ceiling.measure())
            if tell is not None:
                cpu = [spent[-1].cpu for spent in taken]
                tell(f"{opponent} {pair + 1}/{pairs}: {cpu[1]:.3g} / {cpu[0]:.3g} CPU s, error {errors[-1]:.1e}")
    ours, theirs = (series(side) for side in taken)
    limit = tolerance(opponent, subject.dtype)
    on_gpu = subject.device.type == "cuda"
    peak = {clock: ceiling.flops / median(getattr(one, clock) for one in peaks) for clock in ("wall", "cpu")}
    clock = "wall" if on_gpu else "cpu"
    fractions = [subject.flops / median(getattr(side, clock)) / peak[clock] for side in (ours, theirs)]
    return SideBySide(
        opponent=opponent,
        conditions=subject.conditions(),
        ours=ours,
        theirs=theirs,
        ratio_cpu=median_of_pairs(ours.cpu, theirs.cpu),
        ratio_wall=median_of_pairs(ours.wall, theirs.wall),
        errors=tuple(errors),
        tolerance=limit,
        valid=max(errors) < limit,
        flops=subject.flops,
        counted=counted,
        peak_cpu=peak["cpu"],
        peak_wall=peak["wall"],
        fraction=fractions[0],
        of_opponent=fractions[1],
        fraction_of="peak_wall" if on_gpu else "peak_cpu",
        notes=NOTES[opponent],
    )


def series(spent: Sequence[Spent]) -> Series:
    """Repetitions as the record keeps them."""
    return Series(wall=tuple(one.wall for one in spent), cpu=tuple(one.cpu for one in spent))


def fast_side(subject: Subject, given: Tensor) -> Side:
    """A chunk of the fast path after given latents."""
    rollout, passes = subject.fast(), subject.method.passes
    if given.shape[1]:
        rollout.prime(given)
    if subject.method.chunks_at_once > 1:  # the first chunk of a joint window takes more passes than the later ones
        next(rollout)
        _ = rollout.cache
    state = rollout.state

    def run() -> Tensor:
        latents = next(rollout).latents
        _ = rollout.cache
        return latents

    def begin() -> Run:
        rollout.resume(state, passes())
        return run

    return begin


def against_naive(subject: Subject) -> tuple[Side, Side]:
    """A chunk of the fast path and of the naive mode, once the window is full."""
    given, passes, naive = subject.given(subject.chunks_to_fill), subject.method.passes, subject.naive()
    naive.prime(given)
    if subject.method.chunks_at_once > 1:
        next(naive)

    def begin() -> Run:
        twin = naive.snapshot(passes())
        return lambda: next(twin).latents

    return fast_side(subject, given), begin


def against_diffusers(subject: Subject) -> tuple[Side, Side]:
    """A chunk of the fast path and of diffusers' network, which fills the window."""
    plain = PlainDiffusers(subject)
    return fast_side(subject, plain.given), lambda: plain.chunk


def tolerance(opponent: str, dtype: torch.dtype) -> float:
    """Relative error above which a ratio says nothing."""
    if dtype != torch.float32:
        return 1e-2
    return 1e-5 if opponent == "naive" else 1e-4
