"""What a checkpoint is: its format, the networks in it, their parameters under diffusers' names, still unread.

Every reader in this package starts here, so that a path means the same to loading, inspecting and converting.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from reward_forcing.checkpoints.diffusers import infer_config, read_config
from reward_forcing.checkpoints.files import LazyTensor, files_hash, find_weights, read_content
from reward_forcing.checkpoints.forcing import DEFAULT_ROLE, is_lora, lora_deltas, roles_of, stored_config
from reward_forcing.checkpoints.wan import wan_to_diffusers
from reward_forcing.config import unknown

Format = Literal["diffusers", "wan", "forcing", "lora"]

# names that tell what a file is when it is no transformer
_OTHERS = {
    "decoder.conv_in.weight": "a diffusers VAE",
    "decoder.conv1.weight": "the original Wan VAE",
    "encoder.conv1.weight": "the original Wan VAE",
    "token_embedding.weight": "the original Wan text encoder",
    "shared.weight": "a text encoder",
}


@dataclass(frozen=True)
class Checkpoint:
    """The networks of one checkpoint: role -> parameters, by diffusers' names (LoRA: by the names of its modules)."""

    path: Path
    files: tuple[Path, ...]
    format: Format
    roles: dict[str, dict[str, LazyTensor]]
    config: dict[str, Any] | None

    def role(self, which: str | None = None) -> str:
        """The role to use: `which`, else the generator, else the only one. Raises ValueError if that is not one."""
        if which is None and (DEFAULT_ROLE in self.roles or len(self.roles) == 1):
            return DEFAULT_ROLE if DEFAULT_ROLE in self.roles else next(iter(self.roles))
        if which is None:
            raise ValueError(f"'{self.path}' holds several networks; choose one of {', '.join(self.roles)}")
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
    """What `inspect` tells of a checkpoint. config: `WanDiT` arguments, or None with the reason in `config_problem`."""

    path: str
    format: Format
    roles: dict[str, RoleInfo]
    default_role: str | None
    config: dict[str, Any] | None
    config_problem: str | None
    lora_rank: int | None
    sha256: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain dicts, for JSON."""
        return asdict(self)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """The checkpoint at a file or folder, recognised by its content; tensors are read later.

    Knows diffusers folders (of a model or of its transformer), the original Wan (one file or shards), the forcing
    family's `.pt` files and LoRA files. Raises FileNotFoundError if nothing is there, ValueError for anything else.
    """
    path = Path(path)
    files = find_weights(path)
    contents = [read_content(file) for file in files]
    content = {name: value for part in contents for name, value in part.items()}
    if len(content) < sum(map(len, contents)):
        raise ValueError(f"the shards of '{path}' overlap: some parameters are in two of them")
    try:
        roles = roles_of(content)
        loras = {role: state for role, state in roles.items() if is_lora(state)}
        if loras:
            return Checkpoint(path, files, "lora", loras, None)
        return _transformer(path, files, content, roles)
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from error


def inspect(path: str | Path, *, heads: int | None = None, hashes: bool = True) -> CheckpointInfo:
    """What the checkpoint at `path` is; reads headers only, and every byte once for the hashes if they are wanted.

    sha256 goes by file name. Raises like `open_checkpoint`.
    """
    checkpoint = open_checkpoint(path)
    default = config = problem = rank = None
    try:
        default = checkpoint.role()
    except ValueError as error:
        problem = str(error)
    if checkpoint.format == "lora":
        rank = max(delta.a.shape[0] for state in checkpoint.roles.values() for delta in lora_deltas(state).values())
    else:
        try:
            config = infer_config(checkpoint.roles[default or next(iter(checkpoint.roles))], checkpoint.config, heads)
        except ValueError as error:
            problem = str(error)
    return CheckpointInfo(
        path=str(path),
        format=checkpoint.format,
        roles={role: _role_info(state) for role, state in checkpoint.roles.items()},
        default_role=default,
        config=config,
        config_problem=problem,
        lora_rank=rank,
        sha256={file.name: files_hash([file]) for file in checkpoint.files} if hashes else {},
    )


def _transformer(
    path: Path, files: tuple[Path, ...], content: Mapping[str, Any], roles: dict[str, dict[str, LazyTensor]]
) -> Checkpoint:
    transformers = {role: state for role, state in roles.items() if "patch_embedding.weight" in state}
    if not transformers:
        raise ValueError(_not_a_transformer(roles))
    original = {role for role, state in transformers.items() if "head.head.weight" in state}
    renamed = {role: wan_to_diffusers(state) if role in original else state for role, state in transformers.items()}
    bare = len(roles) == 1 and "patch_embedding.weight" in content
    kind: Format = "forcing" if not bare else "wan" if original else "diffusers"
    config = stored_config(content) or read_config(files[0].parent / "config.json")
    return Checkpoint(path, files, kind, renamed, config)


def _not_a_transformer(roles: Mapping[str, Mapping[str, LazyTensor]]) -> str:
    names = [name for state in roles.values() for name in state]
    what = next((what for name, what in _OTHERS.items() if name in names), None)
    held = f"this is {what}" if what else f"found {', '.join(names[:3])}"
    return f"expected a Wan transformer (a parameter patch_embedding.weight); {held}"


def _role_info(state: Mapping[str, LazyTensor]) -> RoleInfo:
    dtypes: dict[str, int] = {}
    for tensor in state.values():
        name = str(tensor.dtype).removeprefix("torch.")
        dtypes[name] = dtypes.get(name, 0) + tensor.numel
    return RoleInfo(sum(dtypes.values()), sum(tensor.nbytes for tensor in state.values()), dtypes)
