"""Damaged and foreign files in every layout: one line that names the file and what was expected; nothing is executed.

Nothing is read either: all is told from headers, names and shapes.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints.damages import (
    OF_A_FILE,
    TRACE,
    add,
    edited,
    flatten,
    leave_an_empty_folder,
    lose,
    narrow,
    quantise,
    remove_config,
    remove_weights,
    replace_by,
)
from checkpoints.layouts import LAYOUTS, lora_of, prefixed, random_network
from checkpoints.repositories import random_model, write_original
from safetensors.torch import save_file

from reward_forcing.checkpoints import load_transformer
from reward_forcing.checkpoints.repository import convert_model
from reward_forcing.checkpoints.wan_vae import load_wan_vae
from reward_forcing.models.wan_dit import WanDiT

pytestmark = pytest.mark.usefixtures("no_weight_is_read")

Damage = Callable[[Path], None]
FITS_NOT = "the weights do not fit the (?:network|VAE that they imply): 1"
INDEX = "lacks '.+which its index says is there; fetch it again"
"""What is said in place of another message where an index tells what each file holds."""

OF_A_TRANSFORMER: dict[str, tuple[Damage, str]] = OF_A_FILE | {
    "a lost parameter": (edited(lose, ".1."), rf"{FITS_NOT} missing \(blocks\.1\..+\)|{INDEX}"),
    "another parameter": (
        edited(add, ".1."),
        rf"{FITS_NOT} unexpected \(.+more\)|unknown parameter 'blocks\.1\..+more'",
    ),
    "a wrong shape": (edited(narrow, ".1."), rf"{FITS_NOT} of another shape \(blocks\.1.+ \[.+\] instead of \[.+\]\)"),
    "another first layer": (edited(flatten, "patch_embedding.weight"), r"shape \[384\], which no Wan transformer has"),
    "integers": (edited(quantise, ".1."), "is quantised to int8; only fp8 is read"),
    "another model": (
        edited(replace_by("model.diffusion_model.input_blocks.0.0.weight")),
        rf"expected a Wan transformer \(.+\); this is a Stable Diffusion UNet|{INDEX}",
    ),
    "an unknown model": (
        edited(replace_by("layer.weight")),
        rf"expected a Wan transformer \(.+\); found layer\.weight$|{INDEX}",
    ),
    "no tensors": (edited(dict.clear), rf"expected a state dict, or .+; found .*no tensors|{INDEX}"),
    "no weights": (remove_weights, "no weights in|names shards that are missing|no file, folder or bundled model"),
    "an empty folder": (leave_an_empty_folder, "no weights in '.+'; expected .safetensors .+ or .pt"),
}


@pytest.fixture(scope="module")
def written(network: WanDiT, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The network in every layout, each in a folder of its own."""
    folders = {layout: tmp_path_factory.mktemp("layout") for layout in LAYOUTS}
    return {layout: LAYOUTS[layout].write(folder / "checkpoint", network) for layout, folder in folders.items()}


def copied(whole: Path, levels: int, tmp_path: Path) -> Path:
    """`whole` with all that lies so many levels above it, again below `tmp_path`."""
    top = whole.parents[levels]
    shutil.copytree(top, tmp_path / "copy")
    return tmp_path / "copy" / whole.relative_to(top)


def refusal(use: Callable[[], object], path: Path, message: str) -> str:
    """What `use` says, which is one line that names `path` or a file within it."""
    with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
        use()
    said = str(raised.value)
    assert str(path) in said
    assert "\n" not in said
    assert len(said) - said.count(str(path)) * len(str(path)) < 400, "no library's essay"
    return said


@pytest.mark.parametrize("damage", OF_A_TRANSFORMER)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_damaged_transformer_is_refused(layout: str, damage: str, written: dict[str, Path], tmp_path: Path) -> None:
    path = copied(written[layout], 1 if layout == "diffusers transformer" else 0, tmp_path)
    do, message = OF_A_TRANSFORMER[damage]
    do(path)
    refusal(lambda: load_transformer(path, heads=2), path, message)
    assert not list(tmp_path.rglob(TRACE)), "code in the file was run"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_a_configuration_the_heads_are_asked_for(layout: str, written: dict[str, Path], tmp_path: Path) -> None:
    path = copied(written[layout], 1 if layout == "diffusers transformer" else 0, tmp_path)
    remove_config(path)
    expected = r"the number of attention heads .+ cannot be told .+--heads .+config\.json"
    refusal(lambda: load_transformer(path), path, expected)


ABSENT = r"no vae/ and no Wan2\.1_VAE\.pth in|not the weights of a (?:Wan2\.1 VAE|UMT5 encoder): .+ is missing"
OF_A_PART: dict[str, tuple[Damage, str]] = OF_A_FILE | {
    "a lost parameter": (edited(lose), rf"{FITS_NOT} missing|not the weights of a .+ is missing"),
    "another parameter": (edited(add), f"{FITS_NOT} unexpected|unknown parameter"),
    "a wrong shape": (edited(narrow), f"{FITS_NOT} of another shape"),
    "an unknown model": (edited(replace_by("layer.weight")), ABSENT),
    "no tensors": (edited(dict.clear), ABSENT),
}
PARTS = {
    "wan": ("Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"),
    "diffusers": ("vae", "text_encoder"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A whole model as the original repository and as a diffusers folder."""
    wan = write_original(tmp_path_factory.mktemp("wan") / "model", random_model())
    diffusers = tmp_path_factory.mktemp("diffusers") / "model"
    return {"wan": wan, "diffusers": convert_model(wan, diffusers, "diffusers")}


@pytest.mark.parametrize("damage", OF_A_PART)
@pytest.mark.parametrize(("kind", "part"), [(kind, part) for kind, parts in PARTS.items() for part in parts])
def test_a_damaged_part_of_a_model_is_refused(
    kind: str, part: str, damage: str, models: dict[str, Path], tmp_path: Path
) -> None:
    folder = copied(models[kind], 0, tmp_path)
    do, message = OF_A_PART[damage]
    do(folder / part)
    refusal(lambda: convert_model(folder, tmp_path / "new", "diffusers"), folder, message)
    assert not list(tmp_path.rglob(TRACE)), "code in the file was run"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("damage", OF_A_PART)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_damaged_vae_is_refused(damage: str, suffix: str, models: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / f"vae{suffix}"
    state = torch.load(models["wan"] / "Wan2.1_VAE.pth", weights_only=True, mmap=False)
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    do, message = OF_A_PART[damage]
    do(path)
    refusal(lambda: load_wan_vae(path), path, message)
    assert not (tmp_path / TRACE).exists()


@pytest.mark.parametrize("damage", OF_A_FILE)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_damaged_lora_is_refused(damage: str, suffix: str, network: WanDiT, tmp_path: Path) -> None:
    torch.save({"generator": prefixed(network)}, tmp_path / "base.pt")
    path = tmp_path / f"lora{suffix}"
    (torch.save if suffix == ".pt" else save_file)(lora_of(random_network(), ""), path)  # pyright: ignore[reportArgumentType]
    do, message = OF_A_FILE[damage]
    do(path)
    refusal(lambda: load_transformer(tmp_path / "base.pt", heads=2, lora=path), path, message)
    assert not (tmp_path / TRACE).exists()
