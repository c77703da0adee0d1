"""One running video: an endless iterator of chunks whose prompt may change between two of them.

B batch, T pixel frames, C latent channels, h, w latent rows and columns. Owns the order of a chunk's stages: text,
passes, clean pass, decoding. Knows no folders and no file formats.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reward_forcing.geometry import Geometry
from reward_forcing.logs import Clock
from reward_forcing.models.attention import TextContext
from reward_forcing.models.vae import FrameDecoder, StreamingVAE, VAEState
from reward_forcing.processes import ALONE, World, from_first
from reward_forcing.rollout import Rollout
from reward_forcing.streaming.clips import Clips
from reward_forcing.streaming.given import Given
from reward_forcing.streaming.prompts import Prompts, Timeline, check_prompts

STAGES = ("text", "dit", "commit", "decode")
"""What a chunk's time goes to: a new prompt's text encoder and cross-attention keys; the denoising passes; the clean
pass of the chunk before, whose keys and values enter the cache, and what a new prompt computes anew, or the beginning
of a new clip, or the encoding of given frames; the decoder. Where the decoder has a device of its own, decoding goes on
beside the next chunk's passes, and after the first chunk `decode` counts only what these wait for it."""


@dataclass(frozen=True)
class VideoChunk:
    """What one step of a stream adds to the video.

    frames: [B, T, 3, H, W] in [0, 1], float32, on the VAE's device; of several processes only the first has them, the
    others have their shape, on the device "meta". start_frame, start_time: number and time, in seconds, of its first
    frame. prompts: those in force, one or B. seconds: wall time by stage, see `STAGES`. given: it was not made, but is
    part of the image or video that the stream begins with.
    """

    index: int
    frames: Tensor
    start_frame: int
    start_time: float
    prompts: Prompts
    seconds: dict[str, float]
    given: bool = False

    @property
    def prompt(self) -> str:
        """The first sample's prompt."""
        return self.prompts[0]


class VideoStream(Iterator[VideoChunk]):
    """The chunks of a video without end; made by `StreamingVideoPipeline.stream`.

    `prompt` may be set between two chunks and counts from the next one on; what becomes of the self-attention cache is
    the rollout's switch policy. Chunks that a joint schedule has in flight go on with it. Memory stops growing once the
    window is full. Nothing is computed before the first chunk is asked for. rollout, vae_state: what the stream is made
    of, to be read between two chunks. RuntimeError: a decoder failed, and the chunk after it has nothing to go on from.

    make_rollout: text context -> rollout. encode: prompts -> their text context. vae: encodes what is given. decoder:
    makes the frames. clips: what the video is made of.
    on_prompt: is told of prompts set. given: what the video begins with. Its chunks come first: encoded, pushed through
    the cache under the prompt of their time and decoded again, so that the first new frames follow without a seam;
    where they are not shown, the first chunk is the first new one, and frames and times count from it. world: the
    processes that make the video together, each with a stream like this one; before every chunk they take over the
    first one's prompts, so that a prompt set there is read by all from the same chunk on.
    """

    def __init__(
        self,
        make_rollout: Callable[[TextContext], Rollout],
        encode: Callable[[Prompts], TextContext],
        vae: StreamingVAE,
        decoder: FrameDecoder,
        geometry: Geometry,
        timeline: Timeline,
        batch: int,
        clips: Clips,
        on_prompt: Callable[[str], None],
        given: Given | None = None,
        world: World = ALONE,
    ) -> None:
        self.geometry = geometry
        self.timeline = timeline
        self.batch = batch
        self.vae_state: VAEState | None = None
        self._encode = encode
        self._on_prompt = on_prompt
        self._vae = vae
        self._decoder = decoder
        self._clock = Clock()
        self._last_start = 0.0
        self._prompts = self._encoded = timeline.changes[0][1]
        self._make_rollout = make_rollout
        self._rollout: Rollout | None = None
        self._clips = clips
        self._world = world
        self._given = iter(()) if given is None else given.pieces(vae, geometry, batch)
        self._given_frames = 0 if given is None else given.latent_frames
        self._hidden_frames = 0 if given is None else given.hidden_frames
        self._hidden_chunks = 0
        self._lost: BaseException | None = None

    @property
    def rollout(self) -> Rollout:
        """What makes the latents; begun, with the first prompt encoded, when it is first asked for."""
        if self._rollout is None:
            with torch.inference_mode(), self._measure("text"):
                self._rollout = self._make_rollout(self._encode(self._prompts))
            self._encoded = self._prompts
        return self._rollout

    @property
    def prompt(self) -> str:
        """The first sample's prompt, from the next chunk on."""
        return self._prompts[0]

    @prompt.setter
    def prompt(self, prompt: str | Sequence[str]) -> None:
        prompts = check_prompts(prompt)
        if len(prompts) not in (1, self.batch):
            raise ValueError(f"expected one prompt or one for each of {self.batch} samples, got {len(prompts)}")
        for text in dict.fromkeys(prompts):
            self._on_prompt(text)
        self._prompts = prompts

    def __next__(self) -> VideoChunk:
        start, frames, is_given = self._advance()
        while is_given and self._hidden_frames:
            self._hidden_chunks += 1
            start, frames, is_given = self._advance()
        index = self.rollout.state.index - 1 - self._clips.repeated_chunks - self._hidden_chunks
        seconds = dict.fromkeys(STAGES, 0.0) | self._clock.take()
        # Cloned out here: outside inference mode, inference tensors cannot be written to.
        return VideoChunk(index, frames.clone(), start, self._last_start, self._prompts, seconds, is_given)

    def _advance(self) -> tuple[int, Tensor, bool]:
        """The number of the first frame of the next chunk, its frames, and whether they were given."""
        if self._lost is not None:
            raise RuntimeError(
                f"this stream's decoder failed in a chunk ({type(self._lost).__name__}: {self._lost}), and what it "
                "needs to go on from is lost; make a new stream"
            ) from self._lost
        self._prompts = from_first(self._prompts, self._world)
        start = self.geometry.frames_of(self.rollout.state.start - self._clips.repeated_frames)
        start -= self.geometry.frames_of(self._hidden_frames)
        time = start / self.geometry.fps
        self._prompts = self.timeline.due(self._last_start, time) or self._prompts
        self._last_start = time
        with torch.inference_mode():
            if self._prompts != self._encoded:
                with self._measure("text"):
                    text = self._encode(self._prompts)
                with self._measure("commit"):
                    self.rollout.text = text
                self._encoded = self._prompts
            with self._measure("commit"):
                given = next(self._given, None)
                if given is not None:
                    self.rollout.prime(given)
                elif self._clips.is_over(self.rollout):
                    self.vae_state = self._clips.begin(self.rollout)
                _ = self.rollout.cache
            with self._measure("dit"):
                latents = next(self.rollout).latents if given is None else given
            with self._measure("decode"):
                is_first = self.vae_state is None
                try:
                    frames, self.vae_state = self._decoder.decode(latents, self._hand_over_state())
                except BaseException as error:  # a key pressed, too
                    self._lost = error
                    raise
                if is_first:
                    _wait_for(frames.device)  # as a viewer waits for the first frames
            self._clips.keep(frames)
        return start, frames, given is not None

    def _hand_over_state(self) -> VAEState | None:
        """The decoder's state, which the stream holds no more: the decoder may give its memory back."""
        state, self.vae_state = self.vae_state, None
        return state

    def last_start(self, seconds: float) -> float:
        """When the last chunk of a video of `seconds` begins, see `last_start`."""
        return last_start(self.geometry, seconds, self._given_frames, self._hidden_frames)

    def until(self, seconds: float) -> Iterator[VideoChunk]:
        """The chunks of the next `seconds` of video, the last one cut to the frame.

        The stream itself moves on by whole chunks. Raises ValueError unless `seconds` is positive and finite.
        """
        return self._first(self.geometry.frames_for(seconds))

    def _first(self, left: int) -> Iterator[VideoChunk]:
        while left > 0:
            chunk = next(self)
            yield replace(chunk, frames=chunk.frames[:, :left])
            left -= chunk.frames.shape[1]

    @contextmanager
    def _measure(self, stage: str) -> Iterator[None]:
        """Add the time of a with-block to a stage, with the share of it that the network's device takes."""
        with self._clock(stage):
            yield
            _wait_for(self.rollout.device)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def one_ahead(chunks: Iterator[VideoChunk]) -> Iterator[VideoChunk]:
    """The same chunks, each once the next one is asked of its devices: reading frames then waits beside computing."""
    held = next(chunks, None)
    while held is not None:
        ready, held = held, next(chunks, None)
        yield ready


def last_start(geometry: Geometry, seconds: float, given_frames: int = 0, hidden_frames: int = 0) -> float:
    """When, in seconds, the last chunk of a video of `seconds` begins.

    given_frames, hidden_frames: latent frames that the stream begins with, and those of them that it does not show.
    Raises ValueError unless the video goes on after what is given.
    """
    hidden, given = geometry.frames_of(hidden_frames), geometry.frames_of(given_frames)
    before_last = geometry.latent_frames_within(hidden + geometry.frames_for(seconds) - 1)  # end before the last frame
    if given_frames and hidden + geometry.frames_for(seconds) <= given:
        raise ValueError(
            f"the given frames last {given / geometry.fps:.2f} s, and the video with them is to last {seconds:g} s; "
            "make it longer, or take less of what is given"
        )
    chunks = (before_last - given_frames) // geometry.chunk_frames
    return (geometry.frames_of(given_frames + chunks * geometry.chunk_frames) - hidden) / geometry.fps
