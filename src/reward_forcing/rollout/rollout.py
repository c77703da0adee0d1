"""The one loop that runs passes with a denoiser over a cache, for generation and for training alike.

B batch, F latent frames, C latent channels, h, w latent rows and columns, f latent frames of a chunk.
Owns the order of things: noise, passes, re-noising, the clean pass, the commit. Knows no network, no method by name and
no clip length; a rollout ends when its schedule or its reader does.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from reward_forcing.flow import add_noise, euler_step, widen, x0_to_velocity
from reward_forcing.models.attention import KV, DenoiserProtocol, Past, Text, TextContext, TextMix
from reward_forcing.rollout.kv_cache import Commit, KVCache
from reward_forcing.rollout.noise import Noise
from reward_forcing.rollout.schedule import Pass
from reward_forcing.rollout.switches import Keep, SwitchPolicy

KVGrad = Literal["none", "clean", "stale"]
"""Whether gradients reach earlier chunks through the cache.

none: not at all, as the Self Forcing paper describes it. clean: through a clean pass that is part of the graph, which
also makes the EMA-Sink differentiable (Reward Forcing, 3.4). stale: the values of the clean pass with the graph of the
last differentiable pass that the chunk was the oldest of, if there is one, which is what the published training code
computes.
"""
KV_GRADS: tuple[str, ...] = get_args(KVGrad)


@dataclass(frozen=True)
class Chunk:
    """A finished chunk: its number, its clean latents [B, f, C, h, w] in float32, and its first latent frame.

    at_exit: what its exit pass predicted of it, like `latents`, and the same where the schedule has no exits.
    """

    index: int
    latents: Tensor
    start: int
    at_exit: Tensor


@dataclass(frozen=True)
class Finished:
    """A yielded chunk that is still to be committed, and the text that it was generated with."""

    index: int
    latents: Tensor
    text: Text
    passes: int
    kv: KV | None = None
    """Where `kv_grad` is stale: keys and values of the pass whose graph it names; without clean passes: of its last."""


@dataclass(frozen=True)
class Noisy:
    """A chunk in flight: its latents [B, f, C, h, w] in the network's dtype after `passes` passes.

    at_exit: see `Chunk`, None before its exit pass. kv: see `Finished`.
    """

    latents: Tensor
    passes: int = 0
    at_exit: Tensor | None = None
    kv: KV | None = None


@dataclass(frozen=True)
class RolloutState:
    """Everything a rollout knows between two chunks, as a plain value: keep it to rewind, branch or save.

    index: the next chunk to finish. primed: how many chunks before it were given rather than generated. start: its
    first latent frame. noisy: the chunks in flight, oldest first, starting with `index`. since: the first chunk of
    `text`. earlier: texts before it that the switch policy still mixes in, with the first chunk of each, oldest first.
    recent: what the latest clean passes were given, or would have been, as far back as the switch policy recalls.
    """

    cache: KVCache
    text: TextContext
    index: int = 0
    primed: int = 0
    start: int = 0
    pending: Finished | None = None
    noisy: tuple[Noisy, ...] = ()
    since: int = 0
    earlier: tuple[tuple[int, TextContext], ...] = ()
    recent: tuple[Tensor, ...] = ()

    @property
    def texts(self) -> tuple[tuple[int, TextContext], ...]:
        """The texts that the next chunk may read, with the first chunk of each, oldest first; `text` is the last."""
        return (*self.earlier, (self.since, self.text))


def piece_lengths(frames: int, chunk: int) -> list[int]:
    """How given latent frames are cut: whole chunks, before them one piece of what is left (an image is such a one)."""
    rest, whole = frames % chunk, frames // chunk
    return [*([rest] if rest else []), *[chunk] * whole]


class Rollout:
    """An iterator of chunks, without end if its schedule has none.

    schedule: passes, chunk 0 being the first chunk not primed. noise: `SeededNoise`, or any function of its signature;
    its batch is the rollout's. shape: (C, h, w) of a latent frame. context_noise: sigma at which finished chunks enter
    the cache (0: clean). clean_pass: whether they enter it by a pass of their own. If not, the keys and values of their
    last denoising pass do, at its noise level and whatever it denoised beside them; what is given or computed anew
    takes clean passes all the same. That saves a forward and changes every later chunk. device, dtype: where and in
    what the network computes; noise, x0 and re-noising are float32. kv_grad: see `KVGrad`. A pass is differentiable
    where the schedule says so and gradients are enabled around it.
    switch: what becomes of the cache when `text` is set, and how one text gives way to the next (see `SwitchPolicy`).

    A chunk is yielded as soon as it is final. Its clean pass runs when the next chunk, or `cache`, is asked for, with
    the text the chunk was generated with; a reader who stops never pays for it. Between two chunks `text` may be set
    (it counts from the next pass on, for the chunks in flight of a joint schedule too), and `cache` may be set to a
    cache that holds every chunk yielded so far.
    """

    def __init__(
        self,
        denoiser: DenoiserProtocol,
        schedule: Iterable[Pass],
        cache: KVCache,
        noise: Noise,
        text: TextContext,
        shape: Sequence[int],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        context_noise: float = 0.0,
        clean_pass: bool = True,
        kv_grad: KVGrad = "none",
        switch: SwitchPolicy | None = None,
    ) -> None:
        if len(shape) != 3:
            raise ValueError(f"shape must be (channels, rows, columns) of a latent frame, got {tuple(shape)}")
        if not 0.0 <= context_noise < 1.0:
            raise ValueError(f"context_noise is a sigma in [0, 1), got {context_noise}")
        if kv_grad not in KV_GRADS:
            raise ValueError(f"kv_grad must be one of {', '.join(KV_GRADS)}, got {kv_grad!r}")
        if not clean_pass and kv_grad != "none":
            raise ValueError(f"kv_grad={kv_grad!r} speaks of clean passes; use kv_grad='none' or clean_pass=True")
        self._denoiser = denoiser
        self._schedule = iter(schedule)
        self._noise = noise
        self._shape = (cache.settings.chunk_frames, *shape)
        self._device = torch.device(device)
        self._dtype = dtype
        self._context_noise = context_noise
        self._clean_pass = clean_pass
        self._kv_grad = kv_grad
        self._switch = switch or Keep()
        self._state = RolloutState(cache, text)
        self._shown: tuple[KVCache, int, bool, Past | None] | None = None
        self._lost = False

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self._device

    @property
    def state(self) -> RolloutState:
        """This moment as a value; to be read between two chunks."""
        self._check_whole()
        return self._state

    def resume(self, state: RolloutState, schedule: Iterable[Pass]) -> None:
        """Continue from `state`, of this rollout or of one made with the same arguments.

        schedule: a fresh one, from its beginning; its passes before `state.index` are skipped. What follows equals what
        would have followed the moment that `state` was read, unless text, cache or sigmas are changed from there.
        """
        self._schedule = iter(schedule)
        self._state = state
        self._shown = None
        self._lost = False

    @property
    def text(self) -> TextContext:
        """The text of the chunks to come; setting it commits the last yielded chunk and asks the switch policy."""
        return self._state.text

    @text.setter
    def text(self, text: TextContext) -> None:
        self._settle()
        state = self._state
        unread = state.since == state.index  # no chunk has read the text that was set last
        earlier = state.earlier if unread else state.texts
        self._state = self._without_forgotten(replace(state, text=text, since=state.index, earlier=earlier))
        read = self._read()

        def clean(x: Tensor, over: KVCache) -> KV:
            past = over.past(x.shape[1], over.settings.clean_pass_sees_sink) if over.frames else None
            return self._clean(x, read, past)

        with torch.set_grad_enabled(self._kv_grad == "clean" and torch.is_grad_enabled()):
            cache = self._switch.cache(state.cache, state.recent, clean)
        self._state = replace(self._state, cache=self._checked(cache))

    @property
    def cache(self) -> KVCache:
        """The cache with every yielded chunk committed; runs the last one's clean pass if that is still to come."""
        self._settle()
        return self._state.cache

    @cache.setter
    def cache(self, cache: KVCache) -> None:
        self._state = replace(self._state, cache=self._checked(cache), pending=None, recent=())
        self._lost = False

    def _checked(self, cache: KVCache) -> KVCache:
        """`cache`, unless it is for chunks of another size."""
        if cache.settings.chunk_frames != self._shape[0]:
            raise ValueError(
                f"the rollout's chunks have {self._shape[0]} frames, the new cache expects chunks of "
                f"{cache.settings.chunk_frames}; start a new rollout to change the chunk"
            )
        return cache

    def prime(self, latents: Tensor) -> None:
        """Push given clean latents [B, F, C, h, w] through the cache, as if they had just been generated.

        To begin from an image or a video, or to continue one; the next chunk's number and first frame follow on. If F
        is not a multiple of the chunk, the first piece takes the remainder (an image is a piece of one frame).
        Raises ValueError for latents of another size, and while chunks are in flight.
        """
        if latents.ndim != 5 or tuple(latents.shape[2:]) != self._shape[1:] or latents.shape[1] == 0:
            raise ValueError(f"expected latents [B, F >= 1, {self._shape[1:]}], got {list(latents.shape)}")
        if self._state.noisy:
            raise ValueError(
                f"{len(self._state.noisy)} chunks are in flight; prime before the first chunk is generated"
            )
        self._settle()
        for piece in latents.split(piece_lengths(latents.shape[1], self._shape[0]), dim=1):
            self._commit(piece.to(self._device), self._read(), self._state.index, passes=0)
            self._advance(piece.shape[1], primed=1)

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        for step in self._schedule:
            if step.chunks[0] < self._state.index - self._state.primed:
                continue  # before the state that was resumed
            self._settle()
            chunk = self._run(step)
            if chunk is not None:
                return chunk
        raise StopIteration

    def _run(self, step: Pass) -> Chunk | None:
        """One pass; returns the chunk that it finishes, if any."""
        state, frames = self._state, self._shape[0]
        expected = state.index - state.primed
        assert step.chunks[0] == expected, f"{step} should begin with chunk {expected}, the oldest unfinished one"
        numbers = range(state.index, state.index + len(step.chunks))
        fresh = [Noisy(self._draw(number, 0).to(self._dtype)) for number in numbers[len(state.noisy) :]]
        noisy = [*state.noisy[: len(numbers)], *fresh]
        x = torch.cat([chunk.latents for chunk in noisy], dim=1)
        sigma = torch.tensor(step.sigma, dtype=torch.float32, device="cpu").repeat_interleave(frames)
        past = self._past(x.shape[1])
        if past is not None and state.cache.batch != x.shape[0]:
            raise ValueError(f"the noise has {x.shape[0]} samples, the cache holds {state.cache.batch}")
        with torch.set_grad_enabled(step.grad and torch.is_grad_enabled()):
            is_last = step.finishes and not self._clean_pass
            wants_kv = is_last or (self._kv_grad == "stale" and torch.is_grad_enabled())
            prediction = self._denoiser(x, sigma, self._read(), past, want_kv=wants_kv)
            predicted = prediction.x0.split(frames, dim=1)
        kept = [replace(chunk, passes=chunk.passes + 1) for chunk in noisy]
        if step.is_exit:
            kept = [replace(chunk, at_exit=x0) for chunk, x0 in zip(kept, predicted, strict=True)]
        if prediction.kv is not None:
            oldest = prediction.kv.map(lambda layer: layer[:, :frames].contiguous())
            kept[0] = replace(kept[0], kv=oldest)  # no view, which would keep the joint window's alive
        after = [
            replace(chunk, latents=self._next_level(chunk, number, x0.detach(), now, then, step.fresh_noise))
            for number, chunk, x0, now, then in zip(numbers, kept, predicted, step.sigma, step.sigma_next, strict=True)
            if then is not None
        ]
        self._state = replace(state, noisy=(*after, *state.noisy[len(numbers) :]))
        if not step.finishes:
            return None
        return self._finish(kept[0], predicted[0].clone(), step.is_exit)  # a view would keep the joint window alive

    def _finish(self, noisy: Noisy, latents: Tensor, is_exit: bool) -> Chunk:
        """Number a chunk finished with `latents`, and leave its clean pass for later."""
        at_exit = latents if is_exit or noisy.at_exit is None else noisy.at_exit
        chunk = Chunk(self._state.index, latents, self._state.start, at_exit)
        kept = latents if self._kv_grad == "clean" else latents.detach()
        pending = Finished(chunk.index, kept, self._read(), noisy.passes, noisy.kv)
        self._state = replace(self._state, pending=pending)
        self._advance(self._shape[0])
        return chunk

    def _advance(self, frames: int, primed: int = 0) -> None:
        state = self._state
        after = replace(state, index=state.index + 1, primed=state.primed + primed, start=state.start + frames)
        self._state = self._without_forgotten(after)

    def _read(self) -> Text:
        """What the next chunk reads: the text, or what the switch policy mixes of it and the texts before."""
        weighed = zip(self._weights(self._state), self._state.texts, strict=True)
        mix = TextMix(tuple((weight, text) for weight, (_, text) in weighed if weight))
        return mix.parts[0][1] if len(mix.parts) == 1 else mix

    def _weights(self, state: RolloutState) -> tuple[float, ...]:
        """How much the next chunk reads of each of the texts."""
        ages = tuple(state.index - since for since, _ in state.texts)
        weights = self._switch.weights(ages)
        if len(weights) != len(ages):
            raise ValueError(f"'{self._switch.kind}' must weigh the {len(ages)} prompts of ages {ages}, got {weights}")
        return weights

    def _without_forgotten(self, state: RolloutState) -> RolloutState:
        """`state` without the oldest texts of which its next chunk reads nothing."""
        forgotten = next((number for number, weight in enumerate(self._weights(state)) if weight), 0)
        return replace(state, earlier=state.earlier[forgotten:])

    def _settle(self) -> None:
        """Commit the last yielded chunk if that has not been done."""
        self._check_whole()
        pending = self._state.pending
        if pending is not None:
            self._commit(pending.latents, pending.text, pending.index, pending.passes, pending.kv)
            self._state = replace(self._state, pending=None)

    def _check_whole(self) -> None:
        if self._lost:
            raise RuntimeError("a commit of this rollout broke off and its cache is lost; resume a state you hold")

    def _commit(self, latents: Tensor, text: Text, index: int, passes: int, kv: KV | None = None) -> None:
        """Commit the keys and values that a clean pass gives of `latents`, or without clean passes `kv` itself.

        kv: see `Finished`; None for what is given. The rollout lets go of its cache before the next one is made, so
        that what nobody else holds is freed on the way; if that breaks off there is none.
        """
        stale, last = (kv, None) if self._clean_pass else (None, kv)
        past = None if last else self._past(latents.shape[1], self._state.cache.settings.clean_pass_sees_sink)
        with torch.set_grad_enabled(self._kv_grad == "clean" and torch.is_grad_enabled()):
            x = latents.to(self._dtype)
            if self._context_noise:
                x = self._add_noise(latents, index, passes, self._context_noise)
            kv = last or self._clean(x, text, past)
        self._shown = past = None
        if stale is not None:
            kv = KV(_with_graph(kv.keys, stale.keys), _with_graph(kv.values, stale.values))
        with torch.set_grad_enabled(self._kv_grad != "none" and torch.is_grad_enabled()):
            recent, commit = self._recalled(x), Commit(self._state.cache, kv)
            kv, self._lost = None, True
            self._state = replace(self._state, cache=self._state.cache.emptied())
            cache = commit.run()
            self._state = replace(self._state, cache=cache, recent=recent)
            self._lost = False

    def _clean(self, x: Tensor, text: Text, past: Past | None) -> KV:
        """Keys and values of finished frames, given as they enter the cache."""
        sigma = torch.full((x.shape[1],), self._context_noise, dtype=torch.float32, device="cpu")
        kv = self._denoiser(x, sigma, text, past, want_kv="only").kv
        assert kv is not None, "the denoiser returned no keys and values although they were asked for"
        return kv

    def _recalled(self, x: Tensor) -> tuple[Tensor, ...]:
        """The latest clean passes' inputs with `x` as the last, as few as the switch policy asks for."""
        limit = self._switch.recall_frames(self._state.cache.settings)
        if limit is not None and limit < 1:
            return ()
        recent = (*self._state.recent, x.clone())  # x may be a part of a longer video's storage
        while limit is not None and sum(latents.shape[1] for latents in recent[1:]) >= limit:
            recent = recent[1:]
        return recent

    def _past(self, frames: int, with_sink: bool = True) -> Past | None:
        """What the next `frames` frames see, its keys rotated once for all passes of a chunk.

        Built in the surrounding gradient mode, so that sharing it between passes cuts no graph.
        """
        cache = self._state.cache
        if self._shown is None or self._shown[0] is not cache or self._shown[1:3] != (frames, with_sink):
            self._shown = None  # the old one is freed before the new one is made
            past = cache.past(frames, with_sink)
            if past is not None:
                past = self._denoiser.rotate(past, (self._shape[2], self._shape[3]))
            self._shown = (cache, frames, with_sink, past)
        return self._shown[3]

    def _sigma(self, sigma: float, frames: int) -> Tensor:
        """Sigma [frames], filled on the device: copying a number there would wait for it."""
        return torch.full((frames,), sigma, device=self._device, dtype=torch.float32)

    def _draw(self, index: int, draw: int, frames: int | None = None) -> Tensor:
        """Noise of a chunk on the device, float32 [B, f, C, h, w]."""
        shape = (self._shape[0] if frames is None else frames, *self._shape[1:])
        noise = self._noise(index, draw, shape)
        if tuple(noise.shape[1:]) != shape:
            raise ValueError(f"noise for chunk {index} must be [B, {shape}], got {list(noise.shape)}")
        pinned = noise.pin_memory() if self._device.type == "cuda" else noise
        return pinned.to(self._device, non_blocking=True)

    def _next_level(
        self, chunk: Noisy, index: int, clean: Tensor, sigma: float, sigma_next: float, fresh_noise: bool
    ) -> Tensor:
        """A chunk's latents after re-noising, or after an Euler step of the flow ODE, in the network's dtype."""
        if fresh_noise:
            return self._add_noise(clean, index, chunk.passes, sigma_next)
        now, then = (self._sigma(level, clean.shape[1]).expand(clean.shape[0], -1) for level in (sigma, sigma_next))
        x = widen(chunk.latents)
        return euler_step(x, x0_to_velocity(x, clean, now), now, then).to(self._dtype)

    def _add_noise(self, clean: Tensor, index: int, draw: int, sigma: float) -> Tensor:
        """Clean latents noised to `sigma`: computed in float32, returned in the network's dtype."""
        noise = self._draw(index, draw, clean.shape[1])
        sigmas = self._sigma(sigma, clean.shape[1]).expand(clean.shape[0], -1)
        return add_noise(widen(clean), noise, sigmas).to(self._dtype)


def _with_graph(values: Sequence[Tensor], graphs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Layers that equal `values` and whose gradients flow into `graphs`."""
    pairs = zip(values, graphs, strict=True)
    return tuple(value + (graph - graph.detach()).to(value.dtype) for value, graph in pairs)
