"""A plan's formulas against what torch counts, the published sizes, and the command that prints a plan."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from reward_forcing.benchmarks.work import cpu_formulas
from reward_forcing.cli.main import main
from reward_forcing.models import attention, layers
from reward_forcing.models.attention import KV, Past, Prediction, TextContext
from reward_forcing.models.denoiser import Denoiser
from reward_forcing.models.live_bytes import LiveBytes
from reward_forcing.models.masks import block_causal, teacher_forcing
from reward_forcing.models.meta_networks import meta_text_encoder, meta_transformer
from reward_forcing.models.sizes import SIZES
from reward_forcing.models.wan_dit import WanDiT
from reward_forcing.rewards.base import Rater, Reward
from reward_forcing.rollout import CacheSettings, KVCache, Rollout, SeededNoise, chunkwise, rolling
from reward_forcing.training import load_stage_settings
from reward_forcing.training.dmd import DmdSettings
from reward_forcing.training.flow_matching import TeacherForcing
from reward_forcing.training.learner import Learner
from reward_forcing.training.lora import LoraSettings, adapt, adapter_names
from reward_forcing.training.optim import AdamWSettings, MuonSettings, OptimizerSettings, hidden_matrices
from reward_forcing.training.parallel import matrices
from reward_forcing.training.plan import LAYOUTS, Cluster, make_plan
from reward_forcing.training.plan_costs import (
    Attended,
    Shape,
    backward_work,
    bidirectional,
    forward_flops,
    forward_work,
    graph,
    patterned,
    rolled_out,
    skipped_flops,
    skipped_text_flops,
    text_flops,
    walked,
)
from reward_forcing.training.plan_names import refuse_names
from reward_forcing.training.plan_workload import EDGES, optimizer_bytes
from reward_forcing.training.re_dmd import ReDmdSettings
from reward_forcing.training.rollouts import course_at
from reward_forcing.training.settings import TrainSettings

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "train" / "wan_1_3b"
MINI = ROOT / "src" / "reward_forcing" / "assets" / "mini"
LATENT = (12, 8)
FRAMES = 6
TEXT = 8
PATTERN = block_causal(FRAMES, 3)
MODEL = {"num_attention_heads": 3, "attention_head_dim": 32, "ffn_dim": 400, "num_layers": 3, "freq_dim": 16}


@pytest.fixture(scope="module")
def network() -> WanDiT:
    torch.manual_seed(0)
    network = WanDiT(**MODEL, text_dim=12)
    torch.nn.init.normal_(network.proj_out.weight)
    return network


def past_of(network: WanDiT, shape: Shape, frames: int, queries: int) -> Past:
    size = (shape.layers, 1, frames, shape.tokens, shape.heads, network.head_dim)
    positions = torch.arange(frames), torch.arange(frames, frames + queries)
    return Past(torch.randn(size), torch.randn(size), *positions)


def forward(network: WanDiT, kind: str, text_dim: int = 12) -> tuple[Tensor, Attended]:
    """A forward of one kind with its text encoded, and what it is to the plan."""
    shape, options = Shape.of(network, LATENT), {}
    seen = bidirectional(FRAMES)
    if kind == "pattern":
        options, seen = {"pattern": PATTERN}, patterned(PATTERN)
    elif kind == "past":
        options, seen = {"past": past_of(network, shape, 6, 3)}, Attended(3, 27, past=6)
    text = network.encode_text(torch.randn(1, TEXT, text_dim))
    x, timestep = torch.randn(1, seen.frames, 16, *LATENT), torch.full((1, seen.frames), 500.0)
    return network(x, timestep, text, **options)[0], seen


KINDS = ["bidirectional", "pattern", "past"]


@pytest.mark.parametrize("kind", KINDS)
def test_operations_of_a_forward_are_those_that_torch_counts(network: WanDiT, kind: str):
    counting = FlopCounterMode(display=False, custom_mapping=cpu_formulas())
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counting as counter:
        _, seen = forward(network, kind)
    shape = Shape.of(network, LATENT)
    assert counter.get_total_flops() == forward_flops(shape, seen, TEXT) + text_flops(shape, TEXT)


def adapted_network() -> WanDiT:
    network = adapt(WanDiT(**MODEL, text_dim=12), LoraSettings(rank=16))
    torch.nn.init.normal_(network.proj_out.weight)
    for name in adapter_names(network):
        torch.nn.init.normal_(network.get_parameter(name), std=0.1)
    return network


@pytest.mark.parametrize("kind", KINDS)
def test_operations_with_adapters_are_those_that_torch_counts(kind: str):
    network = adapted_network()
    shape = Shape.of(network, LATENT)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        _, seen = forward(network, kind)
    forwards = forward_flops(shape, seen, TEXT) + text_flops(shape, TEXT)
    assert counter.get_total_flops() == forwards
    if kind == "past":
        return  # whose first block also spares the gradient of its input
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        forward(network, kind)[0].sum().backward()
    expected = 3 * forwards - skipped_flops(shape, seen) - skipped_text_flops(shape, TEXT)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.05)
    assert counter.get_total_flops() < 0.9 * 3 * forwards


@pytest.mark.parametrize(("name", "tera"), [("wan-1.3b", 282.8), ("wan-14b", 1676.2)])
def test_operations_at_full_size_are_those_that_torch_counts(name: str, tera: float):
    shape = Shape.of(meta_transformer(Path(name)), (60, 104))
    assert shape.tokens == 1560
    counting = FlopCounterMode(display=False)
    with FakeTensorMode(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counting as counter:
        fake = WanDiT(**SIZES[name])
        text = fake.encode_text(torch.empty(1, 512, 4096))
        of_text = counter.get_total_flops()
        fake(torch.empty(1, 21, 16, 60, 104), torch.empty(1, 21), text)
    assert of_text == text_flops(shape, 512)
    assert counter.get_total_flops() - of_text == forward_flops(shape, bidirectional(21), 512)
    assert forward_flops(shape, bidirectional(21), 512) / 1e12 == pytest.approx(tera, rel=1e-3)


@pytest.mark.parametrize(("checkpointed", "factor"), [(False, 3), (True, 4)])
def test_a_backward_costs_two_forwards_and_checkpointing_one_more(network: WanDiT, checkpointed: bool, factor: int):
    shape = Shape.of(network, LATENT)
    if checkpointed:
        network.enable_gradient_checkpointing()
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            velocity, seen = forward(network, "bidirectional")
            velocity.sum().backward()
    finally:
        network.disable_gradient_checkpointing()
        network.zero_grad()
    expected = factor * forward_flops(shape, seen, TEXT) + 3 * text_flops(shape, TEXT)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("window", "past"), [(9, [0, 3, 6, 6, 6, 6, 6]), (None, [0, 3, 6, 9, 12, 15, 18])], ids=["window 9", "all"]
)
def test_a_rollout_sees_what_its_cache_shows(window: int | None, past: list[int]):
    passes = rolled_out(CacheSettings(window_frames=window), 21)
    assert [seen.past for seen in passes] == past
    assert [seen.pairs for seen in passes] == [3 * (frames + 3) for frames in past]


@dataclass
class Asked:
    """A denoiser that predicts nothing and notes the frames and the past of its passes, and which of them are clean."""

    calls: list[tuple[bool, Attended]] = field(default_factory=list)

    def __call__(self, x, sigma, text, past: Past | None = None, want_kv: bool = False) -> Prediction:
        frames, seen = x.shape[1], 0 if past is None else past.frames
        self.calls.append((bool(want_kv), Attended(frames, frames * (frames + seen), past=seen)))
        kv = torch.zeros(1, 1, frames, 1, 1, 1)
        return Prediction(x, x, KV(kv, kv) if want_kv else None)

    def rotate(self, past: Past, latent_size: tuple[int, int]) -> Past:
        return past


@pytest.mark.parametrize("sees_sink", [True, False])
@pytest.mark.parametrize("rolls", [True, False])
def test_a_course_is_walked_as_it_is_rolled_out(rolls: bool, sees_sink: bool):
    settings = load_stage_settings(CONFIGS / "rolling_8gpu.yaml", [f"cache.clean_pass_sees_sink={sees_sink}"])
    assert isinstance(settings, DmdSettings)
    text = TextContext(torch.zeros(1, 1, 1, 1, 1), torch.zeros(1, 1, 1, 1, 1))
    for frames in settings.lengths:
        for exit_step in range(5):
            asked, course = Asked(), course_at(settings, frames, exit_step, rolls)
            list(Rollout(asked, course.passes, KVCache.empty(settings.cache), SeededNoise((0,)), text, (1, 1, 1)))
            seen, clean = walked(settings.cache, course.passes)
            assert [call for is_clean, call in asked.calls if not is_clean] == list(seen)
            assert [call for is_clean, call in asked.calls if is_clean] == list(clean)


def fused(query: Tensor, key: Tensor, value: Tensor, log_counts: None = None) -> Tensor:
    """Attention by the fused kernel in any dtype, as on a GPU, where no text is merged."""
    return scaled_dot_product_attention(*(t.transpose(1, 2) for t in (query, key, value))).transpose(1, 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compute", [4, 2], ids=["fp32", "bf16"])
@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_bytes_kept_for_the_backward_are_those_that_autograd_saves(
    network: WanDiT, kind: str, compute: int, lora: bool, monkeypatch: pytest.MonkeyPatch
):
    mixed = compute == 2
    if lora:
        network = adapted_network()
        for _, matrix in matrices(network, cast=True):
            if mixed and not matrix.weight.requires_grad:  # as `place_transformer` keeps them
                matrix.weight.data = matrix.weight.data.bfloat16()
    monkeypatch.setattr(layers, "attend", fused)
    monkeypatch.setattr(attention, "attend", fused)
    storages: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    held = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
            held.append(storage)
        return tensor

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=mixed)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        _, seen = forward(network, kind)
    copied = hidden_matrices(network, ("condition_embedder.time_embedder", "condition_embedder.time_proj"))
    copies = (
        sum(2 * p.numel() for name, p in network.named_parameters() if name in copied and p.requires_grad)
        if mixed
        else 0
    )
    expected = graph(Shape.of(network, LATENT), [seen], TEXT, compute, checkpointed=False)
    assert sum(storages.values()) - copies == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize(("rolls", "window"), [(False, 9), (False, None), (True, 12)])
def test_bytes_of_a_rollout_in_training_are_those_that_live(
    network: WanDiT, checkpointed: bool, rolls: bool, window: int | None
):
    shape, settings = Shape.of(network, LATENT), CacheSettings(window_frames=window)
    batch, frames = 2, 24 if rolls else 12  # four passes with gradient
    sigmas = (1.0, 0.8)
    schedule = tuple(rolling(sigmas, 1, chunks=8) if rolls else chunkwise(sigmas, grad_from=0, chunks=4))
    if checkpointed:
        network.enable_gradient_checkpointing()
    try:
        with LiveBytes() as live:
            rollout = Rollout(
                Denoiser(network),
                schedule,
                KVCache.empty(settings),
                SeededNoise(tuple(range(batch))),
                network.encode_text(torch.randn(batch, TEXT, 12)),
                (16, *LATENT),
            )
            pieces = [chunk.at_exit for chunk in rollout]
            pieces += [chunk.at_exit for chunk in rollout.state.noisy if chunk.at_exit is not None]
            x = torch.cat(pieces, dim=1)
            assert x.shape[1] == frames
            del rollout, pieces
            kept = live.live
            live.peak = live.live
            weights = [p for p in network.parameters() if p.requires_grad]
            torch.autograd.grad(x.sum(), weights, allow_unused=True)
            peak = live.peak
    finally:
        network.disable_gradient_checkpointing()
    passes = [seen for seen, step in zip(walked(settings, schedule)[0], schedule, strict=True) if step.grad]
    assert kept == pytest.approx(batch * graph(shape, passes, TEXT, 4, checkpointed), rel=0.15)
    work = max(backward_work(shape, seen, TEXT, 4, checkpointed) for seen in passes)
    gradients = sum(4 * p.numel() for p in weights)
    expected = batch * (graph(shape, passes, TEXT, 4, checkpointed) + work) + gradients
    # A first backward makes its gradients as it frees the graph, layer by layer; planned is that both are there.
    assert 0.7 * expected < peak < 1.05 * expected


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_of_a_forward_without_gradients_are_those_that_live(network: WanDiT, kind: str):
    torch.manual_seed(0)
    with torch.no_grad(), LiveBytes() as live:
        _, seen = forward(network, kind)
    given = 2 * 3 * 6 * 24 * 96 * 4 if kind == "past" else 0  # the unrotated past is the cache's
    rotated = given // 2
    expected = forward_work(Shape.of(network, LATENT), seen, TEXT, 4)
    assert live.peak - given - rotated == pytest.approx(expected, rel=0.15)


def test_live_bytes_count_each_storage_until_it_is_freed():
    outside = torch.ones(1000)
    with LiveBytes() as live:
        a = outside + 1
        view = a[:500]
        b = a + 1
        assert live.live == 8000
        del b
        assert live.live == 4000
        del a
        assert live.live == 4000  # the view holds it
        del view
        outside.add_(1)
        assert (live.live, live.peak) == (0, 8000)


@pytest.mark.parametrize(
    "settings",
    [AdamWSettings(lr=1e-4), MuonSettings(lr=1e-2, adam=AdamWSettings(lr=1e-4))],
    ids=["adamw", "muon"],
)
def test_optimizer_bytes_are_those_of_the_optimizer(network: WanDiT, settings: OptimizerSettings):
    train = TrainSettings(steps=1, optimizers={"generator": settings})
    learner = Learner("generator", network, train, EDGES)
    for parameter in learner.parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    learner.step(0, 0.0)
    learner.clear()
    states = [state for optimizer in learner.optimizers for state in optimizer.state.values()]
    held = sum(4 * tensor.numel() for state in states for tensor in state.values() if tensor.ndim > 0)
    sizes = {name: p.numel() for name, p in network.named_parameters()}
    assert optimizer_bytes(settings, sizes, hidden_matrices(network, EDGES)) == held


def test_the_text_encoder_has_the_published_size():
    encoder, tokens = meta_text_encoder(Path("wan-2.1"))
    assert (sum(p.numel() for p in encoder.parameters()), tokens) == (5_680_910_336, 512)


@pytest.fixture(scope="module")
def plan():
    return make_plan(load_stage_settings(CONFIGS / "dmd_64gpu.yaml"), Cluster(tflops=790, mfu=0.45))


def test_the_full_size_plan_counts_what_was_counted_by_hand(plan):
    """The counts of the rollout, the scores and the text, in TFLOP: 81 frames at 832 x 480, window 9, 14B teacher."""
    work = {work.what: work for cost in plan.costs for work in cost.work}
    passes = 7 * 157.7 / 7
    assert work["rollout, last passes, scored"].flops / 1e12 == pytest.approx(passes, rel=2e-3)
    assert work["critic"].flops / 1e12 == pytest.approx(282.8, rel=2e-3)
    assert work["teacher"].flops * work["teacher"].forwards / 1e12 == pytest.approx(2 * 1676.2, rel=2e-3)
    assert work["text encoder"].flops / 1e12 == pytest.approx(4.84, rel=2e-3)
    last = forward_flops(Shape.of(meta_transformer(Path("wan-1.3b")), (60, 104)), Attended(3, 27, past=6), 512) / 1e12
    assert last == pytest.approx(24.26, rel=2e-3)
    critic = plan.costs[1].flops["both"] / 64 / 1e12
    assert critic == pytest.approx(1684 - last, rel=0.01)  # the last chunk's clean pass is never run
    generator = plan.costs[0].flops["both"] / 64 / 1e12
    assert generator == pytest.approx(4955 - 275 - 15 - last, rel=0.01)  # without a reward


def test_hours_are_operations_over_the_rate(plan):
    assert [cost.updates for cost in plan.costs] == [120, 600]
    flops = sum(cost.updates * cost.flops["sharded"] for cost in plan.costs)
    assert plan.hours["sharded"] == pytest.approx(flops / (64 * 790e12 * 0.45) / 3600)
    assert plan.step_flops["sharded"] == pytest.approx(flops / 600)
    assert 1.0 < plan.hours["both"] < 1.4


def test_memory_at_full_size_is_what_its_parts_weigh(plan):
    memory = {row.what: row.bytes for row in plan.memory}
    student, teacher, layout = 1_418_996_800, 14_288_491_584, "both"
    divided = {name: divided_numbers(name) for name in ("wan-1.3b", "wan-14b")}
    assert all(0.995 < parts / whole < 1 for parts, whole in zip(divided.values(), (student, teacher), strict=True))
    sharded = divided["wan-1.3b"] / 8 + student - divided["wan-1.3b"]
    assert memory["generator: weights"] == dict.fromkeys(("replicated", "checkpointed"), 4 * student) | dict.fromkeys(
        ("sharded", layout), 4 * sharded
    )
    assert memory["generator: optimizer"] == {name: 2 * size for name, size in memory["generator: weights"].items()}
    assert "fake_score: average" not in memory
    assert memory["generator: average"]["replicated"] == 4 * student
    assert memory["real_score: weights, frozen"]["replicated"] == pytest.approx(2 * teacher, rel=0.03)
    assert memory["real_score: weights, frozen"][layout] == pytest.approx(2 * teacher / 8, rel=0.05)
    updates = [peak.graph[layout] + peak.beside[layout] for peak in plan.peaks]
    assert plan.total[layout] == sum(row.bytes[layout] for row in plan.memory) + max(updates)
    assert plan.total[layout] < 80e9 < plan.total["sharded"] < plan.total["replicated"]
    assert (plan.configured, plan.shards) == (layout, 8)


def divided_numbers(name: str) -> int:
    """How many numbers of a transformer are weights of linear layers."""
    modules = meta_transformer(Path(name)).modules()
    return sum(module.weight.numel() for module in modules if isinstance(module, torch.nn.Linear))


@pytest.mark.parametrize("gpus", [64, 8, 1])
def test_the_published_run_has_a_configuration_for_every_number_of_gpus(plan, gpus: int):
    settings = load_stage_settings(CONFIGS / f"dmd_{gpus}gpu.yaml")
    fewer = make_plan(settings, Cluster(tflops=790, mfu=0.45))
    assert (fewer.gpus, fewer.clips, fewer.batch) == (gpus, 1, 64)
    assert fewer.step_flops == plan.step_flops
    assert fewer.hours["sharded"] == pytest.approx(plan.hours["sharded"] * 64 / gpus)
    first = load_stage_settings(CONFIGS / "dmd_64gpu.yaml").model_dump()
    changed = settings.model_dump()
    assert changed["train"]["shard"] == {64: "hybrid", 8: "full", 1: "none"}[gpus]
    changed["train"] |= {"accumulate": 1, "shard": "hybrid"}
    assert changed == first


def test_more_clips_at_a_time_take_as_many_times_the_activations(plan):
    settings = load_stage_settings(CONFIGS / "dmd_64gpu.yaml")
    double = make_plan(settings, Cluster(gpus=32))
    assert double.clips == 2
    for one, two in zip(plan.peaks, double.peaks, strict=True):
        assert two.graph["sharded"] == 2 * one.graph["sharded"]
        assert two.beside["sharded"] == 2 * one.beside["sharded"]
    assert double.memory[0].bytes["replicated"] == plan.memory[0].bytes["replicated"]


def test_adapters_are_planned_beside_a_frozen_network():
    settings = load_stage_settings(CONFIGS / "long_tuning.yaml")
    plan = make_plan(settings, Cluster())
    memory = {row.what: row.bytes for row in plan.memory}
    network = adapt(meta_transformer(Path("wan-1.3b")), LoraSettings())
    numbers = sum(network.get_parameter(name).numel() for name in adapter_names(network))
    assert numbers == 30 * 256 * (8 * 2 * 1536 + 2 * (1536 + 8960))
    for role in ("generator", "fake_score"):
        assert memory[f"{role}: adapters"]["replicated"] == memory[f"{role}: gradients"]["replicated"] == 4 * numbers
        assert memory[f"{role}: adapters"]["both"] == 4 * numbers // 8
        assert memory[f"{role}: optimizer"]["replicated"] == 8 * numbers
        frozen = memory[f"{role}: weights, frozen"]["replicated"]
        assert frozen == pytest.approx(2 * 1_418_996_800, rel=0.03)
        assert f"{role}: average" not in memory
    averaged = load_stage_settings(CONFIGS / "long_tuning.yaml", ["train.ema={generator: {decay: 0.99}}"])
    row = next(row for row in make_plan(averaged, Cluster()).memory if row.what == "generator: average")
    assert row.bytes["replicated"] == 4 * numbers


def test_running_videos_cost_the_mean_of_their_stretches():
    plan = make_plan(load_stage_settings(CONFIGS / "long_tuning.yaml"), Cluster())
    work = {work.what: work for work in plan.costs[1].work}
    shape = Shape.of(adapt(meta_transformer(Path("wan-1.3b")), LoraSettings()), (60, 104))
    flops = [forward_flops(shape, seen, 512) for seen in rolled_out(CacheSettings(window_frames=12), 237)]
    assert len(flops) == 79
    assert work["rollout, all passes"].flops == pytest.approx(sum(flops) / 13)
    assert work["rollout, clean passes"].flops == pytest.approx(sum(flops[:-1]) / 13)
    assert work["re-cache at a switch"].flops == pytest.approx(forward_flops(shape, bidirectional(21), 512) / 13)
    assert work["text encoder"].forwards == 1


def test_the_largest_graph_is_the_first_stretchs_or_with_checkpointing_a_later_ones():
    """The first adds a chunk more, the later ones see a longer past."""
    plan = make_plan(load_stage_settings(CONFIGS / "long_tuning.yaml"), Cluster())
    shape = Shape.of(adapt(meta_transformer(Path("wan-1.3b")), LoraSettings()), (60, 104))
    passes = rolled_out(CacheSettings(window_frames=12), 39)
    stretches = passes[:7], passes[7:]
    plain, checkpointed = ([graph(shape, seen, 512, 2, again) for seen in stretches] for again in (False, True))
    assert plan.peaks[0].graph["sharded"] == plain[0] > plain[1]
    assert plan.peaks[0].graph["both"] == checkpointed[1] > checkpointed[0]


def test_ode_regression_has_a_plan():
    plan = make_plan(load_stage_settings(CONFIGS / "ode_regression.yaml"), Cluster(gpus=8))
    assert [network.role for network in plan.networks] == ["generator", "text_encoder"]
    (cost,) = plan.costs
    work = {work.what: work for work in cost.work}
    assert work["generator"].flops < 282.8e12  # fewer pairs of frames than a bidirectional forward
    assert (plan.gpus, plan.accumulate, plan.clips) == (8, 8, 1)


def test_ode_regression_takes_the_size_of_its_pairs_from_their_store(tmp_path: Path):
    (tmp_path / "manifest.json").write_text(json.dumps({"latent_shape": [6, 16, 12, 8]}))
    settings = load_stage_settings(CONFIGS / "ode_regression.yaml", [f"pairs={tmp_path}"])
    work = {work.what: work for work in make_plan(settings, Cluster()).costs[0].work}
    shape = Shape.of(meta_transformer(Path("wan-1.3b")), (12, 8))
    assert work["generator"].flops == forward_flops(shape, patterned(PATTERN), 512)


def test_a_teachers_training_is_planned_like_a_forward_over_the_whole_clip():
    settings = load_stage_settings(CONFIGS / "teacher.yaml")
    plan = make_plan(settings, Cluster(gpus=8))
    whole = make_plan(load_stage_settings(CONFIGS / "dmd_8gpu.yaml"), Cluster(gpus=8))
    (update,) = plan.costs
    critic = next(work for cost in whole.costs for work in cost.work if work.what == "critic")
    assert next(work.flops for work in update.work if work.what == "transformer") == critic.flops
    assert (plan.batch, plan.configured) == (16, "both")
    causal = settings.model_copy(update={"objective": TeacherForcing(frames=21, sink_frames=0)})
    half = sum(chunk for chunk in range(1, 8)) / 49  # of all pairs of chunks, those that a causal mask shows
    assert 1 < make_plan(causal, Cluster(gpus=8)).step_flops["both"] / plan.step_flops["both"] < 2 * (1 + half)
    with pytest.raises(ValueError, match="give init"):
        make_plan(settings.model_copy(update={"init": None}), Cluster(gpus=8))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_full_size_configuration_fits_a_gpu_as_it_is(path: Path):
    settings = load_stage_settings(path)
    gpus = {"dmd_1gpu": 1, "dmd_64gpu": 64, "re_dmd_64gpu": 64, "long_tuning": 64}.get(path.stem, 8)
    plan = make_plan(settings, Cluster(gpus=gpus))
    assert plan.total[plan.configured] / 2**30 < (141 if gpus == 1 else 80) * 0.95


def test_all_full_size_teachers_are_guided_away_from_the_same_prompt():
    prompt = (CONFIGS / "negative_prompt.txt").read_text(encoding="utf-8").strip()
    guided = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in CONFIGS.glob("*dmd*.yaml")]
    guided += [
        yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
        for name in ("rolling_8gpu", "long_tuning")
    ]
    assert {values["negative_prompt"] for values in guided} == {prompt}


def test_what_the_stage_would_refuse_is_refused_by_the_plan(plan):
    grouped = load_stage_settings(CONFIGS / "re_dmd_8gpu.yaml", ["group=4"])
    with pytest.raises(ValueError, match="no whole groups of 4"):
        make_plan(grouped, Cluster(gpus=8))
    with pytest.raises(ValueError, match=r"train.ema: unknown role 'generater'; did you mean 'generator'"):
        load_stage_settings(CONFIGS / "dmd_8gpu.yaml", ["train.ema={generater: {decay: 0.9}}"])


def test_a_clean_context_is_planned_with_twice_the_frames(tmp_path: Path):
    (tmp_path / "manifest.json").write_text(json.dumps({"latent_shape": [6, 16, 12, 8]}))
    settings = load_stage_settings(CONFIGS / "ode_regression.yaml", [f"pairs={tmp_path}", "context=clean"])
    work = {work.what: work for work in make_plan(settings, Cluster()).costs[0].work}
    shape, seen = Shape.of(meta_transformer(Path("wan-1.3b")), (12, 8)), patterned(teacher_forcing(6, 3))
    assert seen.frames == 12
    assert work["generator"].flops == forward_flops(shape, seen, 512)


def test_the_name_mini_is_the_bundled_transformer():
    config = json.loads((MINI / "transformer" / "config.json").read_text())
    assert {key: config[key] for key in SIZES["mini"]} == SIZES["mini"]


class Still(Reward):
    """A reward of some kind; a plan only asks whether there is one."""

    def load(self, device: torch.device) -> Rater:
        raise AssertionError("a plan loads nothing")


def test_a_reward_costs_the_decoding_of_its_clip(plan):
    values = load_stage_settings(CONFIGS / "dmd_64gpu.yaml").model_dump()
    settings = ReDmdSettings.model_validate(values | {"stage": "re_dmd", "reward": Still()})
    rewarded = make_plan(settings, Cluster(tflops=790, mfu=0.45))
    more = rewarded.costs[0].flops["sharded"] - plan.costs[0].flops["sharded"]
    assert more / 64 / 1e12 == pytest.approx(275.35, rel=1e-3)
    assert rewarded.costs[1] == plan.costs[1]
    assert [part.role for part in rewarded.networks][-1] == "vae"
    critic = make_plan(settings.model_copy(update={"weighted": "critic"}), Cluster(tflops=790, mfu=0.45))
    assert critic.costs[0] == plan.costs[0]
    assert critic.costs[1].flops["sharded"] - plan.costs[1].flops["sharded"] == pytest.approx(more, rel=1e-6)


def test_a_reused_rollout_is_shared_by_the_critic_updates_that_learn_from_it(plan):
    values = load_stage_settings(CONFIGS / "dmd_64gpu.yaml").model_dump()
    settings = ReDmdSettings.model_validate(
        values | {"stage": "re_dmd", "reward": Still(), "weighted": "critic", "critic_reuse": 5}
    )
    once = make_plan(settings.model_copy(update={"critic_reuse": 1}), Cluster())
    shared = make_plan(settings, Cluster())
    own = sum(work.total(True) for work in once.costs[1].work if work.what.startswith("critic"))
    rest = sum(work.total(True) for work in once.costs[1].work) - own
    assert sum(work.total(True) for work in shared.costs[1].work) == pytest.approx(own + rest / 5)
    assert shared.costs[0] == once.costs[0]


def test_longer_rollouts_cost_their_mean_and_keep_the_graph_of_what_is_scored(plan):
    settings = load_stage_settings(CONFIGS / "dmd_64gpu.yaml", ["longest_frames=27"])
    longer = make_plan(settings, Cluster(tflops=790, mfu=0.45))
    short, long = ({work.what: work for work in p.costs[0].work} for p in (plan, longer))
    # lengths 21, 24 and 27: two chunks more at most, each behind a full window
    chunk = forward_flops(Shape.of(meta_transformer(Path("wan-1.3b")), (60, 104)), Attended(3, 27, past=6), 512)
    every, clean = "rollout, passes before the last", "rollout, clean passes"
    assert long[every].flops - short[every].flops == pytest.approx(chunk)
    assert long[clean].flops - short[clean].flops == pytest.approx(chunk)
    assert "rollout, last passes, not scored" not in short
    assert long["rollout, last passes, scored"].flops > short["rollout, last passes, scored"].flops
    # the scored chunks of a long rollout all see a full window; the first of a short one do not
    assert longer.peaks[0].graph["sharded"] > plan.peaks[0].graph["sharded"]


def test_gradients_through_the_clean_passes_are_counted(plan):
    settings = load_stage_settings(CONFIGS / "dmd_64gpu.yaml", ["kv_grad=clean"])
    clean = next(work for work in make_plan(settings, Cluster()).costs[0].work if work.what == "rollout, clean passes")
    assert clean.total(checkpointed=True) == 4 * clean.flops


def test_rolling_rollouts_are_planned_by_their_share():
    def flops(share: float) -> tuple[list[float], list[int]]:
        settings = load_stage_settings(CONFIGS / "rolling_8gpu.yaml", [f"rolling_share={share}"])
        made = make_plan(settings, Cluster())
        return [cost.flops["both"] for cost in made.costs], [peak.total(LAYOUTS[3]) for peak in made.peaks]

    (alone, least), (half, worst), (rolls, other) = flops(0.0), flops(0.5), flops(1.0)
    assert half == pytest.approx([(a + b) / 2 for a, b in zip(alone, rolls, strict=True)])
    assert worst == [max(pair) for pair in zip(least, other, strict=True)]
    assert all(b > a for a, b in zip(alone, rolls, strict=True)), "windows denoise every chunk at every level"


def test_rolling_windows_at_full_size_cost_what_was_counted_by_hand():
    """Of 7 chunks in windows of 5 with exit 4: passes 0 to 9, of 1, 2, 3, 4, 5, 5, 5, 4, 3 and 2 chunks."""
    made = make_plan(load_stage_settings(CONFIGS / "rolling_8gpu.yaml", ["longest_frames=null"]), Cluster())
    work = {item.what: item for cost in made.costs for item in cost.work}
    shape = Shape.of(meta_transformer(Path("wan-1.3b")), (60, 104))

    def window(chunks: int, past: int) -> int:
        return forward_flops(shape, Attended(3 * chunks, 3 * chunks * (3 * chunks + past), past=past), 512)

    whole = [
        window(*seen)
        for seen in ((1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (5, 3), (5, 6), (4, 9), (3, 12), (2, 15), (1, 18))
    ]
    exits = {0: [0, 5, 10], 1: [1, 6], 2: [2, 7], 3: [3, 8], 4: [4, 9]}
    each = sum(sum(whole[: ends[-1] + 1]) for ends in exits.values()) / 5
    scored = sum(whole[number] for ends in exits.values() for number in ends) / 5
    assert work["rolling windows"].flops == pytest.approx(each)
    assert work["rolling windows, scored"].flops == pytest.approx(scored)
    assert work["rolling windows, scored"].forwards == 0.5
    assert work["rolling windows, not scored"].flops == pytest.approx(each - scored)


ADAMW = {"kind": "adamw", "lr": 1e-4}
SMALL = {
    "stage": "dmd",
    "generator": "mini",
    "real_score": str(MINI / "transformer"),
    "text": str(MINI),
    "vae": str(MINI / "vae"),
    "batch": 8,
    "train": {
        "steps": 600,
        "optimizers": dict.fromkeys(("generator", "fake_score"), ADAMW),
    },
}
CONFIG = "CONFIG"  # stands for the path of a file that holds SMALL


def mini(*changes: str) -> list[str]:
    return ["train", CONFIG, *changes, "--dry-run"]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Runs a command; returns its exit code, stdout and stderr."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(SMALL))

    def command(words: list[str]) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(path) if word == CONFIG else word for word in words])
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return command


def test_the_command_prints_the_plan_of_a_folder_or_a_name(run):
    code, out, _ = run([*mini(), "--gpus", "2"])
    assert code == 0
    for expected in ("8 on 2 GPUs (2 x 1 accumulated x 4 at a time)", "rollout, clean passes", "hours", "FSDP"):
        assert expected in out
    parameters = sum(p.numel() for p in meta_transformer(Path("mini")).parameters())
    assert out.count(f"{parameters / 1e9:.3f} G") >= 3


def test_the_command_prints_json_that_says_the_same(run):
    code, out, _ = run([*mini("train.steps=10"), "--json", "--tflops", "100", "--mfu", "0.5"])
    plan = json.loads(out)
    assert code == 0
    assert (plan["stage"], plan["steps"], plan["gpus"], plan["clips"]) == ("dmd", 10, 8, 1)
    assert (plan["tflops"], plan["mfu"]) == (100, 0.5)
    assert plan["hours"]["replicated"] == pytest.approx(plan["step_flops"]["replicated"] * 10 / (8 * 50e12) / 3600)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (mini("generator=runs/none"), "plan needs that file or one of: wan-1.3b, wan-14b, mini"),
        (mini("text=runs/none"), "plan needs them or 'wan-2.1'"),
        ([*mini(), "--gpus", "3"], "does not divide into 3 GPUs"),
        ([*mini(), "--gpus", "0"], "gpus must be at least 1"),
        ([*mini(), "--mfu", "2"], "mfu"),
        ([*mini(), "--tflops", "0"], "tflops"),
        (mini("latent_size=[7, 8]"), "does not divide into patches"),
        (mini("train.optimizers={generator: {kind: adamw, lr: 0.1}}"), "no entry for role 'fake_score'"),
        ([*mini()[:-1], "--gpus", "2"], "belong to --dry-run"),
        (mini()[:-1], "generator: no weights at 'mini'"),
    ],
)
def test_the_command_refuses_in_one_line(words: list[str], message: str, run):
    code, out, error = run(words)
    assert (code, out) == (2, "")
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_a_stage_without_a_plan_says_which_have_one(tmp_path: Path, run):
    config = tmp_path / "text.yaml"
    config.write_text(
        yaml.safe_dump({"stage": "text_encoder", "train": {"steps": 1, "optimizers": {"text_encoder": ADAMW}}})
    )
    code, _, error = run(["train", str(config), "--dry-run"])
    assert code == 2
    assert "dmd, re_dmd, ode_regression and flow_matching, not 'text_encoder'" in error


def test_names_of_sizes_are_no_folders_of_a_real_run():
    settings = load_stage_settings(CONFIGS / "dmd_1gpu.yaml")
    with pytest.raises(ValueError, match=r"generator: no weights at 'wan-1.3b'.*generator=\.\.\."):
        refuse_names(settings)
    folders = {key: Path("somewhere") for key in ("generator", "real_score", "fake_score", "text", "vae")}
    refuse_names(settings.model_copy(update=folders))


@pytest.mark.parametrize(
    ("shard", "checkpointing", "configured", "shards"),
    [("none", False, "replicated", 64), ("none", True, "checkpointed", 64), ("full", False, "sharded", 64),
     ("hybrid", True, "both", 8)],
)  # fmt: skip
def test_the_plan_tells_which_layout_is_configured(shard: str, checkpointing: bool, configured: str, shards: int, plan):
    changes = (f"train.shard={shard}", f"train.activation_checkpointing={str(checkpointing).lower()}")
    changed = make_plan(load_stage_settings(CONFIGS / "dmd_64gpu.yaml", changes), Cluster())
    assert (changed.configured, changed.shards) == (configured, shards)
    assert changed.hours[configured] == pytest.approx(plan.hours[configured] * 790 * 0.45 / (989 * 0.4))


def test_parts_of_a_batch_add_up_whole_gradients_of_sharded_networks(plan):
    several = make_plan(load_stage_settings(CONFIGS / "dmd_64gpu.yaml", ("train.accumulate=8",)), Cluster(gpus=8))
    (one, _), (eight, _) = plan.peaks, several.peaks
    assert eight.beside["both"] - one.beside["both"] == 4 * divided_numbers("wan-1.3b")
    assert eight.beside["checkpointed"] == one.beside["checkpointed"]
