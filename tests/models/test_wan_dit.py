"""The transformer: any geometry, per-frame time, precision, checkpointing, file format and what it refuses."""

import json
from dataclasses import replace

import pytest
import torch
from diffusers import WanTransformer3DModel
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_forcing.models.attention import Past
from reward_forcing.models.masks import block_causal
from reward_forcing.models.wan_dit import WanDiT

FRAMES, HEIGHT, WIDTH, TEXT = 4, 4, 6, 5


def inputs(batch: int = 2, frames: int = FRAMES, channels: int = 4, height: int = HEIGHT, width: int = WIDTH):
    """Latents, per-frame timesteps and text embeddings of the tiny network."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, frames, channels, height, width, generator=generator)
    timestep = 1000 * torch.rand(batch, frames, generator=generator)
    return x, timestep, torch.randn(batch, TEXT, 12, generator=generator)


def make_past(network: WanDiT, frames: int = 3, batch: int = 2) -> Past:
    """The past left by a bidirectional pass over `frames` frames, then FRAMES frames to come."""
    x, timestep, embeddings = inputs(batch, frames)
    kv = network(x, timestep, network.encode_text(embeddings), want_kv=True)[1]
    assert kv is not None
    return Past(kv.keys, kv.values, torch.arange(frames), torch.arange(frames, frames + FRAMES))


sizes = st.integers(1, 3)


@given(
    batch=sizes, frames=sizes, rows=sizes, columns=sizes, patch=st.tuples(sizes, sizes), heads=sizes, layers=sizes,
    head_dim=st.sampled_from([6, 8, 12, 16, 20]), in_channels=sizes, out_channels=sizes, norm=st.booleans(),
)  # fmt: skip
@settings(max_examples=20)
@torch.no_grad()
def test_any_geometry_gives_what_diffusers_gives(
    tiny_dit, batch, frames, rows, columns, patch, heads, layers, head_dim, in_channels, out_channels, norm
):
    shape = {"num_attention_heads": heads, "attention_head_dim": head_dim, "num_layers": layers}
    channels = {"in_channels": in_channels, "out_channels": out_channels, "patch_size": (1, *patch)}
    ours = tiny_dit(**shape, **channels, cross_attn_norm=norm)
    theirs = WanTransformer3DModel.from_config(ours.config)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x, timestep, embeddings = inputs(batch, frames, in_channels, rows * patch[0], columns * patch[1])
    velocity, _ = ours(x, timestep[:, 0] / 10, ours.encode_text(embeddings))
    expected = theirs(x.transpose(1, 2), timestep[:, 0] / 10, embeddings, return_dict=False)[0]
    torch.testing.assert_close(velocity.transpose(1, 2), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("longest", "kept"), [(0, 32), (3, 32), (31, 32), (32, 64), (69, 70)])
@torch.no_grad()
def test_merged_padding_is_read_as_if_every_zero_row_were_there(tiny_dit, longest, kept):
    network, (x, timestep, _) = tiny_dit(), inputs()
    embeddings = 3 * torch.randn(2, 70, 12, generator=torch.Generator().manual_seed(2))
    embeddings[0, longest:], embeddings[1, longest // 2 :] = 0, 0
    merged = network.encode_text(embeddings, merge_padding=True)
    assert merged.keys.shape[2] == kept
    velocity, _ = network(x, timestep, network.encode_text(embeddings))
    torch.testing.assert_close(network(x, timestep, merged)[0], velocity, atol=1e-5, rtol=1e-5)
    alone, _ = network(x[1:], timestep[1:], merged.select(slice(1, 2)))
    torch.testing.assert_close(alone, velocity[1:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_one_timestep_per_sample_means_the_same_for_every_frame(tiny_dit):
    network = tiny_dit()
    x, timestep, embeddings = inputs()
    text = network.encode_text(embeddings)
    per_sample = network(x, timestep[:, 0], text)[0]
    per_frame = network(x, timestep[:, :1].expand(-1, FRAMES), text)[0]
    torch.testing.assert_close(per_sample, per_frame, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(per_sample, network(x, timestep, text)[0], atol=1e-3)


@torch.no_grad()
def test_a_sample_does_not_depend_on_its_batch(tiny_dit):
    network = tiny_dit()
    x, timestep, embeddings = inputs()
    text, past = network.encode_text(embeddings), make_past(network)
    together, kv = network(x, timestep, text, past=past, want_kv=True)
    for sample in range(2):
        one = slice(sample, sample + 1)

        def of_one(layers, one=one):
            return tuple(layer[one] for layer in layers)

        alone_past = replace(past, keys=of_one(past.keys), values=of_one(past.values))
        alone, alone_kv = network(x[one], timestep[one], text.select(one), past=alone_past, want_kv=True)
        torch.testing.assert_close(alone, together[one], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(alone_kv.values, of_one(kv.values), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_one_prompt_expands_to_all_samples(tiny_dit):
    network = tiny_dit()
    x, timestep, embeddings = inputs()
    shared = network(x, timestep, network.encode_text(embeddings[:1]).expand(2))[0]
    copied = network(x, timestep, network.encode_text(embeddings[:1].repeat(2, 1, 1)))[0]
    torch.testing.assert_close(shared, copied, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("offset", [5000, 10**6, -7])
@torch.no_grad()
def test_only_differences_of_positions_matter_however_far_they_are(tiny_dit, offset):
    network = tiny_dit()
    x, timestep, embeddings = inputs()
    text = network.encode_text(embeddings)
    here = network(x, timestep, text)[0]
    there = network(x, timestep, text, positions=torch.arange(FRAMES) + offset)[0]
    torch.testing.assert_close(there, here, atol=2e-5, rtol=1e-5)
    assert not torch.allclose(network(x, timestep, text, positions=3 * torch.arange(FRAMES))[0], here, atol=1e-3)


@torch.no_grad()
def test_a_past_rotated_once_serves_like_one_rotated_in_every_pass(tiny_dit):
    network = tiny_dit()
    x, timestep, embeddings = inputs()
    text, past = network.encode_text(embeddings), make_past(network)
    rotated = network.rotate(past, (HEIGHT, WIDTH))
    assert rotated.rotated
    assert network.rotate(rotated, (HEIGHT, WIDTH)) is rotated
    assert torch.equal(network(x, timestep, text, past=past)[0], network(x, timestep, text, past=rotated)[0])


@torch.no_grad()
def test_keys_and_values_are_returned_unrotated(tiny_dit):
    network = tiny_dit()
    x, timestep, embeddings = inputs()
    text = network.encode_text(embeddings)
    here = network(x, timestep, text, want_kv=True)[1]
    there = network(x, timestep, text, want_kv=True, positions=torch.arange(FRAMES) + 9)[1]
    assert len(here.keys) == len(here.values) == 2
    assert {layer.shape for layer in (*here.keys, *here.values)} == {(2, FRAMES, HEIGHT * WIDTH // 4, 2, 16)}
    torch.testing.assert_close(here.keys, there.keys, atol=1e-5, rtol=1e-5)


def gradients(network: WanDiT, use: str) -> dict[str, torch.Tensor]:
    """Gradients of all parameters for a loss that reads velocity, keys and values."""
    x, timestep, embeddings = inputs()
    with torch.no_grad():
        past = make_past(network) if use == "past" else None
    pattern = block_causal(FRAMES, 2) if use == "pattern" else None
    network.zero_grad()
    text = network.encode_text(embeddings)
    velocity, kv = network(x, timestep, text, past=past, pattern=pattern, want_kv=True)
    keys, values = kv.stacked()
    (velocity.square().mean() + keys.sin().mean() + values.square().mean()).backward()
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("use", ["bidirectional", "pattern", "past"])
def test_checkpointed_gradients_equal_plain_ones_and_reach_every_parameter(tiny_dit, use):
    network = tiny_dit()
    plain = gradients(network, use)
    assert all(gradient.abs().max() > 0 for gradient in plain.values())
    network.enable_gradient_checkpointing()
    runs = []
    network.blocks[0].register_forward_pre_hook(lambda *_: runs.append(torch.is_grad_enabled()))
    for name, gradient in gradients(network, use).items():
        assert torch.equal(gradient, plain[name]), name
    assert runs.count(True) == 2, "a checkpointed block runs again in the backward pass"


@torch.no_grad()
def test_mixed_precision_keeps_time_and_modulation_in_float32_and_errs_less_than_pure(tiny_dit):
    x, timestep, embeddings = inputs()

    def velocity(network: WanDiT) -> torch.Tensor:
        return network(x, timestep, network.encode_text(embeddings))[0]

    exact = velocity(tiny_dit())
    mixed, pure = tiny_dit().to_mixed(torch.bfloat16), tiny_dit().to(torch.bfloat16)
    kept = {name.split(".")[-2] for name, p in mixed.named_parameters() if p.dtype == torch.float32 and "." in name}
    assert kept == {"linear_1", "linear_2", "time_proj", "norm2", *"01"}
    assert all(parameter.dtype == torch.bfloat16 for parameter in pure.parameters())
    assert velocity(mixed).dtype == velocity(pure).dtype == torch.bfloat16
    errors = [(velocity(network).float() - exact).square().mean() for network in (mixed, pure)]
    assert errors[0] < errors[1] < 0.01 * exact.square().mean()


def test_autocast_trains_float32_parameters(tiny_dit):
    network = tiny_dit()
    x, timestep, embeddings = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        velocity, kv = network(x, timestep, network.encode_text(embeddings), want_kv=True)
    velocity.float().square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    exact = network(x, timestep, network.encode_text(embeddings))[0]
    assert (velocity.float() - exact).square().mean() < 0.01 * exact.square().mean()
    assert kv.values[0].dtype == torch.bfloat16


@torch.no_grad()
def test_autocast_does_not_blur_neighbouring_timesteps(tiny_dit):
    embedder, timestep = tiny_dit().condition_embedder, torch.tensor([998.0, 999.0])
    with torch.autocast("cpu", torch.bfloat16):
        embedding, projection = embedder.time(timestep)
    exact, exact_projection = embedder.time(timestep)
    assert torch.equal(embedding, exact)
    assert torch.equal(projection, exact_projection)
    assert not torch.equal(embedding[0], embedding[1])


@torch.no_grad()
def test_a_saved_folder_loads_in_diffusers_and_back(tiny_dit, tmp_path):
    network = tiny_dit()
    network.save_pretrained(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["_class_name"] == "WanTransformer3DModel"
    WanTransformer3DModel.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    back = WanDiT.from_pretrained(tmp_path / "theirs")
    assert dict(back.config)["ffn_dim"] == network.config["ffn_dim"]
    for name, parameter in network.state_dict().items():
        assert torch.equal(back.state_dict()[name], parameter), name
    x, timestep, embeddings = inputs()
    velocities = [net(x, timestep, net.encode_text(embeddings))[0] for net in (network, back)]
    assert torch.equal(*velocities)


def test_loading_in_bfloat16_is_loading_and_casting_to_mixed(tiny_dit, tmp_path):
    network = tiny_dit()
    network.save_pretrained(tmp_path)
    loaded = WanDiT.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    for name, parameter in network.to_mixed(torch.bfloat16).named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter), name
        assert loaded.get_parameter(name).dtype == parameter.dtype, name


@torch.no_grad()
def test_an_untrained_network_predicts_zero_velocity():
    settings = {"num_attention_heads": 2, "attention_head_dim": 64, "text_dim": 12, "ffn_dim": 256, "num_layers": 1}
    network = WanDiT(**settings)
    x, timestep, embeddings = inputs(channels=16)
    velocity, kv = network(x, timestep, network.encode_text(embeddings), want_kv=True)
    assert velocity.abs().max() == 0
    assert kv.values[0].std() > 0
    embedder = network.condition_embedder.time_embedder
    assert embedder.linear_2.weight.std() == pytest.approx(0.02, rel=0.1)
    assert network.scale_shift_table.std() == pytest.approx(128**-0.5, rel=0.3)
    xavier_bound = (6 / (128 + 128)) ** 0.5
    assert network.blocks[0].attn1.to_q.weight.abs().max() == pytest.approx(xavier_bound, rel=0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_size": (2, 2, 2)}, "within one frame"),
        ({"attention_head_dim": 15}, "must be even"),
        ({"qk_norm": None}, "rms_norm_across_heads"),
        ({"image_dim": 1280}, "image-to-video"),
    ],
)
def test_settings_that_are_not_implemented_are_refused(tiny_dit, settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_dit(**settings)


def test_inputs_that_do_not_fit_are_refused(tiny_dit):
    network = tiny_dit()
    x, timestep, embeddings = inputs()
    text, past = network.encode_text(embeddings), make_past(network)
    with pytest.raises(ValueError, match=r"timestep must be \[2\] or \[2, 4\], got \[3\]"):
        network(x, torch.ones(3), text)
    with pytest.raises(ValueError, match="1 prompts"):
        network(x, timestep, text.select(slice(1)))
    with pytest.raises(ValueError, match="3 layers"):
        network(x, timestep, tiny_dit(num_layers=3).encode_text(embeddings))
    with pytest.raises(ValueError, match="not both"):
        network(x, timestep, text, past=past, pattern=block_causal(FRAMES, 2))
    with pytest.raises(ValueError, match="pattern is made for 6 frames, got 4"):
        network(x, timestep, text, pattern=block_causal(6, 2))
    with pytest.raises(ValueError, match="positions to 4 frames, got 3"):
        network(x[:, :3], timestep[:, :3], text, past=past)
    with pytest.raises(ValueError, match="latents of 5 x 6"):
        network(torch.zeros(2, FRAMES, 4, 5, 6), timestep, text)
    with pytest.raises(ValueError, match="only 1 expands"):
        text.expand(3)


@torch.no_grad()
def test_keys_and_values_alone_are_those_of_a_whole_forward(tiny_dit):
    network = tiny_dit()
    x, timestep, embeddings = inputs()
    text = network.encode_text(embeddings)
    _, whole = network(x, timestep, text, want_kv=True)
    velocity, alone = network(x, timestep, text, want_kv="only")
    assert all(map(torch.equal, alone.keys, whole.keys))
    assert all(map(torch.equal, alone.values, whole.values))
    assert velocity.shape == (x.shape[0], 0, *x.shape[2:])
