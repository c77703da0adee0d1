"""Command 2 of the GPU protocol: the transformer alone, fast beside naive, and over the window.

    python benchmarks/gpu/2_dit.py --out 2_dit.json

20 pairs of steady chunks of the 1.3B network at 832x480, window 9, then every way of running it (as it is, CUDA graphs,
compiled, both; int8 and fp8 weights with their error), then a stream of 20 chunks, then windows 6, 9, 12. FPS are DiT
only.
"""

from functools import partial

from protocol import Protocol, begin, finish

from reward_forcing.benchmarks.pairs import side_by_side
from reward_forcing.benchmarks.streamed import stream_latents
from reward_forcing.benchmarks.subjects import Subject
from reward_forcing.benchmarks.sweep import sweep
from reward_forcing.benchmarks.ways import EXACT, LOW_BIT, measure_way, name_of
from reward_forcing.cli.bench import describe_pairs, describe_stream
from reward_forcing.streaming.acceleration import Acceleration

COMPILING = 120
"""Seconds that must be left for a way that is compiled to begin."""


def pairs(run: Protocol, subject: Subject, chunks: int) -> None:
    """The fast path beside the naive mode."""
    found = side_by_side(subject, "naive", chunks, lambda line: print(line, flush=True))
    run.recorder.add(found)
    print(describe_pairs(found), flush=True)


def ways(run: Protocol, subject: Subject, chunks: int, which: tuple[Acceleration, ...] = EXACT + LOW_BIT) -> None:
    """The network run in every way, in this order."""

    def measured(how: Acceleration) -> None:
        found = measure_way(subject, how, chunks)
        run.recorder.add(found)
        print(f"{found.name}: {found.speed}, error {found.error:.1e}, ready in {found.preparing:.0f} s", flush=True)

    for how in which:
        run.attempt(name_of(how), partial(measured, how), COMPILING if how.compile and not run.tiny else 0)


def stream(run: Protocol, subject: Subject, chunks: int) -> None:
    """A stream from its beginning."""
    found = stream_latents(subject, chunks)
    run.recorder.add(found)
    print(describe_stream(found), flush=True)


def windows(run: Protocol, subject: Subject, chunks: int) -> None:
    """Speed over the window."""
    for point in sweep(subject, "window", ("6", "9", "12"), chunks, run.recorder.add).points:
        print(f"window {point.value}: {point.speed}", flush=True)


def main() -> None:
    """Pairs, ways, stream, windows."""
    run = begin(__doc__ or "", minutes=9)
    subject, chunks = run.subject(), 2 if run.tiny else 20
    run.attempt("pairs", lambda: pairs(run, subject, chunks))
    ways(run, subject, chunks // 2)
    run.attempt("stream", lambda: stream(run, subject, chunks))
    run.attempt("windows", lambda: windows(run, subject, chunks // 2))
    finish(run)


if __name__ == "__main__":
    main()
