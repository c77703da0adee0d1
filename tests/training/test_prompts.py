"""The text encoder behind a cache: what it remembers, and that what it gives does not depend on it."""

from pathlib import Path

import torch

from reward_forcing.models.text import TextEncoder
from reward_forcing.training.prompts import PromptEncoder

CPU = torch.device("cpu")
PROMPTS = ["a red ball bounces", "", "a ball"]


def test_embeddings_are_the_encoders_to_the_last_bit(tiny_model_folder: Path) -> None:
    encode, whole = PromptEncoder(tiny_model_folder, CPU), TextEncoder.from_pretrained(tiny_model_folder)
    for _ in range(2):
        assert torch.equal(encode(PROMPTS), torch.cat([whole([prompt]) for prompt in PROMPTS]))


def test_as_much_is_remembered_as_allowed_and_the_last_used_stays(tiny_model_folder: Path) -> None:
    encode = PromptEncoder(tiny_model_folder, CPU)
    encode(PROMPTS)
    sizes = {prompt: rows.nbytes for prompt, rows in encode._rows.items()}
    assert sizes["a ball"] < sizes["a red ball bounces"], "without the zeros beyond the end"
    encode = PromptEncoder(tiny_model_folder, CPU, remembered=sizes["a red ball bounces"] + sizes["a ball"])
    for prompt in ("a red ball bounces", "a ball", "a red ball bounces", "a blue ball bounces"):
        encode([prompt])
    assert sum(rows.nbytes for rows in encode._rows.values()) == encode._bytes <= encode.remembered
    assert "a blue ball bounces" in encode._rows
    assert "a ball" not in encode._rows
