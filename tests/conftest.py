"""What all tests share: a tiny transformer with weights that make every part of it matter, and a whole tiny model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from hypothesis import settings
from transformers import UMT5Config, UMT5EncoderModel

from reward_forcing.models.tiny_vae import TinySizes, TinyVAE
from reward_forcing.models.wan_dit import WanDiT
from reward_forcing.streaming.model_folder import write_model_folder
from reward_forcing.training.text_encoder import word_tokenizer

settings.register_profile("package", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("package")

TINY: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 12,
    "freq_dim": 16,
    "ffn_dim": 48,
    "num_layers": 2,
}


@pytest.fixture(scope="session")
def tiny_dit() -> Callable[..., WanDiT]:
    """Makes a `WanDiT` of tiny size: tiny_dit(seed=0, **settings) draws every parameter, zero-initialised ones too."""

    def make(seed: int = 0, **changes: Any) -> WanDiT:
        network = WanDiT(**TINY | changes)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            fan_in = parameter[0].numel() if name.endswith("weight") and parameter.ndim > 1 else 25
            parameter.data = noise / fan_in**0.5 + ("norm" in name and name.endswith("weight"))
        return network

    return make


@pytest.fixture(scope="session")
def tiny_model_folder(tiny_dit: Callable[..., WanDiT], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model folder of random weights: 32x32 pixels, chunks of 2 in a window of 6 with an EMA sink of 2."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    words = ["a", "red", "blue", "green", "ball", "square", "bounces", "slides"]
    tokenizer = word_tokenizer(words, 8)
    config = UMT5Config(vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2)
    UMT5EncoderModel(config).save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    vae = AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        in_channels=12,
        out_channels=12,
        patch_size=2,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
        scale_factor_temporal=4,
        scale_factor_spatial=8,
    )
    streaming = {
        "denoising_steps": [1000, 500],
        "chunk_frames": 2,
        "window_frames": 6,
        "sink": {"kind": "ema", "frames": 2, "alpha": 0.9},
        "height": 32,
        "width": 32,
        "hint": "It can show balls and squares that bounce or slide.",
    }
    parts = (folder / "text_encoder", folder / "tokenizer")
    return write_model_folder(folder, tiny_dit(text_dim=32), vae, *parts, streaming, "# Tiny", dtype=None)


@pytest.fixture(scope="session")
def tiny_decoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny VAE of random weights for the latents of `tiny_model_folder`, as its publisher would save it."""
    path = tmp_path_factory.mktemp("decoders") / "taetiny.pth"
    torch.manual_seed(0)
    state = TinyVAE(TinySizes(latent_channels=4, widths=(8, 8, 4, 4), encoder_width=4)).state_dict()
    state["decoder.22.weight"].normal_(std=0.3)  # so that frames differ from each other
    state["decoder.22.bias"].fill_(0.5)
    torch.save(state, path)
    return path


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, in which a command runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
