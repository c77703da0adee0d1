"""`rforce models`: what there is to load, what a checkpoint holds, and the same in another format."""

import json
import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reward_forcing.cli.generate import Decoder

if TYPE_CHECKING:
    from reward_forcing.checkpoints import CheckpointInfo

app = typer.Typer(help="List, inspect and convert checkpoints.", no_args_is_help=True)

Heads = Annotated[int | None, typer.Option(min=1, help="Attention heads, where neither width nor config.json tells.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Format(StrEnum):
    """The formats that `rforce models convert` writes."""

    DIFFUSERS = "diffusers"
    WAN = "wan"
    FORCING = "forcing"
    FORCING_FLAT = "forcing-flat"
    COMFY = "comfy"


class Dtype(StrEnum):
    """The number formats that `rforce models convert` writes; the values are torch's names."""

    BF16 = "bfloat16"
    FP16 = "float16"
    FP32 = "float32"


@app.command("list", short_help="Bundled and published models.")
def list_models(as_json: AsJson = False) -> None:
    """List the bundled models, and published ones that can be named the same way."""
    from reward_forcing.checkpoints.hub import PUBLISHED, bundled

    here = {name: str(folder) for name, folder in bundled().items()}
    if as_json:
        print(json.dumps({"bundled": here, "published": {model.id: model.what for model in PUBLISHED}}, indent=2))
        return
    width = max(len(name) for name in [*here, *(model.id for model in PUBLISHED)])
    print("bundled" if here else "bundled: none")
    for name, folder in here.items():
        print(f"  {name:{width}}  {folder}")
    print("published on the Hugging Face hub, downloaded when named")
    for model in PUBLISHED:
        print(f"  {model.id:{width}}  {model.what}")


@app.command(short_help="What a checkpoint holds.")
def info(
    path: Annotated[str, typer.Argument(help="A file, folder, bundled name or hub id.")],
    heads: Heads = None,
    hashes: Annotated[bool, typer.Option("--hash/--no-hash", help="Read every byte for SHA-256.")] = True,
    as_json: AsJson = False,
) -> None:
    """Tell a checkpoint's format, networks, sizes, configuration and hashes."""
    from reward_forcing.checkpoints import inspect, resolve
    from reward_forcing.checkpoints.hub import TRANSFORMER_FILES

    found = inspect(resolve(path, TRANSFORMER_FILES), heads=heads, hashes=hashes)
    print(json.dumps(found.to_dict(), indent=2) if as_json else describe(found))


@app.command("convert", short_help="Write a checkpoint in another format.")
def convert_checkpoint(
    source: Annotated[str, typer.Argument(help="A file, folder, bundled name or hub id.")],
    destination: Annotated[Path, typer.Argument(help="The folder (diffusers, wan) or file (the others) to write.")],
    to: Annotated[Format, typer.Option(help="The format to write.")] = Format.DIFFUSERS,
    which: Annotated[str | None, typer.Option(help="The network of a file that holds several, as critic.")] = None,
    heads: Heads = None,
    lora: Annotated[str | None, typer.Option(help="A LoRA to merge, as LongLive's lora.pt.")] = None,
    lora_alpha: Annotated[float | None, typer.Option(help="Its alpha, where the file does not tell.")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Of every parameter; as they are if not given.")] = None,
    causal: Annotated[bool, typer.Option("--causal", help="Mark for ComfyUI's autoregressive loader.")] = False,
    whole: Annotated[bool, typer.Option("--whole", help="Also the VAE, text encoder and tokenizer.")] = False,
    weights: Annotated[str | None, typer.Option(help="With --whole: the transformer, in place of SOURCE's.")] = None,
) -> None:
    """Write a checkpoint's transformer in another format; values stay as they are unless --dtype is given."""
    import torch

    from reward_forcing.checkpoints.convert import convert
    from reward_forcing.checkpoints.repository import convert_model

    if lora_alpha is not None and lora is None:
        raise ValueError("--lora-alpha belongs to a LoRA: give --lora, or leave it out")
    if lora_alpha is not None and not math.isfinite(lora_alpha):
        raise ValueError(f"--lora-alpha must be a finite number, got {lora_alpha}")
    if whole and causal:
        raise ValueError("--causal marks one file for ComfyUI; leave it out with --whole")
    number = None if dtype is None else getattr(torch, dtype.value)
    options = {"which": which, "heads": heads, "lora": lora, "lora_alpha": lora_alpha, "dtype": number}
    if not whole:
        if weights is not None:
            raise ValueError("--weights is the transformer of a whole model; add --whole, or name it as the source")
        print(convert(source, destination, to.value, causal=causal, **options))
        return
    if to not in (Format.DIFFUSERS, Format.WAN):
        raise ValueError(f"--whole writes a folder; give --to diffusers or --to wan, not {to.value}")
    print(convert_model(source, destination, to.value, weights=weights, **options))


def describe(found: "CheckpointInfo") -> str:
    """An inspected checkpoint as aligned lines of text."""
    from reward_forcing.checkpoints.diffusers import PUBLISHED_SIZES

    lines = [("format", f"{found.format}: {found.layout}")]
    for role, network in found.roles.items():
        dtypes = " ".join(network.dtypes)
        mark = "  (default)" if role == found.default_role and len(found.roles) > 1 else ""
        lines.append((role, f"{network.parameters:,} parameters, {network.nbytes / 2**20:,.1f} MiB, {dtypes}{mark}"))
    if found.lora_rank is not None:
        lines.append(("rank", f"{found.lora_rank}"))
    if found.config is not None:
        c = found.config
        heads = c["num_attention_heads"]
        width = f"width {heads * c['attention_head_dim']}, {heads} heads of {c['attention_head_dim']}"
        size = PUBLISHED_SIZES.get((c["num_layers"], heads, c["ffn_dim"]))
        as_published = f" (as {size})" if size else ""
        lines.append(("network", f"{c['num_layers']} layers, {width}, feed-forward {c['ffn_dim']}{as_published}"))
        lines.append(
            ("latents", f"{c['in_channels']} channels, patches {tuple(c['patch_size'])}; text {c['text_dim']}")
        )
    if found.problem:
        lines.append(("unclear", found.problem))
    lines += [("beside it", f"{part}: {what}") for part, what in found.parts.items()]
    lines += [("sha256", f"{digest}  {file}") for file, digest in found.sha256.items()]
    names = max(len(name) for name, _ in lines)
    return "\n".join([found.path, *(f"  {name:{names}}  {text}" for name, text in lines)])


@app.command(short_help="What memory a stream takes.")
def plan(
    model: Annotated[str, typer.Argument(help="A model folder, bundled model or hub id; or wan-1.3b, wan-14b.")],
    memory: Annotated[str | None, typer.Option(help="Of a GPU, as 8GiB. [default: free here]")] = None,
    device: Annotated[str | None, typer.Option(help="cuda or cpu. [default: cuda with --memory]")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels. [default: the model's]")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels. [default: the model's]")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Videos side by side.")] = 1,
    preset: Annotated[str, typer.Option(help="auto, quality, fast or low.")] = "auto",
    method: Annotated[str | None, typer.Option(help="How it streams. [default: the model's]")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="SETTING=VALUE", help="Change a setting. Repeatable.")
    ] = None,
    decoder: Decoder = None,
    accelerate: Annotated[
        list[str] | None, typer.Option(metavar="SETTING=VALUE", help="As 'weights=int8'. Repeatable.")
    ] = None,
) -> None:
    """Tell what memory a stream takes, stage by stage, and what fits; no weights are read."""
    from reward_forcing.cli.memory import memory_of, plan_table
    from reward_forcing.models.sizes import SIZES
    from reward_forcing.streaming.memory_needs import model_of_folder, model_of_size
    from reward_forcing.streaming.model_folder import BUNDLED, open_model_folder

    of_size = model in SIZES and model != BUNDLED and not Path(model).exists()
    known = (
        model_of_size(model, method, changes or (), decoder)
        if of_size
        else model_of_folder(open_model_folder(model, method, None, changes or (), decoder))
    )
    sizes = {name: value for name, value in (("height", height), ("width", width)) if value is not None}
    print(plan_table(known.changed(**sizes), preset, memory_of(memory, device), accelerate or (), batch))


@app.command(short_help="Make a model folder of trained parts.")
def bundle(
    out: Annotated[Path, typer.Option(help="The model folder to write.")],
    transformer: Annotated[Path, typer.Option(help="A trained transformer/ folder.")],
    vae: Annotated[Path, typer.Option(help="A trained vae/ folder.")],
    text: Annotated[Path, typer.Option(help="A folder with text_encoder/ and tokenizer/.")],
    settings: Annotated[Path, typer.Option(help="YAML: the model's streaming settings.")],
    card: Annotated[Path | None, typer.Option(help="The model card, a Markdown file.")] = None,
    teacher: Annotated[Path | None, typer.Option(help="Also keep its teacher, a transformer/ folder.")] = None,
) -> None:
    """Put trained parts together into a model folder that `rforce generate --model` takes."""
    import torch

    from reward_forcing.config import load_settings
    from reward_forcing.streaming.methods import StreamingSettings
    from reward_forcing.streaming.model_folder import write_model_folder, write_teacher
    from reward_forcing.training.networks import load_transformer, load_vae

    streaming = load_settings(StreamingSettings, settings)
    words = card.read_text(encoding="utf-8") if card else ""
    network, decoder = load_transformer(transformer, torch.device("cpu")), load_vae(vae).vae
    parts = (network, decoder, text / "text_encoder", text / "tokenizer")
    folder = write_model_folder(out, *parts, streaming, words)
    if teacher:
        write_teacher(folder, load_transformer(teacher, torch.device("cpu")))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB")
