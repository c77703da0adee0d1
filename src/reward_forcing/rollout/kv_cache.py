"""What of the past attention can see, and at which positions: the cache as a value.

N layers, B batch, F latent frames, S tokens per latent frame, H heads, D head width.
Owns eviction and the sink's place; the times of what is seen stand in `positions`. Knows neither the network that made
the keys and values nor the passes that read them. Keys are stored un-rotated, so positions are free to change from
chunk to chunk.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import BeforeValidator, PositiveInt, model_validator
from torch import Tensor

from reward_forcing.config import Settings
from reward_forcing.flow import widen
from reward_forcing.models.attention import KV, OnDemand, Past
from reward_forcing.rollout.positions import Cut, Positions, time_positions, with_cut, without_gone
from reward_forcing.rollout.sinks import EmaSink, SinkSettings
from reward_forcing.rollout.storage import Storage, from_int8, to_int8

UNLIMITED = -1
FRAMES = 1
"""The axis of frames in a layer's keys and values [B, F, S, H, D]."""


def _window(value: object) -> object:
    return None if value == UNLIMITED else value


class CacheSettings(Settings):
    """How much of the past is kept, in latent frames, and how it is positioned.

    window_frames counts the sink, the local past and the chunk being denoised, as in the reference code (the paper
    counts the sink on top); None, or -1 as published configs write it, keeps everything. positions 'relative' numbers
    what attention sees from 0 (Reward Forcing, LongLive's infinite variant); 'absolute' uses each frame's number in
    the video, counted from the first frame that the cache was given (Self Forcing, LongLive). clean_pass_sees_sink:
    whether finished chunks see the sink as they enter the cache; in Rolling Forcing's published code they see the last
    `window_frames` frames of the video instead, and nothing of the sink once these no longer reach back to the
    beginning.
    Raises ValueError for a window without room for the sink and one chunk.
    """

    window_frames: Annotated[PositiveInt | None, BeforeValidator(_window)] = 9
    chunk_frames: PositiveInt = 3
    sink: SinkSettings = EmaSink()
    positions: Positions = "relative"
    clean_pass_sees_sink: bool = True

    @model_validator(mode="after")
    def _window_holds_sink_and_chunk(self) -> "CacheSettings":
        needed = self.sink.frames + self.chunk_frames
        if self.window_frames is not None and self.window_frames < needed:
            raise ValueError(
                f"window_frames={self.window_frames} cannot hold {self.sink.frames} sink frames and a chunk of "
                f"{self.chunk_frames}; use at least {needed}, or a smaller sink or chunk"
            )
        return self

    @property
    def kept_frames(self) -> int | None:
        """Frames of local past that the cache keeps, enough for the pass over a single chunk; None for all."""
        room = self.local_frames(self.chunk_frames)
        return room if room is None or self.clean_pass_sees_sink else room + self.sink.frames

    def local_frames(self, frames: int) -> int | None:
        """Frames of local past that fit beside a full sink and `frames` denoised frames; None where all do.

        Raises ValueError where the denoised frames do not fit themselves.
        """
        if self.window_frames is None:
            return None
        room = self.window_frames - self.sink.frames - frames
        if room < 0:
            raise ValueError(
                f"{frames} frames denoised together do not fit a window of {self.window_frames} with "
                f"{self.sink.frames} sink frames; use window_frames >= {self.sink.frames + frames}"
            )
        return room


@dataclass(frozen=True)
class KVCache:
    """The past of a rollout as a value: committing returns a new cache and leaves this one as it was.

    A snapshot is a reference; holding one costs its own tensors and nothing of later caches. Every tensor owns its
    storage, of a size that stops growing once the window is full.

    context: [what is seen of the sink | local past] in the network's dtype, keys and values of each layer
    [B, P, S, H, D], oldest first; None while nothing is committed. sink: the sink in float32 [B, sink_frames, S, H, D].
    committed, evicted: latent frames ever committed and ever evicted. sink_updates: commits whose evicted frames went
    to the sink. cuts: where time jumps (see `positions`). storage: where it is not 'exact', context is the local past
    alone, as `storage` stores it. dtype: the network's.
    """

    settings: CacheSettings
    context: KV | None = None
    sink: KV | None = None
    committed: int = 0
    evicted: int = 0
    sink_updates: int = 0
    cuts: tuple[Cut, ...] = ()
    storage: Storage = "exact"
    dtype: torch.dtype = torch.float32

    @classmethod
    def empty(cls, settings: CacheSettings, storage: Storage = "exact") -> "KVCache":
        """The cache of a rollout that has not begun."""
        return cls(settings, storage=storage)

    def emptied(self) -> "KVCache":
        """This one as it was when nothing had been committed."""
        return KVCache.empty(self.settings, self.storage)

    @property
    def frames(self) -> int:
        """Latent frames that are kept, sink included."""
        return 0 if self.context is None else self.context.frames + self.sink_frames - self._joined_frames

    @property
    def sink_frames(self) -> int:
        """Filled frames of the sink; attention sees only these."""
        return 0 if self.sink is None else self.sink.frames

    @property
    def _joined_frames(self) -> int:
        """Frames of the sink in the context."""
        return self.sink_frames if self.storage == "exact" else 0

    @property
    def batch(self) -> int | None:
        """Number of samples B; None while nothing is committed."""
        return None if self.context is None else self.context.keys[0].shape[0]

    def past(self, frames: int, with_sink: bool = True) -> Past | None:
        """What the next `frames` frames see, with time positions for both; None where they see only themselves.

        Shows the sink and as much of the local past as the window has room for beside `frames`. Relative positions run
        0, 1, .. along [sink | local past | frames]; absolute ones are the frames' numbers in the video. with_sink
        False: the sink is seen only as the beginning of a video that fits the window whole, and leaves its room to the
        local past of a longer one.
        Raises ValueError if `frames` do not fit the window.
        """
        room = self.settings.local_frames(frames)
        if self.context is None or self.sink is None:
            return None
        sink, local = self.sink_frames, self.frames - self.sink_frames
        if room is not None:
            if not with_sink:
                room += self.settings.sink.frames
                sink = sink if self.committed <= room else 0
            local = min(local, room)
        shown = sink + local
        if shown == 0:
            return None
        numbers = range(self.committed - local, self.committed + frames)
        positions = time_positions(self.settings.positions, sink, numbers, self.cuts)
        if self.storage == "exact":
            seen = self.context.map(lambda layer: _show(layer, sink, local))
        else:

            def join(layer: tuple[Tensor, Tensor]) -> Tensor:
                newest = self.read(layer[0][:, layer[0].shape[FRAMES] - local :])
                return torch.cat([self.shown_sink(layer[1]), newest], dim=FRAMES) if sink else newest

            pairs = ((self.context.keys, self.sink.keys), (self.context.values, self.sink.values))
            seen = KV(*(OnDemand(tuple(zip(*pair, strict=True)), join) for pair in pairs))
        return Past(seen.keys, seen.values, positions[:shown], positions[shown:])

    def shown_sink(self, sink: Tensor) -> Tensor:
        """What attention sees of a layer's sink, in the network's dtype; sinks know a tensor with an axis of layers."""
        return self.settings.sink.show(sink[None], self.evicted)[0].to(self.dtype)

    def store(self, layer: Tensor) -> Tensor:
        """A layer's frames as this cache stores them."""
        return to_int8(layer) if self.storage == "int8" else layer

    def read(self, stored: Tensor) -> Tensor:
        """The frames that `store` was given, in the network's dtype."""
        return from_int8(stored, self.dtype) if self.storage == "int8" else stored

    def rewound(self, frames: int) -> "KVCache":
        """The cache before its newest `frames` frames were committed, as far as it remembers that.

        The sink stays as it is, with what it has absorbed, and older local frames that have been evicted are gone.
        """
        if self.context is None:
            return self
        kept = max(0, self.frames - self.sink_frames - frames)
        context = self.context.map(lambda layer: layer[:, : self._joined_frames + kept].clone())
        return replace(self, context=context, committed=self.committed - frames)

    def flushed(self, frames: int) -> "KVCache":
        """The cache with no more of the local past than its newest `frames` frames, and the sink as it is.

        What is dropped leaves no trace and does not count as evicted.
        """
        local = self.frames - self.sink_frames
        if self.context is None or local <= frames:
            return self
        return replace(self, context=self.context.map(lambda layer: _show(layer, self._joined_frames, frames)))

    def cut(self, frames: int) -> "KVCache":
        """The cache with a jump of `frames` latent frames of time after its newest frame; itself if it has none."""
        if self.context is None:
            return self
        return replace(self, cuts=with_cut(self.cuts, Cut(self.committed, frames)))

    def commit(self, kv: KV, absorb: bool = True) -> "KVCache":
        """The cache after finished frames, whose clean keys and values are `kv`, N of [B, F, S, H, D].

        The first `sink.frames` frames ever committed fill the sink, over as many commits as that takes. The oldest
        other frames are evicted until sink, local past and the next chunk fit the window, and the sink absorbs them:
        evicted frame j, counted from the first ever, into sink frame j mod `sink.frames` (for whole groups this is
        Reward Forcing, Eqs. 4-5). The next chunk's first pass therefore sees the updated sink, as in the reference.
        absorb False: evicted frames leave no trace, for frames of a rewound cache that the sink has absorbed before.
        Raises ValueError if layers, batch, tokens or heads of `kv` differ from those committed before.
        """
        return Commit(self, kv, absorb).run()


class Commit:
    """A commit that is still to run, and then gives up what it reads layer by layer as it makes the next cache.

    It holds the layers of the cache and of the new frames, and neither of the two: once nobody else holds them, cache
    and next cache are never in memory both. A cache that somebody holds stays whole.
    """

    def __init__(self, cache: KVCache, kv: KV, absorb: bool = True) -> None:
        _check(cache, kv)
        settings, frames = cache.settings, kv.frames
        self._policy = settings.sink
        self._joined = cache._joined_frames
        self._to_sink = min(frames, settings.sink.frames - cache.sink_frames)
        local = cache.frames - cache.sink_frames + frames - self._to_sink
        kept = settings.kept_frames
        self._evict = 0 if kept is None else max(0, local - kept)
        self._absorbs = bool(self._evict and absorb and settings.sink.frames)
        self._slot = cache.evicted % max(1, settings.sink.frames)
        committed = cache.committed + frames
        self._after = replace(
            cache,
            context=None,
            sink=None,
            cuts=without_gone(cache.cuts, cache.sink_frames + self._to_sink, oldest=committed - (local - self._evict)),
            committed=committed,
            evicted=cache.evicted + self._evict * absorb,
            sink_updates=cache.sink_updates + self._absorbs,
            dtype=kv.keys[0].dtype,
        )
        sink = cache.sink or kv.map(_no_frames)
        context = cache.context or kv.map(_no_frames).map(cache.store)
        self._keys = deque(zip(context.keys, sink.keys, kv.keys, strict=True))
        self._values = deque(zip(context.values, sink.values, kv.values, strict=True))

    def run(self) -> KVCache:
        """The next cache; to be called once."""
        context, sink = zip(*(self._advanced(layers) for layers in (self._keys, self._values)), strict=True)
        return replace(self._after, context=KV(*context), sink=KV(*sink))

    def _advanced(self, layers: deque[tuple[Tensor, Tensor, Tensor]]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The next context and the next sink of all layers, of their keys or of their values; `layers` is emptied."""
        made = []
        while layers:
            made.append(self._advance(*layers.popleft()))
        context, sink = zip(*made, strict=True)
        return context, sink

    def _advance(self, context: Tensor, sink: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """The next context and the next sink of one layer."""
        after = self._after
        first, new = new.tensor_split([self._to_sink], dim=FRAMES)
        old = context[:, self._joined :]
        if self._to_sink:
            sink = torch.cat([widen(sink), widen(first)], dim=FRAMES)
        from_old = min(self._evict, old.shape[FRAMES])
        gone_old, kept_old = old.tensor_split([from_old], dim=FRAMES)
        gone_new, kept_new = new.tensor_split([self._evict - from_old], dim=FRAMES)
        if self._absorbs:
            gone = torch.cat([after.read(gone_old), gone_new], dim=FRAMES)
            sink = self._policy.absorb(sink[None], gone[None], slot=self._slot)[0]
        joined = [after.shown_sink(sink)] if after.storage == "exact" else []
        return torch.cat([*joined, kept_old, after.store(kept_new)], dim=FRAMES), sink


def _check(cache: KVCache, kv: KV) -> None:
    if cache.sink is None:
        return
    held, came = (_without_frames(layers) for layers in (cache.sink.keys, kv.keys))
    if held != came:
        raise ValueError(
            f"the cache holds [layers, batch, tokens, heads, width] {held}, the committed frames have {came}; "
            "start from KVCache.empty for another batch, resolution or network"
        )


def _show(layer: Tensor, sink: int, local: int) -> Tensor:
    """The first `sink` and the last `local` frames; the tensor itself, without a copy, where these are all."""
    stored = layer.shape[FRAMES]
    if sink + local == stored:
        return layer
    return torch.cat([layer[:, :sink], layer[:, stored - local :]], dim=FRAMES)


def _no_frames(layer: Tensor) -> Tensor:
    """A tensor like `layer` with zero frames, in storage of its own."""
    return layer.new_empty(layer[:, :0].shape)


def _without_frames(layers: Sequence[Tensor]) -> list[int]:
    return [len(layers), *(size for axis, size in enumerate(layers[0].shape) if axis != FRAMES)]
