"""What the stages do in a step, as numbers: networks, operations of each update, and bytes beside the weights.

Follows the stages of DMD, Re-DMD, ODE regression and flow matching pass by pass: whoever changes what a stage computes
changes it here too. Knows no GPUs and no rates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import UMT5Config

from reward_forcing.config import unknown
from reward_forcing.models.live_bytes import LiveBytes
from reward_forcing.models.masks import teacher_forcing
from reward_forcing.models.meta_networks import meta_text_encoder, meta_transformer, meta_vae
from reward_forcing.models.vae import StreamingVAE
from reward_forcing.models.wan_dit import WanDiT
from reward_forcing.training.dmd import DmdSettings
from reward_forcing.training.flow_matching import FlowMatchingSettings, TeacherForcing
from reward_forcing.training.latents import open_latents
from reward_forcing.training.lora import adapt, adapter_names
from reward_forcing.training.ode_regression import OdeRegressionSettings
from reward_forcing.training.optim import AdamWSettings, MuonSettings, hidden_matrices
from reward_forcing.training.parallel import matrices
from reward_forcing.training.plan_costs import (
    WIDE,
    Attended,
    Shape,
    backward_work,
    bidirectional,
    forward_flops,
    forward_work,
    graph,
    patterned,
    skipped_flops,
    skipped_text_flops,
    text_flops,
)
from reward_forcing.training.plan_rollouts import chunk_by_chunk, rolling_windows, running_videos
from reward_forcing.training.re_dmd import ReDmdSettings
from reward_forcing.training.settings import StageSettings, TrainSettings
from reward_forcing.training.shards import MANIFEST

EDGES = ("patch_embedding", "proj_out", "condition_embedder")
"""The modules that the transformer stages keep from Muon."""

PUBLISHED_CLIP = (21, 60, 104)
"""Latent frames, rows and columns of the published ODE pairs: 81 frames of 832 x 480."""


@dataclass(frozen=True)
class Work:
    """Operations of an update on one clip. flops: of one forward. forwards: how many, on average over exit steps.

    grad: a backward follows, which costs two forwards, less the operations `skipped` for frozen matrices. recomputed:
    checkpointing makes it one more.
    """

    what: str
    flops: float
    forwards: float = 1.0
    grad: bool = False
    recomputed: bool = False
    skipped: float = 0.0

    def total(self, checkpointed: bool) -> float:
        """Operations with their backward."""
        factor = (4 if checkpointed and self.recomputed else 3) if self.grad else 1
        return self.forwards * (factor * self.flops - (self.skipped if self.grad else 0.0))


@dataclass(frozen=True)
class Moments:
    """Bytes that one clip needs in an update, without or with checkpointing.

    graph: kept for the backward. peak: the most that is alive at any moment, the graph included where it is.
    """

    graph: int
    peak: int


@dataclass(frozen=True)
class Update:
    """One role's update. every: in steps. plain, checkpointed: what it needs beside the weights, per clip."""

    role: str
    every: int
    work: tuple[Work, ...]
    plain: Moments
    checkpointed: Moments

    def flops(self, checkpointed: bool) -> float:
        """Operations on one clip."""
        return sum(work.total(checkpointed) for work in self.work)


@dataclass(frozen=True)
class Part:
    """A network of a run: where its configuration came from, its parameters, and those of its largest block.

    cast, kept: numbers in the matrices that compute in the compute dtype, and in those that stay float32; sharding
    divides both. state: bytes of its optimizer's state, divided_state: of that of matrices. averaged: whether it has a
    moving average. Frozen networks have none of these three. adapter: numbers of the adapters that alone are trained,
    adapter_block: of a block's; both 0 where the network itself is, or nothing.
    """

    role: str
    source: str
    parameters: int
    block: int = 0
    cast: int = 0
    kept: int = 0
    trained: bool = False
    state: int = 0
    divided_state: int = 0
    averaged: bool = False
    adapter: int = 0
    adapter_block: int = 0

    @property
    def learned(self) -> int:
        """Numbers that are trained, of a trained part."""
        return self.adapter or self.parameters

    @property
    def learned_matrices(self) -> int:
        """Those of them in matrices, which sharding divides."""
        return self.adapter or self.cast + self.kept


@dataclass(frozen=True)
class Workload:
    """What a stage does in a step: its networks, its updates, and what the plan takes for granted."""

    parts: tuple[Part, ...]
    updates: tuple[Update, ...]
    batch: int
    assumed: tuple[str, ...] = ()


def workload_of(settings: StageSettings) -> Workload:
    """What a stage does in a step.

    Raises ValueError for a stage that has no plan and for settings that the stage itself would refuse;
    FileNotFoundError for a network whose size is not known.
    """
    match settings:
        case DmdSettings():
            return _dmd(settings)
        case OdeRegressionSettings():
            return _ode_regression(settings)
        case FlowMatchingSettings():
            return _flow_matching(settings)
    planned = "dmd, re_dmd, ode_regression and flow_matching"
    raise ValueError(f"a dry run plans the stages {planned}, not '{settings.stage}'")


def _dmd(settings: DmdSettings) -> Workload:
    """What `DmdStage` does: Reward Forcing, Eqs. 1-2, on rollouts whose exit is uniform (Self Forcing)."""
    compute, train = bytes_per_number(settings.train), settings.train
    sources = settings.generator, settings.real_score, settings.fake_score or settings.real_score
    roles = "generator", "real_score", "fake_score"
    generator, real, fake = (_network(source, role, train) for source, role in zip(sources, roles, strict=True))
    g, r, f = (Shape.of(network, settings.latent_size) for network in (generator, real, fake))
    encoder, tokens, encoding = _text(settings.text)
    rollouts = (chunk_by_chunk if settings.long is None else running_videos)(settings, g, tokens, compute)
    windows = rolling_windows(settings, g, tokens, compute)
    whole, exit_step = bidirectional(settings.frames), (len(settings.denoising_steps) + 1) / 2
    rolls, alone = settings.rolling_share, 1 - settings.rolling_share
    texts, null = 1 + (settings.switch_share if settings.long is None else 0.0), settings.guidance != 1.0
    parts = [
        _part("generator", sources[0], generator, train),
        _part("fake_score", sources[2], fake, train),
        _part("real_score", sources[1], real, None),
        encoder,
    ]
    fresh = 1 / settings.critic_reuse
    rating: dict[str, list[Work]] = {"generator": [], "critic": []}
    rating_bytes = {"generator": 0, "critic": 0}
    if isinstance(settings, ReDmdSettings):
        vae, decoding, rating_bytes[settings.weighted] = _decoding(settings.vae, settings.frames, settings.latent_size)
        parts.append(vae)
        rated = 1.0 if settings.weighted == "generator" else fresh
        rating[settings.weighted].append(Work("decoding for the reward", decoding, rated))

    critic = forward_flops(f, whole, tokens)
    clean_grad = settings.kv_grad == "clean"
    generator_work = (
        Work("text encoder", encoding, texts),
        Work("generator, text", text_flops(g, tokens), texts, grad=True, skipped=skipped_text_flops(g, tokens)),
        Work("rollout, passes before the last", rollouts.each, alone * (exit_step - 1)),
        Work("rollout, last passes, not scored", rollouts.each - rollouts.scored, alone),
        Work("rollout, last passes, scored", rollouts.scored, alone, True, True, rollouts.skipped),
        Work("rollout, clean passes", rollouts.clean, alone, clean_grad, clean_grad, rollouts.skipped_clean),
        Work("re-cache at a switch", rollouts.recached),
        Work("rolling windows, not scored", windows.each - windows.scored, rolls),
        Work("rolling windows, scored", windows.scored, rolls, True, True, windows.skipped),
        Work("rolling windows, clean passes", windows.clean, rolls, clean_grad, clean_grad, windows.skipped_clean),
        Work("teacher", forward_flops(r, whole, tokens), 1.0 + null),
        Work("teacher, text", text_flops(r, tokens), texts + null),
        Work("critic", critic),
        Work("critic, text", text_flops(f, tokens), texts),
        *rating["generator"],
    )
    critic_work = (
        Work("text encoder", encoding, fresh * texts),
        Work("generator, text", text_flops(g, tokens), fresh * texts),
        Work("rollout, all passes", rollouts.each, fresh * alone * exit_step),
        Work("rollout, clean passes", rollouts.clean, fresh * alone),
        Work("re-cache at a switch", rollouts.recached, fresh),
        Work("rolling windows", windows.each, fresh * rolls),
        Work("rolling windows, clean passes", windows.clean, fresh * rolls),
        Work("critic", critic, grad=True, recomputed=True, skipped=skipped_flops(f, whole)),
        Work("critic, text", text_flops(f, tokens), texts, grad=True, skipped=skipped_text_flops(f, tokens)),
        *rating["critic"],
    )

    taken = [kind for kind, share in ((rollouts, alone), (windows, rolls)) if share]

    def generator_moments(checkpointed: bool) -> Moments:
        scores = [forward_work(shape, whole, tokens, compute) for shape in (r, f)]

        def moments(graded: tuple[Attended, ...], work: int) -> Moments:
            backward = (backward_work(g, seen, tokens, compute, checkpointed) for seen in graded)
            kept = graph(g, graded, tokens, compute, checkpointed)
            return _moments(kept, (work, *scores, rating_bytes["generator"], *backward))

        worst = (moments(graded, kind.work) for kind in taken for graded in kind.graded)
        return max(worst, key=lambda one: one.peak)

    def critic_moments(checkpointed: bool) -> Moments:
        backward = backward_work(f, whole, tokens, compute, checkpointed)
        before = max(rating_bytes["critic"], *(kind.work for kind in taken))
        return _moments(graph(f, (whole,), tokens, compute, checkpointed), (backward,), before=before)

    updates = (
        _update("generator", settings.generator_every, generator_work, generator_moments),
        _update("fake_score", 1, critic_work, critic_moments),
    )
    return Workload(tuple(parts), updates, settings.batch, (*ASSUMED, *_left_out(settings)))


def _left_out(settings: DmdSettings) -> list[str]:
    """What a plan of the DMD stages does not count."""
    left = ["Every clip has a text of its own to encode, on the CPU though counted at the GPU's rate."]
    if isinstance(settings, ReDmdSettings):
        left.append("The reward is the decoding of its clip in float32; the network that rates it comes on top.")
    if settings.longest_frames is not None:
        left.append("Decoding and encoding the first scored frame of longer rollouts comes on top.")
    if settings.long is not None:
        left.append(
            "Decoding and encoding the first frame of a clip comes on top. Between updates the running videos and "
            "their caches lie in main memory, and a checkpoint holds them."
        )
    if settings.kv_grad != "none":
        left.append("Of the gradient through the cache, the graph of the cache itself comes on top.")
    return left


def _ode_regression(settings: OdeRegressionSettings) -> Workload:
    """What `OdeRegressionStage` does: one forward through the block-causal mask, and its backward."""
    frames, rows, columns = _pairs_clip(settings.pairs)
    seen = patterned(settings.pattern(frames))
    clip = f"A pair is {frames} latent frames of {rows} x {columns}. Validation comes on top."
    return _regression("generator", settings.init, (rows, columns), seen, settings, settings.batch, clip)


def _flow_matching(settings: FlowMatchingSettings) -> Workload:
    """What `FlowMatchingStage` does in the phase of the longest clips: one forward over a clip, and its backward."""
    if settings.init is None:
        raise ValueError(
            "a dry run plans a flow_matching that goes on from a transformer; give init, a folder or a name"
        )
    objective, phase = settings.objective, max(settings.phases, key=lambda one: (one.frames, one.batch))
    folder = settings.latents if isinstance(settings.latents, Path) else settings.latents[0]
    _, rows, columns = _latents_clip(folder)
    if isinstance(objective, TeacherForcing):
        seen = patterned(teacher_forcing(objective.frames, objective.chunk_frames))
    else:
        seen = bidirectional(phase.frames)
    clip = (
        f"All steps are taken to be of the phase with the longest clips: {phase.frames} latent frames of {rows} x "
        f"{columns}. Validation comes on top."
    )
    return _regression("transformer", settings.init, (rows, columns), seen, settings, phase.batch, clip)


def _regression(
    role: str,
    init: Path,
    size: tuple[int, int],
    seen: Attended,
    settings: OdeRegressionSettings | FlowMatchingSettings,
    batch: int,
    clip: str,
) -> Workload:
    """One forward of a network over a clip whose tokens see what `seen` says, and its backward."""
    compute = bytes_per_number(settings.train)
    network = _network(init, role, settings.train)
    shape = Shape.of(network, size)
    encoder, tokens, encoding = _text(settings.text)
    work = (
        Work("text encoder", encoding),
        Work(f"{role}, text", text_flops(shape, tokens), grad=True, skipped=skipped_text_flops(shape, tokens)),
        Work(
            role,
            forward_flops(shape, seen, tokens),
            grad=True,
            recomputed=True,
            skipped=skipped_flops(shape, seen),
        ),
    )

    def moments(checkpointed: bool) -> Moments:
        backward = backward_work(shape, seen, tokens, compute, checkpointed)
        return _moments(graph(shape, (seen,), tokens, compute, checkpointed), (backward,))

    parts = (_part(role, init, network, settings.train), encoder)
    return Workload(parts, (_update(role, 1, work, moments),), batch, (*ASSUMED, clip))


ASSUMED = (
    "Weights, gradients, optimizer state and averages are float32, but matrices of frozen networks the compute dtype. "
    "Sharded is FSDP (train.shard): all matrices divided by the GPUs, two blocks gathered at a time. Checkpointed "
    "(train.activation_checkpointing) computes every block again in the backward (x4). Both is both.",
    "Attention is a fused kernel that stores no scores. Fragmentation and communication buffers come on top.",
    "The hours count operations at the given rate; loading, saving and samples come on top.",
)


def bytes_per_number(train: TrainSettings) -> int:
    """Bytes of a number in the compute dtype."""
    return 2 if train.precision == "bf16" else WIDE


def _update(role: str, every: int, work: tuple[Work, ...], moments: Callable[[bool], Moments]) -> Update:
    """An update without the work that it has none of."""
    some = tuple(item for item in work if item.forwards * item.flops > 0)
    return Update(role, every, some, moments(False), moments(True))


def _moments(graph: int, during: Sequence[int], before: int = 0) -> Moments:
    """A graph that is alive in the moments `during`, and one moment before it exists."""
    return Moments(graph, max(before, graph + max(during)))


def _network(source: Path, role: str, train: TrainSettings) -> WanDiT:
    """The transformer of a role, with the adapters that it is trained by, if it is."""
    network, lora = meta_transformer(source), train.lora.get(role)
    return network if lora is None else adapt(network, lora)


def _part(role: str, source: Path, network: WanDiT, train: TrainSettings | None) -> Part:
    """A transformer as part of a run; frozen without `train`. Raises ValueError for a role without an optimizer."""
    new = set(adapter_names(network))
    parameters = {name: p.numel() for name, p in network.named_parameters() if name not in new}
    total, block = sum(parameters.values()), sum(n for name, n in parameters.items() if name.startswith("blocks.0."))
    cast, kept = (
        {
            f"{name}.weight": module.weight.numel()
            for name, module in matrices(network, cast)
            if f"{name}.weight" not in new
        }
        for cast in (True, False)
    )
    part = Part(role, str(source), total, block, sum(cast.values()), sum(kept.values()))
    if train is None:
        return part
    if role not in train.optimizers:
        raise ValueError(f"train.optimizers has no entry for role '{role}': {unknown('role', role, train.optimizers)}")
    hidden = hidden_matrices(network, EDGES)
    optimizer = train.optimizers[role]
    if new:
        adapter = {name: network.get_parameter(name).numel() for name in sorted(new)}
        state = optimizer_bytes(optimizer, adapter, [name for name in hidden if name in new])
        of_block = sum(count for name, count in adapter.items() if name.startswith("blocks.0."))
        part = replace(part, adapter=sum(adapter.values()), adapter_block=of_block)
        return replace(part, trained=True, state=state, divided_state=state, averaged=role in train.ema)
    return replace(
        part,
        trained=True,
        state=optimizer_bytes(optimizer, parameters, hidden),
        divided_state=optimizer_bytes(optimizer, cast | kept, [name for name in hidden if name in cast | kept]),
        averaged=role in train.ema,
    )


def optimizer_bytes(settings: AdamWSettings | MuonSettings, parameters: Mapping[str, int], hidden: list[str]) -> int:
    """Bytes of an optimizer's state: two float32 moments per parameter, but one for those of Muon.

    parameters: name -> numbers. hidden: names for Muon, as `hidden_matrices` gives them.
    """
    by_muon = sum(parameters[name] for name in hidden) if isinstance(settings, MuonSettings) else 0
    return WIDE * (2 * sum(parameters.values()) - by_muon)


def _text(folder: Path) -> tuple[Part, int, int]:
    """The text encoder as part of a run, its tokens per prompt, and the operations of one prompt.

    UMT5: 2 L N (4 E A + 3 E f) + 4 N L^2 A, for attention of width A and a gated feed-forward of width f.
    """
    encoder, tokens = meta_text_encoder(folder)
    config = encoder.config
    assert isinstance(config, UMT5Config)
    inner = config.num_heads * config.d_kv
    products = 2 * tokens * config.d_model * (4 * inner + 3 * config.d_ff)
    flops = config.num_layers * (products + 4 * tokens**2 * inner)
    parameters = [p.numel() for p in encoder.parameters()]
    block = sum(p.numel() for p in encoder.encoder.block[0].parameters())
    return Part("text_encoder", str(folder), sum(parameters), block), tokens, flops


def _decoding(folder: Path, frames: int, size: tuple[int, int]) -> tuple[Part, int, int]:
    """The VAE as part of a run, and the operations and bytes of decoding a clip in float32: counted on meta tensors."""
    vae = meta_vae(folder)
    latents = torch.empty(1, frames, vae.config["z_dim"], *size, device="meta")
    with FlopCounterMode(display=False) as counter, LiveBytes() as live:
        StreamingVAE(vae).decode(latents)
    parameters = sum(p.numel() for p in vae.parameters())
    return Part("vae", str(folder), parameters), counter.get_total_flops(), live.peak


def _latents_clip(folder: Path) -> tuple[int, int, int]:
    """Latent frames, rows and columns of a store of latents; those of the published pairs where there is no store."""
    if not (folder / MANIFEST).is_file():
        return PUBLISHED_CLIP
    frames, _, rows, columns = open_latents(folder).shape
    return frames, rows, columns


def _pairs_clip(folder: Path) -> tuple[int, int, int]:
    """Latent frames, rows and columns of a store of ODE pairs; those of the published pairs where there is no store."""
    path = folder / MANIFEST
    if not path.is_file():
        return PUBLISHED_CLIP
    frames, _, rows, columns = json.loads(path.read_text(encoding="utf-8"))["latent_shape"]
    return frames, rows, columns
