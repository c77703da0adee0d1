"""The `.pt` files of the forcing family: which networks a file holds, and what their parameters are called.

Self and Rolling Forcing, CausVid and LongLive save `{"generator": state, "critic": state, ...}` or `{"model": state}`;
Reward Forcing's release is a bare state. Names carry the prefix `model.` and the marks of FSDP, activation
checkpointing and torch.compile. LongLive adds a LoRA file in peft's naming.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from reward_forcing.checkpoints.files import LazyTensor

DEFAULT_ROLE = "generator"
CONFIG_KEY = "config"  # our addition to a written file, which other readers pass over

_MARKS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
_PREFIXES = ("module.", "base_model.model.", "model.", "diffusion_model.", "transformer.")
COMFY_PREFIX = "model.diffusion_model."
_LORA = re.compile(r"(.+)\.lora_(A|B|down|up)(?:\.default)?\.weight")


@dataclass(frozen=True)
class LoraDelta:
    """One low-rank update of a matrix: W + (alpha / rank) B A, with A [rank, inputs] and B [outputs, rank]."""

    a: LazyTensor
    b: LazyTensor
    alpha: float

    def added_to(self, weight: Tensor) -> Tensor:
        """`weight` with the update, computed in float32 and returned in its dtype."""
        update = self.b.read().float() @ self.a.read().float() * (self.alpha / self.a.shape[0])
        return (weight.float() + update).to(weight.dtype)


def clean_name(name: str) -> str:
    """`name` without the marks of wrappers, anywhere, and without the prefixes that stand for the network itself."""
    for mark in _MARKS:
        name = name.replace(mark, "")
    while prefix := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return name


def roles_of(content: Mapping[str, Any]) -> dict[str, dict[str, LazyTensor]]:
    """Role -> parameters by clean name, of what a file holds; a bare state dict counts as the generator.

    Left out are entries that are no state dicts (a step counter, settings), and the VAE and text encoder of a file
    that calls the network `model.diffusion_model`, as ComfyUI's whole checkpoints do.
    Raises ValueError if nothing is left, or if two names become the same when cleaned.
    """
    states = {role: state for role, state in content.items() if _is_state(state)}
    if _is_state(content):
        own = {name: tensor for name, tensor in content.items() if name.startswith(COMFY_PREFIX)}
        states = {DEFAULT_ROLE: own or content}
    if not states:
        held = f"{', '.join(list(content)[:5])}, which hold no tensors" if content else "no tensors"
        for state in (content, *(value for value in content.values() if isinstance(value, Mapping))):
            others = [str(name) for name, value in state.items() if not isinstance(value, LazyTensor)]
            if len(others) < len(state):
                held = f"one with entries that are no tensors: {', '.join(others[:5])}; take them out"
        raise ValueError(f"expected a state dict, or state dicts by role such as generator and critic; found {held}")
    return {role: _cleaned(state) for role, state in states.items()}


def is_marked(names: Iterable[str]) -> bool:
    """True if some of the names carry a mark of FSDP, activation checkpointing or torch.compile."""
    return any(mark in name for name in names for mark in _MARKS)


def is_lora(state: Mapping[str, LazyTensor]) -> bool:
    """True if the state dict holds low-rank updates instead of a network."""
    return any(_LORA.fullmatch(name) for name in state)


def lora_deltas(state: Mapping[str, LazyTensor], alpha: float | None = None) -> dict[str, LoraDelta]:
    """Name of the updated weight -> its update. alpha None: the file's own `.alpha` entries, else alpha = rank.

    LongLive's file is a bare peft dict of rank 256 without alpha, made with alpha = 256.
    Raises ValueError if an A has no B that fits it or the other way round, or if there is more than updates: a whole
    network beside them, or what other adapters (DoRA, full differences) add.
    """
    halves: dict[str, dict[str, LazyTensor]] = {}
    others: list[str] = []
    for name, tensor in state.items():
        if match := _LORA.fullmatch(name):
            side = {"down": "A", "up": "B"}.get(match[2], match[2])
            halves.setdefault(match[1], {})[side] = tensor
        elif not name.endswith(".alpha"):
            others.append(name)
    if others:
        raise ValueError(f"the LoRA also holds {', '.join(others[:3])}; only low-rank updates of matrices are read")
    if lonely := [module for module, pair in halves.items() if pair.keys() != {"A", "B"}]:
        raise ValueError(f"the LoRA has only one of lora_A and lora_B for {', '.join(lonely[:3])}")
    for module, pair in halves.items():
        a, b = pair["A"].shape, pair["B"].shape
        if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
            raise ValueError(f"the LoRA's matrices of '{module}' do not fit each other: A {list(a)}, B {list(b)}")

    def own_alpha(module: str) -> float:
        stored = state.get(f"{module}.alpha")
        return halves[module]["A"].shape[0] if stored is None else stored.read().item()

    return {
        f"{module}.weight": LoraDelta(pair["A"], pair["B"], own_alpha(module) if alpha is None else alpha)
        for module, pair in halves.items()
    }


def wrapped(state: Mapping[str, Tensor], role: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a `.pt` file as the reference code reads it: parameters under `role` with the prefix `model.`.

    state: parameters by their original Wan names. `config` is added so that our reader knows the number of heads.
    """
    return {role: flat(state), CONFIG_KEY: dict(config)}


def flat(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The content of a `.pt` file as Reward Forcing's own code reads it: a bare state dict with the prefix `model.`."""
    return {f"model.{name}": tensor for name, tensor in state.items()}


def stored_config(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """The configuration that `wrapped` added, or None in files of others."""
    config = content.get(CONFIG_KEY)
    return config if isinstance(config, dict) and "num_attention_heads" in config and "ffn_dim" in config else None


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(item, LazyTensor) for item in value.values())


def _cleaned(state: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    cleaned: dict[str, LazyTensor] = {}
    for name, tensor in state.items():
        short = clean_name(name)
        if short in cleaned:
            raise ValueError(f"two parameters are called '{short}' once wrappers are removed; one of them is '{name}'")
        cleaned[short] = tensor
    return cleaned
