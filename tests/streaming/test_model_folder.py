"""A model on disk: written whole, read back equal, and refused before weights are read when something is wrong."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from reward_forcing.rollout import NoSink, Sink
from reward_forcing.streaming import model_folder
from reward_forcing.streaming.methods import METHODS, streaming_settings
from reward_forcing.streaming.model_folder import INDEX, open_model_folder, write_model_folder, write_teacher
from reward_forcing.streaming.pipeline import StreamingVideoPipeline
from reward_forcing.training.networks import load_transformer

PROMPT = "a red ball bounces"


@pytest.fixture
def folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "copy"))


def edit(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None drops one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


class Mean(Sink):
    """A sink of one frame, the mean of what it held and of what left the window."""

    def absorb(self, sink: torch.Tensor, evicted: torch.Tensor, slot: int) -> torch.Tensor:
        return (sink + evicted.float().mean(dim=2, keepdim=True)) / 2


def test_a_folder_tells_how_it_streams(tiny_model_folder: Path) -> None:
    folder = open_model_folder(tiny_model_folder)
    assert (folder.settings.window_frames, folder.settings.chunk_frames, folder.settings.fps) == (6, 2, 16)
    assert (folder.geometry.height, folder.geometry.latent_height, folder.latent_channels) == (32, 4, 4)


def test_a_saved_pipeline_makes_the_same_video(tiny_model_folder: Path, tmp_path: Path) -> None:
    pipeline = StreamingVideoPipeline.from_pretrained(tiny_model_folder, device="cpu", dtype=torch.float32)
    again = StreamingVideoPipeline.from_pretrained(
        pipeline.save_pretrained(tmp_path / "saved"), device="cpu", dtype=torch.float32
    )
    assert again.settings == pipeline.settings
    assert torch.equal(again.generate(PROMPT, 0.5), pipeline.generate(PROMPT, 0.5))


def test_networks_are_stored_in_bfloat16_and_loaded_in_float32(tiny_model_folder: Path, tmp_path: Path) -> None:
    pipeline = StreamingVideoPipeline.from_pretrained(tiny_model_folder, device="cpu", dtype=torch.float32)
    out = pipeline.save_pretrained(tmp_path / "small", dtype=torch.bfloat16)
    assert pipeline.transformer.proj_out.weight.dtype == torch.float32
    stored = load_file(out / "transformer" / "diffusion_pytorch_model.safetensors")
    assert stored["proj_out.weight"].dtype == torch.bfloat16
    loaded = StreamingVideoPipeline.from_pretrained(out, device="cpu")
    assert {parameter.dtype for parameter in loaded.transformer.parameters()} == {torch.float32}


def test_a_written_folder_has_its_card_and_its_schedulers_shift(tiny_model_folder: Path) -> None:
    assert (tiny_model_folder / "README.md").read_text() == "# Tiny"
    assert json.loads((tiny_model_folder / "scheduler" / "scheduler_config.json").read_text())["shift"] == 5.0


def test_a_written_folder_does_not_tell_where_its_networks_came_from(tiny_model_folder: Path, tmp_path: Path) -> None:
    pipeline = StreamingVideoPipeline.from_pretrained(tiny_model_folder, device="cpu")
    out = pipeline.save_pretrained(tmp_path / "saved")
    assert not [path for path in out.rglob("*.json") if str(tiny_model_folder) in path.read_text()]


def test_a_teacher_lies_beside_its_student_and_trains_the_next(folder: Path, tiny_dit: Any) -> None:
    before = StreamingVideoPipeline.from_pretrained(folder, device="cpu", dtype=torch.float32).generate(PROMPT, 0.5)
    teacher = tiny_dit(seed=4)
    read = load_transformer(write_teacher(folder, teacher), torch.device("cpu"))
    for name, weight in teacher.state_dict().items():
        kept = weight if read.state_dict()[name].equal(weight) else weight.bfloat16().float()
        assert read.state_dict()[name].equal(kept), f"{name} is exact or rounded to bfloat16"
    streamed = StreamingVideoPipeline.from_pretrained(folder, device="cpu", dtype=torch.float32)
    assert torch.equal(streamed.generate(PROMPT, 0.5), before), "what streams is as it was"


def test_an_interrupted_write_leaves_no_folder_that_looks_whole(folder: Path) -> None:
    pipeline = StreamingVideoPipeline.from_pretrained(folder, device="cpu")
    with pytest.raises(FileNotFoundError, match="tokenizer_config"):
        write_model_folder(
            folder, pipeline.transformer, pipeline.vae.vae, folder / "text_encoder", folder / "vae", pipeline.settings
        )
    shutil.rmtree(folder / "text_encoder")
    (folder / "text_encoder").mkdir()
    with pytest.raises(FileNotFoundError):
        open_model_folder(folder)


def test_a_plain_diffusers_folder_takes_its_methods_numbers(folder: Path) -> None:
    edit(folder / INDEX, _class_name="WanPipeline", streaming=None)
    assert open_model_folder(folder).settings == streaming_settings()
    assert open_model_folder(folder, "self").settings.cache == METHODS["self"].cache


def test_a_folder_notes_what_its_weights_were_not_trained_for(folder: Path) -> None:
    assert open_model_folder(folder).notes == []
    (larger,) = open_model_folder(folder).resized(64, 32).notes
    assert "were trained at 32x32, not at 32x64" in larger
    (other,) = open_model_folder(folder, "longlive").notes
    assert "trained for the method 'reward', not for 'longlive'" in other
    edit(folder / INDEX, _class_name="WanPipeline", streaming=None)
    (plain,) = open_model_folder(folder).notes
    assert "says nothing of streaming" in plain
    assert open_model_folder(folder, weights=folder / "transformer").notes == []


def test_a_method_is_chosen_and_not_set(folder: Path) -> None:
    for changes in (["method=rolling"], {"method": "nonsense"}):
        with pytest.raises(ValueError, match="would change the name alone"):
            open_model_folder(folder, changes=changes)
    assert open_model_folder(folder, changes=["method=reward"]).settings == open_model_folder(folder).settings


def test_weights_of_another_method_take_its_steps(folder: Path) -> None:
    weights = folder / "transformer"
    edit(
        folder / INDEX,
        streaming=json.loads((folder / INDEX).read_text())["streaming"] | {"denoising_steps": [1000, 500]},
    )
    assert open_model_folder(folder, "rolling").settings.denoising_steps == (1000, 500)
    assert open_model_folder(folder, "rolling", weights).settings.denoising_steps == METHODS["rolling"].denoising_steps
    assert open_model_folder(folder, None, weights).settings.denoising_steps == (1000, 500)


def test_a_policy_can_be_named_alone(folder: Path) -> None:
    settings = open_model_folder(folder, changes=["sink=static", "switch=recache"]).settings
    assert (settings.sink.kind, settings.switch.kind) == ("static", "recache")
    with pytest.raises(ValueError, match="unknown sink"):
        open_model_folder(folder, changes=["sink=statik"])


def test_a_setting_that_is_nothing_yet_can_become_a_group(folder: Path) -> None:
    clips = open_model_folder(folder, changes=["clips.frames=6"]).settings.clips
    assert clips is not None
    assert clips.frames == 6


def test_other_weights_replace_the_transformer(tiny_model_folder: Path, folder: Path, tiny_dit: Any) -> None:
    torch.save({"generator": tiny_dit(seed=1, text_dim=32).state_dict()}, folder / "other.pt")
    shutil.copy(folder / "transformer" / "config.json", folder / "config.json")
    other = StreamingVideoPipeline.from_pretrained(tiny_model_folder, weights=folder / "other.pt", device="cpu")
    own = StreamingVideoPipeline.from_pretrained(tiny_model_folder, device="cpu")
    assert not torch.allclose(other.generate(PROMPT, 0.3), own.generate(PROMPT, 0.3), atol=1e-3)


def without(path: Path, name: str) -> None:
    state = load_file(path)
    del state[name]
    save_file(state, path, metadata={"format": "pt"})


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


DAMAGE: dict[str, tuple[Any, type[Exception], str]] = {
    "no index": (lambda f: (f / INDEX).unlink(), FileNotFoundError, "no model_index.json in"),
    "broken index": (lambda f: (f / INDEX).write_text("{"), ValueError, "is not valid JSON"),
    "another pipeline": (lambda f: edit(f / INDEX, _class_name="FluxPipeline"), ValueError, "describes a FluxPipeline"),
    "bad settings": (lambda f: edit(f / INDEX, streaming={"windows": 3}), ValueError, "did you mean 'window_frames'"),
    "code for a sink": (
        lambda f: edit(f / INDEX, streaming={"sink": {"kind": "os:system"}}),
        ValueError,
        "which is code; only your own settings may",
    ),
    "code for a sink, in short": (
        lambda f: edit(f / INDEX, streaming={"sink": "os:system"}),
        ValueError,
        "asks for the sink 'os:system', which is code",
    ),
    "code for a schedule": (
        lambda f: edit(f / INDEX, streaming={"schedule": "os:system"}),
        ValueError,
        "asks for the schedule 'os:system', which is code; only your own settings may",
    ),
    "code for a switch policy": (
        lambda f: edit(f / INDEX, streaming={"switch": {"kind": "os:system"}}),
        ValueError,
        "asks for the switch 'os:system', which is code; only your own settings may",
    ),
    "settings of no kind": (lambda f: edit(f / INDEX, streaming=[1]), ValueError, "must be a group of settings"),
    "no transformer": (lambda f: shutil.rmtree(f / "transformer"), FileNotFoundError, "no weights in"),
    "cut transformer": (
        lambda f: cut(f / "transformer" / "diffusion_pytorch_model.safetensors"),
        ValueError,
        "damaged or incomplete",
    ),
    "contradicting transformer": (
        lambda f: edit(f / "transformer" / "config.json", ffn_dim=64),
        ValueError,
        "the two do not belong",
    ),
    "another transformer": (
        lambda f: edit(f / "transformer" / "config.json", _class_name="FluxTransformer2DModel"),
        ValueError,
        "describes a FluxTransformer2DModel",
    ),
    "no vae config": (lambda f: (f / "vae" / "config.json").unlink(), FileNotFoundError, "no config.json in"),
    "another vae": (
        lambda f: edit(f / "vae" / "config.json", _class_name="AutoencoderKL"),
        ValueError,
        "AutoencoderKL",
    ),
    "cut vae": (
        lambda f: cut(f / "vae" / "diffusion_pytorch_model.safetensors"),
        ValueError,
        "damaged or incomplete",
    ),
    "wider vae": (lambda f: edit(f / "vae" / "config.json", base_dim=16), ValueError, "of another shape"),
    "cut text encoder": (
        lambda f: cut(f / "text_encoder" / "model.safetensors"),
        ValueError,
        "damaged or incomplete",
    ),
    "another text encoder": (
        lambda f: edit(f / "text_encoder" / "config.json", model_type="clip"),
        ValueError,
        "of type clip; expected umt5",
    ),
    "wider text encoder": (
        lambda f: edit(f / "text_encoder" / "config.json", d_model=64),
        ValueError,
        "the weights do not fit the text encoder: 12 of another shape",
    ),
    "text encoder without a matrix": (
        lambda f: without(
            f / "text_encoder" / "model.safetensors", "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"
        ),
        ValueError,
        "the weights do not fit the text encoder: 1 missing",
    ),
    "text encoder of no numbers": (
        lambda f: edit(f / "text_encoder" / "config.json", num_layers="two"),
        ValueError,
        "text_encoder'",
    ),
    "code for a tokenizer": (
        lambda f: edit(f / "tokenizer" / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]}),
        ValueError,
        "asks for code of its own",
    ),
    "vae of no numbers": (lambda f: edit(f / "vae" / "config.json", dim_mult=3), ValueError, "vae'"),
    "statistics of another vae": (
        lambda f: edit(f / "vae" / "config.json", latents_mean=[0.0]),
        ValueError,
        "latents_mean and latents_std must hold z_dim = 4 numbers",
    ),
    "transformer of no numbers": (
        lambda f: edit(f / "transformer" / "config.json", eps="small"),
        ValueError,
        "eps = 'small', which is no number",
    ),
    "method of no name": (lambda f: edit(f / INDEX, streaming={"method": 5}), ValueError, "method must be a name"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), FileNotFoundError, "no tokenizer_config.json"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_or_foreign_folder_is_refused_by_its_headers(folder: Path, case: str) -> None:
    damage, error, message = DAMAGE[case]
    damage(folder)
    with pytest.raises(error, match=message):
        open_model_folder(folder)


def test_a_user_changes_settings_over_the_models_own(folder: Path) -> None:
    own = open_model_folder(folder).settings
    changed = open_model_folder(folder, changes=["sink.alpha=0.5"]).settings
    assert changed == own.model_copy(update={"sink": own.sink.model_copy(update={"alpha": 0.5})})
    without = open_model_folder(folder, changes=["sink.kind=none"]).settings
    assert without.sink == NoSink()
    assert open_model_folder(folder, changes={"sink": Mean(frames=1)}).settings.sink == Mean(frames=1)
    named = open_model_folder(folder, changes=[f"sink.kind={__name__}:Mean", "sink.frames=1"]).settings
    assert named.sink == Mean(frames=1)
    with pytest.raises(ValueError, match="did you mean 'alpha'"):
        open_model_folder(folder, changes=["sink.alpa=0.5"])
    with pytest.raises(ValueError, match="must have the form"):
        open_model_folder(folder, changes=["sink"])


def test_a_sink_from_outside_changes_the_video(tiny_model_folder: Path) -> None:
    clips = [
        StreamingVideoPipeline.from_pretrained(tiny_model_folder, settings=settings).generate(
            "a red ball bounces", seconds=4, seed=3
        )
        for settings in ({}, {"sink": Mean(frames=1)})
    ]
    assert clips[0].shape == clips[1].shape
    assert not torch.equal(clips[0], clips[1])


def test_a_file_is_no_model_folder(tiny_model_folder: Path) -> None:
    with pytest.raises(ValueError, match="is a file; expected a model folder"):
        open_model_folder(tiny_model_folder / INDEX)


def test_a_missing_miniature_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_folder, "bundled", dict)
    with pytest.raises(FileNotFoundError, match="the bundled model 'mini' is not part of this installation"):
        open_model_folder("mini")


def test_a_model_can_be_resized_within_what_divides(tiny_model_folder: Path) -> None:
    folder = open_model_folder(tiny_model_folder)
    assert folder.resized(48, 64).geometry.grid == (3, 4)
    with pytest.raises(ValueError, match="height must be a positive multiple of 16, got 50; nearest: 48 or 64"):
        folder.resized(50, 64)
