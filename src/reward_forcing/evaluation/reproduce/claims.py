"""The papers' claims about parts and methods, and what our intervals say of each: nothing is decided here beforehand.

A claim is made of expectations: of one measure, a variant is better, worse or no worse than another. It is reproduced
if the interval of every difference lies where the claim expects it, not reproduced if one lies wholly elsewhere, and
undecided otherwise. Intervals are of 95 % each and not corrected for their number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from reward_forcing.evaluation.reproduce.measure import MEASURES
from reward_forcing.evaluation.reproduce.paper import TableName
from reward_forcing.evaluation.reproduce.recipe import OURS
from reward_forcing.evaluation.statistics import Estimate

Verdict = Literal["reproduced", "not reproduced", "undecided", "not measured"]
LEAST_RUNS = 2
"""Training runs of each variant that a verdict needs: of one, nobody knows what another seed would have given."""


@dataclass(frozen=True)
class Expectation:
    """That `variant` is better, worse or no worse than `than` in a measure."""

    measure: str
    variant: str
    expected: Literal["better", "worse", "no worse"]
    than: str


@dataclass(frozen=True)
class Claim:
    """A claim of the paper. where: in the paper. says: in our words, with its numbers."""

    where: str
    says: str
    parts: tuple[Expectation, ...]


CLAIMS = {
    "re_dmd_raises_dynamics": Claim(
        "Table 3, Section 4.2",
        "Without Re-DMD the dynamic degree drops (64.06 to 43.75).",
        (Expectation("dynamic", OURS, "better", "without_re_dmd"),),
    ),
    "re_dmd_keeps_the_rest": Claim(
        "Abstract, Table 3",
        "Re-DMD preserves fidelity: quality and background stay close (70.57 to 71.42, 95.07 to 95.85).",
        tuple(
            Expectation(measure, OURS, "no worse", "without_re_dmd")
            for measure in ("quality", "background", "alignment", "long_alignment")
        ),
    ),
    "re_dmd_beats_even_weights": Claim(
        "Section 3.3 (our control: the same groups of rollouts, all weighted alike)",
        "It is the reward that raises the dynamic degree, not the way prompts are drawn.",
        (Expectation("dynamic", OURS, "better", "even_weights"),),
    ),
    "groups_beat_mixed_prompts": Claim(
        "Section 3.3 (our control: rollouts of mixed prompts, without Z(c))",
        "Weights within groups of a prompt raise the dynamic degree more than weights over mixed prompts.",
        (Expectation("dynamic", OURS, "better", "mixed_prompts"),),
    ),
    "critic_weights_raise_dynamics": Claim(
        "training/re_dmd.py (not the paper's: the critic's loss is weighted by exp(-r / beta))",
        "Weights in the critic's loss move the fixed point to Eq. 9's optimum; those of Eq. 11 only the way there.",
        (
            Expectation("dynamic", "critic_weighted", "better", "even_weights"),
            Expectation("alignment", "critic_weighted", "no worse", "even_weights"),
            Expectation("quality", "critic_weighted", "no worse", "even_weights"),
        ),
    ),
    "ema_raises_dynamics": Claim(
        "Table 3, Section 4.2",
        "A static sink in place of the EMA-Sink leaves minimal dynamics (64.06 to 35.15).",
        (
            Expectation("dynamic", OURS, "better", "without_ema"),
            Expectation("long_dynamic", OURS, "better", "without_ema"),
        ),
    ),
    "ema_keeps_consistency": Claim(
        "Table 3, Section 4.2",
        "Without the EMA-Sink drift grows (2.51 to 2.65) and frames become inconsistent with the first.",
        tuple(
            Expectation(measure, OURS, "better", "without_ema")
            for measure in ("drift", "background_shift", "colour_shift")
        ),
    ),
    "ema_smooths": Claim(
        "Section 4.2, which compares with the row without Re-DMD",
        "Without the EMA-Sink, and without Re-DMD, motion is less smooth (98.91 to 98.64) and less (43.75 to 35.15).",
        (
            Expectation("smoothness", "without_re_dmd", "better", "without_re_dmd_and_ema"),
            Expectation("dynamic", "without_re_dmd", "better", "without_re_dmd_and_ema"),
        ),
    ),
    "sink_keeps_quality": Claim(
        "Table 3, Section 4.2",
        "Without a sink quality degrades noticeably (70.57 to 69.92) and drift doubles (2.51 to 5.08).",
        (Expectation("quality", OURS, "better", "without_sink"), Expectation("drift", OURS, "better", "without_sink")),
    ),
    "sink_keeps_identity": Claim(
        "Sections 1 and 3.2",
        "A sink keeps a long video what it was.",
        tuple(
            Expectation(measure, OURS, "better", "without_sink")
            for measure in ("background_shift", "colour_shift", "count_shift")
        ),
    ),
    "alpha_trades_smoothness_for_drift": Claim(
        "Table 3, Section 4.2",
        "Alpha 0.9 is smoother than 0.99 (99.09 to 98.96) and drifts more (3.23 to 2.52), 0.5 still more (3.78).",
        (
            Expectation("smoothness", "alpha_0_9", "better", "alpha_0_99"),
            Expectation("drift", "alpha_0_9", "worse", "alpha_0_99"),
            Expectation("drift", "alpha_0_5", "worse", "alpha_0_9"),
        ),
    ),
    "small_beta_costs_the_rest": Claim(
        "Table 3, Section 4.2",
        "Beta 1/5 raises dynamics (64.06 to 94.53) and costs background, smoothness and quality.",
        (
            Expectation("dynamic", "beta_1_5", "better", OURS),
            Expectation("background", "beta_1_5", "worse", OURS),
            Expectation("smoothness", "beta_1_5", "worse", OURS),
            Expectation("quality", "beta_1_5", "worse", OURS),
        ),
    ),
    "large_beta_lacks_dynamics": Claim(
        "Table 3, Section 4.2",
        "Beta 1 leaves too little dynamics (64.06 to 54.68).",
        (Expectation("dynamic", "beta_1", "worse", OURS),),
    ),
}
"""Every claim about the ablation by name; that on the course of training (Fig. 6) is judged in `curves`."""

_LONG = ("self_forcing", "longlive")

METHOD_CLAIMS = {
    "reward_moves_more": Claim(
        "Reward Forcing, Table 2",
        "Long videos move more (66.95) than those of Self Forcing (54.94) and LongLive (35.54).",
        tuple(Expectation(measure, OURS, "better", than) for measure in ("dynamic", "long_dynamic") for than in _LONG),
    ),
    "reward_does_not_drift_more": Claim(
        "Reward Forcing, Table 2",
        "They drift no more (2.505) than those of Self Forcing (5.075) and LongLive (2.531).",
        tuple(Expectation("drift", OURS, "no worse", than) for than in _LONG),
    ),
    "reward_keeps_quality": Claim(
        "Reward Forcing, Table 1",
        "Short videos are as good (84.84) as those of Self Forcing (84.59), LongLive (83.68) and Rolling Forcing "
        "(84.08), and follow the text as well (81.32 to 80.64, 81.37 and 69.78).",
        tuple(
            Expectation(measure, OURS, "no worse", than)
            for measure in ("quality", "alignment")
            for than in (*_LONG, "rolling")
        ),
    ),
    "critic_weights_move_more": Claim(
        "training/re_dmd.py (not the paper's: the critic's loss is weighted by exp(-r / beta))",
        "With the reward in the critic's loss videos move more than with none and follow the text as well.",
        (
            Expectation("dynamic", "critic_weighted", "better", "without_re_dmd"),
            Expectation("alignment", "critic_weighted", "no worse", "without_re_dmd"),
            Expectation("drift", "critic_weighted", "no worse", "without_re_dmd"),
        ),
    ),
    "rolling_accumulates_less": Claim(
        "Rolling Forcing, abstract",
        "Denoising a rolling window jointly, with a sink, substantially reduces error accumulation over long horizons.",
        tuple(
            Expectation(measure, "rolling", "better", "self_forcing")
            for measure in ("drift", "background_shift", "colour_shift", "long_alignment")
        ),
    ),
}
"""Every claim about whole methods by name."""

CLAIMS_OF: dict[TableName, dict[str, Claim]] = {"table3": CLAIMS, "methods": METHOD_CLAIMS}


@dataclass(frozen=True)
class Judged:
    """What came of a claim: the verdict, and a plain sentence with the numbers it rests on."""

    verdict: Verdict
    sentence: str


Difference = Callable[[str, str, str], Estimate | None]
"""(measure, variant, than) -> the difference of the two with its interval, None where it was not measured."""


def judge_claim(claim: Claim, difference: Difference, runs: Mapping[str, int], margins: Mapping[str, float]) -> Judged:
    """The verdict on a claim.

    runs: of each measured variant. margins: by how much a measure may be worse and count as no worse (0 if not given).
    """
    found = [(part, difference(part.measure, part.variant, part.than)) for part in claim.parts]
    told = [_told(part, one) for part, one in found if one is not None]
    if len(told) < len(found):
        missing = [f"{part.measure} of {part.variant} and {part.than}" for part, one in found if one is None]
        return Judged("not measured", f"Not measured ({', '.join(missing)}). The paper: {claim.says}")
    few = min(runs[name] for part in claim.parts for name in (part.variant, part.than)) < LEAST_RUNS
    held = ["open" if few or one is None else holds(part, one, margins.get(part.measure, 0.0)) for part, one in found]
    verdict: Verdict = "not reproduced" if "no" in held else "undecided" if "open" in held else "reproduced"
    reason = f" A verdict needs {LEAST_RUNS} training runs of each." if few else ""
    numbers = "; ".join(f"{text} ({WORDS[outcome]})" for text, outcome in zip(told, held, strict=True))
    return Judged(verdict, f"{verdict.capitalize()} at this scale. The paper: {claim.says} Here: {numbers}.{reason}")


WORDS = {"yes": "as claimed", "no": "not as claimed", "open": "open"}


def holds(part: Expectation, difference: Estimate, margin: float = 0.0) -> Literal["yes", "no", "open"]:
    """Whether an expectation holds, by the interval of `variant` - `than`; the measure says which way is better.

    'no worse' holds where the whole interval is better than -margin, and does not where all of it is worse.
    """
    sign = 1 if MEASURES[part.measure].better == "higher" else -1
    low, high = sorted((sign * difference.low, sign * difference.high))
    if part.expected == "worse":
        low, high = -high, -low
    bound = -margin if part.expected == "no worse" else 0.0
    return "yes" if low > bound else "no" if high < bound else "open"


def _told(part: Expectation, difference: Estimate) -> str:
    measure = MEASURES[part.measure]
    number = f"{difference.value:+.{measure.digits}f}"
    interval = f"[{difference.low:+.{measure.digits}f}, {difference.high:+.{measure.digits}f}]"
    return f"{measure.label}, {part.variant} less {part.than}, {number} {interval}, expected {part.expected}"
