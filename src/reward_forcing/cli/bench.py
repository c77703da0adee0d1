"""`rforce bench`: how fast a model streams here, beside the naive mode and diffusers' network, in one JSON record."""

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reward_forcing.logs import console

if TYPE_CHECKING:
    import torch

    from reward_forcing.benchmarks.pairs import Opponent
    from reward_forcing.benchmarks.record import DecoderBeside, Recorder, SideBySide, Streamed
    from reward_forcing.benchmarks.subjects import Subject

app = typer.Typer(help="Measure speed, with all that each number counts.", invoke_without_command=True)

DEFAULT_OUT = Path("bench.json")

Model = Annotated[str, typer.Option(help="A, B or D (random weights), a bundled model, a folder or a hub id.")]
Precision = Annotated[str, typer.Option(help="float32, bfloat16 (everything) or mixed (matrices bfloat16).")]
Method = Annotated[str | None, typer.Option(help="How it streams; see rforce schedule. [default: the model's]")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="SETTING=VALUE", help="Change a number of the method. Repeatable.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of weights and noise.")]
Batch = Annotated[int, typer.Option(min=1, help="Videos side by side.")]
Chunks = Annotated[int, typer.Option(min=1, help="Chunks decoded.")]
TINY_DECODER = "Tiny decoder (TAEHV) in place of the model's for its frames."
Device = Annotated[str | None, typer.Option(help="cpu or cuda. [default: a GPU where there is one]")]
Text = Annotated[int, typer.Option(min=0, max=512, help="Tokens of a random network's prompt, of 512.")]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the blocks; on a CPU it takes a C++ compiler.")]
Graphs = Annotated[bool, typer.Option("--graphs", help="Replay passes as CUDA graphs; it takes an NVIDIA GPU.")]
Out = Annotated[Path, typer.Option(help="The record, written after every result.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the record instead of lines.")]


@app.callback()
def bench(
    context: typer.Context,
    model: Model = "mini",
    precision: Precision = "float32",
    method: Method = None,
    changes: Changes = None,
    against: Annotated[str, typer.Option(help="naive, diffusers, both with a comma, or none.")] = "naive",
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of chunks per opponent.")] = 5,
    chunks: Annotated[int, typer.Option(min=0, help="Chunks streamed once the window is full; 0: no stream.")] = 10,
    decoder: Annotated[str | None, typer.Option(help=TINY_DECODER)] = None,
    where: Annotated[bool, typer.Option("--where", help="Also tell operator by operator where the time goes.")] = False,
    seed: Seed = 0,
    batch: Batch = 1,
    device: Device = None,
    text_tokens: Text = 120,
    compiled: Compile = False,
    graphs: Graphs = False,
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the record's JSON schema and stop.")] = False,
) -> None:
    """Measure a model: by stage, chunk by chunk, and side by side with the naive mode or diffusers' network."""
    if context.invoked_subcommand is not None:
        return
    from reward_forcing.benchmarks.pairs import side_by_side
    from reward_forcing.benchmarks.record import bench_schema
    from reward_forcing.benchmarks.streamed import naive_clip, stream_latents, stream_video
    from reward_forcing.benchmarks.where import where as where_time_goes

    if schema:
        print(bench_schema(), end="")
        return
    opponents = _opponents(against)
    how = {"decoder": decoder, "text_tokens": text_tokens, "compiled": compiled, "graphs": graphs}
    subject, recorder = _open(out, model, precision, method, changes, seed, batch, device, **how)
    for opponent in opponents:
        try:
            found = side_by_side(subject, opponent, pairs, tell)
        except ValueError as error:
            recorder.fail(f"{opponent}: {error}")
            tell(f"{opponent}: {error}")
            continue
        recorder.add(found)
        _print(describe_pairs(found), as_json)
    for naive in (False, *([True] if "naive" in opponents else [])) if where else ():
        table = where_time_goes(subject, naive)
        recorder.add(table)
        rows = [f"  {seconds:9.4f} {table.unit}  {name}" for name, seconds in table.values.items()]
        _print("\n".join([f"{table.name} ({table.notes})", *rows]), as_json)
    if chunks:
        for measured in (stream_latents, stream_video) if subject.pipeline else (stream_latents,):
            stream = measured(subject, chunks, tell)
            recorder.add(stream)
            _print(describe_stream(stream), as_json)
        if subject.pipeline and "naive" in opponents:
            clip = naive_clip(subject, chunks)
            recorder.add(clip)
            stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in clip.stages.items())
            _print(f"naive: {clip.clip}\n  first frame after {clip.first_frame:.3g} s; {stages}", as_json)
    _finish(recorder, as_json)


@app.command(short_help="Speed over one setting, drawn.")
def sweep(
    over: Annotated[str, typer.Option(help="window, steps, size, length or batch.")] = "window",
    values: Annotated[str | None, typer.Option(help="With commas; sizes as latent ROWSxCOLUMNS.")] = None,
    model: Model = "D",
    precision: Precision = "float32",
    method: Method = None,
    changes: Changes = None,
    repeats: Annotated[int, typer.Option(min=1, help="Chunks per value.")] = 5,
    seed: Seed = 0,
    batch: Batch = 1,
    device: Device = None,
    text_tokens: Text = 120,
    compiled: Compile = False,
    graphs: Graphs = False,
    out: Out = DEFAULT_OUT,
    plot: Annotated[Path | None, typer.Option(help="A picture, .png or .svg. [default: beside --out]")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the transformer's speed over one setting, and draw it: over window it is the paper's Fig. 6."""
    from reward_forcing.benchmarks.sweep import DEFAULTS, LABELS, check_values, draw
    from reward_forcing.benchmarks.sweep import sweep as measure_sweep
    from reward_forcing.config import unknown

    if over not in LABELS:
        raise ValueError(unknown("sweep", over, LABELS))
    wanted = DEFAULTS[over] if values is None else tuple(value.strip() for value in values.split(","))
    how = {"text_tokens": text_tokens, "compiled": compiled, "graphs": graphs}
    subject, recorder = _open(out, model, precision, method, changes, seed, batch, device, **how)
    check_values(subject, over, wanted)

    found = measure_sweep(subject, over, wanted, repeats, recorder.add)
    for point in found.points:
        _print(f"{over} {point.value}: {point.speed}", as_json)
    picture = draw(found, plot or out.with_name(f"{out.stem}_{over}.png"))
    tell(f"drew {picture}")
    _finish(recorder, as_json)


@app.command("decoder", short_help="A tiny decoder beside the VAE.")
def measure_decoder(
    decoder: Annotated[str, typer.Option(help=TINY_DECODER)],
    model: Model = "mini",
    method: Method = None,
    changes: Changes = None,
    chunks: Chunks = 10,
    seed: Seed = 0,
    batch: Batch = 1,
    device: Device = None,
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
) -> None:
    """Measure a tiny decoder beside the VAE on the model's own latents: its error in dB, and the seconds of both."""
    from reward_forcing.benchmarks.decoders import beside_vae

    subject, recorder = _open(out, model, "float32", method, changes, seed, batch, device, decoder=decoder)
    found = beside_vae(subject, chunks, tell)
    recorder.add(found)
    _print(describe_decoder(found), as_json)
    _finish(recorder, as_json)


@app.command(short_help="What output-changing options change.")
def quality(
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--change", metavar="SETTING=VALUE", help="'weights=int8', 'denoising_steps=[1000, 500]', .. Repeatable."
        ),
    ] = None,
    chunks: Annotated[int, typer.Option(min=1, help="Chunks of each stream.")] = 7,
    model: Annotated[str, typer.Option(help="A bundled model, a folder or a hub id.")] = "mini",
    method: Method = None,
    seed: Seed = 0,
    device: Device = None,
    out: Out = DEFAULT_OUT,
    as_json: AsJson = False,
) -> None:
    """Measure what options that change the output change, beside the exact stream of the same noise."""
    from reward_forcing.benchmarks.quality import OPTIONS, check_option, streamed
    from reward_forcing.benchmarks.quality import quality as compare
    from reward_forcing.benchmarks.record import Recorder
    from reward_forcing.streaming.model_folder import open_model_folder

    wanted, where = options or OPTIONS, _where(device)
    for option in wanted:
        how, changes = check_option(option)
        how.check(where)
        open_model_folder(model, method, None, changes)
    recorder = Recorder(out, f"rforce {shlex.join(sys.argv[1:])}", seed)
    exact = streamed(model, method, None, chunks, seed, str(where))
    for option in wanted:
        for table in compare(option, exact, streamed(model, method, option, chunks, seed, str(where))):
            recorder.add(table)
            values = " ".join("equal" if value is None else f"{value:.3g}" for value in table.values.values())
            _print(f"{table.name}: {values} {table.unit.removeprefix('1')}".rstrip(), as_json)
    _finish(recorder, as_json)


def tell(line: str) -> None:
    """A line of progress, on stderr."""
    console().print(line, markup=False, soft_wrap=True)


def describe_pairs(found: "SideBySide") -> str:
    """A comparison in words: the ratio, whether it counts, and what of the machine was used."""
    error = f"relative error at most {max(found.errors):.1e}, allowed {found.tolerance:.0e}"
    if not found.valid:
        return f"{found.opponent}: no ratio, the outputs differ: {error} ({found.conditions})"
    return (
        f"{found.opponent}: {found.ratio_cpu:.3f} times its speed by CPU seconds, {found.ratio_wall:.3f} by wall, "
        f"median of {len(found.errors)} pairs; {error} ({found.conditions})\n"
        f"  {found.flops / 1e9:.4g} GFLOP a chunk by formula, {found.counted / 1e9:.4g} counted; "
        f"{100 * found.fraction:.0f} % of a matrix product's speed, {found.opponent} {100 * found.of_opponent:.0f} %"
    )


def describe_decoder(found: "DecoderBeside") -> str:
    """A tiny decoder beside the VAE in words: how far its frames are from the VAE's, and both speeds."""
    low, high = min(found.chunk_psnr), max(found.chunk_psnr)
    return (
        f"{found.conditions.decoder} beside {found.reference}: PSNR {found.psnr:.2f} dB against its frames "
        f"({low:.2f} to {high:.2f} of single chunks)\n  {found.ratio_cpu:.3g} times its speed by CPU seconds, "
        f"{found.ratio_wall:.3g} by wall, median of {len(found.chunk_psnr)} chunks ({found.conditions})"
    )


def describe_stream(found: "Streamed") -> str:
    """A stream in words: speeds, evenness, stages, memory."""
    stages = ", ".join(f"{stage} {sum(seconds):.2f} s" for stage, seconds in found.stages.items())
    quantiles = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in found.quantiles.items())
    return (
        f"{found.steady}\n{found.clip}\n  first frame after {found.first_frame:.3g} s; chunks {quantiles}; {stages}\n"
        f"  peak memory {found.peak_memory_mib:.0f} MiB, cache and decoder hold {found.held_bytes / 2**20:.1f} MiB; "
        f"the transformer reaches {100 * found.fraction:.0f} % of a matrix product's speed"
    )


def _opponents(against: str) -> "list[Opponent]":
    from reward_forcing.benchmarks.pairs import OPPONENTS
    from reward_forcing.config import unknown

    names = [name.strip() for name in against.split(",") if name.strip() not in ("", "none")]
    for name in names:
        if name not in OPPONENTS:
            raise ValueError(unknown("opponent", name, (*OPPONENTS, "none")))
    return [opponent for opponent in OPPONENTS if opponent in names]


def _open(
    out: Path,
    model: str,
    precision: str,
    method: str | None,
    changes: list[str] | None,
    seed: int,
    batch: int,
    device: str | None,
    **how: Any,
) -> "tuple[Subject, Recorder]":
    """The subject and the record, everything checked before weights are made or read. how: see `open_subject`."""
    from reward_forcing.benchmarks.record import Recorder
    from reward_forcing.benchmarks.subjects import check_subject, open_subject
    from reward_forcing.streaming.acceleration import Acceleration

    where, changes = _where(device), changes or []
    check_subject(model, precision, method, changes, how.get("decoder"))
    Acceleration(graphs=how.get("graphs", False)).check(where)
    recorder = Recorder(out, f"rforce {shlex.join(sys.argv[1:])}", seed)
    return open_subject(model, precision, method, changes, seed, batch, where, **how), recorder


def _where(device: str | None) -> "torch.device":
    """The device to measure on, if it is there."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ValueError(f"--device must be cpu, cuda or cuda:N, got '{device}'")
    if device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: torch finds no GPU here; use --device cpu")
    return torch.device(device)


def _print(text: str, as_json: bool) -> None:
    if not as_json:
        print(text, flush=True)


def _finish(recorder: "Recorder", as_json: bool) -> None:
    print(recorder.record.model_dump_json(indent=1) if as_json else f"wrote {recorder.path}")
