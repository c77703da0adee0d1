"""What was found by measuring on this machine, kept so that every later process computes the same way.

Knows nothing of what is measured. The file lies in the user's cache folder and may be deleted at any time.
"""

import json
import os
import platform
import tempfile
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path

import torch
from platformdirs import user_cache_path


def remembered(question: str, answers: Collection[str], measure: Callable[[], str]) -> str:
    """The answer that `measure` gave the first time `question` was asked with this processor and this torch.

    answers: those that are possible; a file that says anything else is asked in vain. Where the file cannot be written,
    every process measures for itself.
    """
    file, key = answers_file(), f"{question}, {processor()}, torch {torch.__version__}"
    known = _read(file)
    if known.get(key) in answers:
        return known[key]
    answer = measure()
    _write(file, known | {key: answer})
    return answer


def answers_file() -> Path:
    """Where answers are kept."""
    return user_cache_path("reward-forcing") / "measured.json"


@cache
def processor() -> str:
    """The processor's name."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def _read(file: Path) -> dict[str, str]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(file: Path, content: dict[str, str]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        number, temporary = tempfile.mkstemp(dir=file.parent)
        with os.fdopen(number, "w", encoding="utf-8") as out:
            json.dump(content, out, indent=1, sort_keys=True)
        os.replace(temporary, file)
    except OSError:
        return
