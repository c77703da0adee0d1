"""The record of an evaluation: what was measured on which clip of which model, and the scores made of it.

Owns the format of `results.json`. A report is made from this file and the clips beside it, and from nothing else.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from reward_forcing.config import Settings, describe
from reward_forcing.evaluation.matching import Form
from reward_forcing.evaluation.statistics import Estimate

FORMAT = 1
RESULTS = "results.json"
ALIGNED = "aligned"
"""The verdict on a whole clip among what is right: it sums the others up and is not counted beside them."""

Way = Literal["higher", "lower", "neither"]
"""Which way of a number is better, all else being equal."""


class Interval(Settings):
    """A value and its 95 % interval; count: prompts (means), trials (rates) or videos (slopes) behind it."""

    value: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, estimate: Estimate) -> Interval:
        """The same numbers."""
        return cls(value=estimate.value, low=estimate.low, high=estimate.high, count=estimate.count)


class Score(Interval):
    """A metric over a set of clips.

    kind: 'rate' of right clips in 0..1 (Wilson), 'mean' (bootstrap over prompts), or 'distance' of the whole set from
    rendered clips (jackknife over prompts).
    """

    unit: str = ""
    better: Way = "neither"
    kind: Literal["rate", "mean", "distance"] = "mean"
    doc: str = ""


class DriftScore(Settings):
    """A per-frame metric along long clips. drift: Eqs. 12-13. slope: per minute. change: mean |last - first segment|.

    curve: (seconds, mean over clips) of each segment.
    """

    drift: float
    slope: Interval
    change: float
    curve: tuple[tuple[float, float], ...]


class Sample(Settings):
    """One clip: its recipe, its file, and everything measured on it.

    file: relative to the folder of results.json. scores: metric -> number. right: attribute that the prompt names ->
    whether the clip shows it; empty for prompts without a known truth. curves: metric -> one value per segment.
    seen: what the detector saw, for the reader. features: 'start' and 'end', or '' for all of a short clip -> what
    distances between sets are taken of; only of clips of the procedural world.
    """

    set: str
    prompt_index: int
    prompt: str
    seed: int
    seconds: float
    frames: int
    file: str
    scores: dict[str, float] = Field(default_factory=dict)
    right: dict[str, bool] = Field(default_factory=dict)
    curves: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    seen: dict[str, Any] = Field(default_factory=dict)
    features: dict[str, tuple[float, ...]] = Field(default_factory=dict)

    @property
    def numbers(self) -> dict[str, float]:
        """Every number of the clip by name, right and wrong as 1 and 0."""
        return {name: float(right) for name, right in self.right.items()} | self.scores

    @property
    def name(self) -> str:
        """The sample's name, unique within an evaluation and usable as a file name."""
        return f"{self.set}-{self.prompt_index:04d}-seed{self.seed}"


class SetResults(Settings):
    """The scores of one set of prompts, all clips of one length."""

    name: str
    seconds: float
    prompts: int
    seeds_per_prompt: int
    scores: dict[str, Score]
    drift: dict[str, DriftScore] = Field(default_factory=dict)


class Provenance(Settings):
    """What is needed to make the same numbers again.

    model: as it was named. weights: SHA-256 of the transformer's files, None for videos made elsewhere. streaming: the
    method's numbers, or a diffusers pipeline's. prompts: SHA-256 of all prompts in order. commit: of this package's
    repository, '' if unknown. form: what clips were brought to before they were measured, None for as they were made.
    decoder: the file of a tiny decoder that made the frames in place of the model's VAE.
    """

    command: str
    created: str
    model: str
    weights: str | None
    streaming: dict[str, Any]
    prompts: str
    seed: int
    commit: str
    versions: dict[str, str]
    machine: str
    quick: bool = False
    form: Form | None = None
    decoder: str | None = None


class EvalResults(Settings):
    """A whole evaluation; `results.json`."""

    format: Literal[1] = FORMAT
    suite: str
    provenance: Provenance
    sets: tuple[SetResults, ...]
    samples: tuple[Sample, ...]

    def set_named(self, name: str) -> SetResults:
        """The results of one set. Raises ValueError if there is none of that name."""
        for results in self.sets:
            if results.name == name:
                return results
        raise ValueError(f"no set '{name}' in these results; there are {', '.join(s.name for s in self.sets)}")


def write_results(results: EvalResults, folder: Path) -> Path:
    """`folder`/results.json, whole or not at all."""
    path = folder / RESULTS
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(results.model_dump_json(indent=1), encoding="utf-8")
    os.replace(temporary, path)
    return path


def read_results(path: Path) -> EvalResults:
    """The results in a file, or in the results.json of a folder.

    Raises FileNotFoundError if there is none, ValueError for a file of another kind.
    """
    path = path / RESULTS if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in '{path.parent}'; make it with rforce eval run --out {path.parent}")
    try:
        return EvalResults.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise ValueError(f"'{path}' holds no results of an evaluation: {describe(error)}") from None


def json_schema() -> str:
    """The JSON schema of results.json."""
    return json.dumps(EvalResults.model_json_schema(), indent=1) + "\n"
