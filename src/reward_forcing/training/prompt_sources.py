"""Where a stage's prompts come from: the captions of the procedural world, or a file with one in each line.

Prompts are found by two numbers, so that nothing of a run's randomness need be kept: which one, and which wording.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from reward_forcing.data.dataset import wording
from reward_forcing.data.switches import switch_captions, switched_scene
from reward_forcing.training.ode_pairs import read_prompts
from reward_forcing.training.world_latents import SAMPLE_PROMPTS


class PromptSource(Protocol):
    """Prompts for training, and others to validate with. item: a number and the number of a wording of it."""

    examples: tuple[str, ...]
    """A few prompts to look at while a run lasts."""
    count: int
    """How many are trained with; items are numbered from 0."""

    def prompts(self, items: Sequence[tuple[int, int]]) -> list[str]:
        """The prompts of these items."""
        ...

    def switched(self, items: Sequence[tuple[int, int]]) -> tuple[list[str], list[str]]:
        """For each item a first prompt and the one that it is switched to."""
        ...

    def validation(self, count: int) -> list[str]:
        """The first so many prompts that training never sees."""
        ...


class WorldPrompts:
    """Captions of training scenes of the world, and of its switched scenes."""

    examples: tuple[str, ...] = SAMPLE_PROMPTS

    def __init__(self, count: int) -> None:
        self.count = count

    def prompts(self, items: Sequence[tuple[int, int]]) -> list[str]:
        """A caption of each scene."""
        return [wording(scene, "train", seed) for scene, seed in items]

    def switched(self, items: Sequence[tuple[int, int]]) -> tuple[list[str], list[str]]:
        """A caption of each scene before and after something of it changes."""
        pairs = [switch_captions(switched_scene(scene, "train"), seed) for scene, seed in items]
        return [before.text for before, _ in pairs], [after.text for _, after in pairs]

    def validation(self, count: int) -> list[str]:
        """Captions of validation scenes."""
        return [wording(scene, "validation") for scene in range(count)]


class FilePrompts:
    """The lines of a file; its last ones are kept for validation.

    validation_prompts: how many are kept; with none the first ones validate too. Raises FileNotFoundError for a missing
    file, ValueError for one that has no line left to train with.
    """

    def __init__(self, file: Path, validation_prompts: int) -> None:
        lines = read_prompts(file)
        if len(lines) <= validation_prompts:
            raise ValueError(
                f"'{file}' holds {len(lines)} prompts, of which {validation_prompts} are kept for validation; give "
                "more prompts or a smaller validation_prompts"
            )
        self._train, self._kept = lines[: len(lines) - validation_prompts], lines[len(lines) - validation_prompts :]
        self.examples = self._train[: len(SAMPLE_PROMPTS)]
        self.count = len(self._train)

    @property
    def lines(self) -> tuple[str, ...]:
        """All lines."""
        return (*self._train, *self._kept)

    def prompts(self, items: Sequence[tuple[int, int]]) -> list[str]:
        """The lines with these numbers; beyond the last they begin again."""
        return [self._train[number % len(self._train)] for number, _ in items]

    def switched(self, items: Sequence[tuple[int, int]]) -> tuple[list[str], list[str]]:
        """Two lines for each item, the second found by the number of its wording."""
        return self.prompts(items), self.prompts([(other, 0) for _, other in items])

    def validation(self, count: int) -> list[str]:
        """The kept lines, over again if more are asked for."""
        lines = self._kept or self._train
        return [lines[number % len(lines)] for number in range(count)]
