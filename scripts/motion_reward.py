"""Checks the motion reward on the procedural world, whose true motion is known, and measures its mean and deviation.

Five things, on clips with an object or a pan: the rank correlation with the true speed over held-out clips; the
correlation among clips of one prompt, which differ in what it leaves open, as weights within a prompt need it; whether
one scene at three speeds is put in order, both as rendered and after the bundled VAE; how the score reacts to graded
defects, with the share of clips where a defect raises it; and mean and standard deviation over validation clips, the
constants of the z-score. Writes one line per clip to clips.jsonl, so that the same command goes on where it was stopped
and new weights are tried without measuring again, and then motion_reward.json and motion_reward.md.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from time import process_time
from typing import Annotated, Any

import numpy as np
import typer
from detector_accuracy import through_vae
from metric_correlations import speed

from reward_forcing.data.dataset import world_scene
from reward_forcing.data.palette import OBJECT_COLOURS, distance
from reward_forcing.data.scenes import FPS, KINDS, PLACES, SHAPES, SPEEDS, Scene, render, untold
from reward_forcing.evaluation.metrics.defects import DEFECTS
from reward_forcing.evaluation.statistics import spearman
from reward_forcing.optical_flow import Array, Pixels
from reward_forcing.rewards.motion import MotionReward, MotionTerms, motion_terms

GRADED = ("freeze", "flicker", "jitter", "noise", "blur", "copied first frame")
LEVELS = {"shake": (0.005, 0.01, 0.02, 0.04), "morph": (0.25, 0.5, 1), "duplicate": (0.25, 0.5, 1)}
"""Strengths of the defects made here: shorter sides; share of the way to the other object; opacity of the copy."""
ALIKE = 4
"""Clips of one prompt."""
RISE = 0.01
"""A defect counts as rewarded where it raises the score by more than this share of the standard deviation."""


def shake(frames: Pixels, strength: float) -> Pixels:
    """Every frame is moved along x and y at random, by `strength` shorter sides in the quadratic mean of each."""
    moves = np.random.default_rng(0).normal(size=(len(frames), 2)) * strength * min(frames.shape[1:3])
    return np.stack([_moved(_moved(frame, x, 1), y, 0) for frame, (x, y) in zip(frames, moves, strict=True)])


def _moved(frame: Pixels, by: float, axis: int) -> Pixels:
    places = (np.arange(frame.shape[axis]) - by).clip(0, frame.shape[axis] - 1)
    low = np.floor(places).astype(int)
    part = (places - low).reshape([-1 if a == axis else 1 for a in range(3)])
    near, far = (frame.take(p, axis).astype(float) for p in (low, (low + 1).clip(0, frame.shape[axis] - 1)))
    return ((1 - part) * near + part * far).round().astype(np.uint8)


def mixed(clean: Pixels, other: Pixels, weights: Array) -> Pixels:
    """`clean` on its way to `other`, each frame by its own weight."""
    return (clean + weights[:, None, None, None] * (other.astype(float) - clean)).round().astype(np.uint8)


def changed(scene: Scene) -> Scene:
    """The same motion of another object: the next shape in the farthest colour."""
    shapes = [shape for shape in SHAPES if shape in KINDS[scene.kind].shapes]
    shape = shapes[(shapes.index(scene.shape) + 1) % len(shapes)]
    far = max(OBJECT_COLOURS, key=lambda c: distance(OBJECT_COLOURS[scene.colour], OBJECT_COLOURS[c]))
    return replace(scene, shape=shape, colour=far)


def doubled(scene: Scene, frames: int, size: int) -> Pixels:
    """The scene with a second copy of its (first) object, 0.4 widths to the side with more room."""
    clean, other = (render(made, frames, size) for made in (scene, replace(scene, colour=changed(scene).colour)))
    ours = np.abs(clean.astype(int) - other).max(axis=3, keepdims=True) > 8
    shift = round(0.4 * size)
    shown, copied = (slice(shift, None), slice(None, -shift))[:: 1 if scene.x < 0.5 else -1]
    out = clean.copy()
    free = ours[:, :, copied] & ~ours[:, :, shown]
    out[:, :, shown] = np.where(free, clean[:, :, copied], clean[:, :, shown])
    return out


def defects(scene: Scene, clean: Pixels) -> Iterator[tuple[str, float, Pixels]]:
    """Name, strength and clip of every graded defect that the scene can have."""
    for name in GRADED:
        for level in DEFECTS[name].levels[1:]:
            yield name, level, DEFECTS[name].apply(clean, level)
    for level in LEVELS["shake"]:
        yield "shake", level, shake(clean, level)
    if KINDS[scene.kind].has_object:
        frames, size = clean.shape[:2]
        other, twice = render(changed(scene), frames, size), doubled(scene, frames, size)
        half = np.clip((np.arange(frames) / frames - 0.45) * 10, 0, 1)  # comes within half a second of five
        for level in LEVELS["morph"]:
            yield "morph", level, mixed(clean, other, level * np.linspace(0, 1, frames))
        for level in LEVELS["duplicate"]:
            yield "duplicate", level, mixed(clean, twice, level * half)
        yield "duplicate throughout", 1, twice


def examine(scene: Scene, frames: int, size: int, graded: Callable[[Pixels], Pixels] | None) -> dict[str, Any]:
    """All that is kept of a clip: its kind, true speed, cost in seconds, and terms as rendered and in variants.

    graded: the VAE's round trip, for clips that are also given speeds, siblings and defects.
    """
    clean = render(scene, frames, size)
    start = process_time()
    found: dict[str, Any] = {"kind": scene.kind, "speed": speed(scene, frames), "terms": kept(motion_terms(clean, FPS))}
    found["seconds"] = process_time() - start
    if graded:
        paces = {name: render(replace(scene, speed=name), frames, size) for name in SPEEDS}
        found["paces"] = {name: kept(motion_terms(pace, FPS)) for name, pace in paces.items()}
        found["decoded"] = {name: kept(motion_terms(graded(pace), FPS)) for name, pace in paces.items()}
        siblings = [(speed(other, frames), render(other, frames, size)) for other in alike(scene)]
        found["alike"] = [(pace, kept(motion_terms(clip, FPS))) for pace, clip in siblings]
        found["alike_decoded"] = [(pace, kept(motion_terms(graded(clip), FPS))) for pace, clip in siblings]
        made = defects(scene, clean)
        found["defects"] = [(name, level, kept(motion_terms(clip, FPS))) for name, level, clip in made]
    return found


def alike(scene: Scene) -> list[Scene]:
    """Scenes of the same prompt, which differ in all that it leaves open but the speed's name."""
    rng, sign = np.random.default_rng([scene.seed, 2]), -1 if scene.direction == "clockwise" else 1
    return [
        replace(
            scene,
            x=float(rng.uniform(*PLACES)),
            y=float(rng.uniform(*PLACES)),
            phase=sign * float(rng.uniform(*KINDS[scene.kind].phases)),
            **untold(rng, scene.kind, scene.speed),
        )
        for _ in range(ALIKE)
    ]


def kept(terms: MotionTerms) -> dict[str, list[float]]:
    """The terms as lists of numbers for JSON."""
    return {name: [round(float(value), 4) for value in values] for name, values in asdict(terms).items()}


def scores_of(reward: MotionReward) -> Callable[[dict[str, list[float]]], float]:
    """The raw score of terms that were kept."""
    return lambda terms: reward.score(MotionTerms(**{name: np.array(values) for name, values in terms.items()}))


def defect_rows(clips: list[dict[str, Any]], score: Callable[..., float], deviation: float) -> list[dict[str, Any]]:
    """One row for each defect and strength: mean change in standard deviations, and in how many clips it rises."""
    changes: dict[tuple[str, float], list[float]] = {}
    for clip in clips:
        for name, level, terms in clip["defects"]:
            changes.setdefault((name, level), []).append((score(terms) - score(clip["terms"])) / deviation)
    return [
        {"defect": name, "strength": level, "clips": len(found), "change": float(np.mean(found)),
         "largest_rise": max(0.0, *found), "rises": float(np.mean(np.array(found) > RISE))}
        for (name, level), found in changes.items()
    ]  # fmt: skip


def order_of(clips: list[dict[str, Any]], name: str, score: Callable[..., float]) -> dict[str, float]:
    """How often the same scene at three speeds is scored in their order; name: 'paces', or 'decoded' by the VAE."""
    slow, normal, fast = np.array([[score(clip[name][pace]) for pace in SPEEDS] for clip in clips]).T
    return {"clips": len(clips), "slow_below_normal": float(np.mean(slow < normal)),
            "normal_below_fast": float(np.mean(normal < fast)), "slow_below_fast": float(np.mean(slow < fast)),
            "in_order": float(np.mean((slow < normal) & (normal < fast)))}  # fmt: skip


def correlation_within(clips: list[dict[str, Any]], name: str, score: Callable[..., float]) -> dict[str, float]:
    """How the score follows the true speed among clips of one prompt, both in shares of their prompt's mean.

    name: 'alike', or 'alike_decoded' by the VAE. deviation: of the score within a prompt, in those shares.
    """
    rows = np.array([[(pace, score(terms)) for pace, terms in clip[name]] for clip in clips])
    speeds, scores = (rows / np.maximum(rows.mean(axis=1, keepdims=True), 1e-6) - 1).reshape(-1, 2).T
    return {"clips": len(scores), "pearson": float(np.corrcoef(speeds, scores)[0, 1]),
            "spearman": spearman(speeds, scores), "deviation": float(scores.std())}  # fmt: skip


def summary(reward: MotionReward, kept_clips: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Mean and deviation on validation clips, correlation with the true speed, order of paces, and reactions."""
    score = scores_of(reward)
    plain = np.array([score(clip["terms"]) for clip in kept_clips["validation"]])
    held = kept_clips["held_out"]
    graded = [clip for clip in held if "paces" in clip]
    orders = {name: order_of(graded, name, score) for name in ("paces", "decoded")}
    speeds, scores = [clip["speed"] for clip in held], [score(clip["terms"]) for clip in held]
    kinds = {kind: [i for i, clip in enumerate(held) if clip["kind"] == kind] for kind in KINDS}
    return {
        "settings": reward.model_dump(),
        "mean": float(plain.mean()), "std": float(plain.std()), "validation_clips": len(plain),
        "speed": {"clips": len(held), "spearman": spearman(speeds, scores)},
        "speed_by_kind": {
            kind: {"clips": len(at), "spearman": spearman([speeds[i] for i in at], [scores[i] for i in at])}
            for kind, at in kinds.items() if len(at) > 2
        },
        "within": correlation_within(graded, "alike", score),
        "within_after_vae": correlation_within(graded, "alike_decoded", score),
        "order": orders["paces"], "order_after_vae": orders["decoded"],
        "defects": defect_rows(graded, score, float(plain.std())),
        "milliseconds_per_clip": 1000 * float(np.median([clip["seconds"] for clip in held])),
    }  # fmt: skip


def in_words(where: str, order: dict[str, float]) -> str:
    """A sentence on how the same scenes at three speeds were scored."""
    below = ", ".join(f"{name.replace('_', ' ')} {100 * order[name]:.0f} %" for name in list(order)[1:])
    return f"The same scene at three speeds ({order['clips']} scenes, {where}): {below}."


def within_in_words(where: str, row: dict[str, float]) -> str:
    """A sentence on how the score follows the true speed among clips of one prompt."""
    return (
        f"Among {ALIKE} clips of one prompt ({row['clips']} clips, {where}): r {row['pearson']:+.2f} and rho "
        f"{row['spearman']:+.2f} with the true speed; the score varies by {100 * row['deviation']:.0f} % of its mean."
    )


def markdown(found: dict[str, Any]) -> str:
    """The summary as a page."""
    speeds = found["speed"]
    by_kind = ", ".join(f"{kind} {row['spearman']:+.2f}" for kind, row in found["speed_by_kind"].items())
    lines = [
        f"Mean {found['mean']:.3f}, standard deviation {found['std']:.3f} ({found['validation_clips']} validation "
        f"clips). {found['milliseconds_per_clip']:.0f} ms of one core for a clip.",
        f"Spearman's rho with the true speed: {speeds['spearman']:+.2f} ({speeds['clips']} held-out clips); by kind: "
        f"{by_kind}.",
        within_in_words("rendered", found["within"]),
        within_in_words("decoded by the bundled VAE", found["within_after_vae"]),
        in_words("rendered", found["order"]),
        in_words("decoded by the bundled VAE", found["order_after_vae"]),
        "Defects added to a clip: mean change of the score in standard deviations, largest rise, share of clips where "
        f"it rises by more than {RISE:g}.",
    ]
    table = ["| defect | strength | clips | change | largest rise | rises |", "|" + "---|" * 6]
    for row in found["defects"]:
        cells = [row["defect"], f"{row['strength']:g}", str(row["clips"]), f"{row['change']:+.2f}",
                 f"{row['largest_rise']:.2f}", f"{100 * row['rises']:.0f} %"]  # fmt: skip
        table.append(f"| {' | '.join(cells)} |")
    return "\n\n".join([*lines, "\n".join(table)]) + "\n"


def main(
    out: Annotated[Path, typer.Option(help="Folder for clips.jsonl, motion_reward.json and motion_reward.md.")],
    clips: Annotated[int, typer.Option(min=3, help="Held-out clips, and as many validation clips.")] = 200,
    graded: Annotated[int, typer.Option(min=1, help="Held-out clips that are also given speeds and defects.")] = 60,
    frames: Annotated[int, typer.Option(min=27, help="Frames of each clip; 81 are 5 seconds.")] = 81,
    size: Annotated[int, typer.Option(min=16, help="Height and width in pixels.")] = 64,
    reward: Annotated[list[str] | None, typer.Option(help="Setting of the reward, name=value; repeatable.")] = None,
) -> None:
    """The motion reward against the truth of the procedural world."""
    settings = MotionReward(**{name: float(value) for name, value in (one.split("=") for one in reward or ())})
    out.mkdir(parents=True, exist_ok=True)
    store = out / "clips.jsonl"
    done = [json.loads(line) for line in store.read_text().splitlines()] if store.exists() else []
    if any((clip["frames"], clip["size"]) != (frames, size) for clip in done):
        raise typer.BadParameter(f"{store} holds clips of other frames or size; choose another --out")
    decode = through_vae("mini")
    known = {(clip["split"], clip["index"]): clip for clip in done}
    wanted: dict[str, list[dict[str, Any]]] = {"validation": [], "held_out": []}
    with store.open("a") as file:
        for split, found in wanted.items():
            index = 0
            while len(found) < clips:
                scene = world_scene(index, split)
                index += 1
                if not (KINDS[scene.kind].has_object or scene.kind == "pan"):
                    continue
                full = split == "held_out" and len(found) < graded
                clip = known.get((split, index - 1))
                if clip is None or (full and "alike_decoded" not in clip):
                    clip = {"split": split, "index": index - 1, "frames": frames, "size": size}
                    clip |= examine(scene, frames, size, decode if full else None)
                    file.write(json.dumps(clip) + "\n")
                    file.flush()
                found.append(clip)
    found = summary(settings, wanted)
    (out / "motion_reward.json").write_text(json.dumps(found, indent=1))
    (out / "motion_reward.md").write_text(markdown(found))
    typer.echo(markdown(found))


if __name__ == "__main__":
    typer.run(main)
