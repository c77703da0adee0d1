"""Checks the weight-free metrics on the procedural world: does each follow what it should?

For held-out clips of the world, the Spearman correlation of every metric with the strength of the defect that it is
meant for, and with the world's own truth (speed, size and number of objects). Writes one line per clip to clips.jsonl,
so that the same command goes on where it was stopped, and then correlations.json and correlations.md.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from reward_forcing.data.dataset import clip, world_scene
from reward_forcing.data.palette import BACKGROUND_COLOURS, OBJECT_COLOURS, Colour, distance
from reward_forcing.data.scenes import FPS, KINDS, SIZES, Scene, Sprite, sprites
from reward_forcing.evaluation.metrics import Rhythm, measure
from reward_forcing.evaluation.metrics.clips import Pixels
from reward_forcing.evaluation.metrics.defects import DEFECTS
from reward_forcing.evaluation.metrics.motion import PAIRS_PER_SECOND
from reward_forcing.evaluation.statistics import spearman
from reward_forcing.evaluation.world_vision import see

WEAK = 0.8
"""Correlations in the expected direction below this are marked as weak."""
NEAREST_HILLS = 0.2
"""Widths per second of the nearest layer of a pan at normal speed."""
RECOLOURED = (0, 0.1, 0.2, 0.4, 0.8)


@dataclass(frozen=True)
class Truth:
    """One attribute that the world knows: what it is, the metric that should follow it, and for which scenes."""

    name: str
    metric: str
    of: Callable[[Scene, int], float]
    holds: Callable[[Scene], bool]


def speed(scene: Scene, frames: int) -> float:
    """Mean over time of the fastest object's speed in widths per second: travel, growth and, unless round, turning."""
    if scene.kind == "pan":
        return NEAREST_HILLS * scene.rate
    t = np.arange(0, frames, FPS // PAIRS_PER_SECOND) / FPS
    return float(np.max([_speeds(sprite) for sprite in sprites(scene, t)], axis=0).mean() * PAIRS_PER_SECOND)


def _speeds(sprite: Sprite) -> np.ndarray:
    dx, dy, growth, turn = (np.diff(values) for values in (sprite.x, sprite.y, sprite.radius, sprite.angle))
    travel = np.hypot(dx, dy)
    travel[travel > 0.5] = 0  # the object left the frame and came back on the other side
    return travel + np.abs(growth) + (sprite.shape != "ball") * sprite.radius[1:] * np.abs(turn)


def area(scene: Scene, frames: int) -> float:
    """Mean share of the frame that the objects would cover if they neither overlapped nor left it."""
    factor = {"ball": np.pi, "square": 1.72**2, "triangle": 3**1.5 * 0.49}
    seen = [sprite for sprite in sprites(scene, np.arange(frames) / FPS) if sprite.shape in factor]
    return float(sum(factor[sprite.shape] * np.square(sprite.radius).mean() for sprite in seen))


def _is_single(scene: Scene) -> bool:
    return KINDS[scene.kind].has_object and scene.second is None


TRUTHS = (
    Truth("speed", "flow_dynamic_degree", speed, lambda scene: scene.kind != "day"),
    Truth("speed", "frame_difference", speed, lambda scene: scene.kind != "day"),
    Truth("area of the objects", "moving_share", area, lambda scene: scene.setting != "land"),
    Truth("size of the object", "moving_share", lambda scene, _: SIZES[scene.size], _is_single),
    Truth("number of objects", "moving_share", lambda scene, _: 1 + (scene.second is not None),
          lambda scene: KINDS[scene.kind].has_object),
    Truth("number of objects", "detector: count", lambda scene, _: 1 + (scene.second is not None),
          lambda scene: KINDS[scene.kind].has_object),
)  # fmt: skip


def render(scene: Scene, frames: int, size: int) -> Pixels:
    """A clip of the data set as uint8 [T, H, W, 3]."""
    return (clip(scene, frames, size) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def _farthest(name: str, colours: dict[str, Colour]) -> str:
    return max(colours, key=lambda other: distance(colours[name], colours[other]))


def recolourings(scene: Scene) -> Iterator[tuple[str, str, Scene]]:
    """What can change its colour in a scene, the metric that must fall, and the scene in the other colour."""
    if KINDS[scene.kind].has_object:
        yield "object recoloured", "subject_constancy", replace(scene, colour=_farthest(scene.colour, OBJECT_COLOURS))
    if scene.setting != "land":
        other = _farthest(scene.background, BACKGROUND_COLOURS)
        yield "background recoloured", "background_constancy", replace(scene, background=other)


def examine(index: int, frames: int, size: int, only: Sequence[str] = ()) -> dict[str, Any]:
    """All that is kept of held-out clip `index`: its scene's kind, truths with metrics, and metrics under defects.

    only: the metrics that are looked at; all without any.
    """
    scene, rhythm = world_scene(index, "held_out"), Rhythm(fps=FPS)
    clean = render(scene, frames, size)
    wanted = {t.metric for t in TRUTHS if ":" not in t.metric and _is_wanted(t.metric, only)}
    plain = {name: m.score for name, m in measure(clean, wanted).items()}
    plain["detector: count"] = see(clean).count
    truths = [[t.of(scene, frames), plain[t.metric]] if t.holds(scene) and t.metric in plain else None for t in TRUTHS]
    defects: list[dict[str, Any]] = []

    def add(name: str, metrics: dict[str, int], levels: tuple[float, ...], clips: list[Pixels]) -> None:
        metrics = {metric: sign for metric, sign in metrics.items() if _is_wanted(metric, only)}
        measured = [measure(frames, metrics, rhythm) for frames in clips] if metrics else []
        for metric, sign in metrics.items():
            scores = [one[metric].score for one in measured]
            defects.append({"defect": name, "metric": metric, "sign": sign, "levels": levels, "scores": scores})

    for defect in DEFECTS.values():
        signs = dict.fromkeys(defect.raises, 1) | dict.fromkeys(defect.lowers, -1)
        add(defect.name, signs, defect.levels, [defect.apply(clean, level) for level in defect.levels])
    add("standstill", {"flow_moves": -1}, (0, 1), [clean, DEFECTS["freeze"].apply(clean, 1)])
    for name, metric, other in recolourings(scene):
        change = np.linspace(0, 1, frames)[:, None, None, None] * (render(other, frames, size).astype(float) - clean)
        add(name, {metric: -1}, RECOLOURED, [(clean + level * change).round().astype(np.uint8) for level in RECOLOURED])
    how = {"frames": frames, "size": size, "only": sorted(only)}
    return {"index": index, **how, "kind": scene.kind, "truths": truths, "defects": defects}


def _is_wanted(metric: str, only: Sequence[str]) -> bool:
    return not only or metric in only


def truth_rows(clips: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each truth: the correlation over clips of the metric with it."""
    rows = []
    for number, truth in enumerate(TRUTHS):
        pairs = [c["truths"][number] for c in clips if c["truths"][number] is not None]
        if len(pairs) < 2:
            continue
        over = spearman(*zip(*pairs, strict=True))
        rows.append({"metric": truth.metric, "follows": truth.name, "sign": 1, "clips": len(pairs), "over_clips": over})
    return rows


def defect_rows(clips: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each defect and metric: the correlation with its strength, pooled over clips and within each clip."""
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for found in (defect for c in clips for defect in c["defects"]):
        groups.setdefault((found["defect"], found["metric"], found["sign"]), []).append(found)
    rows = []
    for (defect, metric, sign), found in groups.items():
        levels, scores = (np.array([f[key] for f in found]) for key in ("levels", "scores"))
        within = np.nan_to_num([spearman(*pair) for pair in zip(levels, scores, strict=True)])
        rows.append(
            {"metric": metric, "follows": defect, "sign": sign, "clips": len(found),
             "over_clips": spearman(levels.ravel(), scores.ravel()), "within_clip": float(within.mean()),
             "in_order": float(np.mean(sign * within > 1 - 1e-9))}
        )  # fmt: skip
    return rows


def remark(row: dict[str, Any]) -> str:
    """'weak' where a correlation in the expected direction is below WEAK, and which one."""
    weak = [name for name in ("over_clips", "within_clip") if name in row and not row["sign"] * row[name] >= WEAK]
    return f"weak {' and '.join(weak).replace('_', ' ')}" if weak else ""


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table, with a line that says what its columns are."""
    lines = ["Spearman's rho: over all clips (and strengths) together; mean over clips of that within a clip.", ""]
    lines += ["| metric | should follow | clips | over clips | within a clip | clips in order | |", "|" + "---|" * 7]
    for row in rows:
        within, order = ("", "")
        if "within_clip" in row:
            within, order = f"{row['within_clip']:+.2f}", f"{100 * row['in_order']:.0f} %"
        name = f"{'' if row['sign'] > 0 else 'minus '}{row['follows']}"
        cells = [row["metric"], name, str(row["clips"]), f"{row['over_clips']:+.2f}", within, order, row["remark"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(
    out: Annotated[Path, typer.Option(help="Folder for clips.jsonl, correlations.json and correlations.md.")],
    clips: Annotated[int, typer.Option(min=2, help="Held-out clips of the world.")] = 300,
    frames: Annotated[int, typer.Option(min=27, help="Frames of each clip; 81 are 5 seconds.")] = 81,
    size: Annotated[int, typer.Option(min=16, help="Height and width in pixels.")] = 64,
    only: Annotated[list[str] | None, typer.Option(help="A metric to look at. Repeatable. [default: all]")] = None,
) -> None:
    """Spearman correlations of the weight-free metrics with defects and truths of the procedural world."""
    out.mkdir(parents=True, exist_ok=True)
    store = out / "clips.jsonl"
    done = [json.loads(line) for line in store.read_text().splitlines()] if store.exists() else []
    if any((c["frames"], c["size"], c.get("only", [])) != (frames, size, sorted(only or ())) for c in done):
        raise typer.BadParameter(f"{store} holds clips of other frames, size or metrics; choose another --out")
    known = {c["index"]: c for c in done}
    with store.open("a") as file:
        for index in range(clips):
            if index not in known:
                known[index] = examine(index, frames, size, only or ())
                file.write(json.dumps(known[index]) + "\n")
                file.flush()
    rows = truth_rows(wanted := [known[index] for index in range(clips)]) + defect_rows(wanted)
    rows = [row | {"remark": remark(row)} for row in rows]
    settings = {"clips": clips, "frames": frames, "size": size, "split": "held_out"}
    (out / "correlations.json").write_text(json.dumps({"settings": settings, "rows": rows}, indent=1))
    (out / "correlations.md").write_text(markdown(rows))
    typer.echo(markdown(rows))


if __name__ == "__main__":
    typer.run(main)
