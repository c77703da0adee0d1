"""The naive mode's cache: slots that move, index tensors that are read on the host, copies joined at every pass.

B batch, T tokens, S tokens per latent frame, H heads, D head width. Written after the published slot rule, and apart
from `rollout.kv_cache` on purpose: each is the other's oracle. Never made faster.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from reward_forcing.rollout import CacheSettings, EmaSink, NoSink, RollingSink, StaticSink


@dataclass(frozen=True)
class Shown:
    """What one pass attends to in one layer: un-rotated keys, values [B, T, H, D], the time position of each frame."""

    keys: Tensor
    values: Tensor
    key_positions: Tensor
    query_positions: Tensor


class NaiveLayerCache:
    """Keys and values of one layer in slots [B, capacity, H, D], oldest first, the sink in front.

    `ends` holds the tokens ever given and the slots in use, on the device: reading them makes the host wait. Without a
    window the slots grow by a copy with each chunk. `evicted`: frames that ever left the window. `sinks`: what a sink
    whose slots change is made from, None until they first do.
    Raises ValueError for a sink that is none of none, static, ema and rolling.
    """

    def __init__(self, settings: CacheSettings, tokens: int) -> None:
        if not isinstance(settings.sink, NoSink | StaticSink | EmaSink | RollingSink):
            raise ValueError(
                f"the naive mode knows the sinks none, static, ema and rolling, not '{settings.sink.kind}'"
            )
        self.settings = settings
        self.tokens = tokens
        self.sink_slots = settings.sink.frames * tokens
        self.slots: tuple[Tensor, Tensor] | None = None
        self.sinks: tuple[Tensor, Tensor] | None = None
        self.ends: Tensor | None = None
        self.evicted = 0

    @property
    def capacity(self) -> int | None:
        """Slots for the sink, the kept past and a chunk; None without end."""
        kept = self.settings.kept_frames
        return None if kept is None else (self.settings.sink.frames + kept + self.settings.chunk_frames) * self.tokens

    def attend_to(self, keys: Tensor, values: Tensor, start: int, own: int, with_sink: bool = True) -> Shown:
        """Write the first `own` tokens into their slots and return all that tokens [B, T, H, D] from `start` on see.

        start: tokens of video before these. The same tokens written again replace the former, and only new ones evict.
        with_sink: see `CacheSettings.clean_pass_sees_sink`.
        """
        self._write(keys[:, :own], values[:, :own], start)
        assert self.slots is not None
        assert self.ends is not None
        global_end, local_end = int(self.ends[0].item()), int(self.ends[1].item())
        queries = keys.shape[1] // self.tokens
        sink = shown_sink = min(self.sink_slots, local_end)
        first = sink
        if self.settings.window_frames is not None:
            room = max(0, self.settings.window_frames * self.tokens - self.sink_slots - keys.shape[1])
            if not with_sink:
                room += self.sink_slots
                shown_sink = sink if start <= room else 0
            first = max(sink, local_end - own - room)
        shown_keys, shown_values = (
            torch.cat([slots[:, :shown_sink], slots[:, first:local_end], new[:, own:]], dim=1)
            for slots, new in zip(self.slots, (keys, values), strict=True)
        )
        positions = self._positions(shown_sink, global_end - (local_end - first), shown_keys.shape[1])
        return Shown(shown_keys, shown_values, positions, positions[-queries:])

    def flush(self, frames: int) -> None:
        """Keep of the local past only the newest `frames` frames, moved to just behind the sink.

        What must leave for the next chunk is evicted first; what is dropped then leaves no trace.
        """
        if self.slots is None or self.ends is None:
            return
        seen, used = int(self.ends[0].item()), int(self.ends[1].item())
        kept = frames * self.tokens
        if self.capacity is not None:
            excess = max(0, used + self.settings.chunk_frames * self.tokens - self.capacity)
            if excess:
                self._roll(excess, used)
                used -= excess
                self.ends = torch.tensor([seen, used], device=self.ends.device)
        if used - self.sink_slots <= kept:
            return
        end = self.sink_slots + kept
        for slots in self.slots:
            slots[:, self.sink_slots : end] = slots[:, used - kept : used].clone()
        self.ends = torch.tensor([seen, end], device=self.ends.device)

    def _positions(self, sink: int, local_start: int, shown: int) -> Tensor:
        """Time positions of the shown frames, as a tensor on the device; all counts are of tokens."""
        assert self.ends is not None
        frames, device = shown // self.tokens, self.ends.device
        if self.settings.positions == "relative":
            return torch.arange(frames, device=device)
        sinks = torch.arange(sink // self.tokens, device=device)
        later = torch.arange(frames - sink // self.tokens, device=device)
        return torch.cat([sinks, later + local_start // self.tokens])

    def _write(self, keys: Tensor, values: Tensor, start: int) -> None:
        if self.slots is None or self.ends is None:
            shape = (keys.shape[0], self.capacity or 0, *keys.shape[2:])
            self.slots = (keys.new_zeros(shape), values.new_zeros(shape))
            self.ends = torch.zeros(2, dtype=torch.long, device=keys.device)
        seen, used = int(self.ends[0].item()), int(self.ends[1].item())
        end = start + keys.shape[1]
        local_end = used + max(0, end - seen)
        if self.capacity is None:
            more = keys.new_zeros(keys.shape[0], local_end - used, *keys.shape[2:])
            self.slots = (torch.cat([self.slots[0], more], dim=1), torch.cat([self.slots[1], more], dim=1))
        elif local_end > self.capacity:
            self._roll(local_end - self.capacity, used)
            local_end = self.capacity
        for slots, given in zip(self.slots, (keys, values), strict=True):
            slots[:, local_end - given.shape[1] : local_end] = given
        self.ends = torch.tensor([max(end, seen), local_end], device=keys.device)

    def _roll(self, evicted: int, used: int) -> None:
        """Move the local past over its oldest `evicted` tokens, upon which the sink's slots change."""
        assert self.slots is not None
        sink = self.sink_slots
        gone = tuple(slots[:, sink : sink + evicted].clone() for slots in self.slots)
        for slots in self.slots:
            slots[:, sink : used - evicted] = slots[:, sink + evicted : used].clone()
        if isinstance(self.settings.sink, EmaSink):
            self._average(self.settings.sink, gone, self.evicted)
        self.evicted += evicted // self.tokens
        if isinstance(self.settings.sink, RollingSink):
            self._turn(self.settings.sink.frames)

    def _average(self, sink: EmaSink, gone: tuple[Tensor, ...], first: int) -> None:
        """S <- alpha S + (1 - alpha) K for every evicted frame, in float32 beside the slots."""
        assert self.slots is not None
        if self.sinks is None:
            self.sinks = (self.slots[0][:, : self.sink_slots].float(), self.slots[1][:, : self.sink_slots].float())
        for slots, sinks, frames in zip(self.slots, self.sinks, gone, strict=True):
            for number, frame in enumerate(frames.split(self.tokens, dim=1)):
                at = (first + number) % sink.frames * self.tokens
                kept = sinks[:, at : at + self.tokens]
                sinks[:, at : at + self.tokens] = sink.alpha * kept + (1 - sink.alpha) * frame.float()
            slots[:, : self.sink_slots] = sinks.to(slots.dtype)

    def _turn(self, frames: int) -> None:
        """Show the video's first `frames` frames as a loop, begun with the frame numbered `evicted`, in its slots."""
        assert self.slots is not None
        if self.sinks is None:
            self.sinks = (self.slots[0][:, : self.sink_slots].clone(), self.slots[1][:, : self.sink_slots].clone())
        for slots, first in zip(self.slots, self.sinks, strict=True):
            for place in range(frames):
                frame = (place + self.evicted) % frames * self.tokens
                slots[:, place * self.tokens : (place + 1) * self.tokens] = first[:, frame : frame + self.tokens]
