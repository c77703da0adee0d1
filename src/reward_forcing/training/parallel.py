"""How a transformer's weights lie over the processes of a run: whole in each of them, or sharded by FSDP2.

    gather a block's matrices -> compute -> let them go; average and divide their gradients

Only what a matrix product reads is sharded. All else (norms, biases, tables, the patch embedding: 0.3 % of a network)
is whole and float32 in every process, its gradients averaged by `distributed.average_gradients`. Matrices are gathered
in the dtype that autocast would cast them to, so that a sharded forward computes what a whole one does, bit for bit.
Lives outside the models; knows no stage.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from reward_forcing.models.wan_dit import WanDiT
from reward_forcing.training.lora import adapt_like, adapter_names

Shard = Literal["none", "full", "hybrid"]
"""How weights, gradients, optimizer states and averages lie over the processes.

none: whole in every process. full: divided over all of them. hybrid: divided within a node and repeated in every node,
so that only gradients travel between nodes (Self Forcing's and Reward Forcing's choice).
"""


@dataclass(frozen=True)
class Placement:
    """How networks lie and run. compute: dtype of matrix products. mesh: who shares weights, None where nobody does.

    compiled: whether blocks are compiled.
    """

    device: torch.device
    compute: torch.dtype = torch.float32
    mesh: DeviceMesh | None = None
    compiled: bool = False

    @classmethod
    def of(cls, shard: Shard, precision: str, processes: int, device: torch.device, compiled: bool = False) -> Self:
        """The placement of a run; a single process has nothing to share. precision: "fp32" or "bf16".

        Raises ValueError for a hybrid whose nodes are not known, or not all of one size.
        """
        compute = torch.bfloat16 if precision == "bf16" else torch.float32
        mesh = None
        if shard == "full" and processes > 1:
            mesh = init_device_mesh(device.type, (processes,), mesh_dim_names=("shard",))
        elif shard == "hybrid" and processes > 1:
            node = _processes_per_node(processes)
            mesh = init_device_mesh(device.type, (processes // node, node), mesh_dim_names=("replicate", "shard"))
        return cls(device, compute, mesh, compiled)


def _processes_per_node(processes: int) -> int:
    told = os.environ.get("LOCAL_WORLD_SIZE", "")
    if not told.isdigit() or not int(told) or processes % int(told):
        raise ValueError(
            f"train.shard=hybrid needs nodes of equal size, but LOCAL_WORLD_SIZE is '{told}' of {processes} processes; "
            "start the run with torchrun or --processes, or use train.shard=full"
        )
    return int(told)


def matrices(network: WanDiT, cast: bool) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers that autocast runs in the compute dtype (cast), or those that the network keeps in float32."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            kept = any(part in name for part in network._keep_in_fp32_modules)
            if kept != cast:
                yield name, module


def parallelize(network: WanDiT, placement: Placement) -> WanDiT:
    """The same network, sharded if the placement has a mesh: each block, each matrix kept in float32, and the rest.

    The network may be on the meta device; its weights are then made by `to_empty` and filled with `like`.
    """
    if placement.mesh is None:
        return network
    # Views are what attention's keys and values are, and nothing here writes into them.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    sharded = {id(module.weight) for cast in (True, False) for _, module in matrices(network, cast)}
    whole = {p for p in network.parameters() if id(p) not in sharded}

    def shard(module: nn.Module, compute: torch.dtype) -> None:
        policy = MixedPrecisionPolicy(compute, torch.float32, cast_forward_inputs=False)
        # Let go of at once, the root's too: what is still held would not see an update or an average.
        fully_shard(module, mesh=placement.mesh, mp_policy=policy, ignored_params=whole, reshard_after_forward=True)

    for _, kept in matrices(network, cast=False):
        shard(kept, torch.float32)
    for module in (*network.blocks, network):
        shard(module, placement.compute)
        register_fsdp_forward_method(module, "encode_text")
    return network


def is_sharded(network: nn.Module) -> bool:
    """Whether `parallelize` has divided the network: whoever runs it must run it in all processes."""
    return isinstance(network, FSDPModule)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor, gathered from all processes if it is sharded (a collective operation then)."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_and_sharded(parameters: Iterable[nn.Parameter]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters that this process holds whole, and those of which it holds a part."""
    kinds: tuple[list[nn.Parameter], list[nn.Parameter]] = [], []
    for p in parameters:
        kinds[isinstance(p, DTensor)].append(p)
    return kinds


def like(values: Tensor, tensor: Tensor) -> Tensor:
    """The part of the whole tensor `values` that this process holds of `tensor`, without communication."""
    if not isinstance(tensor, DTensor):
        return values
    return distribute_tensor(values, tensor.device_mesh, tensor.placements, src_data_rank=None)


def whole_copy(network: nn.Module, keep: bool) -> nn.Module:
    """The network itself; of a sharded one a whole copy on the CPU, with values in the processes that `keep` them.

    A collective operation for sharded networks: one tensor after the other is gathered. Of an adapted network the copy
    holds the adapters; its frozen rest is as it was read, and stays without memory.
    """
    if not is_sharded(network):
        return network
    assert isinstance(network, WanDiT)
    state = {}
    own = set(adapter_names(network))
    for name, tensor in network.state_dict().items():
        if own and name not in own:
            continue
        gathered = whole(tensor)
        if keep:
            state[name] = gathered.cpu()
    with torch.device("meta"):
        copy = WanDiT.from_config(network.config)
    assert isinstance(copy, WanDiT)
    adapt_like(copy, network).load_state_dict(state, strict=keep and not own, assign=True)
    return copy


def checkpoint_activations(networks: Iterable[nn.Module]) -> None:
    """Let networks compute their blocks again in the backward; gradients stay the same, bit for bit."""
    for network in networks:
        assert isinstance(network, WanDiT)
        network.enable_gradient_checkpointing()
