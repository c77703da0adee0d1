"""How much a reward tells the rollouts of one prompt apart, and what follows for beta, before a training with it.

Weighting by exp(r / beta) within a prompt cannot move a model to what it never does. To first order it moves the mean
reward by variance / beta, where the variance is that over rollouts of one prompt; the larger one over all rollouts,
most of which lies between prompts, says nothing of it. Makes `--clips` clips of each of `--prompts` validation prompts,
scores them with every reward, and prints the deviations within and between prompts, the rank correlations of the
rewards within prompts, and for some beta (in deviations within prompts) the share of samples that still count and the
rise to be hoped for. Writes the scores to scores_*.jsonl as they come, so that the same command goes on where it was
stopped.
"""

import itertools
import json
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from pydantic import TypeAdapter

from reward_forcing import StreamingVideoPipeline
from reward_forcing.data.captions import caption
from reward_forcing.data.dataset import world_scene
from reward_forcing.data.scenes import FPS
from reward_forcing.evaluation.statistics import spearman
from reward_forcing.rewards import Rater, RewardSettings
from reward_forcing.rewards.weighting import effective_share, reward_weights

BETAS = (2.0, 1.0, 0.5, 0.25)
Scores = NDArray[np.float64]


def scored(
    pipeline: StreamingVideoPipeline, raters: dict[str, Rater], text: str, seed: int, seconds: float
) -> dict[str, float]:
    """The raw scores of one clip of a prompt."""
    frames = pipeline.generate(text, seconds, seed=seed)
    return {name: float(rater(frames, [text], FPS)[0]) for name, rater in raters.items()}


def summary(scores: dict[str, Scores], group: int) -> dict[str, Any]:
    """What the scores [prompts, clips] of each reward say."""
    found: dict[str, Any] = {}
    for name, values in scores.items():
        within = float(np.sqrt(values.var(axis=1, ddof=1).mean()))
        found[name] = {
            "mean": float(values.mean()),
            "within": within,
            "between": float(values.mean(axis=1).std(ddof=1)),
        }
        found[name]["betas"] = {beta: hope(values / max(within, 1e-9), beta, group) for beta in BETAS}
    for one, other in itertools.combinations(scores, 2):
        pairs = zip(scores[one], scores[other], strict=True)
        ranks = [spearman(a, b) for a, b in pairs if a.std() and b.std()]
        found[f"{one}, {other}"] = {"rank correlation within prompts": fmean(ranks), "prompts": len(ranks)}
    return found


def hope(scores: Scores, beta: float, group: int) -> dict[str, float]:
    """For rewards in deviations within prompts: the share that counts in groups, and by how much the mean rises."""
    whole = torch.from_numpy(scores[:, : scores.shape[1] // group * group].copy()).float()
    weights = reward_weights(whole.flatten(), beta, group)
    rise = (weights * whole.flatten()).mean() - whole.mean()
    return {"share": effective_share(float(weights.mean()), float(weights.square().mean())), "rise": float(rise)}


@torch.inference_mode()
def main(
    model: Annotated[str, typer.Argument(help="A model's folder or name.")],
    reward: Annotated[list[str], typer.Option(help='Settings as JSON, such as {"kind": "motion"}.')],
    out: Annotated[Path, typer.Option(help="The folder of the results.")],
    prompts: Annotated[int, typer.Option(help="How many prompts.")] = 24,
    clips: Annotated[int, typer.Option(help="Clips of each prompt.")] = 8,
    group: Annotated[int, typer.Option(help="Rollouts of a prompt in one training step.")] = 4,
    seconds: Annotated[float, typer.Option(help="Length of a clip.")] = 5.0,
    share: Annotated[str, typer.Option(help="INDEX/COUNT: only these prompts, in a process of its own.")] = "0/1",
) -> None:
    """Print and write how much the rewards differ within prompts and between them."""
    adapter: TypeAdapter[Any] = TypeAdapter(RewardSettings)
    wanted = [adapter.validate_json(one) for one in reward]
    raters = {str(one.kind): one.load(torch.device("cpu")) for one in wanted}
    pipeline, place = StreamingVideoPipeline.from_pretrained(model), out / f"scores_{share.replace('/', '_of_')}.jsonl"
    out.mkdir(parents=True, exist_ok=True)
    index, count = map(int, share.split("/"))
    done = {(row["prompt"], row["clip"]) for row in rows(out)}
    with place.open("a") as file:
        for number, one in itertools.product(range(index, prompts, count), range(clips)):
            if (number, one) in done:
                continue
            text = caption(world_scene(number, "validation"), np.random.default_rng(number)).text
            scores = scored(pipeline, raters, text, 1000 * number + one, seconds)
            print(json.dumps({"prompt": number, "clip": one, "text": text, "scores": scores}), file=file, flush=True)
    found = {(row["prompt"], row["clip"]): row["scores"] for row in rows(out)}
    whole = [n for n in range(prompts) if all((n, one) in found for one in range(clips))]
    if whole:
        values = {
            name: np.array([[found[number, one][name] for one in range(clips)] for number in whole]) for name in raters
        }
        result = {"model": model, "rewards": reward, "prompts": len(whole), "clips": clips, "group": group}
        result["found"] = summary(values, group)
        (out / "reward_spread.json").write_text(json.dumps(result, indent=2) + "\n")
        print(json.dumps(result["found"], indent=2))


def rows(out: Path) -> list[dict[str, Any]]:
    """All scores that are there."""
    return [json.loads(line) for file in sorted(out.glob("scores_*.jsonl")) for line in file.read_text().splitlines()]


if __name__ == "__main__":
    typer.run(main)
