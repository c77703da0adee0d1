"""The streaming VAE: one pass = diffusers' chunks, streamed = one call, streams are values, shapes are checked."""

import copy

import pytest
import torch
from diffusers import AutoencoderKLWan
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_forcing.models.vae import StreamingVAE, channels_last, decode_parallel, encode_parallel, fastest_dtype
from reward_forcing.models.vae_walk import normed_silu

CONFIGS = {
    "miniature": {
        "base_dim": 4,
        "z_dim": 6,
        "dim_mult": [1, 2, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [True, True],
        "patch_size": 2,
        "in_channels": 12,
        "out_channels": 12,
    },
    "wan2.1": {
        "base_dim": 4,
        "z_dim": 16,
        "dim_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "temperal_downsample": [False, True, True],
    },
    "wan2.2": {
        "base_dim": 4,
        "decoder_base_dim": 6,
        "z_dim": 6,
        "dim_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "temperal_downsample": [False, True, True],
        "patch_size": 2,
        "in_channels": 12,
        "out_channels": 12,
        "is_residual": True,
    },
    "half_rate": {
        "base_dim": 4,
        "z_dim": 5,
        "dim_mult": [1, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [True],
    },
}


def build(name, **changes):
    torch.manual_seed(0)
    config = CONFIGS[name] | changes
    statistics = {"latents_mean": torch.randn(config["z_dim"]).tolist(), "latents_std": [1.5] * config["z_dim"]}
    vae = AutoencoderKLWan(**(statistics | config)).eval()
    for parameter in vae.parameters():  # random norms and larger weights, so that no layer hides behind another
        parameter.data.mul_(1.2).add_(0.02 * torch.randn(parameter.shape))
    return vae.requires_grad_(False)


@pytest.fixture(scope="module", params=CONFIGS)
def vae(request):
    return build(request.param)


MINI = build("miniature")


def random_frames(vae, latent_frames, batch=1, height=2, width=3, seed=0):
    stream = StreamingVAE(vae)
    size = stream.spatial_factor
    frames = 1 + stream.temporal_factor * (latent_frames - 1)
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, frames, 3, height * size, width * size, generator=generator)


def random_latents(vae, latent_frames, seed=0):
    return torch.randn(1, latent_frames, vae.config.z_dim, 2, 3, generator=torch.Generator().manual_seed(seed))


def stream(step, x, lengths):
    state, outputs = None, []
    for part in x.split(lengths, dim=1):
        output, state = step(part, state)
        outputs.append(output)
    return torch.cat(outputs, dim=1)


def stock_encode(vae, frames):
    return vae.encode((frames * 2 - 1).transpose(1, 2)).latent_dist


def unclamped_decode(vae, z):
    """`vae.decode` with its clamp taken out, because a clamp hides gradients."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "clamp", lambda x, **_: x)
        return vae.decode(z).sample


@pytest.mark.parametrize("latent_frames", [1, 3, 5])
def test_one_pass_encodes_as_the_chunks_of_diffusers(vae, latent_frames):
    frames = random_frames(vae, latent_frames, batch=2)
    mean, logvar = encode_parallel(vae, frames)
    expected = stock_encode(vae, frames)
    torch.testing.assert_close(mean, expected.mean.transpose(1, 2), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logvar, expected.logvar.transpose(1, 2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("latent_frames", [1, 2, 4])
def test_one_pass_decodes_as_the_chunks_of_diffusers(vae, latent_frames):
    latents = random_latents(vae, latent_frames)
    frames = decode_parallel(vae, latents)
    expected = vae.decode(latents.transpose(1, 2)).sample.transpose(1, 2) / 2 + 0.5
    torch.testing.assert_close(frames.clamp(0, 1), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-4), (torch.float64, 1e-5)]
)  # diffusers resizes in float32
def test_one_pass_has_the_gradients_of_the_chunks(vae, dtype, tolerance):
    vae = copy.deepcopy(vae).to(dtype).requires_grad_(True)
    frames = random_frames(vae, 3).to(dtype)
    mean, _ = encode_parallel(vae, frames)
    decode_parallel(vae, mean).square().mean().backward()
    ours = {name: p.grad for name, p in vae.named_parameters() if p.grad is not None}
    vae.zero_grad()
    decoded = unclamped_decode(vae, stock_encode(vae, frames).mean)
    decoded.div(2).add(0.5).square().mean().backward()
    theirs = {name: p.grad for name, p in vae.named_parameters() if p.grad is not None}
    assert ours.keys() == theirs.keys()
    for name, grad in ours.items():
        assert (grad - theirs[name]).norm() <= tolerance * theirs[name].norm() + 1e-9, name


def test_training_sees_values_outside_the_range_of_colours():
    loud = copy.deepcopy(MINI)
    loud.decoder.conv_out.weight.data.mul_(10)
    frames = decode_parallel(loud, random_latents(loud, 2))
    assert frames.min() < 0 < 1 < frames.max()


@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4), pass_frames=st.integers(1, 5))
def test_any_split_of_the_latents_decodes_to_the_same_frames(lengths, pass_frames):
    mini = StreamingVAE(MINI, pass_frames)
    latents = random_latents(mini.vae, sum(lengths))
    whole, _ = StreamingVAE(MINI, pass_frames=100).decode(latents)
    torch.testing.assert_close(stream(mini.decode, latents, lengths), whole, atol=1e-5, rtol=0)


@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4), pass_frames=st.integers(1, 5))
def test_any_split_of_the_frames_encodes_to_the_same_latents(lengths, pass_frames):
    mini = StreamingVAE(MINI, pass_frames)
    frames = random_frames(mini.vae, sum(lengths))
    whole, _ = StreamingVAE(MINI, pass_frames=100).encode(frames)
    counts = [4 * n - 3 if i == 0 else 4 * n for i, n in enumerate(lengths)]
    torch.testing.assert_close(stream(mini.encode, frames, counts), whole, atol=1e-5, rtol=1e-5)


def test_every_architecture_streams_what_one_call_gives(vae):
    both = StreamingVAE(vae)
    frames, latents = random_frames(vae, 4), random_latents(vae, 4)
    first = 1 + both.temporal_factor
    encoded, decoded = both.encode(frames)[0], both.decode(latents)[0]
    assert torch.allclose(stream(both.encode, frames, [first, frames.shape[1] - first]), encoded, atol=1e-5)
    assert torch.allclose(stream(both.decode, latents, [1, 3]), decoded, atol=1e-5)


def test_first_chunk_has_one_latent_of_a_single_frame():
    mini, latents = StreamingVAE(MINI), random_latents(MINI, 6)
    first, state = mini.decode(latents[:, :3])
    second, _ = mini.decode(latents[:, 3:], state)
    assert (first.shape[1], second.shape[1]) == (9, 12)


def test_interleaved_streams_do_not_disturb_each_other():
    mini = StreamingVAE(MINI)
    a, b = random_latents(MINI, 4, seed=1), random_latents(MINI, 4, seed=2)
    state_a = state_b = None
    frames_a, frames_b = [], []
    for i in range(4):
        frame, state_a = mini.decode(a[:, i : i + 1], state_a)
        frames_a.append(frame)
        frame, state_b = mini.decode(b[:, i : i + 1], state_b)
        frames_b.append(frame)
    assert torch.allclose(torch.cat(frames_a, 1), mini.decode(a)[0], atol=1e-5)
    assert torch.allclose(torch.cat(frames_b, 1), mini.decode(b)[0], atol=1e-5)


@pytest.mark.parametrize("side", ["encode", "decode"])
def test_a_state_is_never_written_to(side):
    step = getattr(StreamingVAE(MINI), side)
    head, tail = (
        random_frames(MINI, 4).split([9, 4], 1) if side == "encode" else random_latents(MINI, 4).split([3, 1], 1)
    )
    _, state = step(head)
    before = [feature.clone() for feature in state.features]
    once, _ = step(tail, state)
    again, _ = step(tail, state)
    assert torch.equal(once, again)
    assert all(torch.equal(a, b) for a, b in zip(before, state.features, strict=True))


def test_a_state_does_not_grow():
    mini = StreamingVAE(MINI)
    _, early = mini.decode(random_latents(MINI, 1))
    _, late = mini.decode(random_latents(MINI, 7), early)
    assert [f.shape for f in early.features] == [f.shape for f in late.features]
    assert all(f.untyped_storage().nbytes() == f.numel() * f.element_size() for f in late.features)


def test_latents_are_normalised_by_the_config():
    mini, frames = StreamingVAE(MINI), random_frames(MINI, 2)
    mean, std = (torch.tensor(MINI.config[f"latents_{name}"])[:, None, None] for name in ("mean", "std"))
    raw, _ = encode_parallel(MINI, frames)
    latents, _ = mini.encode(frames)
    torch.testing.assert_close(latents, (raw - mean) / std, atol=1e-6, rtol=1e-5)
    expected = decode_parallel(MINI, raw).clamp(0, 1)
    torch.testing.assert_close(mini.decode(latents)[0], expected, atol=1e-5, rtol=0)


def test_bfloat16_channels_last_shows_the_same_picture():
    latents = random_latents(MINI, 3)
    exact, _ = StreamingVAE(MINI).decode(latents)
    fast = StreamingVAE(channels_last(copy.deepcopy(MINI).bfloat16()))
    frames, _ = fast.decode(latents)
    assert frames.dtype == torch.float32
    assert (frames - exact).square().mean() < 1e-4  # 40 dB


def test_frames_are_decoded_by_compiled_kernels_where_they_are_not_computed_in_float32(monkeypatch):
    ran = []

    def compile_walk(walk, dynamic):
        return lambda *given: ran.append(dynamic) or walk(*given)

    monkeypatch.setattr(torch, "compile", compile_walk)
    vae = build("half_rate")
    plain, compiled = StreamingVAE(vae), StreamingVAE(vae, pass_frames=3, compiled=True)
    z = random_latents(vae, 6)
    assert torch.equal(compiled.decode(z)[0], plain.decode(z)[0])
    assert ran == []
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(compiled.decode(z)[0], plain.decode(z)[0])
    assert ran == [False, False], "two passes of 3 frames, kernels made for their shapes"


def test_a_norm_and_its_activation_may_be_computed_otherwise():
    vae = build("wan2.2")
    frames, seen = random_frames(vae, 2), []

    def activate(x, scale, gamma):
        seen.append(x.shape)
        return normed_silu(x, scale, gamma)

    mean, _ = encode_parallel(vae, frames, activate)
    assert torch.equal(mean, encode_parallel(vae, frames)[0])
    assert torch.equal(decode_parallel(vae, mean, activate), decode_parallel(vae, mean))
    assert len(seen) == sum("norm" in name and "attentions" not in name for name, _ in vae.named_parameters())


def test_layout_changes_no_value():
    laid_out = channels_last(copy.deepcopy(MINI))
    latents = random_latents(MINI, 3)
    assert laid_out.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(decode_parallel(laid_out, latents), decode_parallel(MINI, latents), atol=1e-5, rtol=1e-5)


def test_autocast_trains_in_bfloat16():
    vae = channels_last(copy.deepcopy(MINI).requires_grad_(True))
    with torch.autocast("cpu", torch.bfloat16):
        mean, _ = encode_parallel(vae, random_frames(vae, 2))
        frames = decode_parallel(vae, mean)
    assert mean.dtype == frames.dtype == torch.bfloat16
    frames.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())


def test_a_saved_vae_loads_frozen_and_decodes_the_same(tmp_path):
    MINI.save_pretrained(tmp_path)
    loaded = StreamingVAE.from_pretrained(tmp_path, dtype=torch.float32)
    latents = random_latents(MINI, 2)
    torch.testing.assert_close(loaded.decode(latents)[0], StreamingVAE(MINI).decode(latents)[0], atol=1e-5, rtol=0)
    assert not any(p.requires_grad for p in loaded.vae.parameters())
    assert StreamingVAE.from_pretrained(tmp_path).vae.dtype == fastest_dtype("cpu")


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.rand(1, 4, 3, 16, 16), "expected 1 \\+ 4 n frames at the start of a clip, got 4"),
        (torch.rand(1, 5, 3, 12, 16), "divisible by 8, got 12 x 16"),
        (torch.rand(1, 3, 5, 16, 16), r"expected frames \[B, T, 3, H, W\]"),
    ],
)
def test_wrong_frames_are_refused(frames, message):
    with pytest.raises(ValueError, match=message):
        encode_parallel(MINI, frames)


def test_a_later_chunk_needs_a_multiple_of_the_temporal_factor():
    mini = StreamingVAE(MINI)
    _, state = mini.encode(random_frames(MINI, 1))
    with pytest.raises(ValueError, match="expected 4 n frames further on, got 5"):
        mini.encode(random_frames(MINI, 2), state)


def test_wrong_latents_are_refused():
    with pytest.raises(ValueError, match=r"expected latents \[B, F >= 1, 6, h, w\], got \[1, 3, 7, 2, 2\]"):
        StreamingVAE(MINI).decode(torch.zeros(1, 3, 7, 2, 2))


def test_states_of_other_streams_are_refused():
    mini = StreamingVAE(MINI)
    _, encoder_state = mini.encode(random_frames(MINI, 1))
    _, decoder_state = mini.decode(random_latents(MINI, 1))
    with pytest.raises(ValueError, match="got the state of the encoder"):
        mini.decode(random_latents(MINI, 1), encoder_state)
    with pytest.raises(ValueError, match="pass state=None to begin another stream"):
        mini.decode(torch.zeros(2, 1, 6, 2, 3), decoder_state)


def test_zero_latent_frames_per_pass_are_refused():
    with pytest.raises(ValueError, match="pass_frames must be at least 1"):
        StreamingVAE(MINI, pass_frames=0)
