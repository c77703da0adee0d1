"""A checkpoint of any format as a network."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from reward_forcing.checkpoints.detect import Checkpoint, open_checkpoint
from reward_forcing.checkpoints.diffusers import check_fit, empty_network, infer_config
from reward_forcing.checkpoints.files import LazyTensor
from reward_forcing.checkpoints.forcing import LoraDelta, lora_deltas
from reward_forcing.checkpoints.hub import TRANSFORMER_FILES, resolve
from reward_forcing.checkpoints.wan import wan_to_diffusers
from reward_forcing.config import nearest
from reward_forcing.models.wan_dit import WanDiT

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
) -> WanDiT:
    """The network of a checkpoint, in evaluation mode; its memory no longer depends on the file.

    path: a file or folder of any format that `open_checkpoint` knows, a bundled name or a hub id.
    which: role of a file that holds several networks (generator, generator_ema, critic); None takes the generator.
    heads: needed where neither a config.json nor the width tells. dtype: None keeps the file's, another is applied as
    `WanDiT.to_mixed` does. lora: a LoRA file to add to the weights, scaled by alpha / rank (None: the file's alpha, or
    1). Raises FileNotFoundError, or ValueError for a damaged or foreign file and for weights that do not fit.
    """
    checkpoint = open_checkpoint(resolve(path, TRANSFORMER_FILES))
    network, parameters = open_network(checkpoint, which, heads)
    deltas = {} if lora is None else _updates(lora, parameters, lora_alpha)
    keep = WanDiT._keep_in_fp32_modules if dtype is not None else ()

    def read(name: str) -> Tensor:
        tensor = parameters[name].read()
        if name in deltas:
            tensor = deltas[name].added_to(tensor)
        return tensor.to(device, torch.float32 if any(part in name for part in keep) else dtype)

    network.load_state_dict({name: read(name) for name in parameters}, assign=True)
    return network.eval()


def open_network(
    checkpoint: Checkpoint, which: str | None = None, heads: int | None = None
) -> tuple[WanDiT, dict[str, LazyTensor]]:
    """The network of one role without memory, and its unread parameters, which fit it.

    Raises ValueError if there is no such role, if the checkpoint is a LoRA, or if the parameters do not fit.
    """
    if checkpoint.format == "lora":
        raise ValueError(f"'{checkpoint.path}' is a LoRA, which adds to a network; give the base, and this as its lora")
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


def _updates(path: str | Path, parameters: Mapping[str, LazyTensor], alpha: float | None) -> dict[str, LoraDelta]:
    """Parameter name -> its low-rank update, checked against the shapes of `parameters`."""
    checkpoint = open_checkpoint(resolve(path, TRANSFORMER_FILES))
    if checkpoint.format != "lora":
        raise ValueError(f"'{path}' is a whole network ({checkpoint.format}), not a LoRA")
    names = list(checkpoint.roles)
    role = next((name for name in ("generator_lora", "generator") if name in names), names[0])
    deltas = lora_deltas(checkpoint.roles[role], alpha)
    if not deltas.keys() & parameters.keys():
        deltas = wan_to_diffusers(deltas)
    for name, delta in deltas.items():
        if name not in parameters:
            near = nearest(name, parameters)
            raise ValueError(f"'{path}' updates '{name}', which the network lacks; nearest is '{near}'")
        if (delta.b.shape[0], delta.a.shape[1]) != parameters[name].shape:
            found = [delta.b.shape[0], delta.a.shape[1]]
            raise ValueError(f"'{path}' updates '{name}' by {found}, which is {list(parameters[name].shape)}")
    return deltas
