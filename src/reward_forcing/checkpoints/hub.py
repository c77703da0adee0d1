"""Where a model is: a path, the name of a bundled model, or an id on the Hugging Face hub -> a local path."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

ASSETS = Path(__file__).parents[1] / "assets"
MODEL_FILES = ("model_index.json", "transformer/*", "vae/*", "text_encoder/*", "tokenizer/*", "scheduler/*")
TRANSFORMER_FILES = ("transformer/*", "config.json", "diffusion_pytorch_model*")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILE = re.compile(r"([\w.-]+/[\w.-]+)/(.+\.(?:pt|pth|safetensors))")


@dataclass(frozen=True)
class Published:
    """A published checkpoint: what to pass as a model's name, and what it is."""

    id: str
    what: str


PUBLISHED = (
    Published("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "Wan2.1 1.3B, with VAE and text encoder"),
    Published("Wan-AI/Wan2.1-T2V-14B-Diffusers", "Wan2.1 14B, with VAE and text encoder"),
    Published("JaydenLu666/Reward-Forcing-T2V-1.3B/rewardforcing.pt", "Reward Forcing, transformer"),
    Published("gdhe17/Self-Forcing/checkpoints/self_forcing_dmd.pt", "Self Forcing, transformer"),
    Published("gdhe17/Self-Forcing/checkpoints/ode_init.pt", "Self Forcing's ODE initialisation, transformer"),
    Published("TencentARC/RollingForcing/checkpoints/rolling_forcing_dmd.pt", "Rolling Forcing, transformer"),
    Published("Efficient-Large-Model/LongLive-1.3B/models/longlive_base.pt", "LongLive, transformer (with lora.pt)"),
)


def bundled() -> dict[str, Path]:
    """Name -> folder of the models that come with the package."""
    return {folder.parent.name: folder.parent for folder in sorted(ASSETS.glob("*/transformer"))}


def resolve(name: str | Path, patterns: Sequence[str] = MODEL_FILES) -> Path:
    """The local path of a model: an existing path, a bundled name, `owner/model` or `owner/model/path/to/file.pt`.

    Hub ids are downloaded into the hub's cache; of a repository, only the files that match `patterns`.
    Raises FileNotFoundError, with the nearest valid name, if there is no such thing or the hub cannot be reached.
    """
    models = bundled()
    if Path(name).exists():
        return Path(name)
    if str(name) in models:
        return models[str(name)]
    if isinstance(name, str) and (match := _HUB_FILE.fullmatch(name)):
        return _from_hub(name, match[1], patterns, match[2])
    if isinstance(name, str) and _HUB_ID.fullmatch(name) and not name.startswith("."):
        return _from_hub(name, name, patterns)
    raise FileNotFoundError(f"no file, folder or bundled model '{name}'{_hint(Path(name))}")


def _from_hub(name: str, repository: str, patterns: Sequence[str], file: str | None = None) -> Path:
    try:
        if file is not None:
            return Path(hf_hub_download(repository, file))
        return Path(snapshot_download(repository, allow_patterns=list(patterns)))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = "the hub could not be reached; connect, or give a local path"
        if isinstance(error, HfHubHTTPError) and error.response is not None:
            reason = f"the hub has no such model that you may read (status {error.response.status_code})"
        raise FileNotFoundError(f"no file or folder '{name}' here, and {reason}{_hint(Path(name))}") from error
    except HFValidationError as error:
        raise FileNotFoundError(f"no file or folder '{name}' here, and it is no valid hub id: {error}") from error


def _hint(path: Path) -> str:
    siblings = [str(path.parent / entry.name) for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    choices = [*bundled(), *(published.id for published in PUBLISHED), *siblings]
    near = difflib.get_close_matches(str(path), choices, n=1)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; bundled: {', '.join(bundled()) or 'none'}; `rforce models list` shows more"
