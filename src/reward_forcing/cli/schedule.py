"""`rforce schedule`: the timetable of a method, and what its attention sees."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from reward_forcing.config import Variant


def schedule(
    method: Annotated[str, typer.Argument(help="reward, self, longlive or longlive-infinity.")] = "reward",
    chunks: Annotated[int, typer.Option(min=1, help="Chunks to draw.")] = 4,
) -> None:
    """Draw who is denoised when: chunks down, passes across, timesteps (1000 is noise) in the cells."""
    from reward_forcing.rollout import chunkwise, format_timetable, timetable
    from reward_forcing.streaming.methods import method_named

    preset = method_named(method)
    cache = preset.cache
    print(format_timetable(timetable(chunkwise(preset.sigmas), chunks * len(preset.sigmas))))
    print()
    steps = ", ".join(map(str, preset.denoising_steps))
    print(f"{'steps':<10} {steps}, shifted by {preset.shift:g}; then one clean pass to fill the cache")
    print(f"{'chunk':<10} {cache.chunk_frames} latent frames")
    window = (
        "everything" if cache.window_frames is None else f"{cache.window_frames} latent frames, sink and chunk included"
    )
    print(f"{'window':<10} {window}")
    frames = f" of {cache.sink.frames} latent frames" if cache.sink.frames else ""
    print(f"{'sink':<10} {cache.sink.kind}{frames}{_numbers(cache.sink)}")
    print(f"{'positions':<10} {cache.positions}")
    print(f"{'switch':<10} {preset.switch.kind}{_numbers(preset.switch)}")


def _numbers(policy: "Variant") -> str:
    """What else is set of a policy."""
    return "".join(f", {name} {value}" for name, value in policy.model_dump(exclude={"kind", "frames"}).items())
