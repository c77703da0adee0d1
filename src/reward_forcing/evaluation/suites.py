"""What an evaluation generates: sets of prompts with the length of their clips, and where they come from.

Owns the bundled suite, prompt files, and folders of videos made elsewhere. Knows no model and measures nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from reward_forcing.config import Settings, describe, unknown
from reward_forcing.data.video_reader import look_at
from reward_forcing.evaluation.world_suite import Prompt, held_out_prompts, validation_prompts
from reward_forcing.streaming.video_io import read_metadata

BUNDLED_SUITE, VALIDATION_SUITE = "mini", "mini-validation"
SHORT_SECONDS, LONG_SECONDS = 5.0, 60.0
SHORT_PROMPTS = 64
VALIDATION_PROMPTS, FIRST_VALIDATION = 192, 200
"""The validation suite begins behind the scenes that trainings watch."""
PROMPTS_PER_LONG = 4
"""The bundled suite streams the first of so many short prompts for a minute, too."""
QUICK_PROMPTS, QUICK_LONG_PROMPTS, QUICK_SECONDS = 16, 4, 20.0
LONGEST_SHORT = 10.0
"""Seconds up to which a clip is short: measured whole, and left as it is by `Suite.quick`."""
SEED_STRIDE = 100_000
"""Further seeds of a prompt lie so far apart, so that a prompt's seeds stay when another number of them is made."""
VIDEO_SUFFIXES = (".mp4", ".webm", ".gif", ".mkv")
PROMPT_FILES = ("prompts.json", "prompts.txt")


@dataclass(frozen=True)
class PromptSet:
    """Prompts whose clips all last `seconds`, `seeds` clips of each.

    truth: what the clip of each prompt should show, where that is known; else empty. videos: for clips that exist
    already, the files of each prompt; else empty.
    Raises ValueError for a name that is no file name, fewer than 2 prompts (an interval needs them), empty prompts,
    lengths that are not positive and finite, and truths or videos that are not one for each prompt.
    """

    name: str
    prompts: tuple[str, ...]
    seconds: float
    seeds: int = 1
    truth: tuple[Prompt, ...] = ()
    videos: tuple[tuple[Path, ...], ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.]+", self.name):
            raise ValueError(f"a set's name must be letters, digits, '_' and '.', got '{self.name}'")
        if len(self.prompts) < 2:
            raise ValueError(f"set '{self.name}' has {len(self.prompts)} prompt; intervals need at least 2 of a length")
        if not all(prompt.strip() for prompt in self.prompts):
            raise ValueError(f"set '{self.name}' holds an empty prompt")
        if not 0 < self.seconds < math.inf:
            raise ValueError(f"the clips of set '{self.name}' must last a positive time, got {self.seconds:g} s")
        if self.seeds < 1:
            raise ValueError(f"expected at least 1 seed for each prompt, got {self.seeds}")
        for what in (self.truth, self.videos):
            if what and len(what) != len(self.prompts):
                raise ValueError(f"set '{self.name}' has {len(self.prompts)} prompts but {len(what)} entries for them")

    def first(self, prompts: int) -> PromptSet:
        """This set with its first prompts only."""
        return replace(self, prompts=self.prompts[:prompts], truth=self.truth[:prompts], videos=self.videos[:prompts])

    def seeds_of(self, prompt_index: int, seed: int) -> list[int]:
        """The seeds of a prompt's clips in an evaluation with `seed`: no two prompts of the set share one.

        Clips that exist already are numbered from 0 on.
        """
        if self.videos:
            return list(range(len(self.videos[prompt_index])))
        return [seed + prompt_index + SEED_STRIDE * number for number in range(self.seeds)]


@dataclass(frozen=True)
class Suite:
    """What an evaluation is made of. quick: cut down to see that all works; its numbers say little.

    Raises ValueError without a set and for two sets of one name.
    """

    name: str
    sets: tuple[PromptSet, ...]
    is_quick: bool = False

    def __post_init__(self) -> None:
        names = [prompts.name for prompts in self.sets]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"a suite needs sets of different names, got {', '.join(names) or 'none'}")

    @property
    def is_made(self) -> bool:
        """Whether the videos exist already."""
        return any(prompts.videos for prompts in self.sets)

    def quick(self) -> Suite:
        """The first 16 prompts of each short set, and of each long one the first 4 for at most 20 seconds."""
        return Suite(self.name, tuple(_quick(prompts) for prompts in self.sets), is_quick=True)

    def prompts_hash(self) -> str:
        """SHA-256 of all prompts in order, as a JSON list, in hexadecimal."""
        prompts = [prompt for one in self.sets for prompt in one.prompts]
        return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()


def _quick(prompts: PromptSet) -> PromptSet:
    if prompts.seconds <= LONGEST_SHORT:
        return prompts.first(QUICK_PROMPTS)
    seconds = prompts.seconds if prompts.videos else min(prompts.seconds, QUICK_SECONDS)
    return replace(prompts.first(QUICK_LONG_PROMPTS), seconds=seconds)


def open_suite(name: str, prompts: int | None = None, seeds: int = 1, quick: bool = False) -> Suite:
    """The suite called `name`: 'mini', 'mini-validation', a prompt file, or a folder of videos.

    prompts: how many of each set, from the first on (None: all; of 'mini', any number of short ones and a quarter as
    many long ones; of 'mini-validation', any number). seeds: clips of each prompt.
    Raises ValueError for another name and as `suite_of_file` and `suite_of_folder` do.
    """
    if name == BUNDLED_SUITE:
        suite = bundled_suite(prompts or SHORT_PROMPTS, seeds)
    elif name == VALIDATION_SUITE:
        suite = validation_suite(prompts or VALIDATION_PROMPTS, seeds)
    elif Path(name).is_dir():
        if seeds != 1:
            raise ValueError("a folder of videos has the seeds it has; leave the number of seeds out")
        suite = suite_of_folder(Path(name), prompts)
    elif Path(name).is_file():
        suite = suite_of_file(Path(name), prompts, seeds)
    else:
        bundled = f"'{BUNDLED_SUITE}', '{VALIDATION_SUITE}'"
        raise ValueError(f"no suite '{name}'; expected {bundled}, a file of prompts or a folder of videos")
    return suite.quick() if quick else suite


def bundled_suite(prompts: int = SHORT_PROMPTS, seeds: int = 1) -> Suite:
    """Held-out prompts of the world: `short`, 5 seconds each, and `long`, the first quarter of them for 60 seconds.

    Wordings are distinct, and no training clip has their wording or their combination of kind, shape, colour and
    background (snow, day and pan, which have no object, are held out by wording only).
    """
    truth = distinct_prompts(prompts)
    short = PromptSet("short", tuple(prompt.text for prompt in truth), SHORT_SECONDS, seeds, truth)
    long = replace(short.first(max(2, prompts // PROMPTS_PER_LONG)), name="long", seconds=LONG_SECONDS)
    return Suite(BUNDLED_SUITE, (short, long))


def validation_suite(prompts: int = VALIDATION_PROMPTS, seeds: int = 1) -> Suite:
    """Prompts to choose recipes by, so that the held-out ones stay unseen: of the world's validation scenes, 5 seconds.

    Combinations and wordings are of the kind that training draws from.
    """
    truth = tuple(validation_prompts(prompts, FIRST_VALIDATION))
    return Suite(VALIDATION_SUITE, (PromptSet("short", tuple(one.text for one in truth), SHORT_SECONDS, seeds, truth),))


def distinct_prompts(number: int) -> tuple[Prompt, ...]:
    """The world's first held-out prompts, without the few that repeat the wording of an earlier one."""
    found: dict[str, Prompt] = {}
    for (prompt,) in (held_out_prompts(1, index) for index in count()):
        found.setdefault(prompt.text, prompt)
        if len(found) == number:
            break
    return tuple(found.values())


class _Line(Settings):
    prompt: str
    seconds: float = SHORT_SECONDS


def suite_of_file(path: Path, prompts: int | None = None, seeds: int = 1) -> Suite:
    """The prompts of a text file, one in a line; a line may be JSON: `{"prompt": "a red ball", "seconds": 60}`.

    Without `seconds` a clip lasts 5. Prompts of one length make a set, called by it, such as `5s`, of which the first
    `prompts` count.
    Raises ValueError, naming the line, for what cannot be read; empty lines do not count.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    read = [_read_line(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not read:
        raise ValueError(f"'{path}' holds no prompts; write one in a line")
    by_length: dict[float, list[str]] = {}
    for line in read:
        by_length.setdefault(line.seconds, []).append(line.prompt)
    return Suite(
        "file",
        tuple(
            PromptSet(_set_name(length), tuple(texts[:prompts]), length, seeds) for length, texts in by_length.items()
        ),
    )


def _read_line(path: Path, number: int, line: str) -> _Line:
    try:
        read = _Line.model_validate(json.loads(line) if line.lstrip().startswith("{") else {"prompt": line.strip()})
    except ValidationError as error:
        raise ValueError(f"'{path}', line {number}: {describe(error)}") from None
    except ValueError as error:
        raise ValueError(f"'{path}', line {number} is not valid JSON: {error}") from None
    if not read.prompt.strip() or not 0 < read.seconds < math.inf:
        raise ValueError(f"'{path}', line {number}: expected a prompt and a positive length, got {line.strip()}")
    return read


def suite_of_folder(folder: Path, prompts: int | None = None) -> Suite:
    """Videos made elsewhere, .mp4, .webm, .gif or .mkv; nothing is generated.

    A video's prompt stands in `prompts.json` (file name -> prompt), in `prompts.txt` (lines `FILE: PROMPT`), or is the
    title stored in the video. Videos of one prompt are its seeds 0, 1, ... in the order of their names. Videos of one
    length, to the second, make a set, called by it, such as `5s`, of which the first `prompts` count.
    Raises ValueError for a folder without videos, a video without a prompt or that cannot be read, and a listed file
    that is not there.
    """
    by_length: dict[float, dict[str, list[Path]]] = {}
    for file, text in prompts_of_videos(folder).items():
        seconds = look_at(file).seconds
        by_length.setdefault(round(seconds) or round(seconds, 1), {}).setdefault(text, []).append(file)
    sets = [_set_of_videos(length, by_prompt) for length, by_prompt in sorted(by_length.items())]
    return Suite("folder", tuple(sets if prompts is None else [one.first(prompts) for one in sets]))


def prompts_of_videos(folder: Path) -> dict[Path, str]:
    """Video -> its prompt, of a folder as `suite_of_folder` reads it and with the errors that it raises."""
    files = videos_in(folder)
    texts = _listed_prompts(folder, [file.name for file in files])
    prompts = {file: texts.get(file.name) or read_metadata(file).get("title", "").strip() for file in files}
    for file, text in prompts.items():
        if not text:
            raise ValueError(f"no prompt for '{file}'; add a line '{file.name}: PROMPT' to {folder / 'prompts.txt'}")
    return prompts


def wording(prompt: str) -> str:
    """A prompt without regard to case and spaces, by which prompts of videos made elsewhere are compared."""
    return " ".join(prompt.lower().split())


def _set_of_videos(length: float, by_prompt: Mapping[str, Sequence[Path]]) -> PromptSet:
    videos = tuple(tuple(files) for files in by_prompt.values())
    return PromptSet(_set_name(length), tuple(by_prompt), length, max(map(len, videos)), videos=videos)


def _set_name(seconds: float) -> str:
    return f"{seconds:g}s"


def videos_in(folder: Path) -> list[Path]:
    """The videos of a folder by name. Raises ValueError if there is none."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in VIDEO_SUFFIXES)
    if not files:
        raise ValueError(f"'{folder}' holds no videos ({', '.join(VIDEO_SUFFIXES)})")
    return files


def _listed_prompts(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """File name -> prompt, of the folder's prompts.json or prompts.txt, or empty without either."""
    path = next((folder / name for name in PROMPT_FILES if (folder / name).is_file()), None)
    if path is None:
        return {}
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".txt":
        lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        return dict(_named_prompt(path, number, line, names) for number, line in lines)
    try:
        listed: Any = json.loads(text)
    except ValueError as error:
        raise ValueError(f"'{path}' is not valid JSON: {error}") from None
    if not isinstance(listed, dict) or not all(isinstance(prompt, str) for prompt in listed.values()):
        raise ValueError(f'\'{path}\' must map file names to prompts, such as {{"clip.mp4": "a red ball"}}')
    for name in listed:
        if name not in names:
            raise ValueError(f"'{path}': {unknown('video', name, names)}")
    return listed


def _named_prompt(path: Path, number: int, line: str, names: Sequence[str]) -> tuple[str, str]:
    """The file and the prompt of a line; file names may hold spaces, so that the longest that fits is meant."""
    name = max((name for name in names if re.match(re.escape(name) + r"\s*[:\t ]", line)), key=len, default=None)
    if name is None:
        raise ValueError(f"'{path}', line {number}: expected 'FILE: PROMPT' with a video of the folder, got '{line}'")
    return name, line[len(name) :].lstrip().removeprefix(":").strip()
