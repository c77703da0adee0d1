"""What a run will need, before it is started: parameters, memory per GPU, operations per update and hours.

A plan is computed from a stage's settings alone, with networks on the meta device: it needs no weights, no data and no
GPU. `plan_costs` knows what a pass costs and `plan_workload` which passes a stage runs; here they meet a cluster.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from reward_forcing.training.plan_costs import WIDE
from reward_forcing.training.plan_workload import Part, Update, Work, Workload, bytes_per_number, workload_of
from reward_forcing.training.settings import StageSettings, TrainSettings

H100_TFLOPS = 989.0
"""Dense bfloat16 products of an H100 or H200, 10^12 operations a second (NVIDIA's data sheet)."""


@dataclass(frozen=True)
class Cluster:
    """What a run is given. tflops: peak of one GPU, 10^12 operations a second. mfu: the part of it that is reached.

    gpus None: as many as give each GPU one clip at a time. node: GPUs in a machine, for hybrid sharding. Raises
    ValueError for numbers that make no sense.
    """

    gpus: int | None = None
    tflops: float = H100_TFLOPS
    mfu: float = 0.4
    node: int = 8

    def __post_init__(self) -> None:
        if self.gpus is not None and self.gpus < 1:
            raise ValueError(f"gpus must be at least 1, got {self.gpus}")
        if not (self.tflops > 0 and math.isfinite(self.tflops)):
            raise ValueError(f"tflops must be positive and finite, got {self.tflops:g}")
        if not 0 < self.mfu <= 1:
            raise ValueError(f"mfu is the part of the peak that is reached, in (0, 1], got {self.mfu:g}")


@dataclass(frozen=True)
class Layout:
    """How a run is laid out over GPUs.

    sharded: matrices, their gradients, optimizer state and averages are divided among the GPUs (`train.shard`).
    checkpointed: blocks are computed again in the backward instead of kept (`train.activation_checkpointing`).
    """

    name: str
    sharded: bool
    checkpointed: bool


LAYOUTS = (
    Layout("replicated", sharded=False, checkpointed=False),
    Layout("checkpointed", sharded=False, checkpointed=True),
    Layout("sharded", sharded=True, checkpointed=False),
    Layout("both", sharded=True, checkpointed=True),
)


@dataclass(frozen=True)
class Memory:
    """Bytes per GPU of one thing that stays, by layout."""

    what: str
    bytes: dict[str, int]


@dataclass(frozen=True)
class Peak:
    """Bytes per GPU of one role's update at its worst moment, by layout: kept for the backward, and beside that."""

    role: str
    graph: dict[str, int]
    beside: dict[str, int]

    def total(self, layout: Layout) -> int:
        """Both together."""
        return self.graph[layout.name] + self.beside[layout.name]


@dataclass(frozen=True)
class Cost:
    """Operations of one role's update over the whole batch, by layout, and its parts on one clip."""

    role: str
    updates: int
    work: tuple[Work, ...]
    flops: dict[str, float]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Plan:
    """What a run will need. Bytes are per GPU; operations count a multiplication and an addition as two.

    configured: the layout that the settings ask for. shards: how many GPUs divide what is sharded. clips: worked on at
    a time by one GPU. total: bytes at the worst moment. step_flops: mean over a run's steps, of the whole batch.
    step_seconds, hours: at `tflops` x `mfu` on every GPU. All by layout.
    """

    stage: str
    steps: int
    batch: int
    configured: str
    shards: int
    gpus: int
    accumulate: int
    clips: int
    precision: str
    tflops: float
    mfu: float
    networks: tuple[Part, ...]
    memory: tuple[Memory, ...]
    peaks: tuple[Peak, ...]
    total: dict[str, int]
    costs: tuple[Cost, ...]
    step_flops: dict[str, float]
    step_seconds: dict[str, float]
    hours: dict[str, float]
    assumed: tuple[str, ...]


def make_plan(settings: StageSettings, cluster: Cluster) -> Plan:
    """The plan of a stage's run on a cluster.

    Raises ValueError for a stage that has no plan, for a batch that does not divide among the GPUs, and for settings
    that the stage itself would refuse; FileNotFoundError for a network whose size is not known.
    """
    workload, train = workload_of(settings), settings.train
    gpus = cluster.gpus or max(1, workload.batch // train.accumulate)
    if workload.batch % (gpus * train.accumulate):
        raise ValueError(
            f"a batch of {workload.batch} does not divide into {gpus} GPUs x train.accumulate {train.accumulate}; "
            f"use divisors of {workload.batch}"
        )
    settings.check_shards(gpus * train.accumulate)
    clips = workload.batch // (gpus * train.accumulate)
    shards = min(gpus, cluster.node) if train.shard == "hybrid" else gpus
    memory = _standing(workload, train, shards)
    peaks = [_peak(update, workload, train, gpus, clips) for update in workload.updates]
    rate = gpus * cluster.tflops * 1e12 * cluster.mfu
    costs = tuple(_cost(update, workload.batch, train.steps, rate) for update in workload.updates)
    run = {layout.name: sum(cost.updates * cost.flops[layout.name] for cost in costs) for layout in LAYOUTS}
    return Plan(
        stage=settings.stage,
        steps=train.steps,
        batch=workload.batch,
        configured=next(
            layout.name
            for layout in LAYOUTS
            if (layout.sharded, layout.checkpointed) == (train.shard != "none", train.activation_checkpointing)
        ),
        shards=shards,
        gpus=gpus,
        accumulate=train.accumulate,
        clips=clips,
        precision=train.precision,
        tflops=cluster.tflops,
        mfu=cluster.mfu,
        networks=workload.parts,
        memory=tuple(memory),
        peaks=tuple(peaks),
        total={
            layout.name: sum(row.bytes[layout.name] for row in memory) + max(peak.total(layout) for peak in peaks)
            for layout in LAYOUTS
        },
        costs=costs,
        step_flops={name: flops / train.steps for name, flops in run.items()},
        step_seconds={name: flops / train.steps / rate for name, flops in run.items()},
        hours={name: flops / rate / 3600 for name, flops in run.items()},
        assumed=workload.assumed,
    )


def _standing(workload: Workload, train: TrainSettings, shards: int) -> list[Memory]:
    """What stays on a GPU throughout: weights, and what belongs to the trained ones."""
    compute = bytes_per_number(train)
    rows: list[Memory] = []

    def add(what: str, whole: int, sharded: int) -> None:
        rows.append(Memory(what, {layout.name: sharded if layout.sharded else whole for layout in LAYOUTS}))

    for part in workload.parts:
        match part.role:
            case "text_encoder":
                pass  # the trainer keeps it on the CPU
            case "vae":
                add("vae: weights, frozen", WIDE * part.parameters, WIDE * part.parameters)
            case role if not part.trained:
                add(f"{role}: weights, frozen", _held(part, compute, 1), _held(part, compute, shards))
            case role:
                whole, sharded = _held(part, WIDE, 1), _held(part, WIDE, shards)
                if part.adapter:
                    add(f"{role}: weights, frozen", _held(part, compute, 1), _held(part, compute, shards))
                    whole, sharded = WIDE * part.adapter, -(-WIDE * part.adapter // shards)
                add(f"{role}: adapters" if part.adapter else f"{role}: weights", whole, sharded)
                add(f"{role}: gradients", whole, sharded)
                undivided = part.state - part.divided_state
                add(f"{role}: optimizer", part.state, undivided + -(-part.divided_state // shards))
                if part.averaged:
                    add(f"{role}: average", whole, sharded)
    copied = max(part.adapter or part.cast for part in workload.parts if part.trained)
    copies = compute * copied if compute < WIDE else 0
    gathered = 2 * max(
        part.block * (compute + WIDE * (part.trained and not part.adapter)) + part.adapter_block * (compute + WIDE)
        for part in workload.parts
    )
    add("weights in use", copies, gathered)
    return rows


def _held(part: Part, number: int, shards: int) -> int:
    """Bytes of a transformer's weights on one of `shards` GPUs, with matrices of `number` bytes a number."""
    divided = number * part.cast + WIDE * part.kept
    return -(-divided // shards) + WIDE * (part.parameters - part.cast - part.kept)


def _peak(update: Update, workload: Workload, train: TrainSettings, gpus: int, clips: int) -> Peak:
    """What an update needs at its worst moment, beside the clips' own.

    Averaging undivided gradients takes two copies of them, at the end; of sharded networks whole gradients add up until
    the last part of a batch.
    """
    part = next(part for part in workload.parts if part.role == update.role)
    matrices = part.learned_matrices
    graph, beside = {}, {}
    for layout in LAYOUTS:
        moments = update.checkpointed if layout.checkpointed else update.plain
        undivided = part.learned - (matrices if layout.sharded else 0)
        averaging = 0 if gpus == 1 else 2 * WIDE * undivided
        adding_up = WIDE * matrices if layout.sharded and train.accumulate > 1 and gpus > 1 else 0
        graph[layout.name] = clips * moments.graph
        beside[layout.name] = max(clips * moments.peak + adding_up, averaging) - graph[layout.name]
    return Peak(update.role, graph, beside)


def _cost(update: Update, batch: int, steps: int, rate: float) -> Cost:
    flops = {layout.name: batch * update.flops(layout.checkpointed) for layout in LAYOUTS}
    seconds = {name: value / rate for name, value in flops.items()}
    return Cost(update.role, -(-steps // update.every), update.work, flops, seconds)
