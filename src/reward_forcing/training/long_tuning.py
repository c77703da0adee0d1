"""Streaming long tuning (LongLive): videos that run on from update to update, each of which trains on what it adds.

    update     0            1                  2                          12
    adds       0 .. 20      21 .. 38           39 .. 56        ..         219 .. 236, then a new video begins
    scored     0 .. 20      18 .. 38           36 .. 56                   216 .. 236

An update of either role takes up the KV cache that the one before it left, generates a stretch of new frames, and
scores a clip of these and a few frames before them. Only the new frames carry gradient, and no graph reaches back
into the cache.

Which stretch an update adds, and all that is drawn for a video, are functions of (seed, role, step). The cache and the
last frames are not: they were computed with the weights of earlier updates, which are gone, so that a resumed run could
not make them again. They are part of a checkpoint. Between updates they lie in main memory, apart for every item of the
global batch, so that a run may go on with another number of processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor

from reward_forcing.config import Settings
from reward_forcing.models.attention import KV
from reward_forcing.rollout.kv_cache import CacheSettings, KVCache
from reward_forcing.rollout.positions import Cut
from reward_forcing.rollout.rollout import Rollout, RolloutState
from reward_forcing.rollout.schedule import Pass
from reward_forcing.rollout.switches import Recache, SwitchSettings


@dataclass(frozen=True)
class Stretch:
    """What one update adds: `frames` latent frames from `start` on, to the run's video number `video`."""

    video: int
    start: int
    frames: int
    is_last: bool

    @property
    def end(self) -> int:
        """The frame after its last."""
        return self.start + self.frames


class LongTuning(Settings):
    """How long videos run, and where their prompt may be switched; the defaults are LongLive's.

    max_frames: latent frames that a video has at most. overlap_frames: frames of a scored clip that the update before
    has generated; the first stretch has none. switch_frames: where the prompt may be switched, one of them for each
    video that has a switch: beginnings of stretches; None takes all but that of the last stretch. switch: what becomes
    of the cache then.
    """

    max_frames: PositiveInt = 240
    overlap_frames: PositiveInt = 3
    switch_frames: tuple[PositiveInt, ...] | None = None
    switch: SwitchSettings = Recache(global_sink=False, frames=21)

    def starts(self, frames: int) -> tuple[int, ...]:
        """Where the stretches of a video begin, with clips of `frames`; the last ends at `max_frames` or before."""
        new = frames - self.overlap_frames
        return (0, *range(frames, self.max_frames - new + 1, new))

    def stretch(self, frames: int, update: int) -> Stretch:
        """What the run's update number `update` adds, both roles' updates counted together."""
        starts = self.starts(frames)
        video, index = divmod(update, len(starts))
        new = frames - self.overlap_frames if index else frames
        return Stretch(video, starts[index], new, index + 1 == len(starts))

    def switches(self, frames: int) -> tuple[int, ...]:
        """Where a prompt may be switched."""
        return self.starts(frames)[1:-1] if self.switch_frames is None else self.switch_frames

    def draw_switch(self, frames: int, share: float, shared: torch.Generator) -> int | None:
        """Where the prompts of a batch of videos are switched, all at the same frame; None for 1 - `share` of them."""
        if float(torch.rand((), generator=shared)) >= share:
            return None
        choices = self.switches(frames)
        return choices[int(torch.randint(len(choices), (), generator=shared))]

    def check_fit(self, frames: int, cache: CacheSettings, generator_every: int, switch_share: float) -> None:
        """Raise ValueError unless videos go on in whole chunks, and every stretch trains both roles in its turn."""
        chunk, new = cache.chunk_frames, frames - self.overlap_frames
        if new < chunk or frames % chunk or self.overlap_frames % chunk:
            raise ValueError(f"long: frames={frames} and overlap_frames={self.overlap_frames} must be whole chunks")
        starts = self.starts(frames)
        if len(starts) < 2:
            raise ValueError(f"long: max_frames={self.max_frames} holds no second stretch; use at least {frames + new}")
        if wrong := sorted(set(self.switches(frames)) - set(starts[1:])):
            raise ValueError(f"long: no stretch begins at switch_frames={wrong}; they begin at {list(starts[1:])}")
        if switch_share and not self.switches(frames):
            raise ValueError(f"long: switch_share={switch_share:g} needs switch_frames, or a larger max_frames")
        recalled = self.switch.recall_frames(cache)
        if recalled is None or recalled > frames:
            raise ValueError(f"long: the switch looks back {recalled or 'without end'}, clips have {frames} frames")
        if self.switch.weights((1, 0)) != (0.0, 1.0):
            raise ValueError(f"long: a clip has one prompt, and the switch '{self.switch.kind}' mixes two")
        if (common := gcd(generator_every + 1, len(starts))) > 1:
            raise ValueError(
                f"long: with generator_every={generator_every} and videos of {len(starts)} stretches the generator "
                f"would be trained on every {common}th stretch only; change generator_every or max_frames"
            )


class RunningVideos:
    """The videos of this process between two updates."""

    def __init__(self, settings: LongTuning, frames: int, cache: CacheSettings) -> None:
        self.settings, self.frames, self.cache = settings, frames, cache
        self._items: dict[int, dict[str, Tensor]] = {}
        self._counts: dict[int, dict[str, Any]] = {}  # by item: within an update its parts are at two places

    def advance(
        self, rollout: Rollout, passes: Sequence[Pass], items: Sequence[int], at: Stretch, switched: bool
    ) -> Tensor:
        """Latents [B, F, C, h, w] that end with the new stretch, before it up to a clip's frames that are older.

        rollout: over the items' noise and prompts, fresh. passes: its own, from the video's beginning to the stretch's
        end. switched: whether its prompt is new with this stretch. Raises ValueError if the update before this one has
        not been made.
        """
        before = self._taken_up(rollout, passes, items, at) if at.start else None
        if switched:
            rollout.text = rollout.state.text  # setting a text is what asks the switch policy
        new = torch.cat([chunk.latents for chunk in rollout], dim=1)
        latents = new if before is None else torch.cat([before, new], dim=1)
        if at.is_last:
            for item in items:
                self._items.pop(item, None)
                self._counts.pop(item, None)
        else:
            with torch.no_grad():
                self._put_down(items, latents, rollout.cache, at.end)
        return latents

    def _taken_up(self, rollout: Rollout, passes: Sequence[Pass], items: Sequence[int], at: Stretch) -> Tensor:
        """Let the rollout go on where the videos are; returns their last frames."""
        if any(item not in self._items or self._counts[item]["end"] != at.start for item in items):
            raise ValueError(f"this update goes on at frame {at.start}, but the one before it has not been made")
        device = rollout.state.text.keys.device
        held = {
            name: torch.cat([self._items[item][name] for item in items], dim=0 if name == "latents" else 1).to(device)
            for name in self._items[items[0]]
        }
        latents, index = held["latents"], at.start // self.cache.chunk_frames
        context, sink = (_pair(held, name) for name in ("context", "sink"))
        counts = {name: count for name, count in self._counts[items[0]].items() if name not in ("end", "cuts")}
        cuts = tuple(Cut(*cut) for cut in self._counts[items[0]]["cuts"])  # a checkpoint knows no tuples
        cache = replace(KVCache.empty(self.cache), context=context, sink=sink, cuts=cuts, **counts)
        recalled = self.settings.switch.recall_frames(self.cache) or 0
        pieces = latents.split(self.cache.chunk_frames, dim=1)
        recent = pieces[len(pieces) - -(-recalled // self.cache.chunk_frames) :]
        state = RolloutState(cache, rollout.text, index=index, start=at.start, since=index, recent=recent)
        rollout.resume(state, passes)
        return latents

    def _put_down(self, items: Sequence[int], latents: Tensor, cache: KVCache, end: int) -> None:
        held = {"latents": latents[:, -self.frames :]}
        for name, kv in (("context", cache.context), ("sink", cache.sink)):
            if kv is not None and kv.frames:
                held |= dict(zip((f"{name}_keys", f"{name}_values"), kv.stacked(), strict=True))
        for position, item in enumerate(items):
            self._items[item] = {
                name: tensor.narrow(0 if name == "latents" else 1, position, 1).detach().cpu().clone()
                for name, tensor in held.items()
            }
            self._counts[item] = {
                "end": end,
                "committed": cache.committed,
                "evicted": cache.evicted,
                "sink_updates": cache.sink_updates,
                "cuts": cache.cuts,
            }

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that the next update depends on, as `video.ITEM.NAME`: no other process has any of them."""
        return {f"video.{item}.{name}": tensor for item, held in self._items.items() for name, tensor in held.items()}

    def make_room(self, stored: Mapping[str, Tensor], items: range) -> None:
        """Hold, to be loaded into, those of the tensors stored under the names of `tensors` that are of these items."""
        self._items, self._counts = {}, {}
        for key, tensor in stored.items():
            kind, item, name = key.split(".")
            if kind == "video" and int(item) in items:
                self._items.setdefault(int(item), {})[name] = torch.zeros_like(tensor, device="cpu")

    def counts(self) -> dict[str, Any]:
        """The numbers that the next update depends on, between two updates the same for all videos."""
        return next((dict(counts) for counts in self._counts.values()), {})

    def set_counts(self, counts: Mapping[str, Any]) -> None:
        """Continue from what `counts` returned."""
        self._counts = {item: dict(counts) for item in self._items}


def _pair(held: Mapping[str, Tensor], name: str) -> KV | None:
    """Keys and values of what `RunningVideos` holds stacked."""
    if f"{name}_keys" not in held:
        return None
    return KV(held[f"{name}_keys"].unbind(), held[f"{name}_values"].unbind()).map(torch.clone)
