"""The key map of Wan2.1's files: complete, invertible, and clear about what it does not know."""

import pytest

from reward_forcing.checkpoints.wan import DIFFUSERS_TO_WAN, WAN_TO_DIFFUSERS, diffusers_to_wan, wan_to_diffusers


def test_every_parameter_has_an_original_name_and_comes_back(tiny_dit):
    state = tiny_dit(num_layers=12).state_dict()
    original = diffusers_to_wan(state)
    assert {"head.modulation", "blocks.11.modulation", "blocks.3.norm3.weight", "blocks.0.ffn.2.bias"} <= set(original)
    back = wan_to_diffusers(original)
    assert list(back) == list(state)
    assert all(back[name] is state[name] for name in state)
    assert len(DIFFUSERS_TO_WAN) == len(WAN_TO_DIFFUSERS)


def test_an_unknown_name_is_refused_with_the_nearest_known():
    with pytest.raises(ValueError, match=r"did you mean 'blocks\.7\.self_attn\.q\.weight'"):
        wan_to_diffusers({"blocks.7.self_atn.q.weight": 0})
    with pytest.raises(ValueError, match=r"prefixes such as 'model\.'"):
        wan_to_diffusers({"model.patch_embedding.weight": 0})


@pytest.mark.parametrize("name", ["img_emb.proj.0.weight", "blocks.0.cross_attn.k_img.weight"])
def test_image_to_video_weights_are_named_as_such(name):
    with pytest.raises(ValueError, match="image-to-video"):
        wan_to_diffusers({name: 0})
