"""Checkpoints of a run: a folder per step that appears whole or not at all, so that a crash costs what came after.

    .step_00000100.tmp/   while it is written: tensors by all processes, then manifest.json by the first
    step_00000100/        from the moment it is whole

The manifest holds the plain values and a hash of every file: whatever is cut, flipped or missing is noticed. Several
processes must see the same folder.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.staging import BlockingAsyncStager

from reward_forcing.checkpoints.files import files_hash
from reward_forcing.logs import console
from reward_forcing.processes import ALONE, World
from reward_forcing.training.distributed import gather, new_cpu_group
from reward_forcing.training.stored_tensors import INDEX, read_tensors, stored_tensors, write_tensors

MANIFEST = "manifest.json"
_NAME = re.compile(r"step_(\d+)")


class Checkpoints:
    """The checkpoints in a folder, named by step: named tensors, and plain values as JSON holds them.

    keep: how many of the newest stay. keep_every: those whose step is a multiple of it stay for good. background:
    `save` returns once the tensors are copied, and a thread writes them. All processes of `world` make one together.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 2,
        keep_every: int | None = None,
        world: World = ALONE,
        background: bool = False,
    ) -> None:
        self.folder = folder
        self.keep = keep
        self.keep_every = keep_every
        self.world = world
        # A group of its own: the writing thread must not come between the trainer's operations.
        self._group = new_cpu_group(world)
        self._thread = ThreadPoolExecutor(1, "checkpoint") if background else None
        self._writing: Future[None] | None = None

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(m.group(1)) for path in self.folder.iterdir() if (m := _NAME.fullmatch(path.name)))

    def path(self, step: int) -> Path:
        """Return where the checkpoint of `step` is kept."""
        return self.folder / f"step_{step:08d}"

    def save(self, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Write the state of `step`, then remove the checkpoints that need not stay. Called by all processes alike.

        Raises what went wrong with the one before, if that was written in the background.
        """
        self.wait()
        text = json.dumps(dict(values))
        if self._thread is None:
            self._write(step, tensors, text)
            return
        staged = BlockingAsyncStager().stage(dict(tensors))
        self._writing = self._thread.submit(self._write, step, staged, text)

    def wait(self) -> None:
        """Return when nothing is being written any more. Raises what went wrong in the background."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, step: int, tensors: Mapping[str, Tensor], values: str) -> None:
        path, temporary = self.path(step), self._temporary(step)
        if self.world.is_first:
            for left in self.folder.glob(".*.tmp"):
                shutil.rmtree(left)
            temporary.mkdir(parents=True)
        self._meet()
        write_tensors(temporary, tensors, self._group)
        own = [*temporary.glob(f"__{self.world.rank}_*"), *([temporary / INDEX] if self.world.is_first else [])]
        parts = gather({file.name: files_hash([file]) for file in own}, self.world, self._group)
        if self.world.is_first:
            body = json.dumps({"files": {name: digest for part in parts for name, digest in part.items()}})
            _write_sealed(temporary / MANIFEST, [body, values])
            _sync(temporary)
            if path.exists():
                self._remove(step)
            os.rename(temporary, path)
            _sync(self.folder)
            for old in self.steps()[: -self.keep]:
                if not (self.keep_every and old % self.keep_every == 0):
                    self._remove(old)
        self._meet()

    def _temporary(self, step: int) -> Path:
        return self.folder / f".{self.path(step).name}.tmp"

    def _remove(self, step: int) -> None:
        """Remove a checkpoint; it is gone at once, so that none is ever half there."""
        gone = self.folder / f".removed_{self.path(step).name}.tmp"
        os.rename(self.path(step), gone)
        shutil.rmtree(gone)

    def _meet(self) -> None:
        if self._group is not None:
            dist.barrier(self._group)

    def read(self, path: Path) -> dict[str, Any]:
        """Return the plain values of a checkpoint. Raises ValueError if any part of it is damaged."""
        try:
            body, values = _read_sealed(path / MANIFEST)
            for name, digest in json.loads(body)["files"].items():
                if files_hash([path / name]) != digest:
                    raise ValueError(f"{name} is not as it was written")
            return json.loads(values)
        except (OSError, ValueError) as error:
            raise ValueError(f"checkpoint {path} is damaged: {error}") from error

    def stored(self, path: Path) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint as `stored_tensors` does, without their values."""
        return stored_tensors(path)

    def load(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Read the tensors of a checkpoint into those given, in place. Called by all processes alike."""
        read_tensors(path, tensors, self._group)

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """Return the newest whole checkpoint and its values, or None in a new run; damaged ones are set aside.

        For the first process only. Raises ValueError when there are checkpoints and none is whole, or only some of an
        older version: starting over would hide the loss.
        """
        steps = self.steps()
        for step in reversed(steps):
            path = self.path(step)
            try:
                return path, self.read(path)
            except ValueError as error:
                console().print(f"warning: {error}; trying the one before", markup=False, soft_wrap=True)
                path.rename(path.with_suffix(".damaged"))
        if steps:
            raise ValueError(f"every checkpoint in {self.folder} is damaged; remove the run's folder to start over")
        if next(self.folder.glob("step_*.pt"), None) is not None:
            raise ValueError(
                f"{self.folder} holds checkpoints of an older version (step_*.pt), which this one does not read; go on "
                "with the version that wrote them, or give another --out for a new run"
            )
        return None


def _write_sealed(path: Path, lines: list[str]) -> None:
    """Write lines of text after a line with their hash."""
    text = "\n".join(lines)
    path.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}", encoding="utf-8")
    _sync(path)


def _read_sealed(path: Path) -> list[str]:
    """Return the lines under the first. Raises ValueError if that is not their hash."""
    seal, _, text = path.read_text(encoding="utf-8").partition("\n")
    if seal != hashlib.sha256(text.encode()).hexdigest():
        raise ValueError(f"{path.name} is not as it was written")
    return text.split("\n")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def only_writer(folder: Path, is_first: bool = True) -> Iterator[None]:
    """Hold the folder's lock, so that two trainings cannot write to one run; it goes with the process, however it ends.

    Only a run's first process takes it. Raises ValueError when another training holds it.
    """
    if not is_first:
        yield
        return
    with try_lock(folder) as is_ours:
        if not is_ours:
            raise ValueError(f"another training is writing to {folder}; wait for it or choose another --out")
        yield


@contextmanager
def try_lock(folder: Path) -> Iterator[bool]:
    """Hold the folder's lock if nobody else does, and say whether; it goes with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as {"a.b": value}; lists count as values."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def check_same_settings(
    saved: Mapping[str, Any], current: Mapping[str, Any], harmless: frozenset[str], out: Path
) -> None:
    """Raise ValueError naming the keys, other than `harmless`, that differ between a run's settings and the given."""
    old, new = flatten(saved), flatten(current)
    missing = object()
    differing = [k for k in sorted(old | new) if old.get(k, missing) != new.get(k, missing) and k not in harmless]
    if differing:
        lines = "".join(f"\n  {k}: {old.get(k, '(absent)')} there, {new.get(k, '(absent)')} here" for k in differing)
        raise ValueError(
            f"the run in {out} was trained with other settings:{lines}\n"
            "give the same settings to continue it, or another --out for a new run"
        )
