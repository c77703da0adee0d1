"""`rforce data encode`: a folder of captioned videos to latents to train on."""

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reward_forcing.cli.generate import parse_size
from reward_forcing.cli.shares import device_of, parse_share
from reward_forcing.config import first_few
from reward_forcing.logs import StepProgress

if TYPE_CHECKING:
    from reward_forcing.data.video_folder import Clip, Skipped
    from reward_forcing.training.video_latents import VideoLatentsManifest

EXIT_SKIPPED = 3
WORDS_SHOWN = 12

logger = logging.getLogger(__name__)


def encode(
    folder: Annotated[Path, typer.Argument(help="Videos (and images), with captions; folders below it count.")],
    vae: Annotated[Path, typer.Option(help="The VAE's folder.")],
    text: Annotated[
        Path, typer.Option(help="The folder with text_encoder/ and tokenizer/ that will read the captions.")
    ],
    out: Annotated[Path, typer.Option(help="The folder to write to; the same command again goes on where it stopped.")],
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT to crop and resize to.")] = "64x64",
    frames: Annotated[int, typer.Option(min=1, help="Frames of each clip; 81 are 5 seconds.")] = 81,
    fps: Annotated[float, typer.Option(min=0.1, help="Frames per second that the model makes.")] = 16.0,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Frames from clip to clip of a video. [default: those of a clip]")
    ] = None,
    unknown_words: Annotated[
        bool, typer.Option("--unknown-words", help="Take captions with words that the tokenizer does not know.")
    ] = False,
    shard_size: Annotated[int, typer.Option(min=1, help="Clips in a shard.")] = 64,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; the GPU where there is one, if not said.")] = None,
    share: Annotated[str, typer.Option(help="i/n: make only the i-th of n parts, from 0/n on.")] = "0/1",
) -> None:
    """Cut a folder of videos into clips and write their latents and captions; see docs/training.md.

    The exit code is 3 if anything had to be skipped; what and why is listed.
    """
    import torch

    from reward_forcing.data.video_folder import cut, open_video_folder
    from reward_forcing.training.networks import vae_geometry
    from reward_forcing.training.shards import weights_hash
    from reward_forcing.training.video_latents import VideoLatentsManifest, encode_videos, plan_hash

    part, (height, width) = parse_share(share), parse_size(size)
    vae_geometry(vae, height, width).latent_frames_of(frames)
    found = open_video_folder(folder)
    clips, short = cut(found, frames, fps, stride or frames)
    skipped = [*found.skipped, *short]
    if not clips:
        raise ValueError(f"no video in '{folder}' can be used, the first: {skipped[0]}")
    _check_words(text, clips, unknown_words)
    small = sum(video.info.height < height or video.info.width < width for video in found.videos)
    if small:
        logger.warning("%d of %d videos are smaller than %s and will be enlarged", small, len(found.videos), size)
    manifest = VideoLatentsManifest(
        count=len(clips), shard_size=shard_size, clips=plan_hash(clips), frames=frames, height=height, width=width,
        fps=fps, vae=weights_hash(vae),
    )  # fmt: skip
    torch.set_num_threads(1)
    where = device or device_of(part[0])
    with StepProgress("encode", 0, max(1, len(range(part[0], manifest.shards, part[1])))) as progress:
        for done in encode_videos(folder, clips, skipped, vae, out, manifest, part, where):
            progress.advance(done)
    if found.others:
        kinds = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in sorted(found.others.items()))
        typer.echo(f"{folder}: other files, not looked at: {kinds}", err=True)
    _summarise(out, manifest, share)


def _check_words(text: Path, clips: Iterable["Clip"], unknown_words: bool) -> None:
    """Warn of captions that the tokenizer under `text` cannot spell; ValueError unless `unknown_words` allows them."""
    from reward_forcing.models.text import TextEncoder

    encoder = TextEncoder.from_pretrained(text)
    captions = dict.fromkeys(caption for clip in clips for caption in clip.captions)
    found = [words for caption in captions if (words := encoder.unknown_words(caption))]
    if not found:
        return
    counts = Counter(word.lower() for words in found for word in words)
    named = first_few([f"'{word}' ({count})" for word, count in counts.most_common()], WORDS_SHOWN)
    problem = f"{len(found)} of {len(captions)} captions have words that '{text}' does not know: {named}"
    if not unknown_words:
        raise ValueError(
            f"{problem}; reword them, name another text encoder (Wan's reads every word), or let the other words speak "
            "for them, with --unknown-words"
        )
    logger.warning(problem)


def _summarise(out: Path, manifest: "VideoLatentsManifest", share: str) -> None:
    """Print what the store holds and what was skipped, which ends the command with EXIT_SKIPPED."""
    from reward_forcing.training.shards import shard_path
    from reward_forcing.training.video_latents import VideoLatents, skipped_of

    skipped: list[Skipped] = skipped_of(out, manifest)
    for one in skipped:
        typer.echo(f"skipped {one}", err=True)
    made = sum(shard_path(out, shard).is_file() for shard in range(manifest.shards))
    if made < manifest.shards:
        typer.echo(f"{out}: part {share} is done; {made} of {manifest.shards} shards are there, make the other parts")
    else:
        store = VideoLatents(out)
        shape = " x ".join(map(str, store.shape))
        typer.echo(f"{out}: {len(store)} clips of {manifest.frames} frames as latents {shape}, {len(skipped)} skipped")
    if skipped:
        raise typer.Exit(EXIT_SKIPPED)
