"""The published ways of streaming, as values: steps, chunk, window, sink, positions and switch under one name.

Owns which numbers make a method and how a model's own numbers and a method's are combined. A new method is a new entry
of `METHODS`; knows no network and no file.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from reward_forcing.config import Settings, apply_override, unknown
from reward_forcing.flow import warp_denoising_steps
from reward_forcing.geometry import Geometry
from reward_forcing.rollout import (
    CacheSettings,
    EmaSink,
    Keep,
    NoSink,
    Recache,
    SinkSettings,
    StaticSink,
    SwitchSettings,
)

DEFAULT_METHOD = "reward"


class Method(Settings):
    """How chunks are denoised and what they see of the past.

    denoising_steps count 1..1000 before the `shift` of the noise schedule. chunk_frames, window_frames: latent frames;
    the window counts the sink and the chunk, None keeps everything. context_noise: sigma at which finished chunks enter
    the cache. switch: what a new prompt does to the cache.
    Raises ValueError for steps that do not decrease and for a window without room for sink and chunk.
    """

    denoising_steps: tuple[int, ...] = (1000, 750, 500, 250)
    shift: PositiveFloat = 5.0
    chunk_frames: PositiveInt = 3
    window_frames: Annotated[PositiveInt | None, BeforeValidator(lambda value: None if value == -1 else value)] = 9
    sink: SinkSettings = EmaSink()
    positions: Literal["relative", "absolute"] = "relative"
    context_noise: Annotated[NonNegativeFloat, Field(lt=1.0)] = 0.0
    switch: SwitchSettings = Keep()

    @model_validator(mode="after")
    def _parts_fit(self) -> "Method":
        _ = self.sigmas, self.cache
        return self

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Noise levels of a chunk's passes, the final 0 left out."""
        return warp_denoising_steps(self.denoising_steps, self.shift)

    @property
    def cache(self) -> CacheSettings:
        """What of the past attention sees."""
        return CacheSettings(
            window_frames=self.window_frames,
            chunk_frames=self.chunk_frames,
            sink=self.sink,
            positions=self.positions,
        )


class StreamingSettings(Method):
    """A method together with the size and rate of the videos: the key `streaming` of a model folder.

    height, width: pixels. fps: pixel frames per second of video. hint: what the model can show, for a prompt that it
    cannot read. The defaults are those of Wan2.1 at 480p.
    """

    method: str = DEFAULT_METHOD
    height: PositiveInt = 480
    width: PositiveInt = 832
    fps: PositiveInt = 16
    hint: str = ""

    def geometry(
        self, spatial_factor: int = 8, temporal_factor: int = 4, patch: tuple[int, int, int] = (1, 2, 2)
    ) -> Geometry:
        """Sizes of a video with a VAE's factors and a network's patch; raises ValueError where they do not divide."""
        return Geometry(self.height, self.width, self.chunk_frames, spatial_factor, temporal_factor, patch, self.fps)


METHODS: dict[str, Method] = {
    # EMA-Sink of 3 frames in a window of 9; alpha as in the reference code
    "reward": Method(window_frames=9, sink=EmaSink(frames=3, alpha=0.999), positions="relative"),
    # the reference code keeps 21 frames, the length it was trained on, and no sink
    "self": Method(window_frames=21, sink=NoSink(), positions="absolute"),
    "longlive": Method(window_frames=12, sink=StaticSink(frames=3), positions="absolute", switch=Recache()),
    # the same for endless video: the sink stays as near to the window as in the clips the network was trained on
    "longlive-infinity": Method(window_frames=12, sink=StaticSink(frames=3), positions="relative", switch=Recache()),
}
"""Every method by name, with the numbers of its publication."""

OF_THE_WEIGHTS = ("denoising_steps", "shift", "chunk_frames", "height", "width", "fps", "hint")
"""What a network was trained with, so that a model's own value counts whatever the method."""


def method_named(name: str) -> Method:
    """The method of that name; raises ValueError with the nearest one."""
    if name not in METHODS:
        raise ValueError(unknown("method", name, METHODS))
    return METHODS[name]


def streaming_settings(
    own: Mapping[str, Any] | None = None, method: str | None = None, changes: Sequence[str] | Mapping[str, Any] = ()
) -> StreamingSettings:
    """The settings of a model whose folder says `own`, streamed with `method` (None: the model's, else 'reward').

    changes: the user's own, over all others, as a mapping or as `a.b=value` (`sink.alpha=0.9`).

    Without a method, or with the model's own, every number that the model gives replaces the method's. Another method
    brings its own window, sink, positions and switch and leaves what belongs to the weights, `OF_THE_WEIGHTS`, to the
    model.
    Raises ValueError for an unknown method or setting, and for numbers that do not fit together.
    """
    own = dict(own or {})
    native = own.pop("method", DEFAULT_METHOD)
    chosen = native if method is None else method
    base = method_named(chosen).model_dump()
    if chosen != native:
        StreamingSettings.model_validate(own)
        own = {name: value for name, value in own.items() if name in OF_THE_WEIGHTS}
    values = {**base, **own, "method": chosen}
    if isinstance(changes, Mapping):
        values |= changes
    else:
        for change in changes:
            apply_override(values, change)
    return StreamingSettings.model_validate(values)
