"""ODE pairs are what the teacher makes of named noise and prompts; both layouts of a store are read alike."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from ode_stores import write_lmdb, write_tars
from safetensors.torch import load

from reward_forcing.config import describe
from reward_forcing.data.dataset import wording
from reward_forcing.flow import ode_sigmas
from reward_forcing.models.denoiser import Denoiser
from reward_forcing.models.wan_dit import WanDiT
from reward_forcing.rollout.noise import SeededNoise
from reward_forcing.training.networks import load_transformer
from reward_forcing.training.ode_pairs import (
    CausalTeacher,
    LmdbSettings,
    OdePair,
    OdePairs,
    OdePairsManifest,
    make_ode_pairs,
    prompts_hash,
    read_prompts,
)
from reward_forcing.training.prompts import PromptEncoder
from reward_forcing.training.sampling import causal_trajectory, ode_trajectory
from reward_forcing.training.shards import weights_hash, write_shards
from reward_forcing.training.world_latents import LatentsManifest, WorldLatents

SHAPE = (3, 4, 4, 4)
CPU = torch.device("cpu")


def manifest(model: Path, **changes: Any) -> OdePairsManifest:
    values = {"count": 5, "shard_size": 2, "teacher": weights_hash(model / "transformer"), "latent_shape": SHAPE,
              "steps": 4, "guidance": 2.0, "seed": 3}  # fmt: skip
    return OdePairsManifest.model_validate(values | changes)


def make(model: Path, out: Path, held: OdePairsManifest, **options: Any) -> OdePairs:
    list(make_ode_pairs(model / "transformer", model, out, held, **options))
    return OdePairs(out)


@pytest.fixture(scope="module")
def made(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of five pairs of the tiny model."""
    out = tmp_path_factory.mktemp("ode") / "pairs"
    make(tiny_model_folder, out, manifest(tiny_model_folder))
    return out


def test_a_pair_is_the_teachers_ode_from_the_noise_and_prompt_it_names(tiny_model_folder: Path, made: Path) -> None:
    store, index = OdePairs(made), 3
    sample = list(webdataset.WebDataset([str(made / "shard_00001.tar")], shardshuffle=False))[1]
    about, pair = json.loads(sample["json"]), store.read(index)
    torch.testing.assert_close(load(sample["trajectory.safetensors"])["trajectory"], pair.trajectory, rtol=0, atol=0)
    sigmas = ode_sigmas(4, 5.0)
    assert about == {
        "prompt": wording(index, "train", 3), "seed": index, "draw": 3, "timesteps": (1000 * sigmas.double()).tolist(),
        "teacher": weights_hash(tiny_model_folder / "transformer"), "steps": 4, "shift": 5.0, "guidance": 2.0,
        "negative_prompt": "",
    }  # fmt: skip
    assert pair.prompt == about["prompt"]
    assert torch.equal(pair.sigmas, sigmas)
    network, encode = load_transformer(tiny_model_folder / "transformer", CPU), PromptEncoder(tiny_model_folder, CPU)
    noise = SeededNoise((about["seed"],))(0, about["draw"], SHAPE)
    text, null = (network.encode_text(encode([prompt])) for prompt in (about["prompt"], ""))
    expected = ode_trajectory(Denoiser(network), noise, text, null, sigmas, 2.0, range(5))[0]
    assert pair.trajectory.dtype == torch.float16
    torch.testing.assert_close(pair.trajectory.float(), expected, atol=2e-3, rtol=2e-3)
    assert torch.equal(pair.trajectory[0], noise[0].half())


def test_two_processes_make_what_one_makes_byte_by_byte(tiny_model_folder: Path, made: Path, tmp_path: Path) -> None:
    held = manifest(tiny_model_folder)
    for part in (1, 0):
        list(make_ode_pairs(tiny_model_folder / "transformer", tiny_model_folder, tmp_path, held, (part, 2)))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {p.name: p.read_bytes() for p in made.iterdir()}
    assert len(list(tmp_path.iterdir())) == 4


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of four clips of the world's first scenes, of noise in place of encoded frames."""
    held = LatentsManifest(count=4, split="train", frames=13, size=32, vae="none")
    latents = torch.randn(4, 4, 4, 4, 4, generator=torch.Generator().manual_seed(2)).half()
    out = tmp_path_factory.mktemp("clips")
    list(write_shards(out, held, lambda items: {"latents": latents[list(items)]}))
    return out


def causal(model: Path, context: str = "", **changes: Any) -> OdePairsManifest:
    cache = {"window_frames": None, "chunk_frames": 1, "sink": {"kind": "none"}}
    return manifest(model, causal={"cache": cache, "context": context}, **changes)


@pytest.mark.parametrize("given", [False, True], ids=["its own chunks", "data"])
def test_a_causal_pair_is_the_causal_ode_from_the_same_noise_as_a_bidirectional_one(
    tiny_model_folder: Path, made: Path, clips: Path, tmp_path: Path, given: bool
) -> None:
    held = causal(tiny_model_folder, weights_hash(clips) if given else "")
    context = clips if given else None
    store, index = make(tiny_model_folder, tmp_path / "pairs", held, context=context, batch=2), 4
    network, encode = load_transformer(tiny_model_folder / "transformer", CPU), PromptEncoder(tiny_model_folder, CPU)
    clip, prompt = WorldLatents(clips).read([0], 3), wording(0 if given else index, "train", 3)
    text, null = (network.encode_text(encode([each])) for each in (prompt, ""))
    noise, cache = SeededNoise((index,))(0, 3, SHAPE), CausalTeacher.model_validate(held.causal).cache
    how = (text, null, ode_sigmas(4, 5.0), 2.0, cache, range(5), clip if given else None)
    expected = causal_trajectory(Denoiser(network), noise, *how)[0]
    pair = store.read(index)
    assert pair.prompt == prompt, "pair 4 is given clip 0 of 4, with its caption"
    torch.testing.assert_close(pair.trajectory.float(), expected, atol=2e-3, rtol=2e-3)
    assert torch.equal(pair.context, clip[0].half() if given else pair.trajectory[-1])
    bidirectional = OdePairs(made).read(index)
    assert torch.equal(pair.trajectory[0], bidirectional.trajectory[0])
    assert (pair.trajectory[-1] - bidirectional.trajectory[-1]).abs().max() > 0.1
    about = json.loads(store._source._store.read(index)["json"])  # type: ignore[union-attr]
    assert about["causal"]["context"] == held.causal.context  # type: ignore[union-attr]
    assert about["causal"]["cache"]["chunk_frames"] == 1
    assert about.get("clip") == (0 if given else None)
    assert store.summary().endswith(f"; causal, chunks of 1 given {'data' if given else 'its own'} in all frames")


def test_causal_pairs_are_made_in_parts_and_resumed_like_others(
    tiny_model_folder: Path, clips: Path, tmp_path: Path
) -> None:
    held = causal(tiny_model_folder, weights_hash(clips))
    make(tiny_model_folder, tmp_path / "whole", held, context=clips)
    make(tiny_model_folder, tmp_path / "whole", held, context=clips)
    for part in (1, 0):
        folder = (tiny_model_folder / "transformer", tiny_model_folder, tmp_path / "parts")
        list(make_ode_pairs(*folder, held, (part, 2), context=clips))
    whole, parts = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("whole", "parts"))
    assert whole == parts
    assert len(whole) == 4
    with pytest.raises(ValueError, match="holds another store"):
        make(tiny_model_folder, tmp_path / "whole", causal(tiny_model_folder))
    with pytest.raises(ValueError, match="not the context of the manifest"):
        make(tiny_model_folder, tmp_path / "whole", held)


def test_prompts_of_a_file_come_in_turn_with_noise_of_their_own(tiny_model_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a red ball\n\n  ein grüner Ball \n", encoding="utf-8")
    prompts = read_prompts(file)
    held = manifest(tiny_model_folder, count=3, prompts=prompts_hash(prompts))
    store = make(tiny_model_folder, tmp_path / "pairs", held, prompts=prompts, batch=1)
    pairs = [store.read(index) for index in range(3)]
    assert [pair.prompt for pair in pairs] == ["a red ball", "ein grüner Ball", "a red ball"]
    assert not torch.equal(pairs[0].trajectory[0], pairs[2].trajectory[0])
    with pytest.raises(ValueError, match=r"prompts: '[0-9a-f]{64}' -> ''"):
        make(tiny_model_folder, tmp_path / "pairs", manifest(tiny_model_folder, count=3))
    with pytest.raises(ValueError, match="not the prompts of the manifest"):
        make(tiny_model_folder, tmp_path / "pairs", held)


@pytest.mark.parametrize(("content", "says"), [(b"\n \n", "holds no prompt"), (b"\xff\xfe", "not UTF-8")])
def test_a_file_without_prompts_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "prompts.txt"
    with pytest.raises(FileNotFoundError, match="no file of prompts"):
        read_prompts(file)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=says):
        read_prompts(file)


def test_the_negative_prompt_is_what_guidance_leads_away_from(tiny_model_folder: Path, tmp_path: Path) -> None:
    ends = {}
    for guidance in (1.0, 2.0):
        for negative in ("", "a blue square"):
            held = manifest(tiny_model_folder, count=1, guidance=guidance, negative_prompt=negative)
            out = tmp_path / f"{guidance}_{negative[:1]}"
            ends[guidance, negative] = make(tiny_model_folder, out, held).read(0).trajectory[-1]
    assert torch.equal(ends[1.0, ""], ends[1.0, "a blue square"])
    assert not torch.equal(ends[2.0, ""], ends[2.0, "a blue square"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"steps": 6}, r"denoising steps \[750, 250\] do not lie on 6 ODE steps"),
        ({"denoising_steps": (500, 1000)}, "must decrease strictly"),
        ({"latent_shape": (3, 5, 4, 4)}, "takes latents of 4 channels"),
        ({"causal": {"cache": {"chunk_frames": 2}}}, "3 latent frames are no whole chunks of 2"),
        ({"causal": {"cache": {"chunk_frames": 3}, "context": "a"}, "prompts": "b"}, "come with their own captions"),
    ],
)
def test_what_cannot_be_made_is_refused(tiny_model_folder: Path, tmp_path: Path, changes: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make(tiny_model_folder, tmp_path / "pairs", manifest(tiny_model_folder, **changes))


@pytest.mark.parametrize("shape", [(5, 4, 4, 4), (3, 4, 4, 2)])
def test_clips_that_do_not_fit_the_latents_are_refused(
    tiny_model_folder: Path, clips: Path, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    held = causal(tiny_model_folder, weights_hash(clips), latent_shape=shape)
    with pytest.raises(ValueError, match=r"holds clips of \(4, 4, 4, 4\), not of one prompt and"):
        make(tiny_model_folder, tmp_path / "pairs", held, context=clips)


def test_an_ode_that_diverges_is_not_stored(
    tiny_model_folder: Path, tiny_dit: Callable[..., WanDiT], tmp_path: Path
) -> None:
    network = tiny_dit(text_dim=32)
    network.get_parameter("proj_out.bias").data.fill_(1e6)
    network.save_pretrained(tmp_path / "teacher")
    held = manifest(tiny_model_folder, count=1)
    with pytest.raises(ValueError, match="the teacher's ODE diverges for 'a "):
        list(make_ode_pairs(tmp_path / "teacher", tiny_model_folder, tmp_path / "pairs", held))
    assert [path.name for path in (tmp_path / "pairs").iterdir()] == ["manifest.json"]


def trajectories(count: int, points: int = 5) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, points, *SHAPE)).astype(np.float16)


def test_a_published_lmdb_is_read(tmp_path: Path) -> None:
    latents = trajectories(2)
    store = OdePairs(write_lmdb(tmp_path / "lmdb", latents, ["a red ball", "ein grüner Ball"]))
    assert (len(store), store.shape) == (2, (5, *SHAPE))
    pair = store.read(1)
    assert pair.prompt == "ein grüner Ball"
    assert np.array_equal(pair.trajectory.numpy(), latents[1])
    expected = torch.tensor([1000, 960, 888.8889, 727.2727, 0])  # Self Forcing's list, warped by 8
    torch.testing.assert_close(1000 * pair.sigmas, expected, rtol=0, atol=2e-4)
    with pytest.raises(IndexError):
        store.read(2)


def test_several_lmdbs_in_a_folder_are_one_store_and_a_store_opens_twice(tmp_path: Path) -> None:
    for name, count in (("0", 2), ("1", 0), ("2", 3)):
        write_lmdb(tmp_path / name, trajectories(count), [f"{name} {index}" for index in range(count)])
    stores = OdePairs(tmp_path), OdePairs(tmp_path)
    for store in stores:
        assert [store.read(i).prompt for i in range(len(store))] == ["0 0", "0 1", "2 0", "2 1", "2 2"]
        assert np.array_equal(store.read(4).trajectory.numpy(), trajectories(3)[2])


def test_causvids_points_are_a_matter_of_settings(tmp_path: Path) -> None:
    folder = write_lmdb(tmp_path / "lmdb", trajectories(1, points=4), ["a"])
    with pytest.raises(ValueError, match=r"holds 4 points a pair, but lmdb\.denoising_steps .* are 5"):
        OdePairs(folder)
    sigmas = OdePairs(folder, LmdbSettings(denoising_steps=(1000, 280, 120))).read(0).sigmas
    torch.testing.assert_close(1000 * sigmas, torch.tensor([1000, 756.757, 521.739, 0]), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"latents_shape": b"1 3 4 4 4"}, r"holds latents of shape \[3, 4, 4, 4\], not trajectories"),
        ({"latents_shape": b"one"}, "latents_shape should be whole numbers"),
        ({"latents_shape": None}, "has no 'latents_shape'"),
        ({"prompts_shape": b"2"}, "holds 1 trajectories but 2 prompts"),
        ({"latents_0_data": b"1234"}, "row 0 of latents .* has 4 bytes"),
        ({"prompts_0_data": None}, "has no 'prompts_0_data'"),
    ],
)
def test_an_lmdb_of_another_make_is_refused(tmp_path: Path, changes: Any, says: str) -> None:
    folder = write_lmdb(tmp_path / "lmdb", trajectories(1), ["a"], **changes)
    with pytest.raises(ValueError, match=says):
        OdePairs(folder).read(0)


def test_a_file_that_is_no_lmdb_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"junk" * 5000)
    with pytest.raises(ValueError, match="cannot be read as an LMDB"):
        OdePairs(tmp_path)


def test_rows_of_different_shapes_in_one_folder_are_refused(tmp_path: Path) -> None:
    for points in (4, 5):
        write_lmdb(tmp_path / str(points), trajectories(1, points), ["a"])
    with pytest.raises(ValueError, match="hold latents of different shapes"):
        OdePairs(tmp_path)


def test_without_the_package_an_lmdb_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_lmdb(tmp_path / "lmdb", trajectories(1), ["a"])
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(ImportError, match=r"pip install -e '.\[train\]'"):
        OdePairs(folder)


def test_a_store_that_says_its_timesteps_takes_none_from_settings(tmp_path: Path) -> None:
    folder = write_tars(tmp_path / "pairs", torch.zeros(1, 3, *SHAPE), (900, 400, 0))
    with pytest.raises(ValueError, match="leave lmdb out"):
        OdePairs(folder, LmdbSettings())


@pytest.mark.parametrize("timesteps", [(900, 0), (400, 900, 0), (900, 400, 100)])
def test_timesteps_that_do_not_fit_the_points_are_refused(tmp_path: Path, timesteps: tuple[float, ...]) -> None:
    store = OdePairs(write_tars(tmp_path / "pairs", torch.zeros(1, 3, *SHAPE), timesteps))
    with pytest.raises(ValueError, match="a trajectory of 3 points needs as many noise levels, falling to 0"):
        store.read(0)


def test_stored_timesteps_give_back_the_sigmas_exactly() -> None:
    held = OdePairsManifest(count=1, teacher="none", latent_shape=SHAPE, steps=48, shift=8.0)
    sigmas = torch.tensor(json.loads(json.dumps(held.timesteps())), dtype=torch.float64) / 1000
    assert torch.equal(sigmas.float(), ode_sigmas(48, 8.0)[[0, 12, 24, 36, 48]])


def test_a_pair_knows_how_many_levels_it_has() -> None:
    with pytest.raises(ValueError, match="of 1 points"):
        OdePair("a", torch.zeros(1, *SHAPE), torch.zeros(1))


def test_steps_of_an_lmdb_are_checked_with_the_settings() -> None:
    with pytest.raises(ValueError, match="must decrease strictly") as error:
        LmdbSettings(denoising_steps=(1000, 0))
    assert "\n" not in describe(error.value)  # pyright: ignore[reportArgumentType]


def test_the_summary_says_what_was_made(made: Path) -> None:
    said = OdePairs(made).summary()
    assert said.startswith("5 pairs, 5 points of 3 x 4 x 4 x 4 at timesteps 1000, 937.5, 833.33, 625, 0; ")
