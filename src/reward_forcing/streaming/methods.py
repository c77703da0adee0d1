"""The published ways of streaming, as values: steps, schedule, chunk, window, sink, positions, clips and switch.

Owns which numbers make a method and how a model's own numbers and a method's are combined. A new method is a new entry
of `METHODS`; knows no network and no file.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from reward_forcing.config import Settings, apply_override, unknown
from reward_forcing.flow import warp_denoising_steps
from reward_forcing.geometry import Geometry
from reward_forcing.rollout import (
    CacheSettings,
    EmaSink,
    Keep,
    KVFlush,
    NoSink,
    Pass,
    Recache,
    RollingSink,
    SinkSettings,
    StaticSink,
    SwitchSettings,
    check_passes,
    chunks_at_once,
    schedule_named,
)
from reward_forcing.rollout.positions import Positions

DEFAULT_METHOD = "reward"


def _schedule(name: str) -> str:
    schedule_named(name)
    return name


class ClipSettings(Settings):
    """How long clips are and how much each repeats of the one before, in latent frames."""

    frames: PositiveInt = 21
    overlap_frames: PositiveInt = 3

    def check_fit(self, chunk_frames: int) -> None:
        """Raise ValueError unless a clip holds what it repeats and a chunk."""
        needed = self.overlap_frames + chunk_frames
        if self.frames < needed:
            raise ValueError(
                f"a clip of {self.frames} latent frames cannot repeat {self.overlap_frames} and add a chunk of "
                f"{chunk_frames}; use clips.frames >= {needed} or a smaller overlap"
            )


class Method(Settings):
    """How chunks are denoised and what they see of the past.

    denoising_steps count 1..1000 before the `shift` of the noise schedule; schedule, one of `SCHEDULES` or a
    function from outside (`package.module:name`), spreads them over the chunks. chunk_frames, window_frames: latent
    frames; the window counts the sink and all chunks that are denoised together, None keeps everything.
    clean_pass_sees_sink: see `CacheSettings`. context_noise: sigma at which finished chunks enter the cache.
    clean_pass: whether they enter it by a pass of their own; without it videos are others, see `Rollout`. clips: how
    a long video is made of clips, None for one without end. switch: what a new prompt does to the cache.
    Raises ValueError for steps that do not decrease, for a schedule that is none, for a window without room for the
    sink and what is denoised together, and for clips that do not fit chunk and schedule.
    """

    denoising_steps: tuple[int, ...] = (1000, 750, 500, 250)
    shift: PositiveFloat = 5.0
    schedule: Annotated[str, AfterValidator(_schedule)] = "chunkwise"
    chunk_frames: PositiveInt = 3
    window_frames: Annotated[PositiveInt | None, BeforeValidator(lambda value: None if value == -1 else value)] = 9
    sink: SinkSettings = EmaSink()
    positions: Positions = "relative"
    clean_pass_sees_sink: bool = True
    context_noise: Annotated[NonNegativeFloat, Field(lt=1.0)] = 0.0
    clean_pass: bool = True
    clips: ClipSettings | None = None
    switch: SwitchSettings = Keep()

    @model_validator(mode="after")
    def _parts_fit(self) -> "Method":
        check_passes(self.passes(self._trial), self._trial, self.schedule)
        self.cache.local_frames(self.chunks_at_once * self.chunk_frames)
        if self.clips is not None:
            self.clips.check_fit(self.chunk_frames)
            if self.chunks_at_once > 1:
                raise ValueError(
                    f"clips end between two chunks, and the schedule '{self.schedule}' denoises "
                    f"{self.chunks_at_once} at once; use schedule=chunkwise or clips=null"
                )
        return self

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Noise levels of a chunk's passes, the final 0 left out."""
        return warp_denoising_steps(self.denoising_steps, self.shift)

    def passes(self, chunks: int | None = None) -> Iterator[Pass]:
        """The schedule of `chunks` chunks, None without end."""
        return schedule_named(self.schedule)(self.sigmas, chunks=chunks)

    @property
    def chunks_at_once(self) -> int:
        """The most chunks that are denoised together."""
        return chunks_at_once(self.passes(self._trial))

    @property
    def _trial(self) -> int:
        """As many chunks as tell what the schedule does."""
        return 2 * len(self.sigmas)

    @property
    def cache(self) -> CacheSettings:
        """What of the past attention sees."""
        return CacheSettings(
            window_frames=self.window_frames,
            chunk_frames=self.chunk_frames,
            sink=self.sink,
            positions=self.positions,
            clean_pass_sees_sink=self.clean_pass_sees_sink,
        )


class StreamingSettings(Method):
    """A method together with the size and rate of the videos: the key `streaming` of a model folder.

    height, width: pixels. fps: pixel frames per second of video. hint: what the model can show, for a prompt that it
    cannot read. trained_to_continue: whether the weights were trained to go on from a given image or video. The
    defaults are those of Wan2.1 at 480p.
    """

    method: str = DEFAULT_METHOD
    height: PositiveInt = 480
    width: PositiveInt = 832
    fps: PositiveInt = 16
    hint: str = ""
    trained_to_continue: bool = False

    def recorded(self) -> dict[str, Any]:
        """The settings that decide the frames, for the record of a video; not what is only said about the weights."""
        return self.model_dump(mode="json", exclude={"hint", "trained_to_continue"})

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
    # five chunks in flight, one chunk of the past and, just before it by the relative positions, the sink;
    # clean_pass_sees_sink=False repeats the published code (docs/errata.md)
    "rolling": Method(
        denoising_steps=(1000, 800, 600, 400, 200),
        schedule="rolling",
        window_frames=21,
        sink=StaticSink(frames=3),
        positions="relative",
    ),
    # timesteps 1000, 756.76 and 521.74, which the published list rounds to 757 and 522
    "causvid": Method(
        denoising_steps=(1000, 280, 120),
        shift=8.0,
        window_frames=21,
        sink=NoSink(),
        positions="absolute",
        clips=ClipSettings(frames=21, overlap_frames=3),
    ),
    # three for networks of Self Forcing, whose window they keep: our readings of descriptions (docs/errata.md). The
    # size of this sink is ours, all but one chunk of the past
    "rolling-sink": Method(window_frames=21, sink=RollingSink(frames=15), positions="relative"),
    # the Deep Sink of Deep Forcing (arXiv 2512.05081): half the window, moved to just before the rest. Left out: its
    # Participative Compression keeps the tokens that the newest queries attend to most, and a cache is given no queries
    "deep-forcing": Method(window_frames=21, sink=StaticSink(frames=10), positions="relative"),
    "infinity-rope": Method(window_frames=21, sink=StaticSink(frames=1), positions="relative", switch=KVFlush()),
}
"""Every method by name, with the numbers of its publication."""

OF_THE_WEIGHTS = ("denoising_steps", "shift", "chunk_frames", "height", "width", "fps", "hint", "trained_to_continue")
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
    if values["method"] != chosen:
        raise ValueError(f"method={values['method']} would change the name alone; choose the method itself (--method)")
    return StreamingSettings.model_validate(values)
