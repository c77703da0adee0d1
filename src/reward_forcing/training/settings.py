"""What every stage's configuration file shares: `stage`, `seed` and `train`. A stage subclasses to add its own keys."""

from collections.abc import Iterable
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from reward_forcing.config import Settings, unknown
from reward_forcing.training.ema import EmaSettings
from reward_forcing.training.lora import LoraSettings
from reward_forcing.training.optim import LearningRateSettings, OptimizerSettings
from reward_forcing.training.parallel import Shard


class TrainSettings(Settings):
    """How a stage is trained: everything the trainer decides and the stage need not know.

    steps: length of the run. optimizers, ema: by role, e.g. {"generator": ...}. lora: also by role; the role's network
    is frozen then, and adapters beside its layers are trained, averaged and saved. clip_norm: gradient norm per role.
    precision: "bf16" runs the losses under autocast; master weights stay float32. accumulate: shards of the batch that
    one process works off before an update. shard: see `parallel.Shard`. activation_checkpointing: trained networks
    compute their blocks again in the backward instead of keeping what they need for it; gradients stay the same to the
    last bit. compile: fuses the operations of transformer blocks, of a VAE that decodes in bfloat16, and the norms and
    activations of a trained VAE; the first step on each shape takes longer (half a minute for blocks), all others less
    time. *_every: in steps. save_minutes: also save after so many minutes. save_async: train on while a checkpoint is
    being written. keep: newest checkpoints that stay; keep_every: those at multiples of it stay for good. threads: per
    process. nonfinite_limit: so many skipped updates in a row end the run.
    """

    steps: PositiveInt
    optimizers: dict[str, OptimizerSettings]
    learning_rate: LearningRateSettings = LearningRateSettings()
    ema: dict[str, EmaSettings] = Field(default_factory=dict)
    lora: dict[str, LoraSettings] = Field(default_factory=dict)
    clip_norm: PositiveFloat | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    accumulate: PositiveInt = 1
    shard: Shard = "none"
    activation_checkpointing: bool = False
    log_every: PositiveInt = 10
    sample_every: PositiveInt | None = None
    save_every: PositiveInt | None = None
    save_minutes: PositiveFloat | None = 10.0
    save_async: bool = False
    keep: int = Field(default=2, ge=1)
    keep_every: PositiveInt | None = None
    threads: PositiveInt = 1
    nonfinite_limit: PositiveInt = 10


# Keys that may change between two halves of one run: they alter when things are shown or kept, the run's length, or how
# its work is divided.
HARMLESS = frozenset(
    f"train.{key}"
    for key in (
        *("steps", "log_every", "sample_every", "save_every", "save_minutes", "save_async", "keep", "keep_every"),
        *("threads", "accumulate", "shard", "activation_checkpointing"),
    )
)


class StageSettings(Settings):
    """The root of a stage's configuration file. Subclasses add the stage's own keys.

    stage: the stage's name, which each subclass narrows to a Literal (hence Any here). roles: of the networks that the
    stage trains; empty where only the stage itself can tell.
    """

    roles: ClassVar[tuple[str, ...]] = ()
    stage: Any
    seed: int = 0
    train: TrainSettings

    @model_validator(mode="after")
    def _roles_are_the_stages(self) -> Self:
        if self.roles:
            self.check_roles(self.roles)
        return self

    def check_roles(self, roles: Iterable[str]) -> None:
        """Raise ValueError where `train` names a network that the stage does not train, or leaves one out."""
        roles = sorted(roles)
        for place in ("optimizers", "ema", "lora"):
            for role in sorted(set(getattr(self.train, place)) - set(roles)):
                raise ValueError(f"train.{place}: {unknown('role', role, roles)}")
        for role in roles:
            if role not in self.train.optimizers:
                raise ValueError(f"train.optimizers has no entry for role '{role}' of stage '{self.stage}'")

    def batches(self) -> tuple[int, ...]:
        """The sizes of the global batches that the run's updates take."""
        return ()

    def check_shards(self, shards: int) -> None:
        """Raise ValueError unless all batches divide into so many shards (processes x train.accumulate)."""
        for batch in self.batches():
            shard_size(batch, shards)


def shard_size(batch: int, shards: int) -> int:
    """How much of a global batch one of its equal shards holds.

    Raises ValueError unless the shards divide it: unequal ones would bias the averaged gradient.
    """
    if batch % shards:
        raise ValueError(
            f"batch size {batch} does not divide into {shards} shards (processes x train.accumulate); "
            f"use a multiple of {shards}"
        )
    return batch // shards
