"""A checkpoint of any format as a network."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from reward_forcing.checkpoints.detect import Checkpoint, open_checkpoint
from reward_forcing.checkpoints.diffusers import check_fit, empty_network, infer_config
from reward_forcing.checkpoints.files import LazyTensor
from reward_forcing.checkpoints.forcing import lora_deltas
from reward_forcing.checkpoints.hub import TRANSFORMER_FILES, resolve
from reward_forcing.checkpoints.wan import wan_to_diffusers
from reward_forcing.config import nearest
from reward_forcing.models.wan_dit import WanDiT

_OTHER_SCALES = ("use_rslora", "use_dora", "alpha_pattern", "rank_pattern")  # of peft, which change what alpha means

Settle = Callable[[nn.ModuleList, int], None]
"""Brings a block, given all blocks and its number, from host memory to where and in what form it is to compute."""

logger = logging.getLogger(__name__)


def load_transformer(
    path: str | Path,
    which: str | None = None,
    *,
    heads: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    lora: str | Path | None = None,
    lora_alpha: float | None = None,
    settle: Settle | None = None,
) -> WanDiT:
    """The network of a checkpoint, in evaluation mode; its memory no longer depends on the file.

    path: a file or folder of any format that `open_checkpoint` knows, a bundled name or a hub id.
    which: role of a file that holds several networks (generator, generator_ema, critic); None takes the generator.
    heads: needed where neither a config.json nor the width tells. dtype: None keeps the file's, another is applied as
    `WanDiT.to_mixed` does. lora, lora_alpha: see `with_lora`. One tensor is read at a time, so that no second copy of
    the network is ever in memory. settle: is given every block as soon as it is read, so that the network may be
    larger, as it is stored, than the memory it goes to. Raises FileNotFoundError, or ValueError for a damaged or
    foreign file and for weights that do not fit, in either case before any weight is read.
    """
    checkpoint = open_checkpoint(resolve(path, TRANSFORMER_FILES))
    network, parameters = open_network(checkpoint, which, heads)
    if lora is not None:
        parameters = with_lora(parameters, lora, lora_alpha)
    keep = WanDiT._keep_in_fp32_modules if dtype is not None else ()

    def read(name: str, where: torch.device | str) -> Tensor:
        return parameters[name].read().to(where, torch.float32 if any(part in name for part in keep) else dtype)

    if settle is None:
        network.load_state_dict({name: read(name, device) for name in parameters}, assign=True)
        return network.eval()
    for number, block in enumerate(network.blocks):
        of_block = [name for name in parameters if name.startswith(f"blocks.{number}.")]
        block.load_state_dict({name.split(".", 2)[2]: read(name, "cpu") for name in of_block}, assign=True)
        block.eval()
        settle(network.blocks, number)
    ends = {name: read(name, device) for name in parameters if not name.startswith("blocks.")}
    network.load_state_dict(ends, strict=False, assign=True)
    return network.eval()


def open_network(
    checkpoint: Checkpoint, which: str | None = None, heads: int | None = None
) -> tuple[WanDiT, dict[str, LazyTensor]]:
    """The network of one role without memory, and its unread parameters, which fit it.

    Raises ValueError if there is no such role, if the checkpoint is a LoRA, or if the parameters do not fit.
    """
    if checkpoint.format == "lora":
        raise ValueError(
            f"'{checkpoint.path}' is a LoRA, which adds to a network; give the base, and this as its lora: "
            "`rforce models convert BASE NEW --lora FILE`"
        )
    role = checkpoint.role(which)
    parameters = checkpoint.roles[role]
    if len(checkpoint.roles) > 1:
        logger.info("%s: taking %s of %s", checkpoint.path, role, ", ".join(checkpoint.roles))
    try:
        network = empty_network(infer_config(parameters, checkpoint.config, heads))
        check_fit(network, parameters)
    except ValueError as error:
        raise ValueError(f"'{checkpoint.path}': {error}") from error
    return network, parameters


def with_lora(
    parameters: Mapping[str, LazyTensor], path: str | Path, alpha: float | None = None
) -> dict[str, LazyTensor]:
    """`parameters` with the updates of a LoRA file added when they are read, scaled by alpha / rank.

    alpha: None takes the file's own, else that of peft's adapter_config.json beside it, else rank (a scale of 1).
    Raises ValueError if the file is no LoRA, or if its updates do not fit the parameters by name and shape.
    """
    checkpoint = open_checkpoint(resolve(path, TRANSFORMER_FILES))
    if checkpoint.format != "lora":
        raise ValueError(f"'{path}' is a whole network ({checkpoint.format}), not a LoRA")
    names = list(checkpoint.roles)
    role = next((name for name in ("generator_lora", "generator") if name in names), names[0])
    try:
        alpha = _adapter_alpha(checkpoint.files[0].parent / "adapter_config.json") if alpha is None else alpha
        deltas = lora_deltas(checkpoint.roles[role], alpha)
        if not deltas.keys() & parameters.keys():
            deltas = wan_to_diffusers(deltas)
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from error
    for name, delta in deltas.items():
        if name not in parameters:
            near = nearest(name, parameters)
            raise ValueError(f"'{path}' updates '{name}', which the network lacks; nearest is '{near}'")
        if (delta.b.shape[0], delta.a.shape[1]) != parameters[name].shape:
            found = [delta.b.shape[0], delta.a.shape[1]]
            raise ValueError(f"'{path}' updates '{name}' by {found}, which is {list(parameters[name].shape)}")
    return dict(parameters) | {name: parameters[name].map(delta.added_to) for name, delta in deltas.items()}


def _adapter_alpha(config: Path) -> float | None:
    """`lora_alpha` in the configuration that peft saves beside an adapter, or None if there is none."""
    if not config.is_file():
        return None
    try:
        adapter = json.loads(config.read_text(encoding="utf-8"))
        alpha, others = float(adapter["lora_alpha"]), [name for name in _OTHER_SCALES if adapter.get(name)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"'{config}' is not the configuration of a LoRA: it has no lora_alpha") from error
    if others:
        raise ValueError(f"'{config}' asks for {', '.join(others)}; only alpha / rank is known as a scale")
    return alpha
