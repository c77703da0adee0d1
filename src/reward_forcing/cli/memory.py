"""`--preset`, `--accelerate` and `--plan`: how a model is kept in memory, chosen before it is loaded."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from reward_forcing.logs import console

if TYPE_CHECKING:
    import torch

    from reward_forcing.streaming.acceleration import Acceleration
    from reward_forcing.streaming.memory_needs import Model
    from reward_forcing.streaming.memory_plan import DeviceMemory
    from reward_forcing.streaming.model_folder import ModelFolder


def acceleration_for(folder: "ModelFolder", preset: str | None, changes: Sequence[str]) -> "Acceleration":
    """How a model is to be kept on this machine, told in a line on stderr; nothing given on a CPU is as it is.

    changes: `NAME=VALUE` of `Acceleration`. Raises ValueError, before any weights are read, where nothing fits.
    """
    from reward_forcing.streaming.acceleration import Acceleration
    from reward_forcing.streaming.memory_needs import model_of_folder
    from reward_forcing.streaming.memory_plan import choose, describe_acceleration, free_memory, gib

    fixed, device = _fixed(changes), _device(None)
    if preset is None and device.type == "cpu":
        how = Acceleration.model_validate(fixed)
        how.check(device)
        return how
    model, memory = model_of_folder(folder), free_memory(device)
    found = choose(model, preset or "auto", memory, fixed=fixed)
    found.acceleration.check(device)
    words = describe_acceleration(found.acceleration, model)
    line = f"preset {preset or 'auto'}: {words}; {gib(found.peak)} of {gib(memory.free)} free"
    console().print(line, markup=False, soft_wrap=True)
    return found.acceleration


def print_plan(folder: "ModelFolder", preset: str | None, changes: Sequence[str]) -> None:
    """Print the plan of a model folder on this machine."""
    from reward_forcing.streaming.memory_needs import model_of_folder
    from reward_forcing.streaming.memory_plan import free_memory

    print(plan_table(model_of_folder(folder), preset or "auto", free_memory(_device(None)), changes))


def plan_table(model: "Model", preset: str, memory: "DeviceMemory", changes: Sequence[str], batch: int = 1) -> str:
    """What `choose` finds, as a table; raises ValueError where nothing fits."""
    from reward_forcing.streaming.memory_plan import choose, describe_plan

    return describe_plan(choose(model, preset, memory, batch, _fixed(changes)), model, memory, batch)


def memory_of(amount: str | None, device: str | None) -> "DeviceMemory":
    """The memory that is planned for: so much of a device's, or what is free on this machine.

    An amount by itself is a GPU's.
    """
    import torch

    from reward_forcing.streaming.memory_plan import DeviceMemory, free_memory, parse_bytes

    if amount is None:
        return free_memory(_device(device))
    return DeviceMemory(torch.device(device or "cuda"), parse_bytes(amount))


def _fixed(changes: Sequence[str]) -> dict[str, Any]:
    from reward_forcing.config import apply_override
    from reward_forcing.streaming.acceleration import Acceleration

    fixed: dict[str, Any] = {}
    for change in changes:
        apply_override(fixed, change)
    Acceleration.model_validate(fixed)
    return fixed


def _device(name: str | None) -> "torch.device":
    import torch

    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
