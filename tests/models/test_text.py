"""The text encoder: Wan's cleaning, zero rows beyond a prompt, lazy weights, words the tokenizer does not know."""

import logging
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from reward_forcing.models.text import TextEncoder, clean_prompt

WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "ball", "bounces", "blue", "over", "floor"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a word-level tokenizer of 10 entries and a random UMT5 of width 16."""
    root = tmp_path_factory.mktemp("model")
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()  # pyright: ignore[reportAttributeAccessIssue]
    core.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    core.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=8
    ).save_pretrained(root / "tokenizer")
    torch.manual_seed(0)
    config = UMT5Config(vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    UMT5EncoderModel(config).save_pretrained(root / "text_encoder")
    return root


def test_embeddings_have_the_tokenizers_length_and_the_encoders_width(folder: Path) -> None:
    embeddings = TextEncoder.from_pretrained(folder)(["a red ball", "a blue floor"])
    assert embeddings.shape == (2, 8, 16)
    assert embeddings.dtype == torch.float32


def test_rows_beyond_the_prompt_are_zero_and_no_other(folder: Path) -> None:
    embeddings = TextEncoder.from_pretrained(folder)(["a red ball", ""])
    filled = embeddings.abs().sum(-1) > 0
    assert filled.tolist() == [[True] * 4 + [False] * 4, [True] + [False] * 7]


def test_rows_within_the_prompt_are_the_encoders_own(folder: Path) -> None:
    embeddings = TextEncoder.from_pretrained(folder)(["a red ball"])
    direct = UMT5EncoderModel.from_pretrained(folder / "text_encoder")
    ids = torch.tensor([[3, 4, 5, 1]])
    torch.testing.assert_close(embeddings[:, :4], direct(input_ids=ids).last_hidden_state, atol=1e-6, rtol=1e-5)


def test_a_prompt_does_not_depend_on_the_others_in_its_batch(folder: Path) -> None:
    encoder = TextEncoder.from_pretrained(folder)
    alone, together = encoder(["a red ball"]), encoder(["a red ball", "a ball bounces over a floor"])
    torch.testing.assert_close(alone[0], together[0])


def test_cleaning_repairs_entities_encoding_and_spaces() -> None:
    assert clean_prompt("  a &amp;lt;red&amp;gt;\n ball \u00e2\u20ac\u201c here ") == "a <red> ball – here"


def test_weights_are_read_on_first_use_and_again_after_release(folder: Path) -> None:
    encoder = TextEncoder.from_pretrained(folder)
    assert encoder._encoder is None
    before = encoder(["a red ball"])
    encoder.release()
    assert encoder._encoder is None
    assert torch.equal(encoder(["a red ball"]), before)


def test_release_refuses_when_the_weights_could_not_come_back(folder: Path) -> None:
    lazy = TextEncoder.from_pretrained(folder)
    encoder = TextEncoder(lazy.tokenizer, UMT5EncoderModel.from_pretrained(folder / "text_encoder"))
    with pytest.raises(ValueError, match="keep it loaded"):
        encoder.release()


def test_unknown_words_are_named_once_and_in_order(folder: Path) -> None:
    encoder = TextEncoder.from_pretrained(folder)
    assert encoder.unknown_words("A red zebra, a ZEBU: bounces over zebra!") == ["zebra", "ZEBU"]
    assert encoder.unknown_words("a red ball") == []


def test_a_prompt_beyond_the_text_length_is_cut_with_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        embeddings = TextEncoder.from_pretrained(folder)(["a red ball bounces over a blue floor over a floor"])
    assert "12 tokens; only the first 8 count" in caplog.text
    assert (embeddings.abs().sum(-1) > 0).all()


@pytest.mark.parametrize("prompts", ["a red ball", [], [None]])
def test_anything_but_a_list_of_strings_is_refused(folder: Path, prompts: object) -> None:
    with pytest.raises(ValueError, match="list of prompts"):
        TextEncoder.from_pretrained(folder)(prompts)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("part", ["text_encoder", "tokenizer"])
def test_a_missing_part_is_named(folder: Path, tmp_path: Path, part: str) -> None:
    other = {"text_encoder": "tokenizer", "tokenizer": "text_encoder"}[part]
    (tmp_path / other).symlink_to(folder / other)
    with pytest.raises(FileNotFoundError, match=f"no {part}/"):
        TextEncoder.from_pretrained(tmp_path)
