"""One trained network with what belongs to it: its trainable parameters, optimizers and moving average."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from reward_forcing.training.ema import Ema
from reward_forcing.training.optim import build_optimizers, hidden_matrices
from reward_forcing.training.settings import TrainSettings


class Learner:
    """The network of one role and how it learns. `skipped` counts its non-finite updates since the last good one."""

    def __init__(self, role: str, network: nn.Module, settings: TrainSettings, edges: Iterable[str] = ()) -> None:
        self.role = role
        self.network = network
        self.clip_norm = settings.clip_norm
        self.parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ValueError(f"role '{role}' has no trainable parameters; leave it out of the stage's networks")
        hidden = hidden_matrices(network, edges)
        self.optimizers = build_optimizers(settings.optimizers[role], self.parameters, hidden)
        self.ema = Ema(settings.ema[role], self.parameters) if role in settings.ema else None
        self.skipped = 0

    def clear(self) -> None:
        """Forget all gradients."""
        for p in self.parameters.values():
            p.grad = None

    def clip(self) -> Tensor:
        """Return the norm of the whole gradient and scale the gradient down to `clip_norm` where it is longer."""
        limit = float("inf") if self.clip_norm is None else self.clip_norm
        return nn.utils.clip_grad_norm_(self.parameters.values(), limit)

    def step(self, step: int, lr_scale: float) -> None:
        """Update the weights with their gradients at `lr_scale` times the full learning rates, then the average."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * lr_scale
            optimizer.step()
        if self.ema is not None:
            self.ema.update(step)

    @property
    def lr(self) -> float:
        """The learning rate of the first group (Muon's, where there is one)."""
        return self.optimizers[0].param_groups[0]["lr"]

    def nonfinite_gradients(self) -> list[str]:
        """Return the names of the parameters whose gradient holds a NaN or an infinity."""
        return [name for name, p in self.parameters.items() if p.grad is not None and not p.grad.isfinite().all()]

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next updates depend on."""
        return {
            "network": self.network.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that `state_dict` returned."""
        self.network.load_state_dict(state["network"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.skipped = state["skipped"]


@contextmanager
def only_trainable(learner: Learner, learners: Iterable[Learner]) -> Iterator[None]:
    """Let only this learner's parameters require gradients: a loss through another's network then costs it nothing."""
    others = [p for other in learners if other is not learner for p in other.parameters.values()]
    for p in others:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in others:
            p.requires_grad_(True)


@contextmanager
def averaged_weights(learners: Iterable[Learner]) -> Iterator[None]:
    """Put every learner's moving average in its network's place, without gradients, for a while."""
    with torch.no_grad(), ExitStack() as stack:
        for learner in learners:
            if learner.ema is not None:
                stack.enter_context(learner.ema.applied())
        yield
