"""An ablation of random tiny networks from nothing to its page, stopped anywhere; and what claims are made of."""

import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from reward_forcing.cli.main import main
from reward_forcing.evaluation import clip_scores, run, set_scores, world_distance
from reward_forcing.evaluation.metrics import METRICS
from reward_forcing.evaluation.reproduce import claims as claims_module
from reward_forcing.evaluation.reproduce import curves, measure, plots, units
from reward_forcing.evaluation.reproduce.claims import CLAIMS_OF, Claim, Expectation, holds, judge_claim
from reward_forcing.evaluation.reproduce.measure import MEASURES, Runs, difference, per_run, value_of
from reward_forcing.evaluation.reproduce.paper import TABLES, TableName
from reward_forcing.evaluation.reproduce.recipe import Ablation, load_recipe, streamed_as
from reward_forcing.evaluation.reproduce.record import AblationResults, ablation_schema, summarise, write_ablation
from reward_forcing.evaluation.reproduce.table import markdown
from reward_forcing.evaluation.reproduce.units import cpu_left, is_done, progress_of, units_of, work
from reward_forcing.evaluation.results import EvalResults, Provenance, Sample, SetResults
from reward_forcing.evaluation.statistics import Estimate, crossed_mean
from reward_forcing.streaming.model_folder import open_model_folder
from reward_forcing.training.checkpoint import try_lock
from reward_forcing.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
SHIPPED: dict[TableName, Path] = {name: ROOT / f"configs/reproduce/{name}.yaml" for name in TABLES}


@pytest.fixture(scope="module")
def recipe_file(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ours, its twin and one without Re-DMD, two seeds, all of random tiny networks."""
    folder = tmp_path_factory.mktemp("recipe")
    adam = {"kind": "adamw", "lr": 1e-3}
    tracked = {"kind": "reward_forcing.evaluation.world_rewards:WorldMotion"}
    training = {
        "stage": "re_dmd", "reward": {"kind": "motion"}, "group": 2, "batch": 2, "frames": 4, "latent_size": [4, 4],
        "generator": str(tiny_model_folder / "transformer"), "real_score": str(tiny_model_folder / "transformer"),
        "text": str(tiny_model_folder), "vae": str(tiny_model_folder / "vae"), "generator_every": 1,
        "denoising_steps": [1000, 500], "watched": {"tracked": tracked}, "watch_clips": 2,
        "cache": {"window_frames": 6, "chunk_frames": 2, "sink": {"kind": "ema", "frames": 2, "alpha": 0.99}},
        "train": {"steps": 2, "save_every": 1, "log_every": 1, "sample_every": 1,
                  "optimizers": {"generator": adam, "fake_score": adam}},
    }  # fmt: skip
    (folder / "training.yaml").write_text(yaml.safe_dump(training))
    (folder / "streaming.yaml").write_text("{chunk_frames: 2, window_frames: 6, height: 32, width: 32}")
    recipe = {
        "base": {"config": str(folder / "training.yaml"), "overrides": ["batch=4"]},
        "streaming": str(folder / "streaming.yaml"),
        "seeds": [1, 2],
        "curve": ["tracked"],
        "variants": {
            "ours": {"label": "Ours", "block": "Improvement"},
            "without_re_dmd": {"label": "w/o Re-DMD", "block": "Improvement", "stage": "dmd"},
            "alpha_0_99": {"label": "alpha = 0.99", "block": "Alpha", "overrides": ["cache.sink.alpha=0.99"]},
        },
        "evaluation": {"prompts": 3, "seconds": 0.8, "long_prompts": 2, "long_seconds": 10.1, "batch": 3},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module", autouse=True)
def cheap() -> Iterator[None]:
    """Few metrics, and random features in place of 256 rendered clips': here numbers only have to come through."""
    few = ("sharpness", "background_constancy", "subject_constancy", "midpoint_error", "flicker")
    rendered = np.random.default_rng(0).normal(size=(20, 48))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip_scores, "METRICS", {name: METRICS[name] for name in few})
        patch.setattr(clip_scores, "PER_FRAME", ("sharpness",))
        patch.setattr(clip_scores, "WHOLE", ("background_constancy", "subject_constancy"))
        patch.setattr(clip_scores, "AT_ENDS", ("midpoint_error",))
        patch.setattr(set_scores, "RESAMPLES", 10)
        patch.setattr(set_scores, "_distances", lambda prompts, scenes: {})
        for module in (world_distance, measure):
            patch.setattr(module, "reference_features", lambda start=0: rendered)
        yield


@pytest.fixture(scope="module")
def whole(cheap: None, recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ablation, Path]:
    """The ablation that nothing stopped."""
    recipe, out = load_recipe(recipe_file), tmp_path_factory.mktemp("ablations") / "whole"
    assert work(recipe, out) == 0
    return recipe, out


def numbers(recipe: Ablation, out: Path) -> dict[str, Any]:
    """Everything that is told of an ablation but what depends on where and when it was made."""
    text = summarise(recipe, out, "rforce reproduce table3").model_dump_json()
    told = {name: value for name, value in json.loads(text).items() if name not in ("created", "commits", "cpu")}
    for variant in told["variants"].values():
        del variant["commands"]
    return told


def test_equal_variants_are_one_unit_and_stand_in_every_row(whole: tuple[Ablation, Path]) -> None:
    recipe, out = whole
    assert [(unit.variant, unit.seed) for unit in units_of(recipe, out)] == [
        ("ours", 1), ("without_re_dmd", 1), ("ours", 2), ("without_re_dmd", 2),
    ]  # fmt: skip
    results = summarise(recipe, out, "")
    assert not (out / "alpha_0_99").exists()
    twin, ours = results.variants["alpha_0_99"], results.variants["ours"]
    assert (twin.trained_as, twin.seeds) == ("ours", (1, 2))
    assert {name: cell.value for name, cell in twin.measures.items()} == {
        name: cell.value for name, cell in ours.measures.items()
    }
    assert all(cell.against_ours is None for cell in twin.measures.values())


def test_every_measure_comes_with_its_runs_and_its_difference(whole: tuple[Ablation, Path]) -> None:
    results = summarise(*whole, "")
    other = results.variants["without_re_dmd"]
    assert "quality" not in other.measures, "a Frechet distance needs more clips than features"
    assert other.measures.keys() >= MEASURES.keys() - {"quality", "colour_shift"}, "noise may show no object"
    for cell in other.measures.values():
        assert len(cell.per_run) == 2
        assert cell.value.low <= cell.value.value <= cell.value.high
        assert cell.against_ours is not None
    assert len(other.curves["tracked"]) == 2
    assert all(len(point) == 3 for point in other.curves["tracked"])
    assert len(other.along["background_shift"]) == 2
    assert len(other.along["background_shift"][0]) == 6
    assert results.claims["re_dmd_raises_dynamics"].verdict != "not measured"
    assert results.claims["sink_keeps_quality"].verdict == "not measured"


def test_students_are_streamed_as_they_were_trained_and_can_be_made_by_hand(whole: tuple[Ablation, Path]) -> None:
    recipe, out = whole
    folder = out / "ours/seed1"
    train, _, stream, _ = summarise(recipe, out, "").variants["ours"].commands
    assert train == f"rforce train {folder}/train.yaml --out {folder}/train"
    words = shlex.split(stream)
    changes = [words[at + 1] for at, word in enumerate(words) if word == "--set"]
    by_hand = open_model_folder(out / "model", weights=words[words.index("--weights") + 1], changes=changes)
    written = yaml.safe_load((folder / "train.yaml").read_text())
    assert written == yaml.safe_load((folder / "train/config.yaml").read_text())
    assert (written["seed"], written["batch"], written["stage"]) == (1, 4, "re_dmd")
    plain = yaml.safe_load((out / "without_re_dmd/seed2/train.yaml").read_text())
    assert (plain["seed"], plain["stage"], "reward" in plain) == (2, "dmd", False)
    streaming = json.loads((folder / "evaluation/results.json").read_text())["provenance"]["streaming"]
    assert streaming["sink"] == {"kind": "ema", "frames": 2, "alpha": 0.99}
    assert streaming["denoising_steps"] == [1000, 500]
    assert by_hand.settings.recorded() == streaming


def test_an_ablation_stopped_anywhere_goes_on_to_the_same_results(
    whole: tuple[Ablation, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, uninterrupted = whole
    out = tmp_path / "stopped"
    mine = {"only": ["ours"], "share": (0, 2)}
    stops: list[Callable[[pytest.MonkeyPatch], None]] = [stop_training, stop_evaluation, stop_before_the_record]
    for stop in stops:
        with monkeypatch.context() as stopped:
            stop(stopped)
            with pytest.raises(KeyboardInterrupt):
                work(recipe, out, **mine)
    assert [one.state for one in progress_of(recipe, units_of(recipe, out)[0])] == ["done", "waiting"]
    with pytest.raises(ValueError, match="nothing to tell yet"):
        summarise(recipe, out, "")
    assert work(recipe, out, **mine) == 0
    assert [is_done(unit) for unit in units_of(recipe, out)] == [True, False, False, False]
    for other in ("ours/seed2", "without_re_dmd"):
        shutil.copytree(uninterrupted / other, out / other)
    assert numbers(recipe, out) == numbers(recipe, uninterrupted)


def stop_training(patch: pytest.MonkeyPatch) -> None:
    """After the first step's checkpoint."""
    save = Trainer._save

    def save_and_stop(self: Trainer) -> None:
        save(self)
        raise KeyboardInterrupt

    patch.setattr(Trainer, "_save", save_and_stop)


def stop_evaluation(patch: pytest.MonkeyPatch) -> None:
    """When one clip is recorded and the next is about to be."""
    write = run.write_settings

    def write_or_stop(path: Path, value: Any) -> None:
        if path.parent.name == "samples" and any(path.parent.glob("*.json")):
            raise KeyboardInterrupt
        write(path, value)

    patch.setattr(run, "write_settings", write_or_stop)


def stop_before_the_record(patch: pytest.MonkeyPatch) -> None:
    """When all clips are measured and the unit is about to be called done."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    patch.setattr(units, "_write", stop)


def test_a_unit_that_another_process_holds_is_left_to_it(whole: tuple[Ablation, Path], tmp_path: Path) -> None:
    recipe, done = whole
    out = tmp_path / "shared"
    shutil.copytree(done, out)
    first, second, *_ = units_of(recipe, out)
    first.record("evaluate").unlink()
    second.record("train").unlink()
    with try_lock(first.folder) as is_ours, try_lock(second.folder) as is_ours_too:
        assert is_ours
        assert is_ours_too
        assert work(recipe, out) == 0, "nothing is left that nobody holds"
        assert [one.state for one in progress_of(recipe, first)] == ["done", "running"]
    progress = [one for unit in units_of(recipe, out) for one in progress_of(recipe, unit)]
    assert [one.state for one in progress].count("waiting") == 2
    taken = sorted(one.cpu or 0 for one in progress if one.task == "evaluate" and one.state == "done")
    assert cpu_left(progress)["evaluate"] == 0.0, "all its clips are there"
    assert taken[0] > 0


def test_a_folder_of_other_settings_is_refused(whole: tuple[Ablation, Path], recipe_file: Path) -> None:
    _, out = whole
    for override, task in (("evaluation.seed=5", "evaluate"), ("base.overrides=[batch=2]", "train")):
        with pytest.raises(ValueError, match=rf"was made with other settings \({task}\)"):
            work(load_recipe(recipe_file, [override]), out)


def test_the_page_has_every_row_claim_and_picture(whole: tuple[Ablation, Path]) -> None:
    recipe, out = whole
    results = summarise(recipe, out, "rforce reproduce table3")
    page = markdown(results)
    apart = dict(reversed(results.variants.items())) | {"more": results.variants["ours"]}
    mixed = markdown(results.model_copy(update={"variants": apart}))
    assert mixed.count("**Improvement**") == page.count("**Improvement**") == 2, "a block stands together, once a table"
    for variant in results.variants.values():
        assert f"| {variant.label} |" in page
    assert "(64.06)" in page
    assert "(43.75)" in page
    for claim in results.claims.values():
        assert claim.sentence in page
    for picture in plots.draw(results, out):
        assert f"images/{picture.name}" in page
        assert Image.open(picture).width > 400
    assert AblationResults.model_validate_json(write_ablation(results, out).read_text()) == results


def test_the_command_tells_how_far_it_is_and_writes_what_there_is(
    whole: tuple[Ablation, Path], recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "half"
    shutil.copytree(whole[1], out)
    shutil.rmtree(out / "without_re_dmd/seed2")
    command = ["reproduce", "table3", "--recipe", str(recipe_file), "--out", str(out), "--show"]

    def shown(what: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main([*command, what])
        assert not stop.value.code
        return capsys.readouterr().out

    rows = [line.split() for line in shown("status").splitlines() if " seed " in line]
    assert [(*row[:4], row[4]) for row in rows if row[4] != "done"] == [
        ("without_re_dmd", "seed", "2", task, "waiting") for task in ("train", "evaluate")
    ]
    assert "table3.md" in shown("report")
    results = json.loads((out / "results.json").read_text())
    assert results["variants"]["without_re_dmd"]["seeds"] == [1]
    assert results["claims"]["re_dmd_raises_dynamics"]["verdict"] == "undecided", "one run is no verdict"
    assert (out / "table3.md").read_text().startswith("### The paper's ablation")
    assert '"AblationResults"' in shown("schema")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["sedes=[1]"], "unknown setting 'sedes'; did you mean 'seeds'"),
        (["seeds=[1, 1]"], "seeds must be different ones"),
        (["variants={theirs: {label: a, block: b}}"], "variants need 'ours'"),
        (["variants.ours.overrides=[alhpa=1]"], "variant 'ours': unknown setting 'alhpa'"),
        (["variants.ours.overrides=['cache.sink.alpha=2']"], "variant 'ours': cache.sink.*alpha"),
        (["variants.without_re_dmd.overrides=[beta=1]"], "variant 'without_re_dmd': unknown setting 'beta'"),
        (["variants.ours.overrides=[vae=elsewhere]"], "vae must be the base's"),
        (["evaluation.long_seconds=5"], "long_seconds: input should be greater than 10"),
        (["curve=[trackde]"], "unknown watched reward 'trackde'; did you mean 'tracked'"),
        (["variants.ours.after=his"], "variant 'ours' begins after 'his', which must be named before it"),
        (
            ["variants.more={label: a, block: b, after: alpha_0_99}"],
            "variant 'more': begin after 'ours', which stands for 'alpha_0_99'",
        ),
        (["variants.a-b={label: a, block: b}"], "letters, digits and '_', got 'a-b'"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(recipe_file: Path, changes: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe(recipe_file, changes)


def test_an_unknown_variant_cannot_be_asked_for(recipe_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no variant 'his' in the recipe"):
        units_of(load_recipe(recipe_file), tmp_path, ["his"])


def test_the_schema_of_the_results_is_the_documented_one() -> None:
    assert (ROOT / "docs/table3.schema.json").read_text(encoding="utf-8") == ablation_schema()


@pytest.mark.parametrize("table", list(TABLES))
def test_a_shipped_recipe_has_the_papers_rows_and_all_that_claims_compare(
    table: TableName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(SHIPPED[table])
    assert recipe.table == table
    assert TABLES[table].rows.keys() <= recipe.variants.keys()
    assert set(TABLES[table].drawn) <= recipe.variants.keys()
    parts = [part for claim in CLAIMS_OF[table].values() for part in claim.parts]
    assert {name for part in parts for name in (part.variant, part.than)} <= recipe.variants.keys()
    assert {part.measure for part in parts} | TABLES[table].columns.keys() <= MEASURES.keys()
    assert {part.measure for part in parts if part.expected == "no worse"} == recipe.margins.keys()


def test_the_shipped_ablation_trains_what_its_rows_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(SHIPPED["table3"])
    trained = recipe.trained_as()
    assert {name for name, first in trained.items() if first == "ours"} == {"ours", "alpha_0_99", "beta_1_2"}
    assert len(set(trained.values())) == len(recipe.variants) - 2
    assert streamed_as(recipe.training("without_sink", 1))["sink"] == {"kind": "none", "frames": 0}
    assert recipe.training("beta_1_5", 3).model_dump()["beta"] == 0.2


def test_the_shipped_comparison_streams_each_method_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(SHIPPED["methods"])
    streamed = {name: streamed_as(recipe.training(name, 1)) for name in recipe.variants}
    assert {name for name, how in streamed.items() if how.get("schedule") == "rolling"} == {"rolling"}
    assert {name: how["sink"]["kind"] for name, how in streamed.items()} == {
        "ours": "ema", "without_re_dmd": "ema", "critic_weighted": "ema", "self_forcing": "none",
        "longlive_short": "static", "longlive": "static", "rolling": "static",
    }  # fmt: skip
    weighted = {name: recipe.training(name, 1).model_dump().get("weighted") for name in recipe.variants}
    assert {name: role for name, role in weighted.items() if role} == {"ours": "generator", "critic_weighted": "critic"}
    assert recipe.training("longlive", 2, Path("out")).fake_score == Path(
        "out/longlive_short/seed2/train/final/fake_score"
    )


def test_a_variant_begins_with_what_another_was_trained_to(
    whole: tuple[Ablation, Path], recipe_file: Path, tmp_path: Path
) -> None:
    longer = "variants.longer={label: Longer, block: Improvement, after: without_re_dmd, stage: dmd}"
    recipe, out = load_recipe(recipe_file, ["table=methods", "seeds=[1]", longer]), tmp_path / "out"
    for done in ("ours/seed1", "without_re_dmd/seed1", "model"):
        shutil.copytree(whole[1] / done, out / done)
    first, last = units_of(recipe, out, ["longer"])
    assert (first.variant, last.variant) == ("without_re_dmd", "longer")
    record = first.record("train").read_bytes()
    first.record("train").unlink()
    with try_lock(first.folder) as is_ours:
        assert is_ours
        assert work(recipe, out, ["longer"]) == 0
        assert not last.run.exists(), "it waits for the one that another process holds"
    first.record("train").write_bytes(record)
    assert work(recipe, out, share=(0, 2)) == 0
    assert not last.run.exists(), "it belongs to the share of the one before it"
    assert work(recipe, out, share=(1, 2)) == 0
    trained = yaml.safe_load((last.folder / "train.yaml").read_text())
    assert trained["generator"] == str(first.run / "final/transformer")
    assert trained["fake_score"] == str(first.run / "final/fake_score")
    results = summarise(recipe, out, "rforce reproduce methods")
    assert "(97.26)" in markdown(results)
    assert results.claims["reward_moves_more"].verdict == "not measured"
    assert {path.name for path in plots.draw(results, out)} >= {"methods_bars.png"}


def estimate(value: float, half: float) -> Estimate:
    return Estimate(value, value - half, value + half, 64)


@pytest.mark.parametrize(
    ("measure_name", "expected", "difference_of", "outcome"),
    [
        ("dynamic", "better", estimate(0.2, 0.1), "yes"),
        ("dynamic", "better", estimate(-0.2, 0.1), "no"),
        ("dynamic", "better", estimate(0.05, 0.1), "open"),
        ("dynamic", "worse", estimate(-0.2, 0.1), "yes"),
        ("dynamic", "worse", estimate(0.2, 0.1), "no"),
        ("drift", "better", estimate(-0.2, 0.1), "yes"),  # lower is better
        ("drift", "better", estimate(0.2, 0.1), "no"),
        ("drift", "worse", estimate(0.2, 0.1), "yes"),
        ("alignment", "no worse", estimate(-0.02, 0.02), "yes"),  # within the margin of 0.05
        ("alignment", "no worse", estimate(-0.2, 0.1), "no"),
        ("alignment", "no worse", estimate(-0.04, 0.02), "open"),
        ("quality", "no worse", estimate(0.02, 0.02), "yes"),
        ("quality", "no worse", estimate(0.2, 0.1), "no"),
    ],
)
def test_an_expectation_holds_by_where_its_whole_interval_lies(
    measure_name: str, expected: Any, difference_of: Estimate, outcome: str
) -> None:
    part = Expectation(measure_name, "ours", expected, "other")
    assert holds(part, difference_of, margin=0.05) == outcome


CLAIM = Claim("Table 0", "One is more.", (Expectation("dynamic", "ours", "better", "other"),
                                          Expectation("drift", "ours", "better", "other")))  # fmt: skip


def judged(dynamic: Estimate | None, drift: Estimate | None, runs: int = 3) -> claims_module.Judged:
    found = {"dynamic": dynamic, "drift": drift}
    return judge_claim(CLAIM, lambda name, *_: found[name], {"ours": 3, "other": runs}, {})


def test_a_claim_is_reproduced_only_if_all_of_it_is() -> None:
    more, less, open_ = estimate(0.2, 0.1), estimate(-0.2, 0.1), estimate(0.01, 0.1)
    assert judged(more, less).verdict == "reproduced"
    assert judged(more, open_).verdict == "undecided"
    assert judged(more, more).verdict == "not reproduced"
    assert judged(less, less).verdict == "not reproduced"
    assert judged(more, None).verdict == "not measured"
    assert judged(more, less, runs=1).verdict == "undecided", "one training run says nothing of the next"
    sentence = judged(more, less).sentence
    assert sentence.startswith("Reproduced at this scale. The paper: One is more. Here: tracked motion, ours less")
    assert "+0.200 [+0.100, +0.300], expected better (as claimed)" in sentence


def test_dynamics_rise_by_the_slope_of_every_run() -> None:
    rising = {0: (0.1, 0.2, 0.15), 50: (0.3, 0.41, 0.36), 100: (0.5, 0.6, 0.55)}
    slope = curves.rise_of(rising)
    assert slope is not None
    assert slope.value == pytest.approx(0.4)
    assert curves.judge_rise("tracked", rising).verdict == "reproduced"
    falling = {100 - at: values for at, values in rising.items()}
    assert curves.judge_rise("tracked", falling).verdict == "not reproduced"
    mixed = {0: (0.1, 0.6, 0.3), 100: (0.6, 0.1, 0.35)}
    assert curves.judge_rise("tracked", mixed).verdict == "undecided"
    assert curves.judge_rise("tracked", {0: (0.1,), 100: (0.6,)}).verdict == "not measured"


def synthetic(values: np.ndarray, seeds: tuple[int, ...]) -> Runs:
    """Runs whose clips [runs, prompts] have this tracked motion and no other score."""
    origin = Provenance.model_construct()
    evaluations = {}
    for seed, row in zip(seeds, values, strict=True):
        samples = [
            Sample(set="short", prompt_index=number, prompt="p", seed=0, seconds=5, frames=80, file="",
                   scores={"tracked_motion": float(value)}, features={"": tuple(value + np.arange(48.0) % 5)})
            for number, value in enumerate(row)
        ]  # fmt: skip
        sets: tuple[SetResults, ...] = ()
        evaluations[seed] = EvalResults.model_construct(suite="", provenance=origin, sets=sets, samples=tuple(samples))
    return Runs(evaluations)


def test_differences_are_paired_by_training_seed_and_prompt() -> None:
    rng = np.random.default_rng(4)
    b = rng.normal(size=(3, 20))
    a = b[[0, 2]] + np.array([[0.1], [0.2]])
    dynamic = MEASURES["dynamic"]
    found = difference(synthetic(a, (1, 3)), synthetic(b, (1, 2, 3)), dynamic)
    assert found is not None
    assert found.value == pytest.approx(0.15)
    error = 0.05 * 12.706  # Student's quantile for two runs
    assert (found.low, found.high) == pytest.approx((0.15 - error, 0.15 + error), rel=0.25)
    assert difference(synthetic(a[:1], (4,)), synthetic(b, (1, 2, 3)), dynamic) is None
    assert per_run(synthetic(b, (1, 2, 3)), dynamic) == pytest.approx(b.mean(axis=1).tolist())
    assert value_of(synthetic(b, (1, 2, 3)), dynamic) == crossed_mean(b)
    assert value_of(synthetic(b, (1, 2, 3)), MEASURES["background"]) is None


def test_the_distance_of_sets_is_that_of_each_run() -> None:
    rng = np.random.default_rng(5)
    near, far = rng.normal(size=(2, 20)), 4 + rng.normal(size=(2, 20))
    kernel = MEASURES["kernel"]
    found = difference(synthetic(far, (1, 2)), synthetic(near, (1, 2)), kernel)
    ours, theirs = value_of(synthetic(far, (1, 2)), kernel), value_of(synthetic(near, (1, 2)), kernel)
    assert found is not None
    assert ours is not None
    assert theirs is not None
    assert found.value == pytest.approx(ours.value - theirs.value)
    assert found.value > 0
    assert value_of(synthetic(near, (1, 2)), MEASURES["quality"]) is None, "20 clips have no covariance of 48 features"
