"""Makes the clips of a suite, measures them, and goes on where it was stopped.

    OUT/recipe.json          what determines the numbers; a folder holds clips of one recipe only
    OUT/clips/NAME.mp4       each clip for viewing; numbers come from the raw frames, not from this file
    OUT/samples/NAME.json    each clip's numbers, written whole and after its video: with it, the clip is done
    OUT/runs.jsonl           a line for each process that made clips
    OUT/results.json         the scores, written by whoever finds all clips done

Clips are made in blocks whose members never change, and a block that lacks a clip is made again as a whole: the last
bits of a clip depend on what is computed beside it, so its numbers are the same however often the work was stopped.
T frames, H W pixels.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from reward_forcing.checkpoints.files import files_hash
from reward_forcing.config import Settings
from reward_forcing.data.video_reader import pictures_of
from reward_forcing.evaluation import environment
from reward_forcing.evaluation.clip_scores import measure_clip
from reward_forcing.evaluation.matching import Form, matched
from reward_forcing.evaluation.metrics import Rhythm
from reward_forcing.evaluation.metrics.clips import Pixels
from reward_forcing.evaluation.recipe import claim, read_recipe, write_settings
from reward_forcing.evaluation.results import EvalResults, Provenance, Sample, write_results
from reward_forcing.evaluation.set_scores import score_set
from reward_forcing.evaluation.sources import Source
from reward_forcing.evaluation.suites import SHORT_SECONDS, PromptSet, Suite
from reward_forcing.logs import JsonLines, StepProgress
from reward_forcing.streaming.video_io import VideoWriter, open_writer, read_video, to_uint8

logger = logging.getLogger(__name__)

BATCH = 8
RUNS = "runs.jsonl"


class Recipe(Settings):
    """What determines the numbers of an evaluation. weights, parts: SHA-256; prompts: as in `results.Provenance`.

    sets: name -> what is made. videos: SHA-256 of videos made elsewhere, None where they are generated. form: what
    every clip was brought to before it was measured, None for as it was made. decoder: see `sources.MadeWith`.
    """

    suite: str
    sets: dict[str, str]
    prompts: str
    seed: int
    batch: int
    weights: str | None
    parts: dict[str, str]
    streaming: dict[str, Any]
    videos: str | None
    quick: bool
    form: Form | None = None
    decoder: str | None = None


@dataclass(frozen=True)
class Block:
    """Clips of one set that are made side by side. samples: their records, nothing measured yet."""

    prompts: PromptSet
    samples: tuple[Sample, ...]

    @property
    def seconds(self) -> float:
        """Seconds of video in it."""
        return sum(sample.seconds for sample in self.samples)


def evaluate(
    suite: Suite,
    out: Path,
    source: Source | None = None,
    *,
    form: Form | None = None,
    name: str = "",
    seed: int = 0,
    batch: int = BATCH,
    share: tuple[int, int] = (0, 1),
    command: str = "",
    quiet: bool = False,
) -> EvalResults | None:
    """The results of `suite`, also in `out`/results.json; None while clips of other shares are missing.

    source: what generates, looked through but not loaded; None for a folder of videos. form: size and rate that clips
    are brought to before they are measured, None for their own. name: of the source, for the record. batch: clips of 5
    seconds made side by side, fewer of longer ones. share: (i, n) makes every n-th block from the i-th on; the last of
    n processes to end, or the same command again, writes the results.
    Raises ValueError, before weights load, for a source whose clips are too short, and if `out` holds clips of another
    recipe, naming what differs.
    """
    if suite.is_made == (source is not None):
        wanted = "is a folder of videos and takes no model" if suite.is_made else "needs a model to make its clips"
        raise ValueError(f"suite '{suite.name}' {wanted}")
    if batch < 1 or not 0 <= share[0] < share[1]:
        raise ValueError(f"expected a batch of at least 1 and a share i of n with 0 <= i < n, got {batch} and {share}")
    blocks = plan(suite, source, seed, batch)
    recipe = _recipe(suite, source, form, seed, batch)
    claim(out, recipe)
    missing = [block for block in blocks[share[0] :: share[1]] if _lacking(out, block)]
    if missing:
        run = {"created": _now(), "commit": environment.commit(), "command": command, "share": list(share)}
        JsonLines(out / RUNS).append(run)
        _make(missing, out, recipe, source, form, quiet)
    if any(_lacking(out, block) for block in blocks):
        return None
    samples = [_read(out, sample) for block in blocks for sample in block.samples]
    results = EvalResults(
        suite=suite.name,
        provenance=_provenance(suite, out, read_recipe(out, Recipe), name, command),
        sets=tuple(
            score_set(
                prompts.name,
                prompts.seconds,
                [sample for sample in samples if sample.set == prompts.name],
                [prompt.scene for prompt in prompts.truth],
            )
            for prompts in suite.sets
        ),
        samples=tuple(samples),
    )
    write_results(results, out)
    return results


def plan(suite: Suite, source: Source | None, seed: int = 0, batch: int = BATCH) -> list[Block]:
    """The blocks of a suite, in order.

    A block holds about `batch` times 5 seconds of video where clips are streamed side by side, else one clip.
    """
    blocks = []
    for prompts in suite.sets:
        samples = [_planned(prompts, index, one, source) for index in range(len(prompts.prompts))
                   for one in prompts.seeds_of(index, seed)]  # fmt: skip
        size = max(1, min(batch, math.floor(batch * SHORT_SECONDS / prompts.seconds)))
        size = size if source is not None and source.streams else 1
        blocks += [Block(prompts, tuple(samples[first : first + size])) for first in range(0, len(samples), size)]
    return blocks


def _planned(prompts: PromptSet, index: int, seed: int, source: Source | None) -> Sample:
    frames = source.frames_for(prompts.seconds) if source else 0
    seconds = frames / source.rhythm.fps if source else prompts.seconds
    if seconds < prompts.seconds - 1e-6:
        raise ValueError(f"set '{prompts.name}' has clips of {prompts.seconds:g} s; the source makes {seconds:.2f} s")
    text = prompts.prompts[index]
    values = {"set": prompts.name, "prompt_index": index, "prompt": text, "seed": seed}
    sample = Sample(**values, seconds=seconds, frames=frames, file="")
    return sample.model_copy(update={"file": f"clips/{sample.name}.mp4"})


def _recipe(suite: Suite, source: Source | None, form: Form | None, seed: int, batch: int) -> Recipe:
    clips = {one.name: sum(len(one.seeds_of(index, 0)) for index in range(len(one.prompts))) for one in suite.sets}
    sets = {one.name: f"{clips[one.name]} clips of {len(one.prompts)} prompts, {one.seconds:g} s" for one in suite.sets}
    videos = [file for one in suite.sets for files in one.videos for file in files]
    made = source.made_with() if source else None
    return Recipe(
        suite=suite.name,
        sets=sets,
        prompts=suite.prompts_hash(),
        seed=seed,
        batch=batch,
        weights=made.weights if made else None,
        parts=made.parts if made else {},
        streaming=made.settings if made else {},
        videos=files_hash(videos) if videos else None,
        quick=suite.is_quick,
        form=form,
        decoder=made.decoder if made else None,
    )


def _record(out: Path, sample: Sample) -> Path:
    return out / "samples" / f"{sample.name}.json"


def _read(out: Path, sample: Sample) -> Sample:
    return Sample.model_validate_json(_record(out, sample).read_text(encoding="utf-8"))


def _lacking(out: Path, block: Block) -> list[int]:
    """Numbers of the block's clips that are not done."""
    is_done = [
        _record(out, sample).is_file() and (bool(block.prompts.videos) or (out / sample.file).is_file())
        for sample in block.samples
    ]
    return [number for number, done in enumerate(is_done) if not done]


def _make(
    blocks: Sequence[Block], out: Path, recipe: Recipe, source: Source | None, form: Form | None, quiet: bool
) -> None:
    for note in () if source is None else source.notes:
        logger.warning(note)
    loaded = None if source is None else source.load()
    total, clips = math.ceil(sum(block.seconds for block in blocks)), sum(len(block.samples) for block in blocks)
    seconds, made = 0.0, 0
    with StepProgress("seconds of video", 0, total, quiet) as progress:
        for block in blocks:

            def advance(more: float, before: float = seconds) -> None:
                progress.advance(math.floor(before + more))

            if source is None:
                samples = _made(block, out, form, advance)
            else:
                samples = _generated(source, loaded, block, out, form, advance)
            for sample in samples:
                claim(out, recipe)  # again: another one may have found the new folder as empty
                write_settings(_record(out, sample), sample)
            seconds, made = seconds + block.seconds, made + len(block.samples)
            progress.note(min(total, round(seconds)), f"{made} of {clips} clips")


def _generated(
    source: Source, loaded: Any, block: Block, out: Path, form: Form | None, advance: Callable[[float], None]
) -> Iterator[Sample]:
    """The records of the block's clips that are not done, once their videos are written.

    Clips that are done are computed with the others and left as they are.
    """
    lacking, fps = _lacking(out, block), source.rhythm.fps
    wanted = [sample.prompt for sample in block.samples], [sample.seed for sample in block.samples]
    clips: list[list[Pixels]] = [[] for _ in lacking]
    writers: list[VideoWriter] = []
    with ExitStack() as files:
        for chunk in source.chunks(loaded, *wanted, block.prompts.seconds):
            pictures = to_uint8(chunk.frames)
            size = (pictures.shape[3], pictures.shape[4])
            if not writers:
                writers = [files.enter_context(_writer(out, block.samples[number], fps, size)) for number in lacking]
            for clip, number, writer in zip(clips, lacking, writers, strict=True):
                writer.write(pictures[number])
                clip.append(pictures[number].permute(0, 2, 3, 1).numpy())
            advance(len(block.samples) * (chunk.start_frame + pictures.shape[1]) / fps)
    for clip, number in zip(clips, lacking, strict=True):
        yield _measured(block, number, np.concatenate(clip), source.rhythm, form)


def _writer(out: Path, sample: Sample, fps: float, size: tuple[int, int]) -> VideoWriter:
    comment = f"rforce eval, seed {sample.seed}"
    return open_writer(out / sample.file, fps, size, title=sample.prompt, comment=comment, overwrite=True)


def _made(block: Block, out: Path, form: Form | None, advance: Callable[[float], None]) -> Iterator[Sample]:
    """The records of the block's clips that are not done, read from files made elsewhere.

    Their chunks are unknown; metrics of borders take those of `WAN_RHYTHM` at the file's rate.
    """
    for number in _lacking(out, block):
        sample = block.samples[number]
        path = block.prompts.videos[sample.prompt_index][sample.seed]
        if form is None:
            frames, fps = read_video(path)
            clip = frames.permute(0, 2, 3, 1).numpy()
        else:
            clip, fps = np.stack(list(pictures_of(path, form.fps, form.size))), form.fps
        place = os.path.relpath(path.resolve(), out.resolve())
        update = {"file": Path(place).as_posix(), "frames": len(clip), "seconds": len(clip) / fps}
        yield _measured(block, number, clip, Rhythm(fps)).model_copy(update=update)
        advance(sample.seconds)


def _measured(block: Block, number: int, clip: Pixels, rhythm: Rhythm, form: Form | None = None) -> Sample:
    sample, truth = block.samples[number], block.prompts.truth
    if form is not None:
        clip = matched(clip, rhythm.fps, form)
        rhythm = rhythm if form.fps == rhythm.fps else Rhythm(form.fps)  # of another rate, chunks have no borders
    measured = measure_clip(clip, rhythm, truth[sample.prompt_index] if truth else None)
    return sample.model_copy(update=vars(measured))


def _provenance(suite: Suite, out: Path, recipe: Recipe, name: str, command: str) -> Provenance:
    commits = dict.fromkeys(str(run.get("commit", "")) for run in JsonLines(out / RUNS).rows())
    return Provenance(
        command=command,
        created=_now(),
        model=name,
        weights=recipe.weights,
        streaming=recipe.streaming,
        prompts=recipe.prompts,
        seed=recipe.seed,
        commit=", ".join(commit for commit in commits if commit),
        versions=environment.versions(),
        machine=environment.machine(),
        quick=suite.is_quick,
        form=recipe.form,
        decoder=recipe.decoder,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
