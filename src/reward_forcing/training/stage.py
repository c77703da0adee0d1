"""What a training stage is: networks by role, and the loss of a share of a batch. The trainer does the rest."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from reward_forcing.logs import Clock
from reward_forcing.training.parallel import Placement
from reward_forcing.training.settings import StageSettings, shard_size

SettingsT = TypeVar("SettingsT", bound=StageSettings)


def generator_for(*key: int | str) -> torch.Generator:
    """Return a CPU generator that depends on `key` alone, so that no random state needs saving."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@dataclass(frozen=True)
class Draw:
    """The randomness of one loss, a function of (seed, role, step) and the shard of the batch.

    A batch is cut into `shards` = processes * accumulate equal shards; a loss is that of shard number `shard`. `local`
    differs between shards; `shared` is the same for all of them, for choices that must agree (DMD's exit step).
    """

    seed: int
    role: str
    step: int
    shard: int
    shards: int
    local: torch.Generator
    shared: torch.Generator

    @classmethod
    def at(cls, seed: int, role: str, step: int, shard: int = 0, shards: int = 1) -> "Draw":
        """Return the draw of one shard of one role's batch at one step."""
        local = generator_for("local", seed, role, step, shard)
        return cls(seed, role, step, shard, shards, local, generator_for("shared", seed, role, step))

    def share(self, batch_size: int) -> range:
        """Return the indices of the global batch that belong to this shard. Raises ValueError as `shard_size` does."""
        size = shard_size(batch_size, self.shards)
        return range(self.shard * size, (self.shard + 1) * size)

    def sample(self, index: int, purpose: str = "sample") -> torch.Generator:
        """Return the generator of item `index` of the global batch: the same however the batch is cut.

        purpose: tells generators of one item apart.
        """
        return generator_for(purpose, self.seed, self.role, self.step, index)


class Stage(ABC, Generic[SettingsT]):
    """A training stage. Subclasses name their settings class and implement `networks`, `loss` and `export`.

    `clock` may time parts of a loss (`with self.clock("data"): ...`); the log shows them beside the trainer's own.
    Raises ValueError for settings that need transformers in a stage whose networks are others, and for batches that do
    not divide among the processes.
    """

    settings_class: ClassVar[type[StageSettings]]
    transformers: ClassVar[bool] = False
    """Whether its networks are `WanDiT`s that lie as `placement` says: these can be sharded and checkpointed."""

    def __init__(self, settings: SettingsT, seed: int, rank: int, world_size: int, device: torch.device) -> None:
        self.settings = settings
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.device = device
        self.clock = Clock()
        train = settings.train
        if not self.transformers and (train.shard != "none" or train.activation_checkpointing or train.lora):
            raise ValueError(
                f"stage '{settings.stage}' trains no transformer; leave out train.shard, train.lora and "
                "train.activation_checkpointing"
            )
        settings.check_shards(world_size * train.accumulate)
        self.placement = Placement.of(train.shard, train.precision, world_size, device, train.compile)

    @abstractmethod
    def networks(self) -> Mapping[str, nn.Module]:
        """Return the trained networks by role, always the same objects, on `device`, with float32 weights."""

    @abstractmethod
    def loss(self, role: str, step: int, draw: Draw) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        """Return the mean loss over this shard of the role's batch, and metrics to average and log.

        All randomness comes from `draw`. Metrics should be detached tensors: they are read only when logged. Only the
        role's own weights require gradients during the call.
        """

    @abstractmethod
    def export(self, networks: Mapping[str, nn.Module], folder: Path) -> None:
        """Write the final weights to the empty `folder` in the published layout; called by the first process only.

        networks: those of `networks()`, or whole copies on the CPU of sharded ones; with averaged weights.
        """

    def edges(self, role: str) -> tuple[str, ...]:
        """Return the modules of a role's network that Muon leaves to AdamW: by custom its first and last layers."""
        return ()

    def updates(self, step: int) -> tuple[str, ...]:
        """Return the roles to update at `step`, in order."""
        return tuple(self.networks())

    def learning_rate_scale(self, step: int) -> float:
        """Return the factor on all learning rates at `step`, from `train.learning_rate`."""
        train = self.settings.train
        return train.learning_rate.scale(step, train.steps)

    def updated(self, role: str, step: int) -> None:
        """Called in all processes once `role` has been updated at `step`; collective operations are allowed here."""
        return

    def derived(self, means: Mapping[str, float]) -> Mapping[str, float]:
        """Return numbers to log that are worked out from `means`, the logged averages of `role/metric`."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs besides the networks, as JSON holds it; that of the first process is kept."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        return

    def tensors(self) -> dict[str, Tensor]:
        """Return tensors that a resumed run needs besides the networks, under names that no other process uses."""
        return {}

    def make_room(self, stored: Mapping[str, Tensor]) -> None:
        """Hold, to be loaded into, those of the tensors stored under the names of `tensors` that this process needs.

        stored: of all processes, however many there were, without values.
        """
        return

    def samples(self, step: int) -> Mapping[str, Tensor]:
        """Return clips to look at after `step` steps: name -> frames [n, T, 3, H, W], uint8 or float in [0, 1].

        Called with averaged weights, without gradients: by all processes where networks are sharded, which must then
        run them alike, and otherwise by the first one only. What the first returns is shown.
        """
        return {}

    def metrics(self, step: int) -> Mapping[str, Tensor | float]:
        """Return validation metrics after `step` steps; called like `samples`."""
        return {}

    def summary(self) -> str:
        """Return what is trained, in one line."""
        sizes = (f"{role} {_millions(network)}" for role, network in self.networks().items())
        return f"{self.settings.stage}: " + ", ".join(sizes)


def _millions(network: nn.Module) -> str:
    """How many parameters a network has, and how many of them are trained where some are not."""
    sizes = [(p.numel(), p.requires_grad) for p in network.parameters()]
    whole, trained = sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)
    return f"{whole / 1e6:.2f}M" + (f" of which {trained / 1e6:.2f}M are trained" if trained < whole else "")
