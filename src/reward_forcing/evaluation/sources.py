"""What makes the clips of an evaluation or a comparison: a model of this package that streams, or any other.

A source has been looked through; its weights are read by `load`. Knows no metric.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from reward_forcing.checkpoints.files import files_hash, find_weights
from reward_forcing.config import Settings
from reward_forcing.evaluation.metrics import Rhythm
from reward_forcing.streaming.model_folder import ModelFolder
from reward_forcing.streaming.pipeline import StreamingVideoPipeline
from reward_forcing.streaming.stream import VideoChunk

HASHED_PARTS = ("vae", "text_encoder")


class MadeWith(Settings):
    """What determines a source's clips besides prompt and seed. weights, parts: SHA-256; weights: of the transformer.

    settings: every number of the method, or of the pipeline's call. decoder: the file of a tiny decoder that made the
    frames in place of the VAE.
    """

    weights: str | None
    parts: dict[str, str]
    settings: dict[str, Any]
    decoder: str | None = None


class Source(Protocol):
    """Makes clips of prompts and seeds. place: where its weights are; sources of one place share what `load` gives.

    streams: whether it makes clips chunk by chunk, several side by side, and can change the prompt on the way; others
    make one clip after the other, each as a whole.
    """

    @property
    def place(self) -> tuple[str, ...]:
        """See the class."""
        ...

    @property
    def streams(self) -> bool:
        """See the class."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What one should know before trusting its clips."""
        ...

    @property
    def rhythm(self) -> Rhythm:
        """When the frames of its clips are made, as far as that is known."""
        ...

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of its frames; None where that is known only once a clip is made."""
        ...

    def frames_for(self, seconds: float) -> int:
        """Frames of a clip that is to last `seconds`."""
        ...

    def made_with(self) -> MadeWith:
        """What determines the clips; reads the weight files to hash them."""
        ...

    def load(self) -> Any:
        """What `chunks` needs, with the weights."""
        ...

    def chunks(
        self,
        loaded: Any,
        prompts: Sequence[str],
        seeds: Sequence[int],
        seconds: float,
        at: Sequence[tuple[float, str]] = (),
    ) -> Iterator[VideoChunk]:
        """The clips [B, T, 3, H, W] of B prompts and seeds, piece by piece, `frames_for(seconds)` long.

        at: prompt changes, for sources that stream.
        """
        ...


def hash_once(files: Sequence[Path]) -> str:
    """SHA-256 as `files_hash` gives it; files of the same size and time are not read again in this process."""
    stamps = tuple((file, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files)
    return _hash_as_of(stamps)


@lru_cache(maxsize=64)
def _hash_as_of(stamps: tuple[tuple[Path, int, int], ...]) -> str:
    return files_hash(file for file, _, _ in stamps)


@dataclass(frozen=True)
class StreamedSource:
    """Clips that a model of this package streams."""

    folder: ModelFolder

    streams = True

    @property
    def place(self) -> tuple[str, ...]:
        """Where the model folder, the transformer's weights and, if there is one, the tiny decoder's are."""
        return tuple(str(path) for path in (self.folder.path, self.folder.transformer, self.folder.decoder) if path)

    @property
    def notes(self) -> Sequence[str]:
        """Those of the model's folder."""
        return self.folder.notes

    @property
    def rhythm(self) -> Rhythm:
        """That of the model's geometry."""
        return Rhythm.of(self.folder.geometry)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a frame."""
        return self.folder.geometry.height, self.folder.geometry.width

    def frames_for(self, seconds: float) -> int:
        """The fewest frames that last `seconds`."""
        return self.folder.geometry.frames_for(seconds)

    def made_with(self) -> MadeWith:
        """Hashes of the networks, and the method's numbers."""
        parts = {part: self.folder.path / part for part in HASHED_PARTS}
        if self.folder.decoder is not None:
            parts["tiny_decoder"] = self.folder.decoder
        return MadeWith(
            weights=hash_once(find_weights(self.folder.transformer)),
            parts={part: hash_once(find_weights(path)) for part, path in parts.items()},
            settings=self.folder.settings.recorded(),
            decoder=self.folder.decoder_name,
        )

    def load(self) -> StreamingVideoPipeline:
        """The pipeline; its parts serve every method of this model, each of which has notes of its own."""
        return StreamingVideoPipeline.load(self.folder, notes=False)

    def chunks(
        self,
        loaded: StreamingVideoPipeline,
        prompts: Sequence[str],
        seeds: Sequence[int],
        seconds: float,
        at: Sequence[tuple[float, str]] = (),
    ) -> Iterator[VideoChunk]:
        """The stream's chunks, with this source's own settings; no embedding of an earlier stream is remembered."""
        parts = loaded.transformer, loaded.vae, loaded.text_encoder
        pipeline = StreamingVideoPipeline(*parts, self.folder.settings, loaded.decoder)
        return pipeline.stream(list(prompts), at=at, seeds=list(seeds)).until(seconds)
