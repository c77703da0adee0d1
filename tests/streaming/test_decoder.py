"""A tiny decoder in a pipeline: the same latents as with the VAE, other frames, in whatever way a stream goes."""

import itertools
from pathlib import Path

import pytest
import torch

from reward_forcing.evaluation.sources import StreamedSource
from reward_forcing.models.tiny_vae import TinyDecoder, TinySizes, TinyVAE
from reward_forcing.streaming import pipeline as pipeline_module
from reward_forcing.streaming.model_folder import open_model_folder
from reward_forcing.streaming.pipeline import StreamingVideoPipeline
from reward_forcing.streaming.stream import VideoStream

PROMPT = "a red ball bounces"


@pytest.fixture(scope="module")
def pipeline(tiny_model_folder: Path, tiny_decoder_file: Path) -> StreamingVideoPipeline:
    where = {"device": "cpu", "dtype": torch.float32}
    return StreamingVideoPipeline.from_pretrained(tiny_model_folder, decoder=tiny_decoder_file, **where)


@pytest.fixture(scope="module")
def decoder(pipeline: StreamingVideoPipeline) -> TinyDecoder:
    assert isinstance(pipeline.decoder, TinyDecoder)
    return pipeline.decoder


def with_vae(pipeline: StreamingVideoPipeline) -> StreamingVideoPipeline:
    return StreamingVideoPipeline(pipeline.transformer, pipeline.vae, pipeline.text_encoder, pipeline.settings)


def frames_of(stream: VideoStream, chunks: int) -> torch.Tensor:
    return torch.cat([chunk.frames for chunk in itertools.islice(stream, chunks)], dim=1)


def latents_of(pipeline: StreamingVideoPipeline, chunks: int, seed: int) -> torch.Tensor:
    rollout = pipeline.stream(PROMPT, seed=seed).rollout
    with torch.inference_mode():
        return torch.cat([chunk.latents for chunk in itertools.islice(rollout, chunks)], dim=1)


def test_the_stream_is_the_rollout_decoded_by_it(pipeline: StreamingVideoPipeline, decoder: TinyDecoder) -> None:
    frames = frames_of(pipeline.stream(PROMPT, seed=3), 4)
    expected, _ = decoder.decode(latents_of(pipeline, 4, seed=3))
    torch.testing.assert_close(frames, expected, atol=1e-5, rtol=0)
    other = frames_of(with_vae(pipeline).stream(PROMPT, seed=3), 4)
    assert other.shape == frames.shape
    assert (other - frames).abs().mean() > 1e-2
    assert pipeline.generate(PROMPT, 1.0, seed=3).equal(frames[:, :16])


def test_what_is_given_is_encoded_by_the_vae_and_shown_by_it(
    pipeline: StreamingVideoPipeline, decoder: TinyDecoder
) -> None:
    image = torch.rand(3, 32, 32)
    first = next(pipeline.stream(PROMPT, image=image))
    latents, _ = pipeline.vae.encode(image[None, None])
    assert first.given
    torch.testing.assert_close(first.frames, decoder.decode(latents)[0], atol=1e-5, rtol=0)


def test_a_clip_begins_with_the_state_of_its_decoder(pipeline: StreamingVideoPipeline, decoder: TinyDecoder) -> None:
    settings = pipeline.settings.model_validate(
        pipeline.settings.model_dump() | {"clips": {"frames": 6, "overlap_frames": 2}}
    )
    parts = pipeline.transformer, pipeline.vae, pipeline.text_encoder, settings
    chunks = list(itertools.islice(StreamingVideoPipeline(*parts, decoder).stream(PROMPT), 6))
    assert [chunk.frames.shape[1] for chunk in chunks] == [5, 8, 8, 8, 8, 8]
    assert [chunk.start_frame for chunk in chunks] == [0, 5, 13, 21, 29, 37]


def test_a_long_stream_holds_no_more_than_a_short_one(pipeline: StreamingVideoPipeline) -> None:
    stream = pipeline.stream(PROMPT)
    sizes = []
    for _ in range(8):
        next(stream)
        assert stream.vae_state is not None
        sizes.append(sum(feature.untyped_storage().nbytes() for feature in stream.vae_state.features))
    assert len(set(sizes)) == 1


def test_a_source_says_which_decoder_made_its_clips(tiny_model_folder: Path, tiny_decoder_file: Path) -> None:
    plain = StreamedSource(open_model_folder(tiny_model_folder))
    tiny = StreamedSource(open_model_folder(tiny_model_folder, decoder=tiny_decoder_file))
    assert set(tiny.made_with().parts) - set(plain.made_with().parts) == {"tiny_decoder"}
    assert (plain.made_with().decoder, tiny.made_with().decoder) == (None, tiny_decoder_file.name)
    assert tiny.place != plain.place
    first, other = (next(source.chunks(source.load(), [PROMPT], [0], 0.3)).frames for source in (plain, tiny))
    assert not torch.allclose(first, other, atol=1e-2)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (TinySizes(5, (4, 4, 4, 4)), "decodes 5 latent channels, this model has 4; name a decoder for its VAE"),
        (TinySizes(4, (4, 4, 4, 4), growth=(2, 2, 2)), "decodes 8 frames of a latent frame, this model has 4"),
        (TinySizes(4, (4, 4, 4, 4), patch=2), "decodes 16 rows of pixels of a row of latents, this model has 8"),
    ],
)
def test_a_decoder_for_another_vae_is_refused_before_any_weights_load(
    sizes: TinySizes, message: str, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_weights(*_: object, **__: object) -> None:
        raise AssertionError("weights were about to be read")

    for load in ("load_accelerated", "load_tiny_decoder"):
        monkeypatch.setattr(pipeline_module, load, no_weights)
    torch.save(TinyVAE(sizes).state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=message):
        StreamingVideoPipeline.from_pretrained(tiny_model_folder, decoder=tmp_path / "other.pth")
