"""The report says what stands in results.json and nothing else, to anybody, whatever the prompts hold."""

import base64
import re
import shutil
from collections.abc import Sequence
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from reward_forcing.cli.eval_report import report
from reward_forcing.evaluation.matching import Form
from reward_forcing.evaluation.paired import LEAST_PROMPTS, pair, verdict_on
from reward_forcing.evaluation.report import MARKDOWN, PAGE, clips, plots, write_report
from reward_forcing.evaluation.report.comparison import gather
from reward_forcing.evaluation.report.summary import GOOD_RATE, main_numbers, strong_points, weak_points
from reward_forcing.evaluation.report.truth import ranked, scene_kind, share_right
from reward_forcing.evaluation.report.words import span_of, value_of
from reward_forcing.evaluation.results import (
    DriftScore,
    EvalResults,
    Interval,
    Provenance,
    Sample,
    Score,
    SetResults,
    json_schema,
    read_results,
    write_results,
)
from reward_forcing.evaluation.statistics import compare, wilson_interval
from reward_forcing.evaluation.world_suite import held_out_prompts
from reward_forcing.streaming.video_io import open_writer, read_video

ROOT = Path(__file__).parents[2]
HOSTILE = '<script>alert(1)</script> "><img src=x onerror=alert(2)> & | *a* `b` [c](https://example.org)\nnext'
VOID = {"img", "link", "meta"}
SHORT_CLIPS, LONG_CLIPS = 11, 5


def interval(value: float, half: float, count: int = 20) -> Interval:
    return Interval(value=value, low=value - half, high=value + half, count=count)


def mean(value: float, half: float, better: str = "neither", unit: str = "levels", doc: str = "A mean.") -> Score:
    about: dict[str, Any] = {"better": better, "unit": unit, "kind": "mean", "doc": doc}
    return Score(**interval(value, half).model_dump(), **about)


def rate(right: int, trials: int, better: str = "higher") -> Score:
    found = wilson_interval(right, trials)
    about: dict[str, Any] = {"better": better, "kind": "rate", "doc": "A rate."}
    return Score(value=found.value, low=found.low, high=found.high, count=trials, **about)


def drift(slope: float, half: float, start: float = 10.0) -> DriftScore:
    curve = tuple((2.0 * i + 1, start + slope / 60 * (2 * i + 1) + 0.01 * (i % 3)) for i in range(6))
    return DriftScore(drift=0.1 + abs(slope) / 7, slope=interval(slope, half, LONG_CLIPS), change=0.37, curve=curve)


def sample(index: int, right: dict[str, bool], of: str = "short", seed: int | None = None, **more: Any) -> Sample:
    of_long = of == "long"
    made = Sample(
        set=of,
        prompt_index=index,
        prompt=more.pop("prompt", held_out_prompts(1, index)[0].text),
        seed=index if seed is None else seed,
        seconds=12 if of_long else 0.5,
        frames=8,
        file="",
        right=right,
        **more,
    )
    return made.model_copy(update={"file": f"clips/{made.name}.mp4"})


def make_results(model: str = "mini", **changes: Any) -> EvalResults:
    """A short set with a low, a middling and a perfect rate, and a long one that gets noisy and loses colours."""
    short = [
        sample(
            i,
            {"colour": True, "shape": i % 3 != 1, "motion": i == 0, "aligned": i == 0},
            scores={"flicker": 1.25 + i / 8, "sharpness": 0.5 - i / 100},
            seen={"kind": "still", "colours": ("red", "blue"), "count": 1, "direction": "", "still": True},
        )
        for i in range(SHORT_CLIPS)
    ]
    long = [
        sample(
            i,
            {"colour@start": True, "colour@end": i == 0, "shape@start": True, "shape@end": True},
            of="long",
            curves={"noise_level": tuple(2.0 + j / 4 + i / 10 for j in range(6))},
        )
        for i in range(LONG_CLIPS)
    ]
    right = [clip.right["shape"] for clip in short]
    scores = {
        "colour": rate(SHORT_CLIPS, SHORT_CLIPS),
        "flicker": mean(1.8765, 0.0321, "lower", doc="Flicker of `frames` in levels."),
        "shape": rate(sum(right), len(right)),
        "motion": rate(1, SHORT_CLIPS),
        "aligned": rate(1, SHORT_CLIPS),
        "sharpness": mean(0.45, 0.0123, unit="ratio"),
    }
    long_scores = {
        "noise_level": mean(2.7, 0.31, "lower"),
        "noise_level@drift": mean(0.46, 0.02, "lower"),
        "noise_level@slope": mean(7.5, 0.4, unit="levels per minute"),
        "contrast": mean(33.1, 2.2),
        "colour@start": rate(LONG_CLIPS, LONG_CLIPS),
        "colour@end": rate(1, LONG_CLIPS),
        "shape@start": rate(LONG_CLIPS, LONG_CLIPS),
        "shape@end": rate(LONG_CLIPS, LONG_CLIPS),
    }
    values: dict[str, Any] = {
        "suite": "mini",
        "provenance": provenance(model),
        "sets": (
            SetResults(name="short", seconds=0.5, prompts=SHORT_CLIPS, seeds_per_prompt=1, scores=scores),
            SetResults(
                name="long",
                seconds=12,
                prompts=LONG_CLIPS,
                seeds_per_prompt=1,
                scores=long_scores,
                drift={"noise_level": drift(7.5, 0.4, 2.0), "contrast": drift(-31.0, 2.5, 33.0)},
            ),
        ),
        "samples": (*short, *long),
    }
    return EvalResults(**values | changes)


def provenance(model: str = "mini", **changes: Any) -> Provenance:
    values = {
        "command": "rforce eval run --out runs/eval",
        "created": "2026-11-20T18:40:00+00:00",
        "model": model,
        "weights": "ab" * 32,
        "streaming": {"steps": [1000, 500], "sink": {"kind": "ema", "alpha": 0.99}},
        "prompts": "cd" * 32,
        "seed": 0,
        "commit": "0123abc",
        "versions": {"torch": "2.13.0"},
        "machine": "two cores",
    }
    return Provenance(**values | changes)


def write_clips(folder: Path, results: EvalResults, frames: int = 8, size: tuple[int, int] = (24, 32)) -> None:
    ramp = torch.linspace(0, 1, size[1]).expand(frames, 3, *size).clone()
    for i, clip in enumerate(results.samples):
        ramp[:, 1] = i / len(results.samples)
        with open_writer(folder / clip.file, 16, size) as writer:
            writer.write(ramp)


class Page(HTMLParser):
    """What a browser would find: elements with attributes and text, and tables as rows of cells. Tags must balance."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._rows: list[list[str]] = []
        self._caption = ""
        self.feed(text)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._rows = []
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "table":
            self.tables[self._caption] = self._rows

    def handle_data(self, data: str) -> None:
        data = data.replace("\xa0", " ")
        where = self.open[-1] if self.open else ""
        self.texts.append((where, data))
        if where == "caption":
            self._caption = data
        if where in ("td", "th"):
            self._rows[-1][-1] += data

    def of(self, tag: str, class_: str | None = None) -> list[dict[str, str | None]]:
        return [found for name, found in self.elements if name == tag and class_ in (None, found.get("class"))]

    def text(self) -> str:
        return " ".join(data for where, data in self.texts if where not in ("style", "title"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with results, clips and the report on them, compared with another model."""
    folder = tmp_path_factory.mktemp("report")
    results = make_results()
    write_clips(folder, results)
    write_results(results, folder)
    assert write_report(results, folder, worse_model(results)) == folder / PAGE
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / PAGE).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder without clips."""
    return tmp_path_factory.mktemp("bare")


def worse_model(results: EvalResults) -> EvalResults:
    """The same prompts and seeds in another order, with less colour and more flicker."""
    changed = []
    for i, clip in enumerate(results.samples):
        right = {name: outcome and not (name == "colour" and i % 2) for name, outcome in clip.right.items()}
        scores = {name: value + 0.5 * (name == "flicker") + 0.01 * (i % 3) for name, value in clip.scores.items()}
        changed.append(clip.model_copy(update={"right": right, "scores": scores}))
    return results.model_copy(update={"samples": tuple(reversed(changed)), "provenance": provenance("early")})


def numbers_in(text: str) -> list[str]:
    return re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", text)


def is_rounding_of(shown: str, value: float) -> bool:
    digits = len(shown.partition(".")[2].partition("e")[0])
    if "e" in shown:
        return float(shown) == float(f"{value:.{digits}e}")
    return abs(float(shown) - value) <= 0.5000001 * 10**-digits


def data_numbers(results: EvalResults) -> list[float]:
    """Every number in the sets' scores and sizes, rates and their limits as per cent, too."""
    found: list[float] = []
    for one in results.sets:
        found += [one.seconds, one.prompts, one.seeds_per_prompt]
        for score in one.scores.values():
            found += [x * scale for x in (score.value, score.low, score.high) for scale in (1, 100)] + [score.count]
        for along in one.drift.values():
            found += [along.drift, along.change, along.slope.value, along.slope.low, along.slope.high]
    return found


def test_every_score_is_in_a_table_with_its_interval_unit_direction_and_meaning(page: Page) -> None:
    results = make_results()
    for found in results.sets:
        shown = {row[0]: row[1:] for caption, rows in page.tables.items() for row in rows
                 if caption.startswith(f"Set '{found.name}'") and "by the kind" not in caption
                 and ("measures of" in caption or "rates" in caption)}  # fmt: skip
        for name, score in found.scores.items():
            label = {"aligned": "everything right"}.get(name, name.replace("_", " ").replace("@", " at the "))
            if name.partition("@")[0] in found.drift and "@" in name:
                assert label not in shown
                continue
            value, span, *rest = shown[label]
            scale = 100 if score.kind == "rate" else 1
            assert value.endswith(" %") == (score.kind == "rate")
            for text, number in zip(
                [*numbers_in(value), *numbers_in(span)], (score.value, score.low, score.high), strict=True
            ):
                assert is_rounding_of(text, scale * number), (name, text, number)
            unit = [] if score.kind == "rate" else [score.unit]
            assert rest[:-2] == [*unit, score.better]
            assert numbers_in(rest[-2]) == [str(score.count)]
            assert rest[-1] == score.doc.replace("`", "")


def test_drift_slope_and_change_are_in_a_table(page: Page) -> None:
    rows = {row[0]: row[1:] for row in page.tables["Set 'long': change along clips of 12 s"]}
    assert rows["noise level"][:5] == ["0.460", "0.440 to 0.480", "7.50", "7.10 to 7.90", "0.3700"]
    assert rows["noise level"][5:] == ["levels", "lower", "5 clips"]
    assert rows["contrast"][2:4] == ["-31.0", "-33.5 to -28.5"]


def test_numbers_of_the_summary_are_in_the_data() -> None:
    material = gather(make_results())
    allowed = [*data_numbers(material.results), 100 / SHORT_CLIPS]
    changes = [end.change for end in material.ends["long"]]
    allowed += [100 * max(-1, x) for change in changes for x in (change.value, change.low, change.high)]
    whole = wilson_interval(1, SHORT_CLIPS)
    allowed += [100 * whole.low, 100 * whole.high]
    told = [text for main in main_numbers(material) for text in (main.value, main.interval, main.meaning)]
    told += [*weak_points(material), *strong_points(material.results)]
    for text in numbers_in(" ".join(told)):
        assert any(is_rounding_of(text, number) for number in allowed), text


def test_the_main_numbers_are_the_whole_the_extremes_and_the_loss_over_time() -> None:
    found = main_numbers(gather(make_results()))
    assert [main.value for main in found] == ["9.1 %", "9.1 %", "100.0 %", "-80.0 percentage points"]
    assert [main.meaning.partition(":")[0] for main in found[1:3]] == ["motion", "colour"]


def test_without_a_loss_the_main_numbers_say_so() -> None:
    results = make_results()
    steady = [clip.model_copy(update={"right": clip.right | {"colour@end": True}}) if clip.set == "long" else clip
              for clip in results.samples]  # fmt: skip
    for count, told in ((LONG_CLIPS, "no rate is clearly lower at the end"), (LONG_CLIPS - 1, "too few prompts")):
        long = results.sets[1].model_copy(update={"drift": {}})
        samples = tuple(steady[: SHORT_CLIPS + count])
        last = main_numbers(gather(make_results(sets=(results.sets[0], long), samples=samples)))[-1]
        assert last.value == "0.0 percentage points"
        assert told in last.meaning


@pytest.mark.parametrize(
    ("limits", "shown"),
    [
        ((0.5, 0.4, 0.6), ("0.50", "0.40 to 0.60")),
        ((1234.5678, 1200, 1269), ("1235", "1200 to 1269")),
        ((123.456, 117, 129), ("123.5", "117.0 to 129.0")),
        ((1e-7, 0, 2e-7), ("1.0e-07", "0.0e+00 to 2.0e-07")),
        ((2.0, 2.0, 2.0), ("2.000", "2.000 to 2.000")),
        ((-0.0004, -0.02, 0.02), ("0.000", "-0.020 to 0.020")),
        ((0.0, 0.0, 0.0), ("0.0", "0.0 to 0.0")),
    ],
)
def test_as_many_digits_as_the_interval_supports(limits: tuple[float, float, float], shown: tuple[str, str]) -> None:
    value, low, high = limits
    found = Interval(value=value, low=low, high=high, count=5)
    assert (value_of(found), span_of(found)) == shown


def with_scores(short: dict[str, Score], **changes: Any) -> EvalResults:
    one = SetResults(name="short", seconds=5, prompts=20, seeds_per_prompt=1, scores=short, **changes)
    return make_results(sets=(one,), samples=())


@pytest.mark.parametrize(
    ("score", "is_weak", "is_strong"),
    [
        (rate(2, 40), True, False),
        (rate(40, 40), False, True),
        (rate(30, 40), False, False),
        (rate(3, 3), False, False),
        (rate(38, 40, better="lower"), True, False),
        (rate(0, 40, better="lower"), False, True),
        (rate(2, 40, better="neither"), False, False),
        (mean(0.1, 0.01, better="higher"), False, False),
    ],
)
def test_a_rate_is_weak_or_strong_only_with_its_whole_interval(score: Score, is_weak: bool, is_strong: bool) -> None:
    assert GOOD_RATE == 0.8
    results = with_scores({"planted_name": score})
    assert any("planted name" in text for text in weak_points(gather(results))) == is_weak
    assert any("planted name" in text for text in strong_points(results)) == is_strong


@pytest.mark.parametrize(
    ("slope", "half", "better", "is_weak"),
    [
        (3.0, 1.0, "lower", True),
        (3.0, 1.0, "higher", False),
        (3.0, 4.0, "lower", False),
        (-3.0, 1.0, "higher", True),
        (-3.0, 1.0, "neither", False),
    ],
)
def test_a_slope_is_weak_only_if_it_is_clearly_for_the_worse(
    slope: float, half: float, better: str, is_weak: bool
) -> None:
    results = with_scores({"haze": mean(9.0, 1.0, better)}, drift={"haze": drift(slope, half)})
    assert any("haze" in text for text in weak_points(gather(results))) == is_weak


def test_no_verdict_is_given_of_few_prompts() -> None:
    few = Interval(value=3, low=2, high=4, count=LEAST_PROMPTS - 1)
    assert verdict_on(few, "lower") == "too few to tell"
    assert verdict_on(few.model_copy(update={"count": LEAST_PROMPTS}), "lower") == "worse"


def test_weak_kinds_of_scene_and_losses_along_the_clip_are_named() -> None:
    good, bad = {"motion": True}, {"motion": False}
    balls = [sample(i, good, prompt=f"a red ball bounces over floor {i}") for i in range(12)]
    spins = [sample(i, bad, prompt=f"a red square spins, number {i}") for i in range(12, 24)]
    told = weak_points(gather(make_results(samples=(*balls, *spins), sets=make_results().sets[:1])))
    (sentence,) = [text for text in told if text.startswith("Kinds of scene")]
    assert "spin 0.0 % of 12 clips (0.0 to 24.2 %)" in sentence
    assert "bounce" not in sentence
    (sentence,) = [text for text in weak_points(gather(make_results())) if text.startswith("Worse at the end")]
    assert "colour -80.0 percentage points" in sentence
    assert "shape" not in sentence


def test_no_weak_point_is_said_where_there_is_none(bare: Path) -> None:
    write_report(with_scores({"colour": rate(90, 90)}), bare)
    assert "No weak point by the rule below" in Page((bare / PAGE).read_text()).text()


@pytest.mark.parametrize("count", range(14))
def test_best_median_and_worst_do_not_overlap_and_are_in_order(count: int) -> None:
    known = [sample(i, {"a": i % 3 > 0, "b": i % 2 > 0, "aligned": False}) for i in range(count)]
    groups = ranked([*known, sample(99, {})])
    chosen = [clip.name for group in (groups.best, groups.median, groups.worst) for clip in group]
    assert len(set(chosen)) == len(chosen) == min(count, 3 * max(1, min(3, count // 3)))
    if count:
        assert share_right(groups.best[0]) == max(map(share_right, known))
    if groups.worst:
        assert share_right(groups.worst[0]) == min(map(share_right, known))


def test_ties_go_to_more_attributes_then_to_the_lower_index_then_to_the_lower_seed() -> None:
    known = [
        sample(4, {"a": True}),
        sample(5, {"a": True, "b": True}, seed=8),
        sample(5, {"a": True, "b": True}, seed=7),
        *(sample(9 + i, {"a": False}) for i in range(6)),
    ]
    assert [(clip.prompt_index, clip.seed) for clip in ranked(known).best] == [(5, 7), (5, 8), (4, 4)]
    assert [clip.prompt_index for clip in ranked(known).worst] == [14, 13, 12]


def test_the_kind_of_scene_is_read_from_the_prompt() -> None:
    wrong = [prompt.text for prompt in held_out_prompts(400) if scene_kind(prompt.text) != prompt.scene.kind]
    assert wrong == []
    assert scene_kind("A panda drinking coffee in a cafe in Paris") is None


def test_the_page_asks_for_nothing_and_runs_nothing(page: Page, folder: Path) -> None:
    assert page.of("script") == []
    for tag, found in page.elements:
        for name in ("src", "href", "poster", "srcset", "data", "action"):
            assert (found.get(name) or "#").startswith(("#", "data:")), (tag, name)
        assert not any(name.startswith("on") for name in found), (tag, found)
    (css,) = [text for where, text in page.texts if where == "style"]
    assert "url(" not in css
    assert "@import" not in css
    assert {"http-equiv": "Content-Security-Policy", "content": page_policy()} in page.of("meta")
    assert "://" not in re.sub(r"data:[^\"]*", "", (folder / PAGE).read_text())


def page_policy() -> str:
    return "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"


def test_hostile_texts_stay_text(tmp_path: Path) -> None:
    results = make_results()
    first = results.samples[0].model_copy(
        update={"prompt": HOSTILE, "seen": {HOSTILE: HOSTILE}, "right": {HOSTILE: True}, "file": HOSTILE}
    )
    short = results.sets[0].model_copy(update={"name": HOSTILE, "scores": {HOSTILE: rate(1, 9)}})
    clip = first.model_copy(update={"set": HOSTILE})
    source = provenance(HOSTILE, command=HOSTILE, created=HOSTILE, versions={HOSTILE: HOSTILE})
    write_report(make_results(provenance=source, sets=(short,), samples=(clip,)), tmp_path)
    page = Page((tmp_path / PAGE).read_text(encoding="utf-8"))
    assert page.of("script") == []
    assert page.of("img") == []
    assert not any(name.startswith("on") for _, found in page.elements for name in found)
    assert page.text().count("<script>alert(1)</script>") > 5
    text = (tmp_path / MARKDOWN).read_text(encoding="utf-8")
    assert "<script" not in text.replace("\\<", "")
    assert "[c](" not in text
    assert [len(row) for table in markdown_tables(text) for row in table] == [
        len(table[0]) for table in markdown_tables(text) for _ in table
    ]


def markdown_tables(text: str) -> list[list[list[str]]]:
    """The tables of a Markdown text as rows of cells, escapes undone; the line below the head is left out."""
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("| "):
            cells = [re.sub(r"\\(.)", r"\1", cell.strip()) for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if not all(re.fullmatch("-+:?", cell) for cell in cells):
                found[-1].append(cells)
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


def test_the_markdown_holds_the_same_tables(page: Page, folder: Path) -> None:
    tables = markdown_tables((folder / MARKDOWN).read_text(encoding="utf-8"))
    of_page = [[[" ".join(cell.split()) for cell in row] for row in rows] for rows in page.tables.values()]
    assert len(of_page) == 10
    assert [table for table in of_page if table not in tables] == []
    only_here = [table for table in tables if table not in of_page]
    assert [table[0][0] for table in only_here] == ["clip"] * 3


def test_the_same_input_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "clips", tmp_path / "clips")
    write_results(make_results(), tmp_path)
    results = read_results(tmp_path)
    write_report(results, tmp_path, worse_model(make_results()))
    for name in (PAGE, MARKDOWN):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_clips_and_videos_are_in_the_page(page: Page, folder: Path) -> None:
    images, videos = page.of("img"), page.of("video")
    assert len(images) == SHORT_CLIPS + 9
    assert len(videos) == 9
    assert "clips cannot be shown" not in page.text()
    first = videos[0]
    (folder / "first.mp4").write_bytes(base64.b64decode((first["src"] or "").partition(",")[2]))
    frames, fps = read_video(folder / "first.mp4")
    original, _ = read_video(folder / make_results().samples[0].file)
    assert (tuple(frames.shape), fps) == ((8, 3, 24 * 8, 32 * 8), 16)
    assert (frames[:, :, 4::8, 4::8].float() - original.float()).abs().mean() < 4


@pytest.mark.parametrize("name", ["all", "one"])
def test_missing_clips_are_said_to_be_missing(tmp_path: Path, name: str) -> None:
    results = make_results()
    if name == "one":
        write_clips(tmp_path, results)
        (tmp_path / results.samples[3].file).unlink()
        (tmp_path / results.samples[4].file).write_bytes(b"no video")
    write_report(results, tmp_path)
    page = Page((tmp_path / PAGE).read_text())
    gone = 2 if name == "one" else SHORT_CLIPS
    assert f"{gone} of these {SHORT_CLIPS} clips cannot be shown." in page.text()
    assert f"The clip {results.samples[3].file} is missing." in page.text()
    assert ("cannot be read as a video" in page.text()) == (name == "one")
    assert results.samples[3].prompt in page.text()


def test_the_page_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worst case: noise in 32 film strips and nine clips, each with a video, a strip and a poster."""
    noise = torch.randint(0, 256, (80, 3, 96, 160), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    video = clips.small_video(noise, 16)
    assert video is not None
    assert len(video) <= clips.VIDEO_BYTES
    strip, poster = (len(clips.film_strip(noise, count)) for count in (clips.STRIP_FRAMES, 1))
    assert (41 * strip + 9 * (poster + clips.VIDEO_BYTES)) * 4 / 3 < 15e6
    monkeypatch.setattr(clips, "VIDEO_BYTES", 100)
    assert clips.small_video(noise[:2], 16) is None


@pytest.mark.parametrize(
    ("size", "shown"),
    [((24, 40), (192, 320)), ((64, 64), (192, 192)), ((200, 300), (192, 288)), ((130, 130), (130, 130))],
)
def test_videos_are_brought_to_about_192_pixels_and_five_seconds(
    tmp_path: Path, size: tuple[int, int], shown: tuple[int, int]
) -> None:
    video = clips.small_video(torch.full((7, 3, *size), 90, dtype=torch.uint8), fps=1)
    (tmp_path / "video.mp4").write_bytes(video or b"")
    frames, _ = read_video(tmp_path / "video.mp4")
    assert tuple(frames.shape) == (5, 3, *shown)


def test_bars_have_the_length_of_their_rates() -> None:
    bars = [plots.Bar("a", rate(30, 40)), plots.Bar("b", rate(0, 9)), plots.Bar("c", rate(7, 7))]
    page = Page(plots.bar_plot("rates", bars, mark=0.8))
    assert [float(bar["width"] or 0) / plots.WIDTH for bar in page.of("rect", "bar")] == pytest.approx([0.75, 0, 1])
    for found, bar in zip(page.of("path", "whisker"), bars, strict=True):
        low, high = re.findall(r"^M([\d.]+) [\d.]+H([\d.]+)M", found["d"] or "")[0]
        assert float(low) / plots.WIDTH == pytest.approx(bar.rate.low, abs=1e-4)
        assert float(high) / plots.WIDTH == pytest.approx(bar.rate.high, abs=1e-4)
    assert "75.0 % (59.8 to 85.8 %)" in page.text()


def ys(line: dict[str, str | None]) -> list[float]:
    return [float(point.split(",")[1]) for point in (line["points"] or "").split()]


def test_curves_are_drawn_to_the_scale_of_their_axis() -> None:
    curve = [(1.0, 2.0), (3.0, 5.0), (5.0, 3.0)]
    page = Page(plots.line_plot("a curve", curve, [[(1.0, 1.0), (3.0, 6.0), (5.0, 1.0)]], slope=15.0))
    (bold,), (faint,), (trend,) = (page.of("polyline", f"line {kind}") for kind in ("mean", "clip", "trend"))
    ticks = [float(text) for where, text in page.texts if where == "text" and text != "seconds"]
    grid = [float((line["d"] or "").split()[1].partition("H")[0]) for line in page.of("path", "grid")]
    rise = (grid[1] - grid[0]) / (ticks[1] - ticks[0])
    for line, values in ((bold, [2, 5, 3]), (faint, [1, 6, 1]), (trend, [10 / 3 - 0.5, 10 / 3 + 0.5])):
        assert ys(line) == pytest.approx([grid[0] + rise * (value - ticks[0]) for value in values], abs=0.02)


@pytest.mark.parametrize("values", [[0.0], [7.0, 7.0], [-1e-9, 1e-9], [1e6, 1e6 + 1]])
def test_any_curve_can_be_drawn(values: list[float]) -> None:
    page = Page(plots.line_plot("a curve", [(2.0 * i, value) for i, value in enumerate(values)]))
    assert 2 <= len(page.of("path", "grid")) <= 9


def test_everything_has_a_text_for_those_who_cannot_see_it(page: Page) -> None:
    assert all(found.get("alt") for found in page.of("img"))
    assert all(found.get("aria-label") for tag in ("svg", "video") for found in page.of(tag))
    assert all(found.get("scope") for found in page.of("th"))
    assert page.of("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    targets = {found["id"] for _, found in page.elements if "id" in found}
    assert {(link["href"] or "")[1:] for link in page.of("a")} <= targets


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(page: Page, mode: str) -> None:
    """The contrast of WCAG 2.1, level AA: at least 4.5 to 1."""
    (css,) = [text for where, text in page.texts if where == "style"]
    parts = css.split("prefers-color-scheme: dark")
    colours = dict(re.findall(r"--(\w+): (#\w{6});", parts[mode == "dark"].partition("* {")[0]))
    for ink in ("text", "quiet", "accent", "good", "bad"):
        for ground in ("page", "panel"):
            lighter, darker = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (ink, ground)


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_sections_come_in_the_order_a_stranger_reads(page: Page) -> None:
    order = ["summary", "ranked", "clips", "attributes", "time", "comparison", "scores", "provenance"]
    assert [found["id"] for found in page.of("section")] == order
    assert [text for where, text in page.texts if where == "title"] == ["Evaluation of mini, 2026-11-20"]


def test_provenance_is_complete(page: Page) -> None:
    rows = dict(page.tables["How these numbers were made"])
    for value in (
        "rforce eval run --out runs/eval",
        "ab" * 32,
        "cd" * 32,
        "0123abc",
        "two cores",
        "2.13.0",
        "1000, 500",
    ):
        assert value in rows.values()
    assert (rows["streaming.sink.alpha"], rows["version of torch"], rows["quick"]) == ("0.99", "2.13.0", "no")


def test_a_quick_run_is_called_one(bare: Path) -> None:
    write_report(make_results(provenance=provenance(quick=True, weights=None)), bare)
    text = Page((bare / PAGE).read_text()).text()
    assert "A quick run with few clips" in text
    assert "made elsewhere" in text


def test_the_form_that_clips_were_brought_to_is_told(bare: Path) -> None:
    form = Form(height=480, width=832, fps=16)
    write_report(make_results(provenance=provenance(form=form)), bare)
    assert "brought to 832x480 at 16 frames per second" in Page((bare / PAGE).read_text()).text()


@pytest.mark.parametrize(
    ("sets", "samples"),
    [(0, ()), (1, ()), (1, (sample(0, {}),)), (1, (sample(0, {"colour": True}),)), (2, (sample(0, {}, of="long"),))],
)
def test_a_report_can_be_made_of_little(bare: Path, sets: int, samples: Sequence[Sample]) -> None:
    results = make_results(sets=make_results().sets[:sets], samples=samples)
    page = Page(write_report(results, bare).read_text())
    assert page.of("section")[0]["id"] == "summary"
    assert page.of("section")[-1]["id"] == "provenance"


def test_the_comparison_pairs_clips_by_set_prompt_and_seed() -> None:
    ours = make_results()
    theirs = worse_model(ours)
    rows = {(row.set, row.measure): row for row in pair(ours, theirs)}
    by_prompt = {clip.prompt: clip for clip in theirs.samples if clip.set == "short"}
    clips_of = [clip for clip in ours.samples if clip.set == "short"]
    a, b = ([[clip.scores["flicker"]] for clip in side] for side in (clips_of, [by_prompt[c.prompt] for c in clips_of]))
    expected = compare(a, b)
    flicker, colour = rows["short", "flicker"], rows["short", "colour"]
    assert (flicker.difference.low, flicker.difference.high) == (expected.difference.low, expected.difference.high)
    assert (flicker.p_value, flicker.clips, flicker.win_rate) == (expected.p_value, SHORT_CLIPS, 1.0)
    assert (flicker.verdict, colour.verdict) == ("better", "better")
    assert (colour.ours, colour.theirs, colour.is_rate) == (1.0, pytest.approx(6 / 11), True)
    assert rows["short", "sharpness"].win_rate is None
    assert rows["long", "shape@end"].verdict == "no clear difference"
    turned = {(row.set, row.measure): row.verdict for row in pair(theirs, ours)}
    assert (turned["short", "flicker"], turned["short", "colour"]) == ("worse", "worse")


def test_the_comparison_is_in_the_page(page: Page) -> None:
    rows = {tuple(row[:2]): row[2:] for row in page.tables["This: mini. Other: early."]}
    assert rows["short", "colour"][:3] == ["100.0 %", "54.5 %", "45.5"]
    assert rows["short", "flicker"][4:7] == ["lower", "better", "100.0 %"]
    assert rows["short", "flicker"][-1] == str(SHORT_CLIPS)
    assert "This one is better in colour (short)" in page.text()


def test_clips_of_other_prompts_cannot_be_compared(bare: Path) -> None:
    ours = make_results()
    other = tuple(clip.model_copy(update={"seed": clip.seed + 1000}) for clip in ours.samples)
    with pytest.raises(ValueError, match="share fewer than two prompts with the same set and seed"):
        write_report(ours, bare, ours.model_copy(update={"samples": other}))


def command(*arguments: object) -> Any:
    app = typer.Typer()
    app.command()(report)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_writes_the_report_beside_the_results(tmp_path: Path) -> None:
    results = make_results()
    for name, found in (("a", results), ("b", worse_model(results))):
        (tmp_path / name).mkdir()
        write_results(found, tmp_path / name)
    done = command(tmp_path / "a", "--against", tmp_path / "b")
    assert done.exit_code == 0, done.output
    assert done.output == f"wrote {tmp_path / 'a' / PAGE}\n"
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [PAGE, MARKDOWN, "results.json"]
    assert "Compared with early" in (tmp_path / "a" / MARKDOWN).read_text()


def test_the_command_says_what_is_missing(tmp_path: Path) -> None:
    assert isinstance(command(tmp_path).exception, FileNotFoundError)
    assert "name the folder" in str(command().exception)
    with pytest.raises(FileNotFoundError, match="no folder"):
        write_report(make_results(), tmp_path / "nowhere")


def test_the_schema_is_printed_and_is_the_documented_one() -> None:
    assert command("--schema").output == json_schema()
    assert (ROOT / "docs" / "results.schema.json").read_text(encoding="utf-8") == json_schema()
