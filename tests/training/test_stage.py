"""Draws are functions of their place alone, stages load lazily, and only the updated role requires gradients."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from toy import build, config

from reward_forcing.training import STAGES, load_stage_settings, stage_class
from reward_forcing.training.learner import Learner, only_trainable
from reward_forcing.training.stage import Draw


def numbers(generator: torch.Generator) -> list[float]:
    return torch.randn(3, generator=generator).tolist()


def test_a_draw_repeats_and_depends_on_each_part_of_its_place():
    place = {"seed": 1, "role": "vae", "step": 2, "shard": 0, "shards": 4}
    first = numbers(Draw.at(**place).local)
    assert numbers(Draw.at(**place).local) == first
    for change in ({"seed": 2}, {"role": "critic"}, {"step": 3}, {"shard": 1}):
        assert numbers(Draw.at(**(place | change)).local) != first


def test_shards_share_one_generator_and_differ_in_the_other():
    draws = [Draw.at(0, "vae", 5, shard, 2) for shard in range(2)]
    assert numbers(draws[0].shared) == numbers(draws[1].shared)
    assert numbers(draws[0].local) != numbers(draws[1].local)


def test_shares_cut_the_batch_into_equal_parts_whose_items_do_not_depend_on_the_cut():
    whole = Draw.at(0, "vae", 5)
    parts = [Draw.at(0, "vae", 5, shard, 3) for shard in range(3)]
    assert [index for part in parts for index in part.share(12)] == list(whole.share(12)) == list(range(12))
    items = [numbers(part.sample(index)) for part in parts for index in part.share(12)]
    assert items == [numbers(whole.sample(index)) for index in range(12)]
    assert len({tuple(item) for item in items}) == 12


def test_an_uneven_share_is_an_error_that_names_a_way_out():
    with pytest.raises(ValueError, match="use a multiple of 3"):
        Draw.at(0, "vae", 0, 0, 3).share(10)


def test_only_the_updated_roles_parameters_require_gradients():
    stage = build()
    frozen = stage.roles["critic"].get_parameter("0.bias").requires_grad_(False)
    learners = {r: Learner(r, n, stage.settings.train, stage.edges(r)) for r, n in stage.networks().items()}
    with only_trainable(learners["student"], learners.values()):
        assert all(p.requires_grad for p in stage.roles["student"].parameters())
        assert not any(p.requires_grad for p in stage.roles["critic"].parameters())
    assert [p.requires_grad for p in stage.roles["critic"].parameters()] == [True, False]
    assert not frozen.requires_grad


def test_a_role_without_trainable_parameters_is_an_error():
    stage = build()
    with pytest.raises(ValueError, match="role 'critic' has no trainable parameters"):
        Learner("critic", nn.Linear(2, 2).requires_grad_(False), stage.settings.train)


def test_a_configuration_file_is_read_by_the_stage_it_names(tmp_path, monkeypatch):
    import yaml

    monkeypatch.setitem(STAGES, "toy", "toy:ToyStage")
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(config()))
    settings = load_stage_settings(path, ("batch_size=16", "train.steps=3"))
    assert settings.model_dump()["batch_size"] == 16
    assert settings.train.steps == 3
    path.write_text("stage: toyy\ntrain: {steps: 1}\n")
    with pytest.raises(ValueError, match="did you mean 'toy'"):
        load_stage_settings(path)
    path.write_text("train: {steps: 1}\n")
    with pytest.raises(ValueError, match="stage: this setting is required"):
        load_stage_settings(path)


@pytest.mark.parametrize("name", STAGES)
def test_every_registered_stage_exists_and_names_its_settings(name):
    stage = stage_class(name)
    assert stage.settings_class.model_fields["stage"].default == name


def test_importing_the_package_loads_no_torch():
    code = "import sys, reward_forcing.training; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
