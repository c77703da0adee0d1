"""Networks that stages load: compiled or not, they are the same function of the same parameters."""

from pathlib import Path

import torch
from torch import Tensor

from reward_forcing.models.wan_dit import WanDiT
from reward_forcing.training.networks import place_transformer
from reward_forcing.training.parallel import Placement

CPU = torch.device("cpu")


def velocity_and_gradients(network: WanDiT) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 3, network.config["in_channels"], 4, 4, generator=generator)
    text = network.encode_text(torch.randn(2, 4, network.config["text_dim"], generator=generator))
    velocity, _ = network(x, torch.tensor([300.0, 800.0]), text)
    velocity.square().mean().backward()
    return velocity.detach(), {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def test_a_compiled_network_computes_what_the_plain_one_does(tiny_model_folder: Path) -> None:
    folder = tiny_model_folder / "transformer"
    plain, compiled = (place_transformer(folder, Placement(CPU, compiled=flag)) for flag in (False, True))
    assert plain.state_dict().keys() == compiled.state_dict().keys(), "checkpoints of both are interchangeable"
    (velocity, gradients), (same, alike) = velocity_and_gradients(plain), velocity_and_gradients(compiled)
    torch.testing.assert_close(same, velocity, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == alike.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(alike[name], gradient, rtol=1e-3, atol=1e-6, msg=name)
    assert all(block._compiled_call_impl is not None for block in compiled.blocks)
