"""What an evaluation ran on: the package's commit, the versions of its libraries, the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import reward_forcing
from reward_forcing.remembered import processor

LIBRARIES = {
    "reward-forcing": ("reward-forcing",),
    "torch": ("torch",),
    "diffusers": ("diffusers",),
    "transformers": ("transformers",),
    "numpy": ("numpy",),
    "opencv": ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python"),
}
"""Library -> the distributions that bring it."""


def commit(package: Path | None = None) -> str:
    """The commit of the repository that tracks this package, '+changes' added where the package's files differ from it.

    '' where no repository tracks it, as for an installed package, or where git is missing.
    """
    package = Path(reward_forcing.__file__).parent if package is None else package
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return ""
    head, changes = _git(package, "rev-parse", "HEAD"), _git(package, "status", "--porcelain", "--", ".")
    return f"{head or ''}{'+changes' if changes else ''}"


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Library -> installed version, of those in `LIBRARIES` that are installed, and of Python."""
    found = {"python": platform.python_version()}
    for library, distributions in LIBRARIES.items():
        for distribution in distributions:
            try:
                found[library] = version(distribution)
                break
            except PackageNotFoundError:
                continue
    return found


def machine() -> str:
    """The processor's name with the number of its cores, and the GPU's name where there is one."""
    import torch

    cores = f"{processor()}, {os.cpu_count()} cores"
    return f"{cores}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else cores
