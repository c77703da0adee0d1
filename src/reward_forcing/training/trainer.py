"""The one training loop: updates, logs, samples and saves any stage, and resumes it exactly.

A run is a folder: config.yaml, log.jsonl, checkpoints/, samples/, and final/ once done. The trainer knows no method:
what is learned is the stage's, how a network learns is the learner's.
"""

import json
import shutil
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from torch import nn

from reward_forcing.interrupt import Interrupt
from reward_forcing.logs import StepProgress, console, duration
from reward_forcing.processes import ALONE, World, from_first
from reward_forcing.training.checkpoint import Checkpoints, check_same_settings
from reward_forcing.training.distributed import average_gradients, broadcast_weights, gather
from reward_forcing.training.learner import Learner, averaged_weights, only_trainable
from reward_forcing.training.parallel import checkpoint_activations, is_sharded, whole_copy
from reward_forcing.training.run_log import Averages, RunLog
from reward_forcing.training.settings import HARMLESS, StageSettings
from reward_forcing.training.stage import Draw, Stage, generator_for


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `steps` are done; `signal` is what stopped it, None if it is complete."""

    steps: int
    signal: int | None = None


class Trainer:
    """Trains a stage into the folder `out`; constructing and running it again continues where it was.

    Raises ValueError when the stage's roles and the settings disagree.
    """

    def __init__(self, stage: Stage[Any], out: Path, world: World = ALONE) -> None:
        self.stage = stage
        self.settings = stage.settings.train
        self.out = out
        self.world = world
        networks = stage.networks()
        stage.settings.check_roles(networks)
        if self.settings.activation_checkpointing:
            checkpoint_activations(networks.values())
        self.learners = {
            role: Learner(role, network, self.settings, stage.edges(role)) for role, network in networks.items()
        }
        self.checkpoints = Checkpoints(
            out / "checkpoints", self.settings.keep, self.settings.keep_every, world, self.settings.save_async
        )
        self.step = 0
        self._averages = Averages()
        self._interrupt = Interrupt()
        self._stop_asked = self._save_due = False
        self._skipped = 0
        self._wall_before = self._cpu_before = 0.0

    def run(self) -> Outcome:
        """Train to the last step, or until SIGTERM or SIGINT; returns how it ended.

        Raises ValueError if the folder holds a run with other settings, or after `nonfinite_limit` bad updates.
        """
        self._started, self._cpu_started = time.monotonic(), time.process_time()
        self._resume()
        if self._is_finished():
            self._say(finished_line(self.out, self.step))
            return Outcome(self.step)
        self.out.mkdir(parents=True, exist_ok=True)
        self._log = RunLog(self.out, self._settings_dump(), self.step) if self.world.is_first else None
        self._say(self.stage.summary() + (f"; continuing after step {self.step}" if self.step else ""))
        try:
            with self._interrupt:
                return self._train()
        finally:
            self.checkpoints.wait()
            if self._log is not None:
                self._log.close()

    def _train(self) -> Outcome:
        steps = self.settings.steps
        self._saved_at = self._logged_at = time.monotonic()
        self._saved_step = self._logged_step = self.step
        with StepProgress(self.stage.settings.stage, self.step, steps, quiet=not self.world.is_first) as progress:
            while self.step < steps:
                self._train_step(self.step)
                self.step += 1
                progress.advance(self.step)
                self._after_step(progress)
                if self._should_stop() and self.step < steps:
                    self._save()
                    self.checkpoints.wait()
                    number = self._interrupt.signal or signal.SIGTERM
                    self._say(f"stopped after step {self.step} and saved; the same command continues from there")
                    return Outcome(self.step, number)
        self._finish()
        return Outcome(self.step)

    def _should_stop(self) -> bool:
        """Whether all processes know that one was asked to stop: they must leave after the same step."""
        return self._stop_asked or (self.world.size == 1 and self._interrupt.signal is not None)

    def _train_step(self, step: int) -> None:
        """Update the roles that are due, in the stage's order."""
        for role in self.stage.updates(step):
            learner = self.learners[role]
            learner.clear()
            with only_trainable(learner, self.learners.values()):
                loss = self._accumulate(learner, step)
            with self.stage.clock("communication"):
                mine = loss.new_tensor([self._interrupt.signal is not None, self._is_time_to_save()])
                loss, asked, due = average_gradients(learner.whole, torch.stack([loss, *mine]), self.world)
            with self.stage.clock("optimizer"):
                self._stop_asked = self._stop_asked or bool(asked > 0)
                self._save_due = self._save_due or bool(due > 0)
                self._apply(learner, step, loss)
            self.stage.updated(role, step)

    def _accumulate(self, learner: Learner, step: int) -> torch.Tensor:
        """Add up the gradients of this process's shards of the batch; returns their mean loss, detached."""
        accumulate = self.settings.accumulate
        total = torch.zeros((), device=self.world.device)
        for part in range(accumulate):
            shard = self.world.rank * accumulate + part
            draw = Draw.at(self.stage.seed, learner.role, step, shard, self.world.size * accumulate)
            # The draw is meant to be the only randomness; should a layer (dropout) use the global one, it repeats too.
            torch.manual_seed(generator_for("global", self.stage.seed, learner.role, step, shard).initial_seed())
            with self.stage.clock("forward"), self._autocast():
                loss, metrics = self.stage.loss(learner.role, step, draw)
            with self.stage.clock("backward"):
                learner.reduce_gradients(part == accumulate - 1)
                (loss / accumulate).backward()
            total += loss.detach().float() / accumulate
            for name, value in metrics.items():
                self._averages.add(f"{learner.role}/{name}", value)
        return total

    def _apply(self, learner: Learner, step: int, loss: torch.Tensor) -> None:
        """Step the learner, or skip the update if its loss or gradient is not finite (the same in all processes)."""
        norm = learner.clip()
        if bool(loss.isfinite() & norm.isfinite()):
            learner.step(step, self.stage.learning_rate_scale(step))
            learner.skipped = 0
            self._averages.add(f"{learner.role}/loss", loss)
            self._averages.add(f"{learner.role}/grad_norm", norm)
            return
        learner.skipped += 1
        self._skipped += 1
        if learner.skipped >= self.settings.nonfinite_limit:
            names = learner.nonfinite_gradients()
            where = f"first in the gradient of {names[0]}" if names else "in the loss alone"
            raise ValueError(
                f"{learner.role} met {learner.skipped} non-finite updates in a row up to step {step} "
                f"(loss {float(loss):.4g}; {where}); lower its learning rate or set train.clip_norm. "
                f"The last checkpoint is of step {max(self.checkpoints.steps(), default=0)}"
            )

    def _after_step(self, progress: StepProgress) -> None:
        """Log, sample and save when it is time."""
        train, step = self.settings, self.step
        is_last = step == train.steps
        if step % train.log_every == 0 or is_last:
            self._write_row(progress)
        if train.sample_every and (step % train.sample_every == 0 or is_last):
            self._show_samples()
        if self._save_due or (train.save_every and step % train.save_every == 0) or is_last:
            self._save()

    def _is_time_to_save(self) -> bool:
        """Whether `save_minutes` have passed, by this process's clock: one that says so is enough."""
        minutes = (time.monotonic() - self._saved_at) / 60
        return self.settings.save_minutes is not None and minutes >= self.settings.save_minutes

    def _write_row(self, progress: StepProgress) -> None:
        """Average the numbers of the last steps over all processes and record them."""
        steps = max(1, self.step - self._logged_step)
        now = time.monotonic()
        times = {f"time/{name}": seconds / steps for name, seconds in self.stage.clock.take().items()}
        gathered = gather((self._averages.take(), time.process_time() - self._cpu_started), self.world)
        if self._log is not None:
            means = Averages()
            for metrics, _ in gathered:
                for name, value in metrics.items():
                    means.add(name, value)
            values = means.take()
            values |= self.stage.derived(values)
            self._cpu = self._cpu_before + sum(cpu for _, cpu in gathered)
            speed = steps / (now - self._logged_at)
            rates = {f"{role}/lr": learner.lr for role, learner in self.learners.items()}
            row = {"wall": self._wall(), "cpu": self._cpu, "steps_per_second": speed, **rates, **values, **times}
            self._log.row(self.step, row | ({"skipped": self._skipped} if self._skipped else {}))
            losses = [f"{name.removesuffix('/loss')} {values[name]:.4g}" for name in values if name.endswith("/loss")]
            skipped = f"  skipped {self._skipped}" if self._skipped else ""
            lr = next(iter(rates.values()))
            progress.note(self.step, f"loss {', '.join(losses) or 'n/a'}  lr {lr:.2g}  {speed:.3g} it/s{skipped}")
        self._logged_at, self._logged_step = now, self.step

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16")

    def _show_samples(self) -> None:
        """Show samples and validate; all processes must run networks of which each holds a part."""
        if self._log is None and not any(is_sharded(learner.network) for learner in self.learners.values()):
            return
        with self.stage.clock("samples"), averaged_weights(self.learners.values()), self._autocast():
            clips, metrics = self.stage.samples(self.step), self.stage.metrics(self.step)
        if self._log is not None:
            self._log.samples(self.step, clips)
            if metrics:
                self._log.row(self.step, {f"validation/{name}": float(value) for name, value in metrics.items()})

    def _save(self) -> None:
        """Write a checkpoint, all processes together; plain values are the first one's."""
        if self._saved_step != self.step:
            values = {
                "step": self.step,
                "settings": self._settings_dump(),
                "learners": {role: learner.counts() for role, learner in self.learners.items()},
                "stage": self.stage.state_dict(),
                "skipped": self._skipped,
                "wall": self._wall(),
                "cpu": self._cpu_before + (time.process_time() - self._cpu_started) * self.world.size,
            }
            with self.stage.clock("save"):
                self.checkpoints.save(self.step, self._tensors(), values)
        self._saved_at, self._saved_step, self._save_due = time.monotonic(), self.step, False

    def _tensors(self) -> dict[str, torch.Tensor]:
        """The tensors of all learners and of the stage, as `ROLE.NAME` and `stage.NAME`."""
        owners = {**self.learners, "stage": self.stage}
        return {f"{own}.{name}": tensor for own, owner in owners.items() for name, tensor in owner.tensors().items()}

    def _resume(self) -> None:
        """Load the newest whole checkpoint into every process, or start with the first one's weights."""
        found = from_first(self.checkpoints.newest() if self.world.is_first else None, self.world)
        if found is None:
            broadcast_weights((learner.network for learner in self.learners.values()), self.world)
            return
        path, values = found
        check_same_settings(
            _with_defaults(self.stage.settings, values["settings"]), self._settings_dump(), HARMLESS, self.out
        )
        stored = self.checkpoints.stored(path)
        for role, learner in self.learners.items():
            learner.make_room(_named(stored, role))
            learner.set_counts(values["learners"][role])
        self.stage.make_room(_named(stored, "stage"))
        self.checkpoints.load(path, self._tensors())
        self.stage.load_state_dict(values["stage"])
        self.step, self._skipped = values["step"], values["skipped"]
        self._wall_before, self._cpu_before = values["wall"], values["cpu"]

    def _finish(self) -> None:
        """Export the averaged weights to final/, whole or not at all, once the last checkpoint is written."""
        self.checkpoints.wait()
        with averaged_weights(self.learners.values()):
            networks = {
                role: whole_copy(learner.network, keep=self.world.is_first) for role, learner in self.learners.items()
            }
            if self.world.is_first:
                self._export(networks)

    def _export(self, networks: dict[str, nn.Module]) -> None:
        temporary, final = self.out / ".final.tmp", self.out / "final"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        self.stage.export(networks, temporary)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        (self.out / "finished.json").write_text(json.dumps({"steps": self.step}), encoding="utf-8")
        self._say(f"finished {self.step} steps in {duration(self._wall())}; weights in {final}")

    def _is_finished(self) -> bool:
        """Whether the export in final/ is of the last step; an earlier, shorter run may have left one too."""
        return self.step >= self.settings.steps and _exported_step(self.out) == self.step

    def _settings_dump(self) -> dict[str, Any]:
        return self.stage.settings.model_dump(mode="json")

    def _wall(self) -> float:
        return self._wall_before + time.monotonic() - self._started

    def _say(self, text: str) -> None:
        if self.world.is_first:
            console().print(text, markup=False, soft_wrap=True)


def finished_step(settings: StageSettings, out: Path) -> int | None:
    """The last step of the run in `out` if it is finished, told by its records before any network is read.

    Raises ValueError if it was trained with other settings.
    """
    steps = Checkpoints(out / "checkpoints").steps()
    try:
        saved = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None  # what the checkpoint itself says is checked once it is read
    if not steps or not isinstance(saved, dict):
        return None
    check_same_settings(_with_defaults(settings, saved), settings.model_dump(mode="json"), HARMLESS, out)
    return steps[-1] if steps[-1] >= settings.train.steps and _exported_step(out) == steps[-1] else None


def finished_line(out: Path, step: int) -> str:
    """What is said of a run that is finished."""
    return f"{out} is finished: {step} steps, weights in {out / 'final'}"


def _exported_step(out: Path) -> int:
    """The step whose weights are in final/, -1 for none."""
    record = out / "finished.json"
    return json.loads(record.read_text(encoding="utf-8"))["steps"] if record.is_file() else -1


def _with_defaults(settings: StageSettings, saved: dict[str, Any]) -> dict[str, Any]:
    """A run's settings, with defaults for keys that the stage has gained since; as they are if no longer valid."""
    try:
        return type(settings).model_validate(saved).model_dump(mode="json")
    except ValidationError:
        return saved


def _named(stored: Mapping[str, torch.Tensor], owner: str) -> dict[str, torch.Tensor]:
    """The tensors stored as `OWNER.NAME`, by name."""
    mark = f"{owner}."
    return {key.removeprefix(mark): tensor for key, tensor in stored.items() if key.startswith(mark)}
