"""Trains and evaluates every variant with every seed, goes on where it was stopped, and shares the work out.

    OUT/model/                       what all students have in common: VAE, text encoder, streaming settings
    OUT/VARIANT/seed1/train.yaml     the training's settings in full, a configuration file for `rforce train`
    OUT/VARIANT/seed1/train/         the training's run
    OUT/VARIANT/seed1/evaluation/    the evaluation, as `rforce eval run` leaves it
    OUT/VARIANT/seed1/*.json         a record for each of the two once it is done; sessions.jsonl: what they took

A variant with a seed is a unit: it is held by a lock while a process works on it, so that any number of processes, on
one machine, may work on one folder. A process that dies lets go of its lock, and the next one goes on.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from reward_forcing.config import Settings
from reward_forcing.evaluation import environment
from reward_forcing.evaluation.reproduce.recipe import Ablation, digest, streamed_as, write_training
from reward_forcing.evaluation.run import evaluate
from reward_forcing.evaluation.sources import StreamedSource
from reward_forcing.logs import JsonLines, console
from reward_forcing.streaming.model_folder import INDEX, open_model_folder, write_model_folder
from reward_forcing.training import run_worker
from reward_forcing.training.checkpoint import try_lock
from reward_forcing.training.dmd import DmdSettings
from reward_forcing.training.networks import load_transformer, load_vae
from reward_forcing.training.shards import write_whole

TRAIN, EVALUATE = "train", "evaluate"
TASKS = (TRAIN, EVALUATE)
SESSIONS = "sessions.jsonl"


@dataclass(frozen=True)
class Unit:
    """A variant trained with a seed, in its folder."""

    variant: str
    seed: int
    folder: Path

    @property
    def run(self) -> Path:
        """The training's run."""
        return self.folder / "train"

    @property
    def evaluation(self) -> Path:
        """The folder of the evaluation."""
        return self.folder / "evaluation"

    def record(self, task: str) -> Path:
        """Where it stands that a task is done."""
        return self.folder / f"{task}.json"


class Record(Settings):
    """That a task of a unit is done. settings: a hash of what it depends on.

    command: trains the same by hand; of an evaluation, streams the same student. cpu: CPU seconds of all sessions that
    were not killed.
    """

    command: str
    settings: str
    commit: str
    cpu: float


@dataclass(frozen=True)
class Progress:
    """How far a task of a unit is: 'done', 'running' (a process holds its unit) or 'waiting'; the share that is done.

    cpu: CPU seconds taken, None before the first session has ended.
    """

    unit: Unit
    task: str
    state: str
    share: float
    cpu: float | None


def units_of(recipe: Ablation, out: Path, only: Sequence[str] = ()) -> list[Unit]:
    """The units, by seed, so that all variants have one training before any has two; equal variants are one.

    only: variants to keep, with those that they begin after. Raises ValueError for one that is not in the recipe.
    """
    first = recipe.trained_as()
    for name in only:
        if name not in first:
            raise ValueError(f"no variant '{name}' in the recipe ({', '.join(first)})")
    wanted = [name for one in (only or first) for name in (recipe.variants[one].after, one) if name is not None]
    names = dict.fromkeys(first[name] for name in wanted)
    return [Unit(name, seed, out / name / f"seed{seed}") for seed in recipe.seeds for name in names]


def work(recipe: Ablation, out: Path, only: Sequence[str] = (), share: tuple[int, int] = (0, 1)) -> int:
    """Do what is left of the units, those that others hold left to them; 0, or 128 + the signal that stopped it.

    share: (i, n) keeps to every n-th unit from the i-th on; a unit that begins after another goes with it.
    Raises ValueError for units that were made with other settings.
    """
    torch.set_num_threads(1)
    every = units_of(recipe, out, only)
    starts = [unit for unit in every if _before(recipe, out, unit) is None][share[0] :: share[1]]
    units = [unit for unit in every if (_before(recipe, out, unit) or unit) in starts]
    for unit in units:
        _check_settings(recipe, unit)
    while unit := next((unit for unit in units if _can_begin(recipe, out, unit)), None):
        with try_lock(unit.folder) as is_ours:
            if is_ours and (code := _do(recipe, out, unit)):
                return code
    return 0


def _can_begin(recipe: Ablation, out: Path, unit: Unit) -> bool:
    """Whether something is left of a unit that no process holds and that waits for no other."""
    before = _before(recipe, out, unit)
    is_ready = before is None or before.record(TRAIN).is_file()
    return is_ready and not is_done(unit) and not _is_held(unit)


def _before(recipe: Ablation, out: Path, unit: Unit) -> Unit | None:
    """The unit with whose student this one begins."""
    after = recipe.variants[unit.variant].after
    return None if after is None else Unit(after, unit.seed, out / after / f"seed{unit.seed}")


def is_done(unit: Unit) -> bool:
    """Whether the unit is trained and evaluated."""
    return all(unit.record(task).is_file() for task in TASKS)


def progress_of(recipe: Ablation, unit: Unit) -> list[Progress]:
    """How far both tasks of a unit are."""
    found, held = [], _is_held(unit)
    for task in TASKS:
        done = unit.record(task).is_file()
        share = 1.0 if done else _share_done(recipe, unit, task)
        state = "done" if done else "running" if held else "waiting"
        found.append(Progress(unit, task, state, share, _cpu_of(unit, task)))
        held = held and done
    return found


def cpu_left(progress: Sequence[Progress]) -> dict[str, float | None]:
    """For each task the CPU seconds that it still needs, by the median of the finished ones; None where none is."""
    left: dict[str, float | None] = {}
    for task in TASKS:
        own = [one for one in progress if one.task == task]
        taken = [one.cpu for one in own if one.state == "done" and one.cpu is not None]
        shares = sum(1 - one.share for one in own)
        left[task] = 0.0 if not shares else median(taken) * shares if taken else None
    return left


def _check_settings(recipe: Ablation, unit: Unit) -> None:
    for task, wanted in zip(TASKS, _settings_of(recipe, unit), strict=True):
        if unit.record(task).is_file() and _read(unit.record(task)).settings != wanted:
            raise ValueError(
                f"'{unit.folder}' was made with other settings ({task}); use another --out, or delete that folder"
            )


def _settings_of(recipe: Ablation, unit: Unit) -> tuple[str, str]:
    """Hashes of what a unit's training depends on, and of what its evaluation does besides."""
    training = recipe.training(unit.variant, unit.seed)
    how = {"evaluation": recipe.evaluation.model_dump(mode="json"), "streaming": streamed_as(training)}
    how["model"] = recipe.streaming_settings().recorded()
    trained = digest(training.model_dump(mode="json"))
    return trained, digest([trained, how])


def _do(recipe: Ablation, out: Path, unit: Unit) -> int:
    """Do what is left of a unit whose lock is held; 0, or 128 + the signal that stopped it."""
    settings = recipe.training(unit.variant, unit.seed, out)
    trained, evaluated = _settings_of(recipe, unit)
    if not unit.record(TRAIN).is_file():
        config = unit.folder / "train.yaml"
        write_training(settings, config)
        command = shlex.join(["rforce", "train", str(config), "--out", str(unit.run)])
        console().print(command, markup=False, soft_wrap=True)
        with _session(unit, TRAIN):
            code = run_worker(config, (), unit.run)
        if code:
            return code
        _write(unit, TRAIN, command, trained)
    if not unit.record(EVALUATE).is_file():
        command = _evaluate(recipe, out, unit, settings)
        _write(unit, EVALUATE, command, evaluated)
    return 0


def _evaluate(recipe: Ablation, out: Path, unit: Unit, settings: DmdSettings) -> str:
    """Make and measure a unit's clips; returns the command that streams the student, but for the prompt."""
    _write_model(recipe, out / "model", settings)
    weights, how = unit.run / "final" / "transformer", streamed_as(settings)
    folder = open_model_folder(out / "model", weights=weights, changes=how)
    changes = [part for name, value in how.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    command = shlex.join(["rforce", "generate", "--model", str(out / "model"), "--weights", str(weights), *changes])
    judged = recipe.evaluation
    with _session(unit, EVALUATE):
        evaluate(
            judged.suite(),
            unit.evaluation,
            StreamedSource(folder),
            name=f"{unit.variant}, seed {unit.seed}",
            seed=judged.seed,
            batch=judged.batch,
            command=shlex.join(["rforce", *sys.argv[1:]]),
        )
    return command


def _write_model(recipe: Ablation, folder: Path, settings: DmdSettings) -> None:
    """The model folder whose transformer the students' replace, written by the first who needs it."""
    while not (folder / INDEX).is_file():
        with try_lock(folder.parent) as is_ours:
            if is_ours and not (folder / INDEX).is_file():
                network, vae = load_transformer(settings.generator, torch.device("cpu")), load_vae(settings.vae).vae
                parts = (network, vae, settings.text / "text_encoder", settings.text / "tokenizer")
                write_model_folder(folder, *parts, recipe.streaming_settings(), "", None)
        time.sleep(0 if is_ours else 0.1)


@contextmanager
def _session(unit: Unit, task: str) -> Iterator[None]:
    """Note what the block takes, also when it is stopped."""
    cpu, wall = time.process_time(), time.monotonic()
    try:
        yield
    finally:
        taken = {"task": task, "cpu": time.process_time() - cpu, "wall": time.monotonic() - wall}
        JsonLines(unit.folder / SESSIONS).append(taken)


def _cpu_of(unit: Unit, task: str) -> float | None:
    sessions = JsonLines(unit.folder / SESSIONS)
    taken = [float(row["cpu"]) for row in sessions.rows() if row["task"] == task]
    return sum(taken) if taken else None


def _write(unit: Unit, task: str, command: str, settings: str) -> None:
    record = Record(command=command, settings=settings, commit=environment.commit(), cpu=_cpu_of(unit, task) or 0.0)
    text = record.model_dump_json(indent=1)
    write_whole(unit.record(task), lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _read(path: Path) -> Record:
    return Record.model_validate_json(path.read_text(encoding="utf-8"))


def records_of(unit: Unit) -> dict[str, Record]:
    """The records of a unit's finished tasks."""
    return {task: _read(unit.record(task)) for task in TASKS if unit.record(task).is_file()}


def _is_held(unit: Unit) -> bool:
    """Whether another process works on the unit."""
    if not unit.folder.is_dir():
        return False
    with try_lock(unit.folder) as is_free:
        return not is_free


def _share_done(recipe: Ablation, unit: Unit, task: str) -> float:
    """By the last logged step of a training, by the clips of an evaluation."""
    if task == TRAIN:
        steps = [int(row["step"]) for row in JsonLines(unit.run / "log.jsonl").rows()]
        return max(steps, default=0) / recipe.training(unit.variant, unit.seed).train.steps
    judged = recipe.evaluation
    clips = judged.seeds * (judged.prompts + judged.long_prompts)
    return len(list((unit.evaluation / "samples").glob("*.json"))) / clips
