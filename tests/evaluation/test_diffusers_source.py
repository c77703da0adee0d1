"""Pipelines of diffusers as sources of clips: real classes of random weights, called as a user's would be."""

import inspect
import json
import re
import shutil
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from evaluation.tiny_pipelines import KINDS, write_pipeline

from reward_forcing.evaluation import run, set_scores
from reward_forcing.evaluation.clip_scores import measure_clip
from reward_forcing.evaluation.diffusers_source import FRAME_COUNTS, NATIVE_FPS, RATES, PipelineSource, open_pipeline
from reward_forcing.evaluation.matching import Form, matched
from reward_forcing.evaluation.metrics import Rhythm
from reward_forcing.evaluation.results import read_results
from reward_forcing.evaluation.run import evaluate
from reward_forcing.evaluation.suites import PromptSet, Suite
from reward_forcing.streaming.video_io import read_video, to_uint8

FAST = ("num_inference_steps=2", "height=32", "width=32", "max_sequence_length=16")
PROMPTS = ("a red ball bounces", "a blue square")
SUITE = Suite("file", (PromptSet("0.5s", PROMPTS, 0.5),))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of every kind of tiny pipeline, each under the name of its class."""
    place = tmp_path_factory.mktemp("pipelines")
    for kind in KINDS:
        write_pipeline(place / kind, kind)
    return place


def clip_of(source: PipelineSource, prompt: str, seed: int, seconds: float = 0.5) -> torch.Tensor:
    (chunk,) = source.chunks(source.load(), [prompt], [seed], seconds)
    assert (chunk.index, chunk.start_frame, chunk.prompts) == (0, 0, (prompt,))
    return chunk.frames


@pytest.mark.parametrize(
    ("kind", "fps", "frames"),
    [
        ("WanPipeline", 16, 8),
        ("LTXPipeline", 25, 13),
        ("SkyReelsV2Pipeline", 24, 12),
        ("SkyReelsV2DiffusionForcingPipeline", 24, 12),
    ],
)
def test_a_pipeline_makes_the_clip_of_its_prompt_and_seed(folders: Path, kind: str, fps: float, frames: int) -> None:
    source = open_pipeline(folders / kind, FAST)
    assert (source.settings.fps, source.size, source.frames_for(0.5)) == (fps, (32, 32), frames)
    clip = clip_of(source, PROMPTS[0], 3)
    assert clip.shape == (1, frames, 3, 32, 32)
    assert clip.min() >= 0
    assert clip.max() <= 1
    assert clip.std() > 0.001
    assert clip_of(source, PROMPTS[0], 3).equal(clip)
    assert not clip_of(source, PROMPTS[0], 4).equal(clip)
    assert not clip_of(source, PROMPTS[1], 3).equal(clip)


def test_settings_reach_the_pipeline_and_the_record(folders: Path) -> None:
    source = open_pipeline(folders / "WanPipeline", [*FAST, "num_frames=5", "fps=10", "height=16"])
    assert clip_of(source, PROMPTS[0], 3, 0.5).shape == (1, 5, 3, 16, 32)
    made = source.made_with()
    assert made.settings["pipeline"] == "WanPipeline"
    assert made.settings["fps"] == 10
    assert made.settings["call"] == {
        "num_inference_steps": 2, "height": 16, "width": 32, "max_sequence_length": 16, "num_frames": 5,
    }  # fmt: skip
    assert made.weights is not None
    assert made.parts.keys() == {"vae", "text_encoder"}
    half = open_pipeline(folders / "WanPipeline", [*FAST, "dtype=bfloat16"])
    assert half.load().transformer.dtype == torch.bfloat16
    assert clip_of(half, PROMPTS[0], 3).std() > 0.001
    more = open_pipeline(folders / "WanPipeline", [*FAST, "num_frames=9", "fps=10", "guidance_scale=1.0"])
    plain = open_pipeline(folders / "WanPipeline", [*FAST, "num_frames=9", "fps=10"])
    assert not clip_of(more, PROMPTS[0], 3, 0.9).equal(clip_of(plain, PROMPTS[0], 3, 0.9))


def test_rates_are_those_of_diffusers_own_examples() -> None:
    for name, fps in NATIVE_FPS.items():
        source = inspect.getsource(sys.modules[getattr(diffusers, name).__module__])
        rates = re.findall(r"export_to_(?:video|gif)\(.*?fps=(\d+)", source)
        assert str(fps) in rates, (name, rates)


BAD = [
    (
        "num_inference_step=2",
        "unknown setting of a WanPipeline 'num_inference_step'; did you mean 'num_inference_steps'?",
    ),
    ("num_inference_steps=few", "num_inference_steps of a WanPipeline must be a number like its default 50, got 'few'"),
    ("num_frames=0", "num_frames must be a whole number of at least 1, got 0"),
    ("height=32.5", "height must be a whole number of at least 1, got 32.5"),
    ("seed=3", "unknown setting of a WanPipeline 'seed'"),
    ("generator=3", "unknown setting of a WanPipeline 'generator'"),
    ("fps=-1", "fps: input should be greater than 0"),
    ("dtype=int8", "dtype: "),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[change for change, _ in BAD])
def test_bad_settings_are_refused_before_weights_load(folders: Path, change: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        open_pipeline(folders / "WanPipeline", [change])


def edited(folders: Path, out: Path, **changes: object) -> Path:
    """A copy of the Wan pipeline with another index."""
    shutil.copytree(folders / "WanPipeline", out)
    index = json.loads((out / "model_index.json").read_text()) | changes
    (out / "model_index.json").write_text(json.dumps(index))
    return out


@pytest.mark.parametrize(
    ("class_name", "message"),
    [
        ("WanPipelines", "which diffusers .* cannot give \\(the nearest is WanPipeline\\)"),
        ("WanImageToVideoPipeline", "makes no video of a prompt alone; it needs image"),
        ("StableDiffusionPipeline", "makes no video of a prompt alone"),
        ("AutoencoderKLWan", "which is no pipeline"),
        (["pipeline", "Mine"], "brings code of its own"),
    ],
)
def test_what_makes_no_video_of_a_prompt_is_refused(
    folders: Path, tmp_path: Path, class_name: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        open_pipeline(edited(folders, tmp_path / "copy", _class_name=class_name))


def test_a_pipeline_that_names_no_rate_asks_for_one(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(NATIVE_FPS, "WanPipeline")
    with pytest.raises(ValueError, match="set fps, such as 24"):
        open_pipeline(folders / "WanPipeline")
    assert open_pipeline(folders / "WanPipeline", {"fps": 8}).settings.fps == 8


def test_a_folder_that_is_not_whole_is_refused(folders: Path, tmp_path: Path) -> None:
    copy = edited(folders, tmp_path / "copy")
    (copy / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"not whole: no .safetensors in transformer"):
        open_pipeline(copy)
    shutil.rmtree(copy / "vae")
    with pytest.raises(FileNotFoundError, match="not whole: vae is missing"):
        open_pipeline(copy)
    with pytest.raises(FileNotFoundError, match=r"no model_index.json"):
        open_pipeline(folders)


def test_damaged_weights_are_told_in_a_line(folders: Path, tmp_path: Path) -> None:
    copy = edited(folders, tmp_path / "copy")
    (copy / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ValueError, match=r"copy/vae/diffusion_pytorch_model.safetensors' is neither"):
        open_pipeline(copy)


def test_a_model_of_this_package_is_no_pipeline(tiny_model_folder: Path) -> None:
    with pytest.raises(ValueError, match="is a model of this package, which streams"):
        open_pipeline(tiny_model_folder)


def test_a_hub_id_needs_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="the hub could not be reached; connect, or give a local path"):
        open_pipeline("Lightricks/LTX-Video")


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_scores, "RESAMPLES", 100)


@pytest.mark.usefixtures("few_resamples")
def test_an_evaluation_of_a_pipeline_has_the_suites_prompts_and_seeds_in_one_form(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, form = open_pipeline(folders / "SkyReelsV2Pipeline", FAST), Form(height=16, width=16, fps=16)
    assert evaluate(SUITE, tmp_path, source, form=form, name="skyreels", seed=5, quiet=True)
    results = read_results(tmp_path)
    assert [(sample.prompt, sample.seed) for sample in results.samples] == [(PROMPTS[0], 5), (PROMPTS[1], 6)]
    assert results.provenance.streaming["call"]["num_inference_steps"] == 2
    assert results.provenance.form == form
    for sample in results.samples:
        native = to_uint8(clip_of(source, sample.prompt, sample.seed))[0].permute(0, 2, 3, 1).numpy()
        measured = measure_clip(matched(native, 24, form), Rhythm(16))
        assert sample.scores == measured.scores
        frames, fps = read_video(tmp_path / sample.file)
        assert (frames.shape, fps) == ((12, 3, 32, 32), 24)

    def refuse(*_: object) -> None:
        raise AssertionError("weights were about to be read")

    monkeypatch.setattr(PipelineSource, "load", refuse)
    assert evaluate(SUITE, tmp_path, source, form=form, seed=5, quiet=True)
    with pytest.raises(ValueError, match=r"form.fps: 16.0 -> 8.0"):
        evaluate(SUITE, tmp_path, source, form=Form(height=16, width=16, fps=8), seed=5, quiet=True)
    short = open_pipeline(folders / "SkyReelsV2Pipeline", [*FAST, "num_frames=5"])
    with pytest.raises(ValueError, match=re.escape("has clips of 0.5 s; the source makes 0.21 s")):
        evaluate(SUITE, tmp_path / "short", short, quiet=True)


@pytest.mark.usefixtures("few_resamples")
def test_an_interrupted_evaluation_of_a_pipeline_goes_on(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, write = open_pipeline(folders / "WanPipeline", FAST), run.write_settings
    made: list[tuple[str, int]] = []
    chunks = PipelineSource.chunks

    def spy(self: PipelineSource, loaded: object, prompts: list[str], seeds: list[int], seconds: float) -> object:
        made.append((prompts[0], seeds[0]))
        return chunks(self, loaded, prompts, seeds, seconds)

    def stop(path: Path, value: object) -> None:
        write(path, value)  # pyright: ignore[reportArgumentType]
        if path.parent.name == "samples":
            raise KeyboardInterrupt

    monkeypatch.setattr(PipelineSource, "chunks", spy)
    with monkeypatch.context() as stopped:
        stopped.setattr(run, "write_settings", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate(SUITE, tmp_path, source, quiet=True)
    results = evaluate(SUITE, tmp_path, source, quiet=True)
    assert results is not None
    assert made == [(PROMPTS[0], 0), (PROMPTS[1], 1)]
    assert all(np.isfinite(list(sample.scores.values())).all() for sample in results.samples)


def test_the_documented_baselines_are_those_that_diffusers_carries() -> None:
    page = (Path(__file__).parents[2] / "docs" / "baselines.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.partition("| baseline |")[2].splitlines()[2:] if "|" in line]
    assert len(rows) > 15
    everything = " ".join(dir(diffusers)).lower()
    for baseline, pipelines, *_ in rows:
        if pipelines.startswith("none"):
            assert re.sub(r"[^a-z0-9]", "", baseline.lower()) not in everything, baseline
        for name in re.findall(r"`(\w+)`", pipelines):
            arguments = inspect.signature(getattr(diffusers, name).__call__).parameters
            assert "prompt" in arguments, name
            assert set(FRAME_COUNTS) & arguments.keys(), name
            fps = NATIVE_FPS.get(name) or next((arguments[rate].default for rate in RATES if rate in arguments), None)
            assert fps is not None or name == "MochiPipeline", name
