"""Owns the stores of ODE pairs: what a teacher makes of noise, with points on the way, for regression.

Ours are tar shards in webdataset's layout, made here: `KEY.trajectory.safetensors` (float16 [K, F, C, h, w], noisy to
clean, and where a causal teacher was given data, these as `context` [F, C, h, w]) and `KEY.json`, which says all that
the pair was made of. Published LMDBs are read as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import NonNegativeInt, PositiveInt, model_validator
from safetensors.torch import load, save
from torch import Tensor

from reward_forcing.config import Settings
from reward_forcing.data.dataset import wording
from reward_forcing.flow import TIMESTEPS, ode_sigmas, warp_denoising_steps
from reward_forcing.models.denoiser import Denoiser
from reward_forcing.rollout.kv_cache import CacheSettings
from reward_forcing.rollout.noise import SeededNoise
from reward_forcing.rollout.sinks import NoSink
from reward_forcing.training.latents import Latents, open_latents
from reward_forcing.training.lmdb_rows import LmdbRows, lmdb_folders
from reward_forcing.training.networks import load_transformer
from reward_forcing.training.prompts import PromptEncoder
from reward_forcing.training.sampling import causal_trajectory, ode_trajectory
from reward_forcing.training.shards import Manifest, weights_hash
from reward_forcing.training.tar_shards import Item, TarStore, write_tar_shards
from reward_forcing.training.world_latents import WorldLatents

TRAJECTORY = "trajectory"
CONTEXT = "context"
MEMBER = f"{TRAJECTORY}.safetensors"


class CausalTeacher(Settings):
    """How a causal teacher made its pairs: chunk by chunk, each given the clean chunks before it.

    cache: what a chunk sees of them. context: SHA-256 of the store of latents whose clips they are (teacher forcing, as
    Causal Forcing has it); empty for the ends of the teacher's own trajectories.
    """

    cache: CacheSettings = CacheSettings(window_frames=None, sink=NoSink())
    context: str = ""

    def sees_all(self, frames: int) -> bool:
        """Whether the cache has room for clips of so many frames, so that nothing is evicted."""
        return self.cache.window_frames is None or self.cache.window_frames >= frames

    def summary(self) -> str:
        """Chunk, window, sink and context in a few words."""
        window, sink = self.cache.window_frames, self.cache.sink
        seen = "all frames" if window is None else f"a window of {window} with {sink.frames} {sink.kind} sink frames"
        return f"causal, chunks of {self.cache.chunk_frames} given {'data' if self.context else 'its own'} in {seen}"


class OdePairsManifest(Manifest):
    """How the pairs were made. teacher: SHA-256 of its weights. latent_shape: (F, C, h, w).

    The teacher's ODE is solved in `steps` Euler steps with timestep shift `shift` and CFG weight `guidance` against
    `negative_prompt`; kept are the points at the noise levels of a student with `denoising_steps` and the same shift,
    and the clean end. (The Self Forcing reference solves with shift 8, guidance 6 and 48 steps, then samples with
    shift 5; we keep one shift for both.) prompts: SHA-256 of the list of prompts, empty for the world's captions.
    causal: how a causal teacher streamed; None for a bidirectional one, which solves for all frames together.
    Raises ValueError for steps that miss the student's, and for frames and prompts that do not fit a causal teacher.
    """

    teacher: str
    latent_shape: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]
    steps: PositiveInt = 48
    shift: float = 5.0
    guidance: float = 4.0
    negative_prompt: str = ""
    denoising_steps: tuple[int, ...] = (1000, 750, 500, 250)
    seed: NonNegativeInt = 0
    prompts: str = ""
    causal: CausalTeacher | None = None

    @model_validator(mode="after")
    def _points_lie_on_the_steps(self) -> OdePairsManifest:
        warp_denoising_steps(self.denoising_steps, self.shift)
        self.kept()
        return self

    @model_validator(mode="after")
    def _fits_a_causal_teacher(self) -> OdePairsManifest:
        frames = self.latent_shape[0]
        if self.causal and frames % self.causal.cache.chunk_frames:
            raise ValueError(f"{frames} latent frames are no whole chunks of {self.causal.cache.chunk_frames}")
        if self.causal and self.causal.context and self.prompts:
            raise ValueError("the clips of a causal teacher's context come with their own captions; leave prompts out")
        return self

    def kept(self) -> list[int]:
        """Indices into the trajectory of the kept points, noisy to clean. Raises ValueError unless steps fit."""
        odd = [step for step in self.denoising_steps if step * self.steps % TIMESTEPS]
        if odd:
            raise ValueError(f"denoising steps {odd} do not lie on {self.steps} ODE steps; use another number")
        return [self.steps - step * self.steps // TIMESTEPS for step in self.denoising_steps] + [self.steps]

    def timesteps(self) -> list[float]:
        """1000 sigma of the kept points, noisy to clean; the last is 0. Float32 sigmas come back from them exactly."""
        sigmas = ode_sigmas(self.steps, self.shift)
        return [TIMESTEPS * sigmas[index].item() for index in self.kept()]


class LmdbSettings(Settings):
    """Where the points of a published LMDB lie, which it does not say: `denoising_steps`, warped by `shift`, and 0.

    The defaults are Self Forcing's and Reward Forcing's (timesteps 1000, 960, 888.9, 727.3); CausVid's pairs have
    denoising_steps (1000, 280, 120) (timesteps 1000, 756.8, 521.7). Both were solved with shift 8.
    """

    shift: float = 8.0
    denoising_steps: tuple[int, ...] = (1000, 750, 500, 250)

    @model_validator(mode="after")
    def _steps_decrease(self) -> LmdbSettings:
        self.sigmas()
        return self

    def sigmas(self) -> tuple[float, ...]:
        """Noise levels of the points, noisy to clean; the last is 0."""
        return (*warp_denoising_steps(self.denoising_steps, self.shift), 0.0)


@dataclass(frozen=True)
class OdePair:
    """One trajectory of a teacher: float16 points [K, F, C, h, w] at noise levels `sigmas` [K], noisy to clean.

    given: the clean frames [F, C, h, w] that a causal teacher saw before each chunk, if they were not its own.
    """

    prompt: str
    trajectory: Tensor
    sigmas: Tensor
    given: Tensor | None = None

    @property
    def context(self) -> Tensor:
        """The clean frames [F, C, h, w] of which a causal student sees those before its chunk."""
        return self.trajectory[-1] if self.given is None else self.given

    def __post_init__(self) -> None:
        decreasing = bool((self.sigmas[1:] < self.sigmas[:-1]).all())
        if len(self.sigmas) < 2 or len(self.sigmas) != len(self.trajectory) or not decreasing or self.sigmas[-1] != 0:
            raise ValueError(
                f"a trajectory of {len(self.trajectory)} points needs as many noise levels, falling to 0, "
                f"got {self.sigmas.tolist()}"
            )


def read_prompts(file: Path) -> tuple[str, ...]:
    """The prompts of a text file, one a line; empty lines do not count.

    Raises FileNotFoundError for a missing file, ValueError for one without prompts or that is not UTF-8.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no file of prompts '{file}'")
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError:
        raise ValueError(f"'{file}' is not UTF-8 text; write one prompt a line") from None
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise ValueError(f"'{file}' holds no prompt; write one a line")
    return prompts


def prompts_hash(prompts: tuple[str, ...]) -> str:
    """SHA-256 of a list of prompts, as hex; empty for no prompts."""
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest() if prompts else ""


def make_ode_pairs(
    teacher: Path,
    text: Path,
    out: Path,
    manifest: OdePairsManifest,
    share: tuple[int, int] = (0, 1),
    batch: int = 16,
    prompts: tuple[str, ...] = (),
    device: torch.device | str = "cpu",
    context: Path | None = None,
) -> Iterator[int]:
    """Make part `share` (i of n) of the pairs; yields the shards done.

    Pair `i` is of noise `SeededNoise((i,))(0, manifest.seed, ...)`, whichever teacher makes it, and of prompt `i`
    modulo their number, or of the world's caption `i` if there are no prompts. context: a store of latents; pair `i` is
    then given clip `i` modulo their number, and its caption. Raises ValueError if prompts or context are not those of
    the manifest, if the teacher's channels or the context's clips do not fit the latents, or where the ODE leaves the
    range of float16.
    """
    if prompts_hash(prompts) != manifest.prompts:
        raise ValueError("these are not the prompts of the manifest; give it their hash")
    clips = _context_of(context, manifest)
    device = torch.device(device)
    network = load_transformer(teacher, device).requires_grad_(False)
    channels = network.config["in_channels"]
    if channels != manifest.latent_shape[1]:
        raise ValueError(f"the teacher takes latents of {channels} channels, got latent shape {manifest.latent_shape}")
    denoiser, encode = Denoiser(network), PromptEncoder(text, device)
    sigmas, kept = ode_sigmas(manifest.steps, manifest.shift), manifest.kept()

    def prompt(item: int) -> str:
        if clips is not None:
            return clips.caption(item % len(clips), manifest.seed)
        return prompts[item % len(prompts)] if prompts else wording(item, "train", manifest.seed)

    def solve(items: range, given: Tensor | None) -> Tensor:
        noise = SeededNoise(tuple(items))(0, manifest.seed, manifest.latent_shape)
        with torch.inference_mode():
            text = network.encode_text(encode([prompt(item) for item in items]))
            null = network.encode_text(encode([manifest.negative_prompt])).expand(len(items))
            how = (text, null, sigmas, manifest.guidance)
            if manifest.causal is None:
                return ode_trajectory(denoiser, noise.to(device), *how, kept)
            return causal_trajectory(denoiser, noise, *how, manifest.causal.cache, kept, given)

    def make(items: range) -> Iterator[Item]:
        for first in range(items.start, items.stop, batch):
            piece = range(first, min(first + batch, items.stop))
            frames = manifest.latent_shape[0]
            given = None if clips is None else clips.read([item % len(clips) for item in piece], frames)
            solved = solve(piece, given).half().cpu()
            for row, item in enumerate(piece):
                if not solved[row].isfinite().all():
                    raise ValueError(f"the teacher's ODE diverges for {prompt(item)!r}; lower guidance or raise steps")
                tensors = {TRAJECTORY: solved[row].contiguous()}
                about = {"prompt": prompt(item), **_about(manifest, item)}
                if clips is not None and given is not None:
                    tensors[CONTEXT], about["clip"] = given[row].half().contiguous(), item % len(clips)
                yield {MEMBER: save(tensors), "json": json.dumps(about, ensure_ascii=False).encode()}

    return write_tar_shards(out, manifest, make, share)


def _context_of(folder: Path | None, manifest: OdePairsManifest) -> Latents | None:
    """The clips that a causal teacher is given; None for its own. Raises ValueError if the manifest means others."""
    named = manifest.causal.context if manifest.causal else ""
    if (weights_hash(folder) if folder else "") != named:
        raise ValueError("this is not the context of the manifest; give its causal teacher the store's hash")
    if folder is None:
        return None
    clips = open_latents(folder)
    switching = isinstance(clips, WorldLatents) and bool(clips.switches)
    if clips.shape[0] < manifest.latent_shape[0] or clips.shape[1:] != manifest.latent_shape[1:] or switching:
        raise ValueError(f"'{folder}' holds clips of {clips.shape}, not of one prompt and {manifest.latent_shape}")
    return clips


def _about(manifest: OdePairsManifest, item: int) -> dict[str, Any]:
    """What pair `item` was made of besides its prompt; seed and draw are those of its `SeededNoise`."""
    told = {"teacher", "steps", "shift", "guidance", "negative_prompt"} | ({"causal"} if manifest.causal else set())
    made_of = manifest.model_dump(mode="json", include=told)
    return {"seed": item, "draw": manifest.seed, "timesteps": manifest.timesteps()} | made_of


class OdePairs:
    """The pairs of a store, read one at a time from the files: ours, or a published LMDB."""

    def __init__(self, folder: Path, lmdb: LmdbSettings | None = None) -> None:
        """Open a store; lmdb: where an LMDB's points lie, by default as `LmdbSettings()` says.

        Raises FileNotFoundError if the store is missing or not complete, ValueError for an LMDB of other points or
        without trajectories, and for `lmdb` settings where the pairs say themselves.
        """
        self.folder = folder
        if lmdb_folders(folder):
            self._source: TarPairs | LmdbPairs = LmdbPairs(folder, lmdb or LmdbSettings())
        elif lmdb is not None:
            raise ValueError(f"'{folder}' is no LMDB, its pairs say their timesteps themselves; leave lmdb out")
        else:
            self._source = TarPairs(folder)

    def __len__(self) -> int:
        return len(self._source)

    @property
    def shape(self) -> tuple[int, ...]:
        """(K, F, C, h, w) of a trajectory."""
        return self._source.shape

    @property
    def causal(self) -> CausalTeacher | None:
        """How a causal teacher made the pairs; None for a bidirectional one."""
        return self._source.causal

    def read(self, index: int) -> OdePair:
        """Pair `index`. Raises IndexError outside 0 .. len - 1, ValueError for a damaged one."""
        pair = self._source.read(index)
        if tuple(pair.trajectory.shape) != self.shape:
            raise ValueError(
                f"pair {index} of '{self.folder}' has shape {list(pair.trajectory.shape)}, not {self.shape}"
            )
        return pair

    def summary(self) -> str:
        """What the store holds, in one line: pairs, shape, timesteps, and how noise and clean end of the first vary."""
        pair = self.read(0)
        timesteps = ", ".join(f"{TIMESTEPS * sigma:.5g}" for sigma in pair.sigmas.tolist())
        noise, clean = (pair.trajectory[end].float().std().item() for end in (0, -1))
        points, *latents = self.shape
        return (
            f"{len(self)} pairs, {points} points of {' x '.join(map(str, latents))} at timesteps {timesteps}; "
            f"standard deviation of the first {noise:.3g} -> {clean:.3g}"
            + (f"; {self.causal.summary()}" if self.causal else "")
        )


class TarPairs:
    """Pairs of our own store."""

    def __init__(self, folder: Path) -> None:
        """Open a store. Raises FileNotFoundError if it is missing or not complete."""
        self._store = TarStore(folder, OdePairsManifest, f"rforce data ode-pairs --out {folder}")
        manifest = self._store.manifest
        self.shape = (len(manifest.denoising_steps) + 1, *manifest.latent_shape)
        self.causal = manifest.causal

    def __len__(self) -> int:
        return len(self._store)

    def read(self, index: int) -> OdePair:
        """Pair `index`, at the timesteps that are stored with it."""
        members = self._store.read(index)
        about = json.loads(members["json"])
        sigmas = torch.tensor(about["timesteps"], dtype=torch.float64) / TIMESTEPS
        tensors = load(members[MEMBER])
        return OdePair(about["prompt"], tensors[TRAJECTORY], sigmas.float(), tensors.get(CONTEXT))


class LmdbPairs:
    """Pairs of a published LMDB: `latents` [n, K, F, C, h, w] in float16, and `prompts`; of bidirectional teachers."""

    causal = None

    def __init__(self, folder: Path, settings: LmdbSettings) -> None:
        """Open an LMDB. Raises ValueError if its points are not as many as the settings say, or it holds none."""
        self._rows = LmdbRows(folder)
        count, *shape = self._rows.shape("latents")
        prompts = self._rows.shape("prompts")[0]
        if len(shape) != 5:
            raise ValueError(f"'{folder}' holds latents of shape {shape}, not trajectories [K, F, C, h, w]")
        self._sigmas = torch.tensor(settings.sigmas())
        if shape[0] != len(self._sigmas):
            raise ValueError(
                f"'{folder}' holds {shape[0]} points a pair, but lmdb.denoising_steps {settings.denoising_steps} and "
                f"the clean end are {len(self._sigmas)}; set lmdb.denoising_steps to those of the pairs"
            )
        if count != prompts:
            raise ValueError(f"'{folder}' holds {count} trajectories but {prompts} prompts")
        self.shape = tuple(shape)
        self._count = count

    def __len__(self) -> int:
        return self._count

    def read(self, index: int) -> OdePair:
        """Pair `index`, at the timesteps of the settings."""
        trajectory = torch.from_numpy(self._rows.float16("latents", index))
        return OdePair(self._rows.text("prompts", index), trajectory, self._sigmas)
