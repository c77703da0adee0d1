"""The whole GPU protocol in one command of ten minutes: fewer repetitions of each, in the order of what matters most.

    python benchmarks/gpu/0_in_ten_minutes.py --out 0.json

Equality first, and nothing else where it fails. Then attention by backend, three pairs beside the naive mode, the exact
ways of running the 1.3B network, Wan's VAE end to end, a tiny decoder end to end, low-bit weights with their error, and
the other ceilings. What fails, and what there is no time for, is a line of the record and not the end.
"""

import sys
from functools import partial
from importlib import import_module

import torch
from protocol import Protocol, begin, finish

from reward_forcing.benchmarks.subjects import Subject
from reward_forcing.benchmarks.ways import EXACT, LOW_BIT, name_of
from reward_forcing.streaming.acceleration import Acceleration

ceilings, dit, pipeline = (import_module(name) for name in ("1_ceilings", "2_dit", "3_pipeline"))
LAST = 60
"""Seconds before the end after which nothing long begins."""


def of_vae(run: Protocol, subject: Subject, chunks: int) -> None:
    """Decoders alone; first chunk, prompt switch and a stream with Wan's VAE."""
    whole = pipeline.pipeline_of(run, subject)
    pipeline.decoders(run, whole)
    pipeline.soak(run, whole, (chunks // 2, chunks))
    pipeline.latencies(run, whole)


def main() -> None:
    """Everything, in turn."""
    run = begin(__doc__ or "", minutes=9)
    chunks, late = (2, 0) if run.tiny else (10, LAST)
    right: list[bool] = []
    with torch.no_grad():
        run.attempt("equality", lambda: right.append(ceilings.equal(run)))
        if right != [True]:
            run.recorder.fail("the fast path does not equal the naive mode here: nothing was timed")
            finish(run)
            sys.exit(1)
        subject = run.subject()
        run.table("attention", "TFLOP/s", ceilings.attention(run))
        run.attempt("pairs", partial(dit.pairs, run, subject, 1 if run.tiny else 3), late)
        dit.ways(run, subject, chunks, EXACT)
        run.attempt("Wan VAE", partial(of_vae, run, subject, 3 * chunks), late)
        for how in (Acceleration(), pipeline.FAST):
            run.attempt(f"TAEHV, {name_of(how)}", partial(pipeline.end_to_end, run, subject, how, 3 * chunks), late)
        dit.ways(run, subject, chunks // 2, LOW_BIT)
        for name, unit, rows in (
            ("matrix products", "TFLOP/s", ceilings.products),
            ("convolutions", "TFLOP/s", ceilings.convolutions),
            ("memory", "GB/s", ceilings.copies),
        ):
            run.table(name, unit, rows(run))
    finish(run)


if __name__ == "__main__":
    main()
