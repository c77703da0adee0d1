"""Prompts -> text embeddings, the way Wan makes them: cleaned, tokenised, encoded by UMT5, zero beyond each prompt.

Owns the tokenizer and the encoder and can drop the encoder's memory between prompts. Knows nothing of the transformer
that reads the embeddings, nor of where a model folder came from.
"""

import html
import logging
import re
from pathlib import Path

import ftfy
import torch
from torch import Tensor
from torch.nn.functional import embedding
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5EncoderModel

MAX_TOKENS = 512  # Wan2.1's text length; a tokenizer may ask for less, never for more

logger = logging.getLogger(__name__)


def clean_prompt(prompt: str) -> str:
    """`prompt` as Wan2.1 cleans it: ftfy's repairs, HTML entities decoded (twice, for `&amp;lt;`), single spaces."""
    repaired = html.unescape(html.unescape(ftfy.fix_text(prompt))).strip()
    return re.sub(r"\s+", " ", repaired).strip()


class TextEncoder:
    """UMT5 with its tokenizer: a list of prompts -> [B, text_len, text_dim] float32, rows beyond a prompt's end zero.

    The rows beyond the end are zeroed because Wan attends to all of them without a mask, and UMT5 leaves non-zero
    values there. The encoder's weights are read on the first call and again on the first call after `release`.

    offload: the weights take no room on the device but for the layer that computes; they lie in host memory, and where
    the device is the host they are released after every call. The embeddings are the same.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        encoder: UMT5EncoderModel | None,
        source: Path | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        offload: bool = False,
    ) -> None:
        """Wrap a tokenizer and an encoder (or None, to read it lazily from the folder `source`)."""
        if source is None and (encoder is None or offload):
            raise ValueError(
                "TextEncoder needs an encoder, or a source folder to read one from, which offload asks for"
            )
        self._offload = offload
        self.tokenizer = tokenizer
        self.text_len = min(int(tokenizer.model_max_length), MAX_TOKENS)
        self.device = torch.device(device)
        self._dtype = dtype
        self._source = source
        self._encoder = None if encoder is None else self._prepare(encoder)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        offload: bool = False,
    ) -> "TextEncoder":
        """The encoder of a model folder that holds `text_encoder/` and `tokenizer/`; dtype None keeps the file's.

        Reads the tokenizer now and the weights on first use. Raises FileNotFoundError if a part is missing, ValueError
        for a tokenizer that is damaged or asks for code of its own.
        """
        folder = Path(folder)
        for part, file in (("text_encoder", "config.json"), ("tokenizer", "tokenizer_config.json")):
            if not (folder / part / file).is_file():
                raise FileNotFoundError(
                    f"no {part}/{file} under '{folder}'; expected a model folder with text_encoder/ and tokenizer/, "
                    "as diffusers writes it"
                )
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", trust_remote_code=False)
        except Exception as error:  # tokenizers raises plain ones
            raise ValueError(f"'{folder / 'tokenizer'}' cannot be read: {error}") from error
        return cls(tokenizer, None, folder / "text_encoder", device, dtype, offload)

    def __call__(self, prompts: list[str]) -> Tensor:
        """Embeddings [B, text_len, text_dim], float32 on the encoder's device, of prompts cleaned by `clean_prompt`.

        A prompt longer than `text_len` tokens loses its end, with a logged warning, as in Wan2.1.
        Raises ValueError if `prompts` is not a non-empty list of strings.
        """
        if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError(f"expected a non-empty list of prompts, got {prompts!r}; wrap a single prompt in a list")
        tokens = self._tokenise([clean_prompt(prompt) for prompt in prompts])
        mask = tokens["attention_mask"].to(self.device)  # [B, text_len], 1 up to the prompt's end
        with torch.no_grad():
            encoder = self._load()
            if self._offload:  # looked up in host memory: the table is larger than all layers that compute at a time
                words = embedding(tokens["input_ids"], encoder.get_input_embeddings().weight)  # pyright: ignore
                hidden = encoder(inputs_embeds=words.to(self.device), attention_mask=mask).last_hidden_state
            else:
                hidden = encoder(input_ids=tokens["input_ids"].to(self.device), attention_mask=mask).last_hidden_state
        if self._offload and self.device.type == "cpu":
            self.release()
        # torch.where, not a product: a NaN in a padded row must not survive
        return torch.where(mask.bool()[..., None], hidden.float(), torch.zeros((), device=self.device))

    def unknown_words(self, prompt: str) -> list[str]:
        """The words of `prompt` that the tokenizer can only write as its unknown token, in order, each once."""
        unknown_id = self.tokenizer.unk_token_id
        words = dict.fromkeys(re.findall(r"\w+(?:['’-]\w+)*", clean_prompt(prompt)))
        return [word for word in words if unknown_id in self.tokenizer(word, add_special_tokens=False)["input_ids"]]

    def load(self) -> "TextEncoder":
        """This encoder with its weights read, now rather than on the first call."""
        self._load()
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `text_encoder/` and `tokenizer/` under `folder`, as `from_pretrained` reads them."""
        self._load().save_pretrained(Path(folder) / "text_encoder")
        self.tokenizer.save_pretrained(Path(folder) / "tokenizer")

    def release(self) -> None:
        """Drop the encoder's weights; the next call reads them again. Raises ValueError if there is no source."""
        if self._source is None:
            raise ValueError("this TextEncoder was given its encoder and could not read it again; keep it loaded")
        self._encoder = None

    def to(self, device: torch.device | str) -> "TextEncoder":
        """This encoder, computing on `device` from now on."""
        self.device = torch.device(device)
        if self._encoder is not None:
            self._prepare(self._encoder)
        return self

    def _tokenise(self, prompts: list[str]) -> dict[str, Tensor]:
        lengths = [len(ids) for ids in self.tokenizer(prompts)["input_ids"]]  # pyright: ignore[reportArgumentType]
        for prompt, length in zip(prompts, lengths, strict=True):
            if length > self.text_len:
                logger.warning("a prompt has %d tokens; only the first %d count: %s", length, self.text_len, prompt)
        return self.tokenizer(
            prompts, padding="max_length", max_length=self.text_len, truncation=True, return_tensors="pt"
        )  # pyright: ignore[reportReturnType]

    def _load(self) -> UMT5EncoderModel:
        if self._encoder is None:
            self._encoder = self._prepare(UMT5EncoderModel.from_pretrained(self._source, dtype=self._dtype or "auto"))
        return self._encoder

    def _prepare(self, encoder: UMT5EncoderModel) -> UMT5EncoderModel:
        encoder.eval().requires_grad_(False)
        if not self._offload:
            return encoder.to(self.device)  # pyright: ignore[reportArgumentType]
        from diffusers.hooks.group_offloading import apply_group_offloading

        apply_group_offloading(encoder, self.device, torch.device("cpu"), offload_type="leaf_level")
        return encoder
