"""What a checkpoint is: its format, the networks in it, their parameters under diffusers' names, still unread.

Every reader in this package starts here, so that a path means the same to loading, inspecting and converting.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from reward_forcing.checkpoints.diffusers import check_fit, empty_network, infer_config, read_config
from reward_forcing.checkpoints.files import LazyTensor, companions, files_hash, read_weights
from reward_forcing.checkpoints.forcing import (
    COMFY_PREFIX,
    DEFAULT_ROLE,
    is_lora,
    is_marked,
    lora_deltas,
    roles_of,
    stored_config,
)
from reward_forcing.checkpoints.fp8 import is_scaled, unscaled
from reward_forcing.checkpoints.wan import refuse_other_kinds, wan_to_diffusers
from reward_forcing.config import unknown

Format = Literal["diffusers", "wan", "forcing", "comfy", "lora", "vae", "tiny vae", "text encoder"]
Parameters = dict[str, LazyTensor]

# a parameter that only this part of a model has -> the part, and whose file it is
_PARTS: dict[str, tuple[Format, str]] = {
    "decoder.conv_in.weight": ("vae", "a diffusers VAE"),
    "decoder.conv1.weight": ("vae", "the original Wan VAE"),
    "decoder.3.conv.0.weight": ("tiny vae", "a tiny VAE (TAEHV)"),
    "token_embedding.weight": ("text encoder", "the original Wan text encoder"),
    "encoder.final_layer_norm.weight": ("text encoder", "a T5 text encoder as transformers saves it"),
}
_PART_KINDS = {kind for kind, _ in _PARTS.values()}
# a parameter that only this other model has -> what it is
_OTHERS = {
    "input_blocks.0.0.weight": "a Stable Diffusion UNet",
    "down_blocks.0.resnets.0.conv1.weight": "a diffusers UNet",
    "patchify_proj.weight": "an LTX-Video transformer",
    "time_embed.emb.timestep_embedder.linear_1.weight": "an LTX-Video transformer",
    "patch_embed.proj.weight": "a transformer with two-dimensional patches, as CogVideoX or SD3",
    "double_blocks.0.img_attn.qkv.weight": "a Flux or HunyuanVideo transformer",
    "double_blocks.0.img_attn_qkv.weight": "a HunyuanVideo transformer",
}


@dataclass(frozen=True)
class Checkpoint:
    """The networks of one checkpoint: role -> parameters, by diffusers' names (LoRA: by the names of its modules).

    layout: in words, how the file names and groups them.
    """

    path: Path
    files: tuple[Path, ...]
    format: Format
    layout: str
    roles: dict[str, Parameters]
    config: dict[str, Any] | None

    def role(self, which: str | None = None) -> str:
        """The role to use: `which`, else the generator, its average, or the only one. Raises ValueError for none."""
        if which is None:
            wanted = [role for role in (DEFAULT_ROLE, f"{DEFAULT_ROLE}_ema") if role in self.roles]
            if wanted or len(self.roles) == 1:
                return (wanted or list(self.roles))[0]
            raise ValueError(
                f"'{self.path}' holds several networks, {', '.join(self.roles)}; take one of them out with "
                "`rforce models convert FILE NEW --which ROLE`"
            )
        if which not in self.roles:
            raise ValueError(f"'{self.path}': {unknown('role', which, self.roles)}")
        return which


@dataclass(frozen=True)
class RoleInfo:
    """Size of one network: number of parameters and bytes, in total and the share of each dtype in the parameters."""

    parameters: int
    nbytes: int
    dtypes: dict[str, int]


@dataclass(frozen=True)
class CheckpointInfo:
    """What `inspect` tells of a checkpoint.

    config: `WanDiT` arguments; if None, `problem` says why, or there is no transformer. parts: file -> what it
    is, of the VAE and text encoder that a folder keeps beside its transformer.
    """

    path: str
    format: Format
    layout: str
    roles: dict[str, RoleInfo]
    default_role: str | None
    config: dict[str, Any] | None
    problem: str | None
    lora_rank: int | None
    parts: dict[str, str]
    sha256: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain dicts, for JSON."""
        return asdict(self)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """The transformer, or the LoRA of one, at a file or folder, recognised by its content; tensors are read later.

    Knows diffusers folders (of a model or of its transformer), the original Wan (one file or shards), the forcing
    family's `.pt` files, single files for ComfyUI and LoRA files. Raises FileNotFoundError if nothing is there,
    ValueError for anything else.
    """
    checkpoint = _recognise(Path(path))
    if checkpoint.format in _PART_KINDS:
        raise ValueError(f"'{path}': {_expected(f'this is {checkpoint.layout}')}")
    return checkpoint


def found_in(roles: Mapping[str, Parameters]) -> str:
    """What the networks of a file are, in words, where they are not what was expected."""
    names = list(dict.fromkeys(name for state in roles.values() for name in state))
    kinds = {name: what for name, (_, what) in _PARTS.items()} | {"patch_embedding.weight": "a Wan transformer"}
    if what := next((what for name, what in (kinds | _OTHERS).items() if name in names), None):
        return f"this is {what}"
    return f"found {', '.join(names[:3])}"


def inspect(path: str | Path, *, heads: int | None = None, hashes: bool = True) -> CheckpointInfo:
    """What the checkpoint at `path` is, or a VAE, tiny VAE or text encoder by itself.

    Reads headers only, and every byte once for the hashes if they are wanted. sha256 goes by file name.
    Raises like `open_checkpoint`.
    """
    path = Path(path)
    checkpoint = _recognise(path)
    default = config = problem = rank = None
    if checkpoint.format == "lora":
        try:
            rank = max(delta.a.shape[0] for state in checkpoint.roles.values() for delta in lora_deltas(state).values())
        except ValueError as error:
            problem = str(error)
    elif checkpoint.format not in _PART_KINDS:
        try:
            default = checkpoint.role()
        except ValueError as error:
            problem = str(error)
        state = checkpoint.roles[default or next(iter(checkpoint.roles))]
        try:
            config = infer_config(state, checkpoint.config, heads)
            check_fit(empty_network(config), state)
        except ValueError as error:
            problem = str(error)
    return CheckpointInfo(
        path=str(path),
        format=checkpoint.format,
        layout=checkpoint.layout,
        roles={role: _role_info(state) for role, state in checkpoint.roles.items()},
        default_role=default,
        config=config,
        problem=problem,
        lora_rank=rank,
        parts={file.relative_to(path).as_posix(): _part(file) for file in companions(path)},
        sha256={file.name: files_hash([file]) for file in checkpoint.files} if hashes else {},
    )


def _recognise(path: Path) -> Checkpoint:
    """The checkpoint at `path`, also if it is a part of a model that is no transformer."""
    files, content = read_weights(path)
    try:
        roles = roles_of(content)
        if loras := {role: state for role, state in roles.items() if is_lora(state)}:
            return Checkpoint(path, files, "lora", _layout(content, loras, "low-rank updates"), loras, None)
        for name, (kind, what) in _PARTS.items():
            for state in roles.values():
                if name in state:
                    return Checkpoint(path, files, kind, what, {"weights": state}, None)
        return _transformer(path, files, content, roles)
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from error


def _transformer(
    path: Path, files: tuple[Path, ...], content: Mapping[str, Any], roles: dict[str, Parameters]
) -> Checkpoint:
    transformers = {role: state for role, state in roles.items() if "patch_embedding.weight" in state}
    if not transformers:
        raise ValueError(_expected(found_in(roles)))
    for state in transformers.values():
        refuse_other_kinds(state)
    original = {role for role, state in transformers.items() if "head.head.weight" in state}
    layout = _layout(content, transformers, "Wan2.1's names" if original else "diffusers' names", len(files))
    weights = {role: unscaled(state) for role, state in transformers.items()}
    renamed = {role: wan_to_diffusers(state) if role in original else state for role, state in weights.items()}
    kind: Format = "forcing"
    if f"{COMFY_PREFIX}patch_embedding.weight" in content:
        kind = "comfy"
    elif "patch_embedding.weight" in content:
        kind = "wan" if original else "diffusers"
    config = stored_config(content) or read_config(files[0].parent / "config.json")
    return Checkpoint(path, files, kind, layout, renamed, config)


def _layout(content: Mapping[str, Any], roles: Mapping[str, Parameters], names: str, files: int = 1) -> str:
    """In words: how names begin, how they are grouped, in how many files, and what else has to be undone."""
    grouped = isinstance(content.get(next(iter(roles))), Mapping)
    raw = [name for role in roles for name in (content[role] if grouped else content)]
    prefixes = (COMFY_PREFIX, "model.", "base_model.model.")
    prefix = next((begin for begin in prefixes if any(name.startswith(begin) for name in raw)), None)
    said = [
        names + (f" after '{prefix}'" if prefix else ""),
        f"by role ({', '.join(roles)})" if grouped else "one bare state dict" if prefix == "model." else "",
        f"{files} shards" if files > 1 else "",
        "marks of FSDP or compiling" if is_marked(raw) else "",
        "scaled fp8, read as bfloat16" if any(map(is_scaled, roles.values())) else "",
    ]
    return ", ".join(filter(None, said))


def _expected(found: str) -> str:
    return f"expected a Wan transformer (a parameter patch_embedding.weight); {found}"


def _part(path: Path) -> str:
    """What the file or folder of a VAE or text encoder is, in a few words; of a damaged one, what is wrong."""
    try:
        return _recognise(path).layout
    except (OSError, ValueError) as error:
        return str(error)


def _role_info(state: Mapping[str, LazyTensor]) -> RoleInfo:
    dtypes: dict[str, int] = {}
    for tensor in state.values():
        name = str(tensor.dtype).removeprefix("torch.")
        dtypes[name] = dtypes.get(name, 0) + tensor.numel
    return RoleInfo(sum(dtypes.values()), sum(tensor.nbytes for tensor in state.values()), dtypes)
