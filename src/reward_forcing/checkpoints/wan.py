"""Names of the transformer's parameters in Wan2.1's own files and in diffusers', one to one.

Shapes and values are the same in both; only names differ. Wrapper prefixes and containers belong to other modules.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TypeVar

T = TypeVar("T")

_OUTSIDE = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
}
_IN_BLOCK = {
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    **{
        f"{original}.{part}": f"{diffusers}.{renamed}"
        for original, diffusers in (("self_attn", "attn1"), ("cross_attn", "attn2"))
        for part, renamed in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"))
    },
}
_IN_BLOCK_EXACT = {
    "modulation": "scale_shift_table",
    **{
        f"{original}.{norm}.weight": f"{diffusers}.{norm}.weight"
        for original, diffusers in (("self_attn", "attn1"), ("cross_attn", "attn2"))
        for norm in ("norm_q", "norm_k")
    },
}


_OTHER_KINDS = {
    r"img_emb|_img\.|image_embedder|add_[kv]_proj|norm_added_k": "an image-to-video",
    r"^vace_": "a VACE",
}


def _with_weight_and_bias(names: Mapping[str, str]) -> dict[str, str]:
    return {f"{a}.{kind}": f"{b}.{kind}" for a, b in names.items() for kind in ("weight", "bias")}


WAN_TO_DIFFUSERS = MappingProxyType(
    _with_weight_and_bias(_OUTSIDE)
    | {"head.modulation": "scale_shift_table"}
    | {
        f"blocks.{{}}.{original}": f"blocks.{{}}.{diffusers}"
        for original, diffusers in (_with_weight_and_bias(_IN_BLOCK) | _IN_BLOCK_EXACT).items()
    }
)
"""Every parameter name of a text-to-video Wan2.1 transformer -> diffusers' name; `{}` stands for the block's index."""

DIFFUSERS_TO_WAN = MappingProxyType({diffusers: original for original, diffusers in WAN_TO_DIFFUSERS.items()})
"""The inverse of `WAN_TO_DIFFUSERS`."""


def wan_to_diffusers(state: Mapping[str, T]) -> dict[str, T]:
    """State dict with diffusers' names, as `WanDiT` has them, from one with Wan2.1's original names.

    Raises ValueError at a name that is neither, naming the nearest; other kinds of Wan networks are recognised as such.
    """
    return {_rename(name, WAN_TO_DIFFUSERS): value for name, value in state.items()}


def diffusers_to_wan(state: Mapping[str, T]) -> dict[str, T]:
    """State dict with Wan2.1's original names from one with diffusers' names; the inverse of `wan_to_diffusers`."""
    return {_rename(name, DIFFUSERS_TO_WAN): value for name, value in state.items()}


def refuse_other_kinds(names: Iterable[str]) -> None:
    """Raise ValueError at a name, in either naming, that only another kind of Wan network has; it says which kind."""
    for name in names:
        for pattern, kind in _OTHER_KINDS.items():
            if re.search(pattern, name):
                raise ValueError(f"{name!r} belongs to {kind} network; only text-to-video ones are supported")


def _rename(name: str, names: Mapping[str, str]) -> str:
    index = re.match(r"blocks\.(\d+)\.", name)
    number = index.group(1) if index else ""
    general = re.sub(r"^blocks\.\d+\.", "blocks.{}.", name)
    if general in names:
        return names[general].replace("{}", number)
    refuse_other_kinds((name,))
    near = [match.replace("{}", number) for match in difflib.get_close_matches(general, names, n=1)]
    hint = f"; did you mean {near[0]!r}?" if near else ", which no Wan2.1 transformer has"
    wrapped = " Strip wrapper prefixes such as 'model.' first." if near and name.endswith(f".{near[0]}") else ""
    raise ValueError(f"unknown parameter {name!r}{hint}{wrapped}")
