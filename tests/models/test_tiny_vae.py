"""The tiny decoder: streamed = one call, states are values of one size, the geometry is the Wan VAE's."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reward_forcing.geometry import Geometry
from reward_forcing.models.tiny_vae import TinyDecoder, TinySizes, TinyVAE
from reward_forcing.models.vae import StreamingVAE, VAEState, channels_last

SIZES = {
    "as Wan2.1's": TinySizes(5, (8, 6, 4, 3), encoder_width=4),
    "as Wan2.2's": TinySizes(7, (6, 6, 4, 4), patch=2, encoder_width=4),
    "without encoder, other rhythm": TinySizes(3, (6, 4, 4, 4), growth=(2, 2, 2), encoder_width=None),
}


def build(sizes: TinySizes) -> TinyVAE:
    torch.manual_seed(0)
    vae = TinyVAE(sizes)
    for parameter in vae.parameters():
        parameter.data.mul_(1.5)
    return vae.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=SIZES)
def decoder(request: pytest.FixtureRequest) -> TinyDecoder:
    return TinyDecoder(build(SIZES[request.param]))


MINI = TinyDecoder(build(SIZES["as Wan2.1's"]))


def random_latents(decoder: TinyDecoder, frames: int, batch: int = 1, seed: int = 0) -> Tensor:
    shape = (batch, frames, decoder.vae.sizes.latent_channels, 2, 3)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stream(decoder: TinyDecoder, latents: Tensor, lengths: list[int]) -> Tensor:
    state, frames = None, []
    for part in latents.split(lengths, dim=1):
        made, state = decoder.decode(part, state)
        frames.append(made)
    return torch.cat(frames, dim=1)


@settings(max_examples=10)
@given(lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4), pass_frames=st.integers(1, 5))
def test_any_split_of_the_latents_decodes_to_the_same_frames(lengths: list[int], pass_frames: int) -> None:
    latents = random_latents(MINI, sum(lengths), batch=2)
    whole, _ = TinyDecoder(MINI.vae, pass_frames=100).decode(latents)
    split = stream(TinyDecoder(MINI.vae, pass_frames=pass_frames), latents, lengths)
    torch.testing.assert_close(split, whole, atol=1e-5, rtol=0)


def test_every_size_streams_what_one_call_gives_and_as_many_frames_as_the_geometry_says(decoder: TinyDecoder) -> None:
    sizes = decoder.vae.sizes
    factors = {"spatial_factor": sizes.spatial_factor, "temporal_factor": sizes.temporal_factor, "patch": (1, 1, 1)}
    geometry = Geometry(2 * sizes.spatial_factor, 3 * sizes.spatial_factor, **factors)
    latents = random_latents(decoder, 7)
    whole, _ = decoder.decode(latents)
    assert whole.shape == (1, geometry.frames_of(7), 3, geometry.height, geometry.width)
    assert whole.dtype == torch.float32
    assert 0 <= whole.min() < whole.max() <= 1
    torch.testing.assert_close(stream(decoder, latents, [1, 3, 3]), whole, atol=1e-5, rtol=0)
    first, state = decoder.decode(latents[:, :3])
    assert first.shape[1] == geometry.chunk_frames_of(0)
    assert decoder.decode(latents[:, 3:6], state)[0].shape[1] == geometry.chunk_frames_of(1)


def test_later_latents_change_no_earlier_frame_and_all_earlier_ones_matter() -> None:
    latents = random_latents(MINI, 5)
    frames, _ = MINI.decode(latents)
    for changed in range(5):
        other = latents.clone()
        other[:, changed] += 1
        differs = (MINI.decode(other)[0] - frames).abs().amax(dim=(0, 2, 3, 4)) > 1e-6
        begins = max(0, 4 * changed - 3)
        assert not differs[:begins].any()
        assert differs[begins : begins + 5].any()


def test_samples_do_not_depend_on_the_batch() -> None:
    latents = random_latents(MINI, 4, batch=3)
    together = stream(MINI, latents, [3, 1])
    for sample in range(3):
        alone, _ = MINI.decode(latents[sample : sample + 1])
        torch.testing.assert_close(together[sample : sample + 1], alone, atol=1e-5, rtol=0)


def test_a_state_is_never_written_to_and_does_not_grow() -> None:
    latents = random_latents(MINI, 8)
    _, early = MINI.decode(latents[:, :1])
    before = [feature.clone() for feature in early.features]
    once, late = MINI.decode(latents[:, 1:], early)
    again, _ = MINI.decode(latents[:, 1:], early)
    assert torch.equal(once, again)
    assert all(torch.equal(a, b) for a, b in zip(before, early.features, strict=True))
    assert [feature.shape for feature in early.features] == [feature.shape for feature in late.features]
    assert all(f.untyped_storage().nbytes() == f.numel() * f.element_size() for f in late.features)


def test_bfloat16_channels_last_shows_the_same_picture() -> None:
    latents = random_latents(MINI, 3)
    exact, _ = MINI.decode(latents)
    fast = TinyDecoder(channels_last(copy.deepcopy(MINI.vae).bfloat16()), "TAEHV taew2_1")
    frames, _ = fast.decode(latents)
    assert frames.dtype == torch.float32
    assert (frames - exact).square().mean() < 1e-4  # 40 dB
    assert fast.name == "TAEHV taew2_1 bfloat16"


def test_a_clip_is_encoded_with_its_last_frame_repeated(decoder: TinyDecoder) -> None:
    sizes = decoder.vae.sizes
    frames = torch.rand(2, 5, 3, 2 * sizes.spatial_factor, 3 * sizes.spatial_factor)
    if sizes.encoder_width is None:
        with pytest.raises(ValueError, match="has only a decoder; encode with the model's own VAE"):
            decoder.vae.encode(frames)
        return
    latents = decoder.vae.encode(frames)
    assert latents.shape == (2, 2, sizes.latent_channels, 2, 3)
    repeated = torch.cat([frames, frames[:, -1:].expand(-1, 3, -1, -1, -1)], dim=1)
    assert torch.equal(decoder.vae.encode(repeated), latents)


def test_wrong_latents_and_states_of_other_streams_are_refused(tiny_model_folder) -> None:
    with pytest.raises(ValueError, match=r"expected latents \[B, F >= 1, 5, h, w\], got \[1, 3, 4, 2, 2\]"):
        MINI.decode(torch.zeros(1, 3, 4, 2, 2))
    with pytest.raises(ValueError, match="pass_frames must be at least 1"):
        TinyDecoder(MINI.vae, pass_frames=0)
    _, state = MINI.decode(random_latents(MINI, 1))
    with pytest.raises(ValueError, match="pass state=None to begin another stream"):
        MINI.decode(torch.zeros(1, 1, 5, 3, 3), state)
    with pytest.raises(ValueError, match="expected a state that this tiny decoder returned, got the state of the deco"):
        MINI.decode(random_latents(MINI, 1), VAEState("decoder", state.features))
    with pytest.raises(ValueError, match="expected a state that this decoder returned, got the state of the tiny"):
        StreamingVAE.from_pretrained(tiny_model_folder / "vae").decode(torch.zeros(1, 1, 4, 2, 3), state)
