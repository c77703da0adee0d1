"""A whole tiny model of Wan2.1's kind, as diffusers keeps it and as the original repository does."""

from dataclasses import dataclass
from pathlib import Path

import torch
from checkpoints.layouts import CONFIG, original, random_network
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from reward_forcing.checkpoints.wan_text import umt5_to_wan_text
from reward_forcing.checkpoints.wan_vae import wan_vae_names
from reward_forcing.models.wan_dit import WanDiT
from reward_forcing.training.text_encoder import word_tokenizer

WIDTH = 12


@dataclass(frozen=True)
class Model:
    """The parts of a model, all of random weights."""

    transformer: WanDiT
    vae: AutoencoderKLWan
    text_encoder: UMT5EncoderModel
    tokenizer: PreTrainedTokenizerFast


def random_model() -> Model:
    """A model whose VAE has Wan2.1's 16 latent channels and statistics."""
    transformer = random_network(config=CONFIG | {"in_channels": 16, "out_channels": 16, "text_dim": WIDTH})
    tokenizer = word_tokenizer(["a", "red", "blue", "ball", "bounces"], 8)
    sizes = {"d_model": WIDTH, "d_kv": 3, "d_ff": 10, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
    encoder = UMT5EncoderModel(UMT5Config(vocab_size=len(tokenizer), **sizes)).eval()
    vae = AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 2, 2, 2], num_res_blocks=1)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.normal_(std=0.3)
        for parameter in transformer.parameters():
            parameter.mul_(0.3)
    return Model(transformer, vae, encoder, tokenizer)


def write_original(folder: Path, model: Model) -> Path:
    """The repository as published: transformer and config.json, two .pth files, the tokenizer under its hub name."""
    folder.mkdir()
    save_file(original(model.transformer), folder / "diffusion_pytorch_model.safetensors")
    config = '{"_class_name": "WanModel", "_diffusers_version": "0.30.0", "dim": 24, "num_heads": 2, "eps": 1e-06}'
    (folder / "config.json").write_text(config)
    state = model.vae.state_dict()
    names = wan_vae_names(state)
    torch.save({names[name]: tensor for name, tensor in state.items()}, folder / "Wan2.1_VAE.pth")
    text = umt5_to_wan_text(model.text_encoder.state_dict())
    torch.save(text, folder / "models_t5_umt5-xxl-enc-bf16.pth")
    model.tokenizer.save_pretrained(folder / "google" / "umt5-xxl")
    return folder
