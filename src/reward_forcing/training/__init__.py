"""Training stages and the trainer. Importing this package loads no stage; `stage_class` does, by name."""

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from reward_forcing.config import load_settings, unknown

if TYPE_CHECKING:
    from reward_forcing.training.settings import StageSettings
    from reward_forcing.training.stage import Stage

# The value of `stage:` in a configuration file -> where its class is, in the order of the recipe.
STAGES = {
    "vae": "reward_forcing.training.vae:VaeStage",
    "video_features": "reward_forcing.training.video_features:VideoFeaturesStage",
    "text_encoder": "reward_forcing.training.text_encoder:TextEncoderStage",
    "flow_matching": "reward_forcing.training.flow_matching:FlowMatchingStage",
    "ode_regression": "reward_forcing.training.ode_regression:OdeRegressionStage",
    "dmd": "reward_forcing.training.dmd:DmdStage",
    "re_dmd": "reward_forcing.training.re_dmd:ReDmdStage",
}


def stage_class(name: str) -> "type[Stage[Any]]":
    """Return the stage registered under `name`. Raises ValueError with the nearest name for an unknown one."""
    if name not in STAGES:
        raise ValueError(unknown("stage", name, STAGES))
    module, _, attribute = STAGES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def load_stage_settings(path: Path, overrides: Sequence[str] = ()) -> "StageSettings":
    """Return the settings in a stage's YAML file; its `stage` says of which class. Overrides are `a.b=value`.

    Raises ValueError as `load_settings` does, and for a missing or unknown stage.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    except yaml.YAMLError:
        values = None
    name = values.get("stage") if isinstance(values, dict) else None
    if not isinstance(name, str):
        from reward_forcing.training.settings import StageSettings

        return load_settings(StageSettings, path, overrides)
    return load_settings(stage_class(name).settings_class, path, overrides)


@contextmanager
def _subnormals_as_zero() -> Iterator[None]:
    """Take numbers below 1e-38 as zero: those of GELU's gradient above all take a CPU many times as long as others."""
    import torch

    were_zero = not torch.tensor([1e-39]).mul(1.0).item()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(were_zero)


def run_worker(config: Path, overrides: Sequence[str], out: Path) -> int:
    """Train in this process, alone or as one of torchrun's; returns 0, or 128 + the signal that stopped it."""
    import torch
    import transformers

    from reward_forcing.logs import console
    from reward_forcing.processes import join_world
    from reward_forcing.training.checkpoint import only_writer
    from reward_forcing.training.trainer import Trainer, finished_line, finished_step

    settings = load_stage_settings(config, overrides)
    torch.set_num_threads(settings.train.threads)
    transformers.utils.logging.disable_progress_bar()  # a text encoder is written in a moment
    with _subnormals_as_zero(), join_world() as world, only_writer(out, world.is_first):
        if (step := finished_step(settings, out)) is not None:
            if world.is_first:
                console().print(finished_line(out, step), markup=False, soft_wrap=True)
            return 0
        torch.manual_seed(settings.seed)
        stage = stage_class(settings.stage)(settings, settings.seed, world.rank, world.size, world.device)
        outcome = Trainer(stage, out, world).run()
    return 0 if outcome.signal is None else 128 + outcome.signal
