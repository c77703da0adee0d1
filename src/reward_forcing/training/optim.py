"""Optimizers and learning rates as settings. AdamW is torch's; Muon is here because torch's takes only 2-D weights.

Muon: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from reward_forcing.config import Settings
from reward_forcing.training.distributed import gather_flat, place
from reward_forcing.training.parallel import like, whole, whole_and_sharded

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
# Newton-Schulz works on stacks of equal-shaped weights; this bounds the memory of those updated together.
STACK_ELEMENTS = 1 << 24


class AdamWSettings(Settings):
    """AdamW for every weight of a role. The Reward Forcing reference uses betas (0, 0.999), weight_decay 0.01."""

    kind: Literal["adamw"] = "adamw"
    lr: PositiveFloat
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.01
    eps: PositiveFloat = 1e-8


class MuonSettings(Settings):
    """Muon for the hidden matrices and convolution kernels of a role, AdamW (`adam`) for all other weights."""

    kind: Literal["muon"] = "muon"
    lr: PositiveFloat
    momentum: float = Field(default=0.95, ge=0, lt=1)
    weight_decay: NonNegativeFloat = 0.0
    adam: AdamWSettings


OptimizerSettings = Annotated[AdamWSettings | MuonSettings, Field(discriminator="kind")]


class LearningRateSettings(Settings):
    """The factor on every learning rate: linear warm-up, a constant, then a decay over the last fraction of the run.

    decay: "constant" never decays; "linear" and "cosine" go from 1 to `floor` over the last `decay_fraction` of steps.
    """

    warm_up_steps: int = Field(default=0, ge=0)
    decay: Literal["constant", "linear", "cosine"] = "constant"
    decay_fraction: float = Field(default=1.0, gt=0, le=1)
    floor: float = Field(default=0.0, ge=0, le=1)

    def scale(self, step: int, steps: int) -> float:
        """Return the factor at `step` (from 0) of `steps`; never 0 at step 0, so that no step is wasted."""
        warm_up = min(1.0, (step + 1) / self.warm_up_steps) if self.warm_up_steps else 1.0
        if self.decay == "constant":
            return warm_up
        length = max(1.0, self.decay_fraction * steps)
        progress = min(1.0, max(0.0, (step - (steps - length)) / length))
        left = 1 - progress if self.decay == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        return warm_up * (self.floor + (1 - self.floor) * left)


def matrix_shape(weight: Tensor) -> tuple[int, int]:
    """Return (rows, columns) of a weight seen as a matrix; a convolution kernel [O, I, ...] is [O, I * ...]."""
    return weight.shape[0], weight.shape[1:].numel()


def orthogonalise(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Return the nearest semi-orthogonal matrices, roughly: singular values between about 0.7 and 1.2.

    Quintic Newton-Schulz iteration X <- a X + (b A + c A^2) X with A = X X^T, in bfloat16, whose errors are far below
    the iteration's own. matrices: [K, rows, columns]; the result is bfloat16 of the same shape.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).float()
    x = (x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)).bfloat16()
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised, for weights of two or more dimensions (kernels count as [O, rest]).

    W <- (1 - lr * weight_decay) W - lr * sqrt(max(1, rows / columns)) * orthogonalise(nesterov momentum).

    Momentum of sharded weights is sharded as they are; they are gathered, and each process orthogonalises some of them.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(list(parameters), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim < 2:
                    raise ValueError(
                        f"Muon takes weights of 2 or more dimensions, got shape {tuple(p.shape)}; use AdamW"
                    )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient; in several processes all of them call it, with equal gradients."""
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            while weights:
                count, elements = 0, 0
                while count < len(weights) and (not count or elements + weights[count].numel() <= STACK_ELEMENTS):
                    elements += weights[count].numel()
                    count += 1
                self._update(weights[:count], group)
                weights = weights[count:]

    def _update(self, weights: list[nn.Parameter], group: dict[str, Any]) -> None:
        ahead = []
        for p in weights:
            assert p.grad is not None
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
            momentum = self.state[p]["momentum"]
            momentum.lerp_(p.grad, 1 - group["momentum"])
            ahead.append(whole(p.grad.lerp(momentum, group["momentum"])).reshape(matrix_shape(p)))
        for p, direction in zip(weights, orthogonalise_together(ahead), strict=True):
            rows, columns = direction.shape
            if group["weight_decay"]:
                p.mul_(1 - group["lr"] * group["weight_decay"])
            lr = group["lr"] * math.sqrt(max(1.0, rows / columns))
            p.add_(like(direction.reshape(p.shape), p), alpha=-lr)


def orthogonalise_together(matrices: Sequence[Tensor]) -> list[Tensor]:
    """`orthogonalise` of each matrix [rows, columns], in every process, of which each computes a part.

    matrices: equal in all processes. Equal shapes are dealt out in turn, and each process stacks those that it got.
    """
    rank, size = place()
    by_shape = sorted(range(len(matrices)), key=lambda number: tuple(matrices[number].shape))
    parts = [by_shape[start::size] for start in range(size)]
    done = []
    for _, equal in itertools.groupby(parts[rank], key=lambda number: matrices[number].shape):
        done.append(orthogonalise(torch.stack([matrices[number] for number in equal])).flatten())
    flat = torch.cat(done) if done else torch.empty(0, dtype=torch.bfloat16, device=matrices[0].device)
    lengths = [[matrices[number].numel() for number in part] for part in parts]
    together = list(matrices)
    for part, sizes, gathered in zip(parts, lengths, gather_flat(flat, [sum(one) for one in lengths]), strict=True):
        for number, values in zip(part, gathered.split(sizes), strict=True):
            together[number] = values.view(matrices[number].shape)
    return together


def hidden_matrices(network: nn.Module, edges: Iterable[str] = ()) -> list[str]:
    """Return the names of the weights for Muon: those of Linear and ungrouped Conv layers outside `edges`.

    Embeddings, tables, norms and biases never qualify, whatever their shape. edges: names of modules (the first and
    last layers, as a rule) whose weights stay with AdamW. Raises ValueError for an edge that names no module.
    """
    modules = dict(network.named_modules())
    for edge in edges:
        if edge not in modules:
            raise ValueError(
                f"no module '{edge}' to keep from Muon; top-level modules: {list(dict(network.named_children()))}"
            )
    names = []
    for name, module in modules.items():
        if any(name == edge or name.startswith(f"{edge}.") for edge in edges):
            continue
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups > 1:
            continue
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) and min(matrix_shape(module.weight)) > 1:
            names.append(f"{name}.weight" if name else "weight")
    return names


def build_optimizers(
    settings: AdamWSettings | MuonSettings, parameters: Mapping[str, nn.Parameter], hidden: Iterable[str]
) -> list[torch.optim.Optimizer]:
    """Return the optimizers that together update `parameters`; each group keeps its full rate as `base_lr`.

    hidden: names for Muon, from `hidden_matrices`; ignored for AdamW.
    """
    optimizers: list[torch.optim.Optimizer] = []
    rest = dict(parameters)
    adam = settings
    if isinstance(settings, MuonSettings):
        adam = settings.adam
        matrices = [rest.pop(name) for name in hidden if name in rest]
        if matrices:
            optimizers.append(Muon(matrices, settings.lr, settings.momentum, settings.weight_decay))
    assert isinstance(adam, AdamWSettings)
    if rest:
        kinds = whole_and_sharded(rest.values())  # a fused update takes one kind
        groups = [{"params": parameters} for parameters in kinds if parameters]
        optimizers.append(
            torch.optim.AdamW(groups, adam.lr, adam.betas, adam.eps, weight_decay=adam.weight_decay, fused=True)
        )
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["base_lr"] = group["lr"]
    return optimizers
