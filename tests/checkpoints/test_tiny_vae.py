"""A tiny VAE's file: told by content, its sizes by its shapes, and what is wrong with it before a weight is read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints.damages import OF_A_FILE
from safetensors.torch import save_file

from reward_forcing.checkpoints import inspect, load_transformer
from reward_forcing.checkpoints.tiny_vae import load_tiny_decoder, open_tiny_vae
from reward_forcing.models.tiny_vae import TinyDecoder, TinySizes, TinyVAE
from reward_forcing.models.vae import fastest_dtype
from reward_forcing.models.wan_dit import WanDiT

State = dict[str, torch.Tensor]
SIZES = [
    TinySizes(4, (8, 6, 4, 4), encoder_width=4),
    TinySizes(6, (8, 6, 4, 3), growth=(2, 1, 2), patch=2, encoder_width=None),
    TinySizes(5, (4, 4, 4, 4), growth=(2, 2, 2), encoder_width=2, pooling=(2, 2, 2)),
]


def state_of(sizes: TinySizes = SIZES[0]) -> State:
    torch.manual_seed(1)
    return TinyVAE(sizes).half().state_dict()


def in_a_folder(state: State, path: Path) -> Path:
    path.mkdir()
    save_file(state, path / "whatever.safetensors")
    return path


def as_safetensors(state: State, path: Path) -> Path:
    save_file(state, path)
    return path


def as_torch(state: State, path: Path) -> Path:
    torch.save(state, path)
    return path


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("write", [as_torch, as_safetensors, in_a_folder])
def test_a_file_of_any_kind_decodes_as_the_network_it_was_saved_from(
    write: Callable[[State, Path], Path], sizes: TinySizes, tmp_path: Path
) -> None:
    state = state_of(sizes)
    path = write(state, tmp_path / "small.v2.dat")
    assert open_tiny_vae(path).sizes == sizes
    vae = TinyVAE(sizes)
    vae.load_state_dict(state)
    latents = torch.randn(1, 2, sizes.latent_channels, 2, 2)
    decoder = load_tiny_decoder(path, torch.float32)
    torch.testing.assert_close(decoder.decode(latents)[0], TinyDecoder(vae).decode(latents)[0], atol=1e-5, rtol=0)
    assert decoder.name == "TAEHV small.v2 float32"
    assert not any(parameter.requires_grad for parameter in decoder.vae.parameters())
    assert load_tiny_decoder(path).vae.weight.dtype == fastest_dtype("cpu")


def test_inspecting_names_it_and_no_transformer_is_made_of_it(tmp_path: Path) -> None:
    path = as_torch(state_of(), tmp_path / "a.pth")
    assert (inspect(path).format, inspect(path).layout) == ("tiny vae", "a tiny VAE (TAEHV)")
    with pytest.raises(ValueError, match=r"expected a Wan transformer .*; this is a tiny VAE \(TAEHV\)"):
        load_transformer(path)


def without(name: str) -> Callable[[State], None]:
    def change(state: State) -> None:
        del state[name]

    return change


def reshaped(name: str, *shape: int) -> Callable[[State], None]:
    return lambda state: state.update({name: torch.zeros(shape)})


def quantised(state: State) -> None:
    state["decoder.8.weight"] = state["decoder.8.weight"].to(torch.int8)


DAMAGES = {
    "a stage without its last layer": (without("decoder.14.weight"), "'decoder.14.weight' is missing, so this is not"),
    "a bias lost": (
        without("decoder.4.conv.2.bias"),
        r"do not fit the tiny VAE .*1 missing \(decoder\.4",
    ),
    "half an encoder": (without("encoder.7.conv.weight"), "'encoder.7.conv.weight' is missing"),
    "one layer more": (reshaped("decoder.23.weight", 3), r"1 unexpected \(decoder\.23\.weight\)"),
    "another width": (reshaped("decoder.9.conv.0.weight", 6, 6, 3, 3), r"\[6, 6, 3, 3\] instead of \[6, 12, 3, 3\]"),
    "time grown by one and a half": (reshaped("decoder.13.conv.weight", 9, 6, 1, 1), r"\[9, 6, 1, 1\] instead of"),
    "four colours": (reshaped("decoder.22.weight", 4, 4, 3, 3), r"\[4, 4, 3, 3\] instead of \[3, 4, 3, 3\]"),
    "a vector for a kernel": (reshaped("decoder.1.weight", 8), r"\[8\], which no tiny VAE has"),
    "nothing in a kernel": (reshaped("decoder.7.conv.weight", 0, 8, 1, 1), r"\[0, 8, 1, 1\], which no tiny VAE has"),
    "integers": (quantised, "'decoder.8.weight' is quantised to int8"),
}


@pytest.mark.usefixtures("no_weight_is_read")
@pytest.mark.parametrize("damage", DAMAGES)
def test_weights_that_do_not_fit_are_told_before_they_are_read(damage: str, tmp_path: Path) -> None:
    change, message = DAMAGES[damage]
    state = state_of()
    change(state)
    path = as_torch(state, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=message) as raised:
        load_tiny_decoder(path)
    assert str(raised.value).startswith(f"'{path}': ")


@pytest.mark.usefixtures("no_weight_is_read")
@pytest.mark.parametrize("damage", OF_A_FILE)
@pytest.mark.parametrize("write", [as_torch, as_safetensors])
def test_damaged_files_are_told(write: Callable[[State, Path], Path], damage: str, tmp_path: Path) -> None:
    spoil, message = OF_A_FILE[damage]
    path = write(state_of(), tmp_path / "a.pth")
    spoil(path)
    with pytest.raises(ValueError, match=message) as raised:
        load_tiny_decoder(path)
    assert str(path) in str(raised.value)


@pytest.mark.usefixtures("no_weight_is_read")
def test_other_models_are_named(network: WanDiT, tiny_model_folder: Path, tmp_path: Path) -> None:
    others: list[tuple[Any, str]] = [
        (tiny_model_folder, "this is a Wan transformer"),
        (tiny_model_folder / "vae", "this is a diffusers VAE"),
        (as_torch({"layer.weight": torch.zeros(1)}, tmp_path / "a.pth"), "found layer.weight"),
    ]
    for path, what in others:
        with pytest.raises(ValueError, match=f"expected a tiny VAE of TAEHV's layout .*; {what}"):
            load_tiny_decoder(path)
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        load_tiny_decoder(tmp_path / "nowhere.pth")
