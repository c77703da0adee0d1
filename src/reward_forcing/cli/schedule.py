"""`rforce schedule`: the timetable of a method, and what its attention sees."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from reward_forcing.config import Variant


def schedule(
    method: Annotated[
        str, typer.Argument(help="reward, self, longlive, longlive-infinity, rolling or causvid.")
    ] = "reward",
    chunks: Annotated[int, typer.Option(min=1, help="Chunks to draw.")] = 4,
) -> None:
    """Draw who is denoised when: chunks down, passes across, timesteps (1000 is noise) in the cells."""
    from reward_forcing.rollout import format_timetable, timetable
    from reward_forcing.streaming.methods import method_named

    preset = method_named(method)
    cache = preset.cache
    print(format_timetable(timetable(preset.passes(chunks))))
    print()
    steps = ", ".join(map(str, preset.denoising_steps))
    print(f"{'steps':<10} {steps}, shifted by {preset.shift:g}; then one clean pass to fill the cache")
    together = f", {preset.chunks_at_once} chunks denoised together" if preset.chunks_at_once > 1 else ""
    print(f"{'chunk':<10} {cache.chunk_frames} latent frames{together}")
    window = "everything"
    if cache.window_frames is not None:
        window = f"{cache.window_frames} latent frames, sink and {'chunks' if together else 'chunk'} included"
    print(f"{'window':<10} {window}")
    frames = f" of {cache.sink.frames} latent frames" if cache.sink.frames else ""
    print(f"{'sink':<10} {cache.sink.kind}{frames}{_numbers(cache.sink)}")
    print(f"{'positions':<10} {cache.positions}")
    if preset.clips is not None:
        repeated = f"each repeating the last {preset.clips.overlap_frames} of the one before"
        print(f"{'clips':<10} {preset.clips.frames} latent frames, {repeated}")
    print(f"{'switch':<10} {preset.switch.kind}{_numbers(preset.switch)}")


def _numbers(policy: "Variant") -> str:
    """What else is set of a policy."""
    return "".join(f", {name} {value}" for name, value in policy.model_dump(exclude={"kind", "frames"}).items())
