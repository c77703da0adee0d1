"""What is told of a trained variant, and how sure it is: from the records of its clips to values with intervals.

K training runs (seeds) of a variant, P prompts. Every number of a prompt is the mean over its clips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from reward_forcing.evaluation.clip_scores import ATTRIBUTE_DOCS
from reward_forcing.evaluation.reproduce.recipe import LONG, SHORT
from reward_forcing.evaluation.results import ALIGNED, EvalResults, Sample, Way, read_results
from reward_forcing.evaluation.statistics import Estimate, crossed_jackknife, crossed_mean
from reward_forcing.evaluation.world_distance import (
    DISTANCES,
    FRECHET,
    KERNEL,
    least_clips,
    reference_features,
    standardised,
)

Array = NDArray[np.floating]
ALIGNMENT = "alignment"
"""A score made here: the share of what the prompt names that is right, of a long clip in its last 5 seconds."""


@dataclass(frozen=True)
class Measure:
    """A number of a set of clips. score: of a clip, see `clip_scores`, ALIGNMENT, or a distance of the whole set.

    digits: after the point, in tables.
    """

    label: str
    set: str
    score: str
    better: Way
    digits: int = 3

    @property
    def is_distance(self) -> bool:
        """Whether it is of the set and not of single clips."""
        return self.score in DISTANCES


MEASURES = {
    "background": Measure("background constancy", LONG, "background_constancy", "higher", 4),
    "subject": Measure("subject constancy", LONG, "subject_constancy", "higher", 4),
    "smoothness": Measure("error of the middle frame, levels", LONG, "midpoint_error@end", "lower", 2),
    "dynamic": Measure("tracked motion", SHORT, "tracked_motion", "higher"),
    "moves": Measure("share of clips that move", SHORT, "tracked_moves", "higher"),
    "long_dynamic": Measure("tracked motion over the long clip", LONG, "tracked_motion", "higher"),
    "quality": Measure("Frechet distance to rendered clips", SHORT, FRECHET, "lower", 1),
    "kernel": Measure("kernel distance to rendered clips", SHORT, KERNEL, "lower", 2),
    "sharpness": Measure("sharpness", SHORT, "sharpness", "higher"),
    "flicker": Measure("flicker, levels", SHORT, "flicker", "lower", 2),
    "alignment": Measure("text alignment", SHORT, ALIGNMENT, "higher"),
    "long_alignment": Measure("text alignment of the last 5 s", LONG, ALIGNMENT, "higher"),
    "drift": Measure("drift of sharpness", LONG, "sharpness@drift", "lower", 4),
    "background_shift": Measure("background away from the first chunk's", LONG, "background_shift@end", "lower"),
    "colour_shift": Measure("object's colour away from the first chunk's", LONG, "colour_shift@end", "lower"),
    "count_shift": Measure("number of objects away from the first chunk's", LONG, "count_shift@end", "lower"),
}
"""Everything that is told of a variant, by the name that claims use."""


class Runs:
    """The evaluations of one variant: of each training run, by its seed, every clip's record."""

    def __init__(self, evaluations: Mapping[int, EvalResults]) -> None:
        self.evaluations = evaluations
        self._clips = [_by_prompt(evaluations[seed].samples) for seed in sorted(evaluations)]

    @classmethod
    def of_folders(cls, folders: Mapping[int, Path]) -> Runs:
        """The evaluations in these folders, by seed."""
        return cls({seed: read_results(folder) for seed, folder in folders.items()})

    def of_seeds(self, seeds: Iterable[int]) -> Runs:
        """The runs with these seeds alone."""
        return Runs({seed: self.evaluations[seed] for seed in seeds})

    def __len__(self) -> int:
        return len(self.evaluations)

    def prompts(self, measure: Measure) -> dict[int, Array]:
        """For each prompt that has the measure in every run its values [K], or features [K, clips, D] of a distance."""
        found: dict[int, Array] = {}
        for prompt in self._clips[0][measure.set]:
            values = [_values(run[measure.set].get(prompt, ()), measure) for run in self._clips]
            if all(values):
                found[prompt] = np.array(values if measure.is_distance else [np.mean(of_run) for of_run in values])
        return found

    def curve(self, name: str) -> list[list[float]]:
        """The mean over long clips of a score's curve along the clip, [K][segments]."""
        found = []
        for run in self._clips:
            clips = [clip for of_prompt in run[LONG].values() for clip in of_prompt if name in clip.curves]
            found.append([fmean(column) for column in zip(*(clip.curves[name] for clip in clips), strict=False)])
        return found


def _by_prompt(samples: Iterable[Sample]) -> dict[str, dict[int, list[Sample]]]:
    sets: dict[str, dict[int, list[Sample]]] = {SHORT: {}, LONG: {}}
    for sample in samples:
        sets[sample.set].setdefault(sample.prompt_index, []).append(sample)
    return sets


def value_of(runs: Runs, measure: Measure) -> Estimate | None:
    """A measure of a variant with its interval over runs and prompts; None where too few clips have it."""
    prompts = list(runs.prompts(measure).values())
    return _estimate(prompts, measure, lambda distances: distances)


def difference(a: Runs, b: Runs, measure: Measure) -> Estimate | None:
    """a - b of a measure, of the same prompts with the same noise and of the seeds that both were trained with.

    None where too few clips have it.
    """
    seeds = [seed for seed in a.evaluations if seed in b.evaluations]
    if not seeds:
        return None
    of_a, of_b = (runs.of_seeds(seeds).prompts(measure) for runs in (a, b))
    shared = [np.stack([of_a[prompt], of_b[prompt]]) for prompt in of_a if prompt in of_b]
    if measure.is_distance:
        return _estimate(shared, measure, lambda distances: distances[0] - distances[1])
    return _estimate([pair[0] - pair[1] for pair in shared], measure, lambda distances: distances)


def per_run(runs: Runs, measure: Measure) -> list[float]:
    """A measure of each run by itself; empty where too few clips have it."""
    prompts = list(runs.prompts(measure).values())
    if not prompts or (measure.is_distance and not _enough(prompts, measure)):
        return []
    if measure.is_distance:
        return _distances(measure, prompts).tolist()
    return np.mean(prompts, axis=0).tolist()


def _estimate(prompts: Sequence[Array], measure: Measure, combine: Callable[[Array], Array]) -> Estimate | None:
    """prompts: values [K] of each, or features [..., K, clips, D], whose distances [..., K] `combine` makes [K]."""
    if len(prompts) < 2 or (measure.is_distance and not _enough(prompts, measure)):
        return None
    if measure.is_distance:
        return crossed_jackknife(prompts, lambda kept: combine(_distances(measure, kept)))
    return crossed_mean(np.stack(prompts, axis=1))


def _enough(prompts: Sequence[Array], measure: Measure) -> bool:
    clips = prompts[0].shape[-2]
    return len(prompts) > 2 and (len(prompts) - 1) * clips >= least_clips(measure.score)


def _distances(measure: Measure, prompts: Sequence[Array]) -> Array:
    """The distances [..., K] to rendered clips of features [..., K, clips, D] of some prompts."""
    features = standardised(np.concatenate(prompts, axis=-2))
    reference = standardised(reference_features())
    distance = DISTANCES[measure.score]
    flat = features.reshape(-1, *features.shape[-2:])
    return np.array([distance(one, reference) for one in flat]).reshape(features.shape[:-2])


def _values(clips: Sequence[Sample], measure: Measure) -> list[float] | list[tuple[float, ...]]:
    """The measure, or the features, of each of a prompt's clips in one run that has it."""
    if measure.is_distance:
        return [clip.features[""] for clip in clips if "" in clip.features]
    if measure.score == ALIGNMENT:
        return [fmean(_named(clip.right)) for clip in clips if clip.right]
    return [clip.scores[measure.score] for clip in clips if measure.score in clip.scores]


def _named(right: Mapping[str, bool]) -> list[float]:
    """What the prompt names and is right, in all of a short clip or at the end of a long one."""
    names = {name for name in ATTRIBUTE_DOCS if name != ALIGNED}
    return [float(is_right) for name, is_right in right.items() if name.removesuffix("@end") in names]
