"""Records of clips and evaluations made of them, with whatever numbers a test needs."""

from collections.abc import Sequence

from reward_forcing.evaluation.results import EvalResults, Provenance, Sample
from reward_forcing.evaluation.set_scores import score_set


def record(index: int, seed: int = 0, scores: dict[str, float] | None = None, **values: object) -> Sample:
    known = {"set": "short", "prompt_index": index, "prompt": f"prompt {index}", "seed": seed, "seconds": 5.0}
    return Sample.model_validate({**known, "frames": 80, "file": "x.mp4", "scores": scores or {}, **values})


def evaluation(samples: Sequence[Sample], name: str = "short", seconds: float = 5) -> EvalResults:
    origin = Provenance(
        command="", created="", model="", weights=None, streaming={}, prompts="", seed=0, commit="", versions={},
        machine="",
    )  # fmt: skip
    sets = (score_set(name, seconds, samples),)
    return EvalResults(suite="file", provenance=origin, sets=sets, samples=tuple(samples))
