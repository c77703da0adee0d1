"""Command 2 of the GPU protocol: the transformer alone, fast beside naive, and over the window.

    python benchmarks/gpu/2_dit.py --out 2_dit.json

20 pairs of steady chunks of the 1.3B network at 832x480, window 9, then a stream of 20 chunks, then windows 6, 9, 12.
FPS are DiT only. Compiled, graphed and float8 variants are to be added here as they come to exist.
"""

from protocol import begin, finish

from reward_forcing.benchmarks.pairs import side_by_side
from reward_forcing.benchmarks.streamed import stream_latents
from reward_forcing.benchmarks.sweep import sweep
from reward_forcing.cli.bench import describe_pairs, describe_stream


def main() -> None:
    """Pairs, stream, windows."""
    run = begin(__doc__ or "", minutes=9)
    subject, chunks = run.subject(), 2 if run.tiny else 20
    pairs = side_by_side(subject, "naive", chunks, lambda line: print(line, flush=True))
    run.recorder.add(pairs)
    print(describe_pairs(pairs), flush=True)
    if run.late():
        run.recorder.fail("stream and windows: no time left")
    else:
        stream = stream_latents(subject, chunks)
        run.recorder.add(stream)
        print(describe_stream(stream), flush=True)
        for point in sweep(subject, "window", ("6", "9", "12"), chunks // 2, run.recorder.add).points:
            print(f"window {point.value}: {point.speed}", flush=True)
    finish(run)


if __name__ == "__main__":
    main()
