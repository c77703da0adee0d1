"""A stage small enough to train in milliseconds, whose batch is the same however it is cut into shards.

In the environment, TOY_KILL="role step" sends TOY_SIGNAL (SIGTERM) during that loss.
"""

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from reward_forcing.training.checkpoint import Checkpoints
from reward_forcing.training.settings import StageSettings
from reward_forcing.training.stage import Draw, Stage

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"kind": "adamw", "lr": 0.01},
    "muon": {"kind": "muon", "lr": 0.02, "adam": {"lr": 0.01}},
}


class ToySettings(StageSettings):
    stage: Literal["toy"] = "toy"
    batch_size: int = 8
    nan_from: int | None = None
    nan_until: int = 10**9


class ToyStage(Stage[ToySettings]):
    """Regression of a fixed random map (role `student`), and a critic updated every second step (role `critic`)."""

    settings_class = ToySettings

    def __init__(self, settings: ToySettings, seed: int, rank: int, world_size: int, device: torch.device) -> None:
        super().__init__(settings, seed, rank, world_size, device)
        # Ranks start differently on purpose: the trainer must make them equal.
        torch.manual_seed(seed + rank)
        student = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
        student.register_parameter("unused", nn.Parameter(torch.ones(2)))
        self.roles = {"student": student, "critic": nn.Sequential(nn.Linear(3, 1))}
        self.target = torch.randn(6, 3, generator=torch.Generator().manual_seed(7))

    def networks(self) -> Mapping[str, nn.Module]:
        return self.roles

    def edges(self, role: str) -> tuple[str, ...]:
        return ("0", "4") if role == "student" else ()

    def updates(self, step: int) -> tuple[str, ...]:
        return ("student", "critic") if step % 2 == 0 else ("student",)

    def loss(self, role: str, step: int, draw: Draw) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        if os.environ.get("TOY_KILL") == f"{role} {step}" and self.rank == self.world_size - 1:
            # With several processes the signal goes to the one that launched them, as a scheduler's would.
            number = int(os.environ.get("TOY_SIGNAL", signal.SIGTERM))
            os.kill(os.getppid() if self.world_size > 1 else os.getpid(), number)
        with self.clock("data"):
            share = draw.share(self.settings.batch_size)
            x = torch.stack([torch.randn(6, generator=draw.sample(index)) for index in share])
        shift = torch.randn((), generator=draw.shared)
        y = self.roles["student"](x)
        if role == "critic":
            return (self.roles["critic"](y.detach()) - shift).square().mean(), {}
        error = (y - x @ self.target - 0.01 * shift).square().mean()
        if self.settings.nan_from is not None and self.settings.nan_from <= step < self.settings.nan_until:
            error = error * float("nan")
        return error, {"shift": shift, "critic": self.roles["critic"](y).mean().detach()}

    def samples(self, step: int) -> Mapping[str, Tensor]:
        return {"clips": torch.rand(2, 3, 3, 4, 5, generator=torch.Generator().manual_seed(step))}

    def metrics(self, step: int) -> Mapping[str, Tensor | float]:
        return {"weight": self.roles["student"].get_parameter("0.weight").mean()}

    def export(self, networks: Mapping[str, nn.Module], folder: Path) -> None:
        torch.save(networks["student"].state_dict(), folder / "student.pt")


def config(optimizer: str = "muon", **changes: Any) -> dict[str, Any]:
    """Return a whole configuration; keys of `train` may be given flat."""
    train: dict[str, Any] = {
        "steps": 6,
        "optimizers": {"student": OPTIMIZERS[optimizer], "critic": OPTIMIZERS["adamw"]},
        "ema": {"student": {"decay": 0.9, "from_step": 2, "warm_up": True}},
        "clip_norm": 1.0,
        "log_every": 2,
        "save_every": 2,
        "save_minutes": None,
    }
    stage = {key: changes.pop(key) for key in list(changes) if key in ToySettings.model_fields}
    return {"stage": "toy", "train": train | changes, **stage}


def build(**changes: Any) -> ToyStage:
    """Return a toy stage from `config(**changes)`."""
    settings = ToySettings.model_validate(config(**changes))
    return ToyStage(settings, settings.seed, 0, 1, torch.device("cpu"))


def learned(out: Path) -> dict[str, Any]:
    """All that a run's newest checkpoint knows of its learners: whole tensors as `ROLE.KIND.NAME`, and counts."""
    checkpoints = Checkpoints(out / "checkpoints")
    found = checkpoints.newest()
    assert found is not None
    path, values = found
    tensors = {name: torch.zeros_like(tensor, device="cpu") for name, tensor in checkpoints.stored(path).items()}
    checkpoints.load(path, tensors)
    return {**tensors, "counts": values["learners"]}


def part(state: Mapping[str, Any], kind: str) -> dict[str, Tensor]:
    """Those tensors of `learned` whose name begins with `kind`, by the rest of their name."""
    return {name.removeprefix(f"{kind}."): tensor for name, tensor in state.items() if name.startswith(f"{kind}.")}
