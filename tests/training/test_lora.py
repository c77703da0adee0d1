"""Adapters in training: only they change, they are all that is kept, and merged they compute what they do applied."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ode_stores import stage as ode_regression
from ode_stores import write_tars
from processes import in_processes
from tiny_stages import distilling, flow_matching, write_latents
from torch import Tensor
from toy import build as toy
from toy import learned

from reward_forcing.checkpoints import load_transformer
from reward_forcing.models.wan_dit import WanDiT
from reward_forcing.processes import World
from reward_forcing.training.learner import Learner
from reward_forcing.training.lora import LoraSettings, adapter_names, adapters
from reward_forcing.training.networks import place_transformer, save_transformer
from reward_forcing.training.parallel import Placement, like, whole
from reward_forcing.training.settings import TrainSettings
from reward_forcing.training.trainer import Trainer

CPU = torch.device("cpu")
LORA = LoraSettings(rank=3, alpha=6.0)
ON_BOTH = {"generator": LORA, "fake_score": LORA}
LAYERS = [f"{attention}.{part}" for attention in ("attn1", "attn2") for part in ("to_q", "to_k", "to_v", "to_out.0")]
LAYERS += ["ffn.net.0.proj", "ffn.net.2"]


def adapted(folder: Path, lora: LoraSettings = LORA, seed: int = 0) -> WanDiT:
    """The tiny transformer with adapters whose update is not zero."""
    network = place_transformer(folder / "transformer", Placement(CPU), lora=lora, seed=seed)
    generator = torch.Generator().manual_seed(1)
    for name in adapter_names(network):
        parameter = network.get_parameter(name)
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return network


def velocity(network: WanDiT) -> Tensor:
    """What the network puts out while gradients are on: a plain one is computed by the same operators only then."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 3, network.config["in_channels"], 4, 4, generator=generator)
    text = network.encode_text(torch.randn(2, 4, network.config["text_dim"], generator=generator))
    return network(x, torch.tensor([300.0, 800.0]), text)[0].detach()


def test_merged_is_applied(tiny_model_folder: Path, tmp_path: Path) -> None:
    network = adapted(tiny_model_folder)
    base = tiny_model_folder / "transformer"
    assert (velocity(network) - velocity(load_transformer(base))).abs().max() > 1e-2, "the update must matter"
    save_transformer(network, tmp_path / "transformer", base)
    for merged in (
        load_transformer(tmp_path / "transformer"),
        load_transformer(base, lora=tmp_path / "transformer_lora"),
    ):
        torch.testing.assert_close(velocity(merged), velocity(network), atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(
        load_transformer(tmp_path / "transformer").state_dict(),
        load_transformer(base, lora=tmp_path / "transformer_lora").state_dict(),
        atol=0,
        rtol=0,
    )


def test_a_new_adapter_changes_nothing_and_is_a_function_of_the_seed(tiny_model_folder: Path) -> None:
    folder = tiny_model_folder / "transformer"
    first, again, other = (place_transformer(folder, Placement(CPU), lora=LORA, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(velocity(first), velocity(place_transformer(folder, Placement(CPU))))
    name = "blocks.0.attn1.to_q.lora_A.weight"
    values = [network.get_parameter(name) for network in (first, again, other)]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    assert not torch.equal(values[0], first.get_parameter(name.replace("to_q", "to_k")))


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, LAYERS),
        (("attn1", "ffn"), LAYERS[:4] + LAYERS[8:]),
        (("to_q", "attn2.to_out"), ["attn1.to_q", "attn2.to_q", "attn2.to_out.0"]),
    ],
)
def test_the_chosen_layers_of_every_block_are_adapted(
    tiny_model_folder: Path, layers: tuple[str, ...] | None, expected: list[str]
) -> None:
    lora = LoraSettings(rank=2) if layers is None else LoraSettings(rank=2, layers=layers)
    found = adapters(place_transformer(tiny_model_folder / "transformer", Placement(CPU), lora=lora))
    assert sorted(found) == sorted(f"blocks.{index}.{name}" for index in range(2) for name in expected)


def test_only_the_adapters_are_trained_averaged_and_kept(tiny_model_folder: Path, tmp_path: Path) -> None:
    base = load_transformer(tiny_model_folder / "transformer").state_dict()
    stage = distilling(tiny_model_folder, lora=ON_BOTH, ema={role: {"decay": 0.5} for role in ON_BOTH})
    Trainer(stage, tmp_path / "run").run()
    kept = learned(tmp_path / "run")
    for role, network in stage.networks().items():
        state, names = network.state_dict(), adapter_names(network)
        assert [name for name in base if not torch.equal(state[name], base[name])] == []
        assert all(state[name].abs().max() > 0 for name in names), "B has left zero"
        own = {name.removeprefix(f"{role}.") for name in kept if name.startswith(f"{role}.")}
        assert {name.removeprefix("network.") for name in own if name.startswith("network.")} == set(names)
        assert {name.removeprefix("average.") for name in own if name.startswith("average.")} == set(names)
        optimizer = {name.rpartition(".")[0] for name in own if name.startswith("optimizer.")}
        assert optimizer == {f"optimizer.{name}" for name in names}
    final = tmp_path / "run" / "final"
    assert {path.name for path in final.iterdir()} == {
        "transformer", "transformer_lora", "fake_score", "fake_score_lora"
    }  # fmt: skip
    merged = load_transformer(final / "transformer").state_dict()
    again = load_transformer(tiny_model_folder / "transformer", lora=final / "transformer_lora").state_dict()
    torch.testing.assert_close(merged, again)
    changed = {name for name, tensor in base.items() if not torch.equal(tensor, merged[name])}
    assert changed == {f"{name}.weight" for name in adapters(stage.networks()["generator"])}
    average = kept["generator.average.blocks.0.attn1.to_q.lora_B.weight"]
    written = merged["blocks.0.attn1.to_q.weight"] - base["blocks.0.attn1.to_q.weight"]
    a = kept["generator.average.blocks.0.attn1.to_q.lora_A.weight"]
    torch.testing.assert_close(written, 2.0 * average @ a, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["flow_matching", "ode_regression"])
def test_every_stage_that_trains_a_transformer_takes_adapters(
    tiny_model_folder: Path, tmp_path: Path, name: str
) -> None:
    role = {"flow_matching": "transformer", "ode_regression": "generator"}[name]
    if name == "flow_matching":
        latents = write_latents(tmp_path / "latents")
        stage: Any = flow_matching(tiny_model_folder, latents, lora={role: LORA})
    else:
        pairs = write_tars(tmp_path / "pairs", torch.randn(4, 3, 6, 4, 4, 4), (900, 400, 0))
        stage = ode_regression(pairs, tiny_model_folder, tiny_model_folder / "transformer")
        train = stage.settings.train.model_copy(update={"lora": {role: LORA}})
        stage = type(stage)(stage.settings.model_copy(update={"train": train}), 3, 0, 1, CPU)
    Trainer(stage, tmp_path / "run").run()
    network = stage.networks()[role]
    assert all(network.get_parameter(name).abs().max() > 0 for name in adapter_names(network))
    assert not any(p.requires_grad for name, p in network.named_parameters() if "lora" not in name)
    assert (tmp_path / "run/final/transformer_lora/adapter_config.json").is_file()


def test_a_resumed_run_is_the_uninterrupted_one(tiny_model_folder: Path, tmp_path: Path) -> None:
    def run(out: str, steps: int) -> None:
        Trainer(distilling(tiny_model_folder, lora=ON_BOTH, steps=steps), tmp_path / out).run()

    run("whole", 5)
    run("parts", 3)
    run("parts", 5)
    whole, parts = learned(tmp_path / "whole"), learned(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert [name for name in whole.keys() - {"counts"} if not torch.equal(whole[name], parts[name])] == []


def test_the_summary_tells_what_is_trained(tiny_model_folder: Path) -> None:
    assert "of which 0.00M are trained" in distilling(tiny_model_folder, lora=ON_BOTH).summary()
    assert "of which" not in distilling(tiny_model_folder).summary()


def test_bad_settings_are_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    wrong = {"generator": LoraSettings(layers=("to_qq",))}
    with pytest.raises(ValueError, match=r"unknown layer 'to_qq'; expected one of .attn1.to_q,"):
        distilling(tiny_model_folder, lora=wrong)
    with pytest.raises(ValueError, match=r"train.lora: unknown role 'generater'; did you mean 'generator'"):
        Trainer(distilling(tiny_model_folder, lora={"generater": LORA}), tmp_path / "run")
    with pytest.raises(ValueError, match=r"trains no transformer; leave out train.shard, train.lora"):
        toy(lora={"student": LORA})
    with pytest.raises(ValueError, match="give its folder as init"):
        flow_matching(tiny_model_folder, write_latents(tmp_path / "latents"), init=None, lora={"transformer": LORA})


def test_muon_orthogonalises_the_adapters_matrices(tiny_model_folder: Path) -> None:
    muon = {"kind": "muon", "lr": 0.02, "adam": {"lr": 0.01}}
    train = TrainSettings.model_validate({"steps": 1, "optimizers": {"generator": muon}})
    learner = Learner("generator", adapted(tiny_model_folder), train)
    (optimizer,) = learner.optimizers
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2 * 2 * len(LAYERS)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_adapted_networks_are_shared_among_processes(tiny_model_folder: Path, tmp_path: Path, precision: str) -> None:
    """Matrices that are frozen in bfloat16 beside adapters that are trained in float32, gathered together."""
    folder = tiny_model_folder / "transformer"
    compute = torch.bfloat16 if precision == "bf16" else torch.float32

    def learn(network: WanDiT) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            for name in adapter_names(network):
                parameter = network.get_parameter(name)
                generator = torch.Generator().manual_seed(1)
                parameter.copy_(like(0.2 * torch.randn(parameter.shape, generator=generator), parameter))
        x, embeddings = torch.randn(2, 3, 4, 4, 4), torch.randn(2, 4, network.config["text_dim"])
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            out = network(x, torch.tensor([300.0, 800.0]), network.encode_text(embeddings))[0].float()
        out.square().mean().backward()
        found = {name: whole(p.grad) for name, p in network.named_parameters() if p.grad is not None}
        assert found.keys() == set(adapter_names(network))
        return out.detach(), found

    torch.manual_seed(0)
    expected, gradients = learn(place_transformer(folder, Placement(CPU, compute), lora=LORA))

    def check(world: World) -> None:
        torch.manual_seed(0)
        network = place_transformer(folder, Placement.of("full", precision, world.size, CPU), lora=LORA)
        out, found = learn(network)
        assert torch.equal(out, expected)
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6)

    in_processes(2, tmp_path, check)
