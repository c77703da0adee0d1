"""What an evaluation ran on."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest
import torch

from reward_forcing.checkpoints.files import files_hash
from reward_forcing.evaluation.environment import commit, machine, versions


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in a fresh repository that tracks nothing yet, as nobody's settings and hooks would have it."""
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "a")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "a@b.c")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    folder = tmp_path / "src" / "package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    git(tmp_path, "init", "-q")
    return folder


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_that_of_the_repository_that_tracks_the_package(package: Path, tmp_path: Path) -> None:
    assert commit(package) == ""  # in a repository, but no part of it, as a package in a virtual environment
    git(package, "add", ".")
    git(package, "commit", "-q", "-m", "First")
    head = git(package, "rev-parse", "HEAD")
    assert commit(package) == head
    (tmp_path / "notes.txt").write_text("beside the package")
    assert commit(package) == head
    (package / "new.py").write_text("")
    assert commit(package) == f"{head}+changes"


def test_without_a_repository_or_without_git_there_is_no_commit(
    tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert commit(tmp_path) == ""
    monkeypatch.setenv("PATH", "")
    assert commit(package) == ""


def test_versions_and_machine_are_told() -> None:
    found = versions()
    assert found["torch"] == torch.__version__ or torch.__version__.startswith(found["torch"])
    assert {"python", "reward-forcing", "diffusers", "transformers", "numpy", "opencv"} <= found.keys()
    assert f"{os.cpu_count()} cores" in machine()


def test_the_hash_runs_over_all_files_in_order(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "ab"]
    for file in files:
        file.write_bytes(file.name.encode() * 3)
    assert files_hash(files) == hashlib.sha256(b"aaabbb").hexdigest()
    assert files_hash(files[::-1]) == hashlib.sha256(b"bbbaaa").hexdigest()
