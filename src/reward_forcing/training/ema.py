"""Moving averages of trained weights: what a stage shows, measures and exports. Knows named tensors, no network."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

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

        Storage is exchanged, not copied, which costs no memory for float32 weights. Do not train meanwhile.
        """
        trained = {name: self.parameters[name].data for name in self.average}
        for name, average in self.average.items():
            self.parameters[name].data = average.to(trained[name].dtype)
        try:
            yield
        finally:
            for name, weights in trained.items():
                self.parameters[name].data = weights

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs to go on exactly."""
        return {"average": self.average, "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that `state_dict` returned; tensors go to their parameter's device."""
        self.average = {name: t.to(self.parameters[name].device) for name, t in state["average"].items()}
        self.updates = state["updates"]
