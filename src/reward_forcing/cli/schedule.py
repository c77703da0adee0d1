"""`rforce schedule`: the timetable of a method, and what its attention sees."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from reward_forcing.config import Variant
    from reward_forcing.streaming.methods import Method


def schedule(
    method: Annotated[str, typer.Argument(help="reward, self, longlive, ..; --list names them all.")] = "reward",
    chunks: Annotated[int, typer.Option(min=1, help="Chunks to draw.")] = 4,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SETTING=VALUE", help="Change a setting: 'schedule=module:name'. Repeatable."),
    ] = None,
    every: Annotated[bool, typer.Option("--list", help="Print all methods and switch policies instead.")] = False,
) -> None:
    """Draw who is denoised when: chunks down, passes across, timesteps (1000 is noise) in the cells."""
    from pydantic import ValidationError

    from reward_forcing.config import describe
    from reward_forcing.rollout import SWITCHES, format_timetable, timetable
    from reward_forcing.streaming.methods import METHODS, method_named, streaming_settings

    if every:
        print("\n".join(_line(name, preset) for name, preset in METHODS.items()))
        print(f"\nswitch policies: {', '.join(SWITCHES)}")
        return
    method_named(method)
    try:
        preset = streaming_settings(None, method, changes or ())
    except ValidationError as error:
        raise ValueError(describe(error)) from None
    print(format_timetable(timetable(preset.passes(chunks))))
    print()
    steps = ", ".join(map(str, preset.denoising_steps))
    then = "then one clean pass to fill the cache" if preset.clean_pass else "the last fills the cache: no clean pass"
    print(f"{'steps':<10} {steps}, shifted by {preset.shift:g}; {then}")
    together = _together(preset)
    print(f"{'chunk':<10} {preset.chunk_frames} latent frames{together}")
    window = "everything"
    if preset.window_frames is not None:
        window = f"{preset.window_frames} latent frames, sink and {'chunks' if together else 'chunk'} included"
    print(f"{'window':<10} {window}")
    print(f"{'sink':<10} {_sink(preset)}")
    print(f"{'positions':<10} {preset.positions}")
    if preset.clips is not None:
        repeated = f"each repeating the last {preset.clips.overlap_frames} of the one before"
        print(f"{'clips':<10} {preset.clips.frames} latent frames, {repeated}")
    print(f"{'switch':<10} {preset.switch.kind}{_numbers(preset.switch)}")


def _line(name: str, preset: "Method") -> str:
    """A method in a line."""
    window = "all" if preset.window_frames is None else preset.window_frames
    seen = f"window {window}; sink {_sink(preset)}; positions {preset.positions}"
    return f"{name:<18} {len(preset.denoising_steps)} steps{_together(preset)}; {seen}; switch {preset.switch.kind}"


def _together(preset: "Method") -> str:
    return f", {preset.chunks_at_once} chunks denoised together" if preset.chunks_at_once > 1 else ""


def _sink(preset: "Method") -> str:
    frames = f" of {preset.sink.frames} latent frames" if preset.sink.frames else ""
    return f"{preset.sink.kind}{frames}{_numbers(preset.sink, but='frames')}"


def _numbers(policy: "Variant", but: str = "") -> str:
    """What is set of a policy besides its kind."""
    return "".join(f", {name} {value}" for name, value in policy.model_dump(exclude={"kind", but}).items())
