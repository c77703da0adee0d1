"""What determines the numbers of an evaluation, kept beside them, so that a folder holds clips of one recipe only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from reward_forcing.config import Settings
from reward_forcing.evaluation.results import RESULTS

RECIPE = "recipe.json"

R = TypeVar("R", bound=Settings)


def claim(out: Path, recipe: Settings) -> None:
    """Make `out` a folder of `recipe`, with a folder for samples; raises ValueError if it holds samples of another."""
    is_empty = not (out / RESULTS).exists() and (out / "samples").is_dir() and not any((out / "samples").iterdir())
    if is_empty or not (out / RECIPE).is_file():
        if (out / RESULTS).exists():
            raise ValueError(f"'{out}' holds a {RESULTS} of something else; use another folder")
        (out / "samples").mkdir(parents=True, exist_ok=True)
        write_settings(out / RECIPE, recipe)
    try:
        held = read_recipe(out, type(recipe))
    except ValidationError:
        raise ValueError(f"'{out}' holds something else than this command makes; use another folder") from None
    if held != recipe:
        changes = differences(held.model_dump(mode="json"), recipe.model_dump(mode="json"))
        raise ValueError(f"'{out}' holds an evaluation of another recipe ({changes}); use another folder, or delete it")


def differences(held: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What of two groups of plain values differs: `a.b: 1 -> 2, ...`."""
    theirs, ours = _flat(held), _flat(wanted)
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    return ", ".join(f"{name}: {_short(theirs.get(name))} -> {_short(ours.get(name))}" for name in names)


def read_recipe(out: Path, recipe_class: type[R]) -> R:
    """The recipe of a folder."""
    return recipe_class.model_validate_json((out / RECIPE).read_text(encoding="utf-8"))


def write_settings(path: Path, value: Settings) -> None:
    """A value as a JSON file, whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(value.model_dump_json(indent=1), encoding="utf-8")
    os.replace(temporary, path)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested groups as one, `streaming.sink.alpha`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _short(value: object) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else str(value)
