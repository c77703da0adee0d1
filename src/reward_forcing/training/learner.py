"""One trained network with what belongs to it: its trainable parameters, optimizers and moving average."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from reward_forcing.training.ema import Ema
from reward_forcing.training.lora import adapters
from reward_forcing.training.optim import build_optimizers, hidden_matrices
from reward_forcing.training.parallel import whole, whole_and_sharded
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
        self.whole, self.sharded = whole_and_sharded(self.parameters.values())
        self.ema = Ema(settings.ema[role], self.parameters) if role in settings.ema else None
        self.skipped = 0

    def clear(self) -> None:
        """Forget all gradients."""
        for p in self.parameters.values():
            p.grad = None

    def reduce_gradients(self, reduce: bool) -> None:
        """Tell a sharded network whether the next backward averages gradients over processes or only adds to them."""
        if isinstance(self.network, FSDPModule):
            self.network.set_requires_gradient_sync(reduce)

    def clip(self) -> Tensor:
        """Return the norm of the whole gradient and scale the gradient down to `clip_norm` where it is longer.

        The whole gradient is that of the global batch: whole ones have been averaged, sharded ones are divided.
        """
        limit = float("inf") if self.clip_norm is None else self.clip_norm
        kinds = [kind for kind in (self.whole, self.sharded) if kind]
        norms = [whole(nn.utils.get_total_norm(p.grad for p in kind if p.grad is not None)) for kind in kinds]
        norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
        for kind in kinds:
            nn.utils.clip_grads_with_norm_(kind, limit, norm)
        return norm

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
        """Return the names of parameters whose gradient holds a NaN or an infinity. Called by all processes alike."""
        gradients = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        return [name for name, gradient in gradients.items() if not whole(gradient).isfinite().all()]

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors that the next updates depend on, by name: to be saved, or to be loaded into.

        network.PARAMETER, optimizer.PARAMETER.STATE, average.PARAMETER. Of an adapted network only the adapters: the
        stage has read the rest from where it lies.
        """
        state = self.network.state_dict()
        kept = self.parameters if adapters(self.network) else state
        named = {f"network.{name}": state[name] for name in kept}
        for name, p in self.parameters.items():
            for optimizer in self.optimizers:
                state = optimizer.state.get(p, {})
                named |= {f"optimizer.{name}.{what}": tensor for what, tensor in state.items()}
        if self.ema is not None:
            named |= {f"average.{name}": tensor for name, tensor in self.ema.average.items()}
        return named

    def make_room(self, stored: Mapping[str, Tensor]) -> None:
        """Hold, to be loaded into, those of the tensors stored under the names of `tensors` that updates make."""
        for key, tensor in stored.items():
            kind, _, rest = key.partition(".")
            if kind == "optimizer":
                name, _, what = rest.rpartition(".")
                p = self.parameters[name]
                is_like_it = tensor.shape == p.shape
                room = torch.zeros_like(p) if is_like_it else torch.zeros_like(tensor, device=p.device)
                self._optimizer_of(p).state[p][what] = room
        if self.ema is not None:
            self.ema.make_room(key.partition(".")[2] for key in stored if key.startswith("average."))

    def _optimizer_of(self, parameter: nn.Parameter) -> torch.optim.Optimizer:
        return next(
            optimizer
            for optimizer in self.optimizers
            if any(parameter is p for group in optimizer.param_groups for p in group["params"])
        )

    def counts(self) -> dict[str, int]:
        """Return the numbers that the next updates depend on."""
        return {"skipped": self.skipped, "averaged": 0 if self.ema is None else self.ema.updates}

    def set_counts(self, counts: Mapping[str, int]) -> None:
        """Continue from what `counts` returned."""
        self.skipped = counts["skipped"]
        if self.ema is not None:
            self.ema.updates = counts["averaged"]


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
