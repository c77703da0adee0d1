"""Whole models: the original Wan repository to diffusers' folder and back, each part equal bit by bit."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from checkpoints.layouts import prefixed, random_network
from checkpoints.repositories import Model, random_model, write_original
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor
from transformers import AutoTokenizer, UMT5EncoderModel

from reward_forcing.checkpoints import inspect, load_transformer
from reward_forcing.checkpoints.repository import convert_model
from reward_forcing.checkpoints.wan_text import umt5_to_wan_text, wan_text_to_umt5
from reward_forcing.streaming.model_folder import open_model_folder


@pytest.fixture(scope="module")
def model() -> Model:
    """The model that the repositories hold."""
    return random_model()


@pytest.fixture
def repository(model: Model, tmp_path: Path) -> Path:
    """Its original repository."""
    return write_original(tmp_path / "Wan2.1-T2V-1.3B", model)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Assert that two state dicts have the same names and bits."""
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_libraries_own_classes_load_a_converted_repository(model: Model, repository: Path, tmp_path: Path) -> None:
    folder = convert_model(repository, tmp_path / "new", "diffusers")
    transformer = WanTransformer3DModel.from_pretrained(folder / "transformer")
    assert_equal(transformer.state_dict(), model.transformer.state_dict())
    vae = AutoencoderKLWan.from_pretrained(folder / "vae")
    assert_equal(vae.state_dict(), model.vae.state_dict())
    assert vae.config["latents_mean"] == model.vae.config["latents_mean"]
    encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder")
    assert_equal(encoder.state_dict(), model.text_encoder.state_dict())
    ids = torch.tensor([[3, 4, 5, 1, 0, 0]])
    assert torch.equal(encoder.eval()(ids).last_hidden_state, model.text_encoder(ids).last_hidden_state)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    assert tokenizer("a red ball")["input_ids"] == model.tokenizer("a red ball")["input_ids"]
    assert open_model_folder(folder).latent_channels == 16


def test_a_repository_there_and_back_has_the_same_bits(repository: Path, tmp_path: Path) -> None:
    there = convert_model(repository, tmp_path / "there", "diffusers")
    back = convert_model(there, tmp_path / "back", "wan")
    files = {path.relative_to(repository) for path in repository.rglob("*") if path.is_file()}
    assert {path.relative_to(back) for path in back.rglob("*") if path.is_file()} == files
    for name in ("Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"):
        assert_equal(torch.load(back / name), torch.load(repository / name))
    assert_equal(load_transformer(back).state_dict(), load_transformer(repository).state_dict())
    assert json.loads((back / "config.json").read_text())["num_heads"] == 2


def wan_text_encoder(state: dict[str, Tensor], ids: Tensor, mask: Tensor, heads: int) -> Tensor:
    """What the encoder of Wan2.1 (wan/modules/t5.py) computes, from parameters by its own names.

    Written for fewer than 8 tokens, where each distance has a bucket of its own.
    """

    def norm(x: Tensor, weight: str) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * state[weight]

    x = state["token_embedding.weight"][ids]
    count = ids.shape[1]
    distance = torch.arange(count)[None] - torch.arange(count)[:, None]
    buckets = distance.abs() + 16 * (distance > 0)
    for block in ("blocks.0", "blocks.1"):
        h = norm(x, f"{block}.norm1.weight")
        q, k, v = (F.linear(h, state[f"{block}.attn.{part}.weight"]).unflatten(-1, (heads, -1)) for part in "qkv")
        scores = torch.einsum("binc,bjnc->bnij", q, k)
        scores = scores + state[f"{block}.pos_embedding.embedding.weight"][buckets].permute(2, 0, 1)
        scores = scores.masked_fill(mask[:, None, None] == 0, torch.finfo(scores.dtype).min)
        mixed = torch.einsum("bnij,bjnc->binc", scores.softmax(-1), v).flatten(2)
        x = x + F.linear(mixed, state[f"{block}.attn.o.weight"])
        h = norm(x, f"{block}.norm2.weight")
        gate = F.gelu(F.linear(h, state[f"{block}.ffn.gate.0.weight"]), approximate="tanh")
        x = x + F.linear(F.linear(h, state[f"{block}.ffn.fc1.weight"]) * gate, state[f"{block}.ffn.fc2.weight"])
    return norm(x, "norm.weight")


def test_a_converted_text_encoder_computes_what_the_original_does(repository: Path, tmp_path: Path) -> None:
    folder = convert_model(repository, tmp_path / "new", "diffusers")
    state = torch.load(repository / "models_t5_umt5-xxl-enc-bf16.pth")
    ids, mask = torch.tensor([[3, 4, 5, 6, 1, 0]]), torch.tensor([[1, 1, 1, 1, 1, 0]])
    encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder").eval()
    with torch.no_grad():
        found = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(found, wan_text_encoder(state, ids, mask, 2), atol=1e-5, rtol=1e-5)


def test_names_of_a_text_encoder_go_both_ways(model: Model) -> None:
    umt5 = {name: name for name in model.text_encoder.state_dict() if name != "encoder.embed_tokens.weight"}
    wan = umt5_to_wan_text(umt5)
    assert {"token_embedding.weight", "norm.weight", "blocks.1.ffn.gate.0.weight"} <= wan.keys()
    assert wan_text_to_umt5(wan) == umt5
    with pytest.raises(ValueError, match=r"unknown parameter 'blocks\.0\.ffn\.fc3\.weight' of a text encoder"):
        wan_text_to_umt5({"blocks.0.ffn.fc3.weight": 0})


def test_other_weights_take_the_transformers_place(model: Model, repository: Path, tmp_path: Path) -> None:
    student = random_network(5, model.transformer.config)
    torch.save(prefixed(student), tmp_path / "rewardforcing.pt")
    new = convert_model(
        repository, tmp_path / "new", "diffusers", weights=tmp_path / "rewardforcing.pt", heads=2, dtype=torch.bfloat16
    )
    found = load_transformer(new).state_dict()
    assert_equal(found, {name: tensor.bfloat16() for name, tensor in student.state_dict().items()})


def test_a_folder_of_ours_keeps_how_it_streams(repository: Path, tmp_path: Path) -> None:
    first = convert_model(repository, tmp_path / "first", "diffusers")
    index = json.loads((first / "model_index.json").read_text()) | {"streaming": {"window_frames": 9}}
    (first / "model_index.json").write_text(json.dumps(index))
    assert open_model_folder(convert_model(first, tmp_path / "second", "diffusers")).settings.window_frames == 9


def test_info_tells_what_lies_beside_a_transformer_and_each_by_itself(repository: Path, tmp_path: Path) -> None:
    vae, text = "Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"
    expected = {vae: "the original Wan VAE", text: "the original Wan text encoder"}
    info = inspect(repository, hashes=False)
    assert (info.format, info.parts) == ("wan", expected)
    for name, what in expected.items():
        part = inspect(repository / name, hashes=False)
        assert (part.layout, part.config, part.parts) == (what, None, {})
    folder = convert_model(repository, tmp_path / "new", "diffusers")
    told = {"vae": "a diffusers VAE", "text_encoder": "a T5 text encoder as transformers saves it"}
    assert inspect(folder, hashes=False).parts == told
    (repository / vae).write_bytes(b"")
    assert "is empty" in inspect(repository, hashes=False).parts[vae]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("Wan2.1_VAE.pth", r"no vae/ and no Wan2\.1_VAE\.pth in"),
        ("models_t5_umt5-xxl-enc-bf16.pth", r"no text_encoder/ and no models_t5_umt5-xxl-enc-bf16\.pth in"),
        ("google/umt5-xxl/tokenizer_config.json", r"no tokenizer_config\.json in"),
    ],
)
def test_a_missing_part_is_named(part: str, message: str, repository: Path, tmp_path: Path) -> None:
    (repository / part).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        convert_model(repository, tmp_path / "new", "diffusers")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("part", ["Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"])
@pytest.mark.parametrize("damage", ["lost", "cut"])
def test_a_damaged_part_is_named(damage: str, part: str, repository: Path, tmp_path: Path) -> None:
    state = torch.load(repository / part)
    name = "blocks.1.ffn.fc1.weight" if "t5" in part else "decoder.middle.0.residual.2.weight"
    if damage == "cut":
        state[name] = state[name][:1].clone()
    else:
        del state[name]
    torch.save(state, repository / part)
    with pytest.raises(ValueError, match=f"{part}': the weights do not fit the network"):
        convert_model(repository, tmp_path / "new", "diffusers")


def test_a_vae_of_another_kind_is_not_written_as_wans(
    tiny_model_folder: Path, repository: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"the original file of a Wan2\.1 VAE cannot hold"):
        convert_model(tiny_model_folder, tmp_path / "new", "wan")
    folder = convert_model(repository, tmp_path / "ours", "diffusers")
    config = json.loads((folder / "vae" / "config.json").read_text())
    (folder / "vae" / "config.json").write_text(json.dumps(config | {"latents_std": [1.0] * 16}))
    with pytest.raises(ValueError, match="cannot hold latents_std"):
        convert_model(folder, tmp_path / "new", "wan")
    assert not (tmp_path / "new").exists()


def test_an_original_repository_says_how_it_becomes_a_model_folder(repository: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"it is the original Wan's: `rforce models convert SRC NEW --whole`"):
        open_model_folder(repository)
