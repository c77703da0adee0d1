"""Which prompt is in force when: first prompts and changes at given times.

Owns the reading of `5s: a blue ball` and the rule of the switch. Knows no chunk sizes and no text encoder.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Prompts = tuple[str, ...]
"""One prompt that all samples of a batch share, or one for each."""

At = Mapping[float, str | Sequence[str]] | Iterable[tuple[float, str | Sequence[str]]]
"""Prompt changes: seconds of video and the prompt, or prompts, from then on."""

_AT = re.compile(r"\s*(?:(\d+)\s*m(?:in)?)?\s*(?:(\d+(?:\.\d*)?|\.\d+)\s*(?:s|sec)?)?\s*:(.*)", re.DOTALL)
_FORM = "expected TIME: PROMPT, such as '5s: a blue ball' or '1m30s: a blue ball'"


@dataclass(frozen=True)
class Timeline:
    """Prompts by the time, in seconds of video, from which they count; the first ones count from 0.

    A change at time t takes effect at the first chunk whose first frame is shown at t or later. What it does to the
    cache is the method's switch policy.
    """

    changes: tuple[tuple[float, Prompts], ...]

    @classmethod
    def of(
        cls,
        prompt: str | Sequence[str],
        at: At | None = None,
    ) -> "Timeline":
        """The timeline that begins with `prompt` and changes as `at` says, in any order.

        Raises ValueError for an empty prompt, for a time that is not positive and finite, and for two changes at once.
        """
        later = sorted((_check_time(time), check_prompts(text)) for time, text in changes_of(at))
        times = [time for time, _ in later]
        if repeated := next((time for time in times if times.count(time) > 1), None):
            raise ValueError(f"two prompts are to begin at {repeated:g} s; give each its own time")
        return cls(((0.0, check_prompts(prompt)), *later))

    def singles(self) -> list[tuple[float, str]]:
        """The changes, each with the prompt of the first sample."""
        return [(time, prompts[0]) for time, prompts in self.changes]

    def due(self, after: float, time: float) -> Prompts | None:
        """What a chunk beginning at `time` changes to, if the chunk before began at `after`; None for no change."""
        return next((prompts for start, prompts in reversed(self.changes) if after < start <= time), None)

    def check_reached(self, last_start: float) -> None:
        """Raise ValueError if a change comes too late for the last chunk, which begins at `last_start` seconds."""
        late = self.changes[-1][0]
        if late > last_start:
            raise ValueError(
                f"the prompt at {late:g} s would never be shown, for the last chunk of the video begins at "
                f"{last_start:.2f} s; make the video longer or the change earlier"
            )


def changes_of(at: At | None) -> list[tuple[float, str | Sequence[str]]]:
    """The changes as pairs, in the order given."""
    return list(at.items() if isinstance(at, Mapping) else at or ())  # pyright: ignore[reportReturnType]


def parse_at(text: str) -> tuple[float, str]:
    """Seconds and prompt of `5s: a blue ball`; also `2.5:`, `1m:` and `1m30s:`. Raises ValueError for another form."""
    match = _AT.fullmatch(text)
    if match is None or (match[1] is None and match[2] is None):
        raise ValueError(f"{_FORM}, got '{text}'")
    if not match[3].strip():
        raise ValueError(f"{_FORM}; there is no prompt in '{text}'")
    return _check_time(60 * float(match[1] or 0) + float(match[2] or 0)), match[3].strip()


def check_prompts(prompts: str | Sequence[str]) -> Prompts:
    """`prompts` as a tuple, a single one as a tuple of one; raises ValueError unless each says something."""
    several = (prompts,) if isinstance(prompts, str) else tuple(prompts)
    for prompt in several:
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"the prompt must say something, such as 'a red ball bounces', got {prompt!r}")
    if not several:
        raise ValueError("expected at least one prompt, got none")
    return several


def _check_time(time: float) -> float:
    if not 0 < time < math.inf:
        raise ValueError(f"a prompt can change at a positive time in seconds, got {time:g}; the first counts from 0")
    return float(time)
