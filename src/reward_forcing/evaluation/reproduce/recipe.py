"""What an ablation, or a comparison of methods, is: a training, what each variant changes of it, how all are judged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError, model_validator

from reward_forcing.config import Settings, apply_override, describe, load_settings, unknown
from reward_forcing.evaluation.reproduce.paper import TableName
from reward_forcing.evaluation.suites import (
    LONG_SECONDS,
    LONGEST_SHORT,
    SHORT_SECONDS,
    PromptSet,
    Suite,
    distinct_prompts,
)
from reward_forcing.evaluation.world_suite import underspecified_prompts
from reward_forcing.streaming.methods import StreamingSettings
from reward_forcing.training import load_stage_settings, stage_class
from reward_forcing.training.dmd import DmdSettings

OURS = "ours"
"""The variant that all others are compared with."""
SHORT, LONG = "short", "long"
STUDENT_AND_CRITIC = {"generator": "transformer", "fake_score": "fake_score"}
"""Setting of a training -> the folder of another one's export that it begins with."""


class Base(Settings):
    """The training that all variants share. overrides: `a.b=value`, as `rforce train CONFIG` takes them."""

    config: Path
    overrides: tuple[str, ...] = ()


class Variant(Settings):
    """One way of training. block: the part of the table that it stands in. stage: in place of the base's, whose
    settings that the other stage does not know are left out. overrides: on top of the base's. after: a variant, named
    before, with whose student and critic of the same seed the training begins.
    """

    label: str
    block: str
    stage: Literal["dmd", "re_dmd"] | None = None
    overrides: tuple[str, ...] = ()
    after: str | None = None


class Evaluation(Settings):
    """How a trained student is judged; prompts and noise are the same for all of them.

    prompts: held-out prompts of `seconds`. long_prompts: prompts of `long_seconds` that leave out, in turn, the traits
    in `left_out`, so that drift can show. seeds: clips of each prompt. seed: of the first. batch: clips side by side.
    """

    prompts: int = Field(64, ge=2)
    seconds: PositiveFloat = Field(SHORT_SECONDS, le=LONGEST_SHORT)
    long_prompts: int = Field(12, ge=2)
    long_seconds: float = Field(LONG_SECONDS, gt=LONGEST_SHORT)
    left_out: tuple[tuple[str, ...], ...] = (("background",), ("colour",), ("background", "colour"))
    seeds: PositiveInt = 1
    seed: NonNegativeInt = 0
    batch: PositiveInt = 8

    def suite(self) -> Suite:
        """The prompts and lengths of the clips, `short` and `long`."""
        short, long = distinct_prompts(self.prompts), underspecified_prompts(self.long_prompts, self.left_out)
        return Suite(
            "table3",
            tuple(
                PromptSet(name, tuple(prompt.text for prompt in truth), seconds, self.seeds, tuple(truth))
                for name, truth, seconds in ((SHORT, short, self.seconds), (LONG, long, self.long_seconds))
            ),
        )


class Ablation(Settings):
    """An ablation. table: of the paper, whose claims are judged. seeds: of the trainings, the same for every variant.
    streaming: YAML file of the model's streaming settings, whose cache, steps and shift each variant's training
    replaces. curve: watched rewards whose course in training is drawn, the first of them judged for Table 3 (Fig. 6).
    margins: by how much a measure may be worse and still count as no worse, in its own unit.
    """

    table: TableName = "table3"
    base: Base
    streaming: Path
    variants: dict[str, Variant]
    seeds: tuple[NonNegativeInt, ...] = (1, 2, 3)
    evaluation: Evaluation = Field(default_factory=lambda: Evaluation.model_validate({}))
    curve: tuple[str, ...] = ("tracked", "motion")
    margins: dict[str, PositiveFloat] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_something_to_compare(self) -> Self:
        if OURS not in self.variants:
            raise ValueError(f"variants need '{OURS}', which others are compared with; got {', '.join(self.variants)}")
        for name in self.variants:
            if not name.isidentifier():
                raise ValueError(f"a variant's name is a folder's: letters, digits and '_', got '{name}'")
        for place, (name, variant) in enumerate(self.variants.items()):
            if variant.after is not None and variant.after not in list(self.variants)[:place]:
                raise ValueError(f"variant '{name}' begins after '{variant.after}', which must be named before it")
        if len(set(self.seeds)) < len(self.seeds) or not self.seeds:
            raise ValueError(f"seeds must be different ones, at least one, got {list(self.seeds)}")
        return self

    def training(self, variant: str, seed: int, out: Path = Path()) -> DmdSettings:
        """All settings of one training. out: the ablation's folder, where the students of other variants are.

        Raises ValueError, naming the variant, for settings that make no sense.
        """
        chosen = self.variants[variant]
        try:
            base = load_stage_settings(self.base.config, self.base.overrides)
            values = base.model_dump(mode="json", exclude_unset=True)
            settings_class = stage_class(chosen.stage or values["stage"]).settings_class
            if chosen.stage is not None:
                known = {name: value for name, value in values.items() if name in settings_class.model_fields}
                values = known | {"stage": chosen.stage}
            if chosen.after is not None:
                trained = final_of(out, chosen.after, seed)
                values |= {role: str(trained / folder) for role, folder in STUDENT_AND_CRITIC.items()}
            for override in chosen.overrides:
                apply_override(values, override)
            settings = settings_class.model_validate(values | {"seed": seed})
        except ValidationError as error:
            raise ValueError(f"variant '{variant}': {describe(error)}") from None
        except ValueError as error:
            raise ValueError(f"variant '{variant}': {error}") from None
        if not isinstance(base, DmdSettings) or not isinstance(settings, DmdSettings):
            raise ValueError(
                f"variant '{variant}': an ablation is of the stages dmd and re_dmd, not '{settings.stage}'"
            )
        for name in ("vae", "text", "latent_size"):
            if getattr(settings, name) != getattr(base, name):
                raise ValueError(f"variant '{variant}': {name} must be the base's, for all are judged with it")
        for name in self.curve:
            if name not in settings.watched:
                raise ValueError(f"curve: {unknown('watched reward', name, settings.watched)}")
        return settings

    def trained_as(self) -> dict[str, str]:
        """For each variant the one that stands for all with the very same settings: `ours`, or else the first of them.

        What is equal is trained and measured once.
        """
        keys = {name: digest(self.training(name, self.seeds[0]).model_dump(mode="json")) for name in self.variants}
        first: dict[str, str] = {keys[OURS]: OURS}
        for name, key in keys.items():
            first.setdefault(key, name)
        for name, variant in self.variants.items():
            if variant.after is not None and (same := first[keys[variant.after]]) != variant.after:
                raise ValueError(f"variant '{name}': begin after '{same}', which stands for '{variant.after}'")
        return {name: first[key] for name, key in keys.items()}

    def streaming_settings(self) -> StreamingSettings:
        """The model's streaming settings before a variant's own replace them."""
        return load_settings(StreamingSettings, self.streaming)


def final_of(out: Path, variant: str, seed: int) -> Path:
    """The folder of what a training exports at its end."""
    return out / variant / f"seed{seed}" / "train" / "final"


def streamed_as(settings: DmdSettings) -> dict[str, Any]:
    """How what was trained so is streamed: with the cache, the steps, the shift and the windows of its training."""
    cache = settings.cache.model_dump(mode="json")
    schedule = {"schedule": "rolling"} if settings.rolling_share else {}
    return {**cache, "denoising_steps": list(settings.denoising_steps), "shift": settings.shift, **schedule}


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Ablation:
    """The recipe in a YAML file, with overrides `a.b=value` on top. Raises ValueError in one line, as settings do."""
    recipe = load_settings(Ablation, path, overrides)
    recipe.trained_as()
    return recipe


def write_training(settings: DmdSettings, path: Path) -> None:
    """The settings as a configuration file for `rforce train`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False), encoding="utf-8")


def digest(values: object) -> str:
    """SHA-256 of plain values, in hexadecimal."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
