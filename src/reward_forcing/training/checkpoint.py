"""Checkpoints of a run: one file per step, written so that a crash at any moment leaves the last good one in place."""

import fcntl
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from reward_forcing.logs import console

_NAME = re.compile(r"step_(\d+)\.pt")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary)` and move the result to `path`, which always holds its old or its new content whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    write(temporary)
    _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Checkpoints:
    """The checkpoints in a folder, named by step. Values are nested dicts of tensors and plain values.

    keep: how many of the newest stay. keep_every: those whose step is a multiple of it stay for good.
    """

    def __init__(self, folder: Path, keep: int = 2, keep_every: int | None = None) -> None:
        self.folder = folder
        self.keep = keep
        self.keep_every = keep_every

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(m.group(1)) for path in self.folder.iterdir() if (m := _NAME.fullmatch(path.name)))

    def path(self, step: int) -> Path:
        """Return where the checkpoint of `step` is kept."""
        return self.folder / f"step_{step:08d}.pt"

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write the state of `step`, then remove those that need not stay; returns the file's path."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(step)
        write_whole(path, lambda temporary: torch.save(dict(state), temporary))
        for old in self.steps()[: -self.keep]:
            if not (self.keep_every and old % self.keep_every == 0):
                self.path(old).unlink()
        return path

    def load(self, path: Path) -> dict[str, Any]:
        """Return the state in a checkpoint, on the CPU. Raises ValueError if any part of the file is damaged."""
        try:
            # torch itself does not verify the checksums that it writes into its zip archive
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
            if broken is None:
                return torch.load(path, map_location="cpu", weights_only=True)
        except (zipfile.BadZipFile, RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            raise ValueError(f"checkpoint {path} is damaged: {error}") from error
        raise ValueError(f"checkpoint {path} is damaged: {broken} fails its checksum")

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """Return the newest whole checkpoint, or None in a new run; a damaged one is set aside with a warning.

        Raises ValueError when there are checkpoints and none is whole: starting over would hide the loss.
        """
        steps = self.steps()
        for step in reversed(steps):
            path = self.path(step)
            try:
                return path, self.load(path)
            except ValueError as error:
                console().print(f"warning: {error}; trying the one before", markup=False, soft_wrap=True)
                path.rename(path.with_suffix(".pt.damaged"))
        if steps:
            raise ValueError(f"every checkpoint in {self.folder} is damaged; remove the run's folder to start over")
        return None


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
