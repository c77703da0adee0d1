"""The text-encoder stage: a word tokenizer and a small UMT5 encoder that learn to read the world's captions.

The encoder is trained to tell what a caption says (shape, colour, ...) through one attention-pooled head per trait; the
heads are thrown away and the encoder stays frozen afterwards, as Wan's own text encoder does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from reward_forcing.config import Settings
from reward_forcing.data.captions import TRAITS, Caption, caption, vocabulary
from reward_forcing.data.dataset import world_scene
from reward_forcing.training.settings import StageSettings
from reward_forcing.training.stage import Draw, Stage

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"


class TextEncoderSettings(Settings):
    """Width and depth of the encoder; the names are those of transformers' UMT5Config."""

    d_model: int = 64
    d_kv: int = 16
    num_heads: int = 4
    d_ff: int = 128
    num_layers: int = 2
    text_len: int = 32

    def build(self, words: int) -> UMT5EncoderModel:
        """An encoder with fresh weights for a vocabulary of `words` entries."""
        config = UMT5Config(
            vocab_size=words,
            d_model=self.d_model,
            d_kv=self.d_kv,
            num_heads=self.num_heads,
            d_ff=self.d_ff,
            num_layers=self.num_layers,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
        return UMT5EncoderModel(config)


def word_tokenizer(words: list[str], text_len: int) -> PreTrainedTokenizerFast:
    """A lower-casing tokenizer with one token per known word and '<unk>' for all others; sentences end in '</s>'."""
    ids = {token: i for i, token in enumerate((PAD, END, UNKNOWN, *words))}
    tokenizer = Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation("removed"), pre_tokenizers.WhitespaceSplit()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, ids[END])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN, model_max_length=text_len
    )


class TextEncoderStageSettings(StageSettings):
    """Settings of the text-encoder stage. unknown_words: part of the words replaced by '<unk>', so that a prompt with
    words outside the vocabulary still means the rest."""

    roles: ClassVar[tuple[str, ...]] = ("text_encoder",)
    stage: Literal["text_encoder"] = "text_encoder"
    model: TextEncoderSettings = TextEncoderSettings()
    batch: int = 128
    unknown_words: float = 0.04

    def batches(self) -> tuple[int, ...]:
        return (self.batch,)


class _Reader(nn.Module):
    """The encoder with one learned query and one classifier per trait."""

    def __init__(self, encoder: UMT5EncoderModel) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.config.d_model
        self.queries = nn.Parameter(torch.randn(len(TRAITS), width) * 0.02)
        self.heads = nn.ModuleDict({trait: nn.Linear(width, len(values)) for trait, values in TRAITS.items()})

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Logits [B, values] per trait. ids, mask: [B, L]."""
        states = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        scores = torch.einsum("qd,bld->bql", self.queries, states).masked_fill(~mask.bool()[:, None], float("-inf"))
        pooled = scores.softmax(-1) @ states
        return {trait: head(pooled[:, i]) for i, (trait, head) in enumerate(self.heads.items())}


class TextEncoderStage(Stage[TextEncoderStageSettings]):
    """Trains role `text_encoder`; exports `text_encoder/` and `tokenizer/` folders."""

    settings_class = TextEncoderStageSettings

    def __init__(
        self, settings: TextEncoderStageSettings, seed: int, rank: int, world_size: int, device: torch.device
    ) -> None:
        super().__init__(settings, seed, rank, world_size, device)
        torch.manual_seed(seed)
        self.tokenizer = word_tokenizer(vocabulary(), settings.model.text_len)
        self.unknown = self.tokenizer.get_vocab()[UNKNOWN]
        self.reader = _Reader(settings.model.build(len(self.tokenizer))).to(device)

    def networks(self) -> dict[str, nn.Module]:
        return {"text_encoder": self.reader}

    def loss(self, role: str, step: int, draw: Draw) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Cross-entropy of what the captions say, summed over traits."""
        captions, drops = [], []
        for index in draw.share(self.settings.batch):
            generator = draw.sample(index)
            captions.append(self._caption(int(torch.randint(2**40, (), generator=generator))))
            drops.append(torch.rand(self.settings.model.text_len, generator=generator))
        ids, mask = self._tokens(captions)
        unknown = (torch.stack(drops)[:, : ids.shape[1]] < self.settings.unknown_words) & (ids > 2).cpu()
        ids = ids.masked_fill(unknown.to(ids.device), self.unknown)
        loss, accuracy = self._score(captions, ids, mask)
        return loss, {"accuracy": accuracy}

    def _caption(self, index: int, held_out: bool = False) -> Caption:
        scene = world_scene(index, "held_out" if held_out else "train")
        return caption(scene, np.random.default_rng([index, 1]), held_out)

    def _tokens(self, captions: list[Caption]) -> tuple[Tensor, Tensor]:
        batch = self.tokenizer([c.text for c in captions], padding=True, truncation=True, return_tensors="pt")
        return batch["input_ids"].to(self.device), batch["attention_mask"].to(self.device)

    def _score(self, captions: list[Caption], ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        loss, right = torch.zeros((), device=self.device), []
        for trait, logits in self.reader(ids, mask).items():
            said = torch.tensor([TRAITS[trait].index(c.says[trait]) for c in captions], device=self.device)
            loss = loss + F.cross_entropy(logits.float(), said)
            right.append((logits.argmax(-1) == said).float().mean())
        return loss, torch.stack(right).mean().detach()

    def metrics(self, step: int) -> dict[str, Tensor | float]:
        """Part of all traits read rightly from 256 captions of held-out scenes in held-out wordings."""
        captions = [self._caption(index, held_out=True) for index in range(256)]
        return {"held_out_accuracy": self._score(captions, *self._tokens(captions))[1]}

    def export(self, networks: Mapping[str, nn.Module], folder: Path) -> None:
        """Write `folder`/text_encoder and `folder`/tokenizer."""
        self.reader.encoder.save_pretrained(folder / "text_encoder")
        self.tokenizer.save_pretrained(folder / "tokenizer")
