"""Moving averages of trained weights: what a stage shows, measures and exports. Knows named tensors, no network."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from pydantic import Field
from torch import Tensor

from reward_forcing.config import Settings


class EmaSettings(Settings):
    """How the weights of one role are averaged.

    decay: weight of the past in each update. from_step: the average starts as a copy of the weights after this step's
    update (Self Forcing uses 0.99 from step 200). warm_up: use min(decay, (1 + n) / (20 + n)) at update n, so that
    early averages forget the initial weights.
    """

    decay: float = Field(default=0.999, ge=0, lt=1)
    from_step: int = Field(default=0, ge=0)
    warm_up: bool = False


class Ema:
    """A float32 exponential moving average: average <- decay * average + (1 - decay) * weights."""

    def __init__(self, settings: EmaSettings, parameters: Mapping[str, Tensor]) -> None:
        self.settings = settings
        self.parameters = dict(parameters)
        self.average: dict[str, Tensor] = {}
        self.updates = 0

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after the optimizer's update of `step`; the first one from `from_step` on is a copy."""
        if step < self.settings.from_step:
            return
        if not self.average:
            self.average = {name: p.detach().float().clone() for name, p in self.parameters.items()}
            return
        weights = [self.parameters[name].detach().float() for name in self.average]
        weight = 1 - self.decay()
        for average, current in zip(self.average.values(), weights, strict=True):
            average.lerp_(current, weight)
        self.updates += 1

    def decay(self) -> float:
        """Return the decay of the next update."""
        n = self.updates
        return min(self.settings.decay, (1 + n) / (20 + n)) if self.settings.warm_up else self.settings.decay

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average in the parameters' place for a while; without an average yet the weights stay as they are.

        Values are copied in place, for sharding knows parameters by their storage; the trained ones are kept meanwhile.
        """
        trained = {name: self.parameters[name].detach().clone() for name in self.average}
        self._write(self.average)
        try:
            yield
        finally:
            self._write(trained)

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.parameters[name].copy_(value)

    def make_room(self, names: Iterable[str]) -> None:
        """Hold an average, still to be filled, for each of the named parameters."""
        self.average = {name: torch.zeros_like(self.parameters[name], dtype=torch.float32) for name in names}
