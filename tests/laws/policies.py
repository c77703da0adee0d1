"""Every registered policy with any numbers, and whole ways of streaming made of them: what the laws are tried on."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache as once
from functools import partial
from itertools import pairwise
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import torch
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from rollout.toy import SHAPE, ToyDenoiser, tiny_denoiser, tiny_text, toy_text
from torch import Tensor

from reward_forcing.config import Variant
from reward_forcing.models.attention import KV, DenoiserProtocol, TextContext
from reward_forcing.models.denoiser import Denoiser
from reward_forcing.rollout import (
    SCHEDULES,
    SINKS,
    SWITCHES,
    CacheSettings,
    KVCache,
    Rollout,
    RolloutState,
    SeededNoise,
    SwitchPolicy,
    chunks_at_once,
    schedule_named,
)
from reward_forcing.streaming.methods import METHODS

REGISTRIES: dict[str, Mapping[str, Any]] = {
    "sink": SINKS,
    "switch": SWITCHES,
    "schedule": SCHEDULES,
    "method": METHODS,
}
EVERY = [(what, name) for what, registry in REGISTRIES.items() for name in registry]
"""What is registered: a new policy is here as soon as it is in its registry."""


def numbers(field: FieldInfo) -> st.SearchStrategy[Any]:
    """Values that a setting may have: numbers within its bounds, few and small; its default where that is all."""
    bounds = {name: value for item in field.metadata for name, value in vars_of(item).items() if value is not None}
    if NoneType in get_args(field.annotation):
        (kind,) = set(get_args(field.annotation)) - {NoneType}
        return st.none() | numbers(FieldInfo.from_annotation(kind))
    if get_origin(field.annotation) is Literal:
        return st.sampled_from(get_args(field.annotation))
    if field.annotation is bool:
        return st.booleans()
    if field.annotation is int:
        least = bounds.get("ge", bounds.get("gt", -1) + 1)
        return st.integers(least, min(least + 3, bounds.get("le", least + 3)))
    if field.annotation is float and {"ge", "le"} <= bounds.keys():
        return st.floats(bounds["ge"], bounds["le"])
    return st.just(field.default)


def vars_of(constraint: object) -> dict[str, Any]:
    """The bounds that a piece of a field's metadata sets."""
    return {name: getattr(constraint, name) for name in ("ge", "gt", "le", "lt") if hasattr(constraint, name)}


def made_of(policy: type[Variant]) -> st.SearchStrategy[Any]:
    """Instances of a policy, with any numbers that it takes together."""
    fields = {name: numbers(field) for name, field in policy.model_fields.items() if name != "kind"}
    return st.fixed_dictionaries(fields).map(partial(made, policy)).filter(bool)


def made(policy: type[Variant], given: dict[str, Any]) -> Variant | None:
    """The policy with these numbers; None if it refuses them."""
    try:
        return policy(**given)
    except ValidationError:
        return None


def policies(registry: Mapping[str, type[Variant]], name: str | None = None) -> st.SearchStrategy[Any]:
    """Instances of every policy there is, or of the one called so."""
    return made_of(registry[name]) if name else st.sampled_from(sorted(registry)).map(registry.get).flatmap(made_of)


sinks, switches = policies(SINKS), policies(SWITCHES)
windows = st.one_of(st.none(), st.integers(0, 5))
"""Frames beyond the sink and what is denoised together; None for no window."""
levels = st.integers(1, 3).map(lambda steps: tuple(1.0 - step / steps for step in range(steps)))
"""Noise levels of a chunk's passes."""


@st.composite
def caches(draw, windows=windows, sinks=sinks, at_once: int = 1) -> CacheSettings:
    """Cache settings of any sink, window and chunk, with room for `at_once` chunks."""
    sink, chunk, more = draw(sinks), draw(st.integers(1, 4)), draw(windows)
    return CacheSettings(
        window_frames=None if more is None else sink.frames + at_once * chunk + more,
        chunk_frames=chunk,
        sink=sink,
        positions=draw(st.sampled_from(["relative", "absolute"])),
        clean_pass_sees_sink=draw(st.booleans()),
    )


@dataclass(frozen=True)
class Way:
    """A whole way of streaming: schedule, noise levels, cache, switch policy, and whether chunks have clean passes."""

    schedule: str
    sigmas: tuple[float, ...]
    cache: CacheSettings
    switch: SwitchPolicy
    clean_pass: bool = True

    @property
    def at_once(self) -> int:
        """The most chunks denoised together."""
        return chunks_at_once(schedule_named(self.schedule)(self.sigmas, chunks=9))

    def rollout(
        self, denoiser: DenoiserProtocol, text: TextContext, seeds: tuple[int, ...] = (3,), chunks: int | None = None
    ) -> Rollout:
        """A rollout of this way from the beginning."""
        passes = schedule_named(self.schedule)(self.sigmas, chunks=chunks)
        how = {"switch": self.switch, "clean_pass": self.clean_pass}
        return Rollout(denoiser, passes, KVCache.empty(self.cache), SeededNoise(seeds), text, SHAPE, **how)


@st.composite
def ways(draw, what: str, name: str, windows=windows) -> Way:
    """Any way of streaming with the policy `name` in it, the `what` among sink, switch, schedule and whole method."""
    if what == "method":
        method = METHODS[name]
        return Way(method.schedule, method.sigmas, method.cache, method.switch)
    chosen = {what: name}
    schedule, sigmas = chosen.get("schedule") or draw(st.sampled_from(sorted(SCHEDULES))), draw(levels)
    at_once = chunks_at_once(SCHEDULES[schedule](sigmas, chunks=9))
    cache = draw(caches(windows, policies(SINKS, chosen.get("sink")), at_once))
    return Way(schedule, sigmas, cache, draw(policies(SWITCHES, chosen.get("switch"))), draw(st.booleans()))


@once
def network() -> Denoiser:
    """The network of the laws."""
    return tiny_denoiser(layers=1)


def text(*seeds: int) -> TextContext:
    """The text of one random prompt for each sample."""
    each = [tiny_text(network().network, seed) for seed in seeds]
    return TextContext(*(torch.cat([getattr(one, name) for one in each], dim=1) for name in ("keys", "values")))


def video(rollout: Rollout, chunks: int, changes: Mapping[int, TextContext] | None = None) -> Tensor:
    """Latents of the next chunks; changes: texts by the number, among these, of the chunk they begin with."""
    out = []
    for number in range(chunks):
        if changes and number in changes:
            rollout.text = changes[number]
        out.append(next(rollout).latents)
    return torch.cat(out, dim=1)


def held(state: RolloutState) -> int:
    """Numbers that a state keeps alive, but for the current text."""
    kvs: list[KV] = [kv for kv in (state.cache.context, state.cache.sink) if kv is not None]
    kvs += [state.pending.kv] if state.pending is not None and state.pending.kv is not None else []
    tensors = [tensor for kv in kvs for tensor in (*kv.keys, *kv.values)]
    tensors += [*state.recent, *(text.keys for _, text in state.earlier), *(chunk.latents for chunk in state.noisy)]
    stored = sum(tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in tensors)
    return stored + len(state.cache.cuts)


def finish_once_and_in_order(way: Way, chunks: int, changes: set[int]) -> None:
    """Law: every chunk comes once, in order, finite and whole, and then no more."""
    rollout = way.rollout(ToyDenoiser(), toy_text(), chunks=chunks)
    made = []
    for chunk in rollout:
        made.append(chunk)
        if len(made) in changes:
            rollout.text = toy_text(len(made) / 9)
    frames = way.cache.chunk_frames
    assert [(chunk.index, chunk.start) for chunk in made] == [(number, number * frames) for number in range(chunks)]
    assert all(chunk.latents.shape == (1, frames, *SHAPE) and chunk.latents.isfinite().all() for chunk in made)
    assert not rollout.state.noisy


def begin_alike(way: Way, chunks: int, more: int, changes: set[int]) -> None:
    """Law: the endless rollout begins with the finite one, and so does a longer one.

    Of chunks denoised together the last ones of a rollout miss what would follow them.
    """
    alike = max(0, chunks + 1 - way.at_once) * way.cache.chunk_frames
    texts = {at: text(at) for at in changes}
    finite, longer, endless = (
        video(way.rollout(network(), text(1), chunks=until), chunks, texts) for until in (chunks, chunks + more, None)
    )
    assert torch.equal(finite[:, :alike], endless[:, :alike])
    assert torch.equal(longer[:, :alike], endless[:, :alike])


def ignore_the_batch(way: Way, chunks: int, changes: set[int]) -> None:
    """Law: a sample is what it would be alone, whatever noise and prompts the others have."""
    both = {at: text(at, at + 20) for at in changes}
    batch = video(way.rollout(network(), text(1, 2), seeds=(3, 8)), chunks, both)
    for sample, (seed, offset) in enumerate([(3, 0), (8, 20)]):
        mine = {at: text(at + offset) for at in changes}
        alone = video(way.rollout(network(), text(1 + sample), seeds=(seed,)), chunks, mine)
        torch.testing.assert_close(batch[sample : sample + 1], alone, rtol=1e-4, atol=1e-5)


PERIOD = 12


def hold_no_more(way: Way, every: int) -> None:
    """Law: once the window is full, a rollout holds no more than before, however often prompts change.

    Within a period of the changes the state may breathe; its greatest size does not grow from one to the next.
    """
    denoiser = ToyDenoiser()
    rollout = way.rollout(denoiser, toy_text())
    sizes = []
    for number in range(4 * PERIOD):
        if number % every == every - 1:
            rollout.text = toy_text(number / (4 * PERIOD))
        next(rollout)
        denoiser.calls.clear()
        sizes.append(held(rollout.state))
    peaks = [max(sizes[start : start + PERIOD]) for start in range(0, len(sizes), PERIOD)]
    assert all(later <= earlier for earlier, later in pairwise(peaks[1:])), peaks
