"""The page: one HTML file that needs nothing else, readable without scripts, on paper, in the dark and on a phone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

from reward_forcing.evaluation.report import clips, plots, summary, tables, truth, words
from reward_forcing.evaluation.report.comparison import Material
from reward_forcing.evaluation.report.markup import Html, element, join
from reward_forcing.evaluation.report.tables import Table
from reward_forcing.evaluation.results import DriftScore, EvalResults, Sample, SetResults

SHEET_CLIPS = 32
CURVES = 32
"""So many single clips are drawn behind a curve."""
SHORT, LONG = 20, 40
"""Characters up to which a cell is not broken into lines, and above which it gets a width to be read in."""
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"

PACKAGE = "reward_forcing.evaluation.report"

Picture = Callable[[Sample, bool], clips.Clip]


def html_page(material: Material, folder: Path) -> str:
    """The whole page. folder: where the clips are."""
    results = material.results

    def picture(sample: Sample, with_video: bool) -> clips.Clip:
        return clips.load_clip(folder, sample, with_video)

    title = f"Evaluation of {results.provenance.model}"
    sections = [
        ("summary", "Summary", _summary(material)),
        ("ranked", "Best, median and worst clips", _ranked(results, picture)),
        ("clips", "The first clips", _sheet(results, picture)),
        ("attributes", "What was asked for, and what is shown", _attributes(results)),
        ("time", "Change over time", _over_time(material)),
        ("comparison", f"Compared with {material.other}", _comparison(material)),
        ("scores", "All scores", _scores(results)),
        ("provenance", "How these numbers were made", _provenance(results)),
    ]
    shown = [(key, name, content) for key, name, content in sections if content]
    links = [element("li", element("a", name, href=f"#{key}")) for key, name, _ in shown]
    parts = [
        element("section", element("h2", name, id=f"{key}-title"), *content, id=key, aria_labelledby=f"{key}-title")
        for key, name, content in shown
    ]
    made = f"{results.suite} suite, {words.date_of(results.provenance.created)}"
    head = [
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("link", rel="icon", href="data:,"),
        element("title", f"{title}, {words.date_of(results.provenance.created)}"),
        element("style", Html(files(PACKAGE).joinpath("page.css").read_text(encoding="utf-8"))),
    ]
    body = [
        element("header", element("h1", title), element("p", made, class_="quiet")),
        element("nav", element("ul", *links), aria_label="Contents"),
        element("main", *parts),
    ]
    page = element("html", element("head", *head), "\n", element("body", join(*body, between="\n")), lang="en")
    return f"<!doctype html>\n{page}\n"


def _paragraph(text: str, class_: str | None = None) -> Html:
    return element("p", text, class_=class_)


def _bullets(sentences: Sequence[str]) -> Html:
    return element("ul", *(element("li", sentence) for sentence in sentences))


def table(content: Table, class_: str | None = None) -> Html:
    """A table in a scroller of its own; the first column holds the rows' headings."""
    heads = [element("th", name, scope="col", class_=_side(content, i)) for i, name in enumerate(content.columns)]
    rows = []
    for row in content.rows:
        first = element("th", row[0], scope="row", class_=_side(content, 0))
        rest = [element("td", cell, class_=_side(content, i)) for i, cell in enumerate(row[1:], start=1)]
        rows.append(element("tr", first, *rest))
    inner = [
        element("caption", content.caption),
        element("thead", element("tr", *heads)),
        element("tbody", join(*rows, between="\n")),
    ]
    whole = element("table", *inner, class_=class_)
    return element("div", whole, class_="scroller", role="region", tabindex=0, aria_label=content.caption)


def _side(content: Table, column: int) -> str | None:
    """The class of a column: numbers are set flush right, and no column of short texts breaks into lines."""
    if column in content.numbers:
        return "number"
    longest = max((len(row[column]) for row in content.rows), default=0)
    return "short" if longest <= SHORT else "long" if longest > LONG else None


def _summary(material: Material) -> list[Html]:
    results = material.results
    parts = [_paragraph(summary.QUICK, "warning")] if results.provenance.quick else []
    parts.append(_paragraph(" ".join(summary.tested(results))))
    tiles = [
        element("div", element("dt", main.value), element("dd", f"95 % interval {main.interval}", class_="quiet"),
                element("dd", main.meaning))
        for main in summary.main_numbers(material)
    ]  # fmt: skip
    if tiles:
        parts.append(element("dl", *tiles, class_="numbers"))
    weak, strong = summary.weak_points(material), summary.strong_points(results)
    parts += [element("h3", "Where it is weak"), _bullets(weak) if weak else _paragraph(summary.NO_WEAK_POINT)]
    if strong:
        parts += [element("h3", "Where it is strong"), _bullets(strong)]
    if material.paired:
        parts += [element("h3", f"Against {material.other}"), _bullets(summary.compared(material.paired))]
    return [*parts, _paragraph(summary.RULE, "quiet")]


def _scores(results: EvalResults) -> list[Html]:
    parts: list[Html] = []
    for found in results.sets:
        parts += [element("h3", f"Set '{found.name}'"), *map(table, tables.scores_tables(found))]
    return [_paragraph(summary.HOW_TO_READ), *parts] if parts else []


def _attributes(results: EvalResults) -> list[Html]:
    figures, by_kind = [], []
    for found in results.sets:
        rates = {name: score for name, score in found.scores.items() if score.kind == "rate"}
        if rates:
            bars = [plots.Bar(words.label(name), score) for name, score in rates.items()]
            figures.append(_bars(f"Rate of right clips, set '{found.name}'", bars, summary.GOOD_RATE))
        samples = truth.samples_of(results, found.name)
        content = tables.kinds_table(found, samples)
        if content is not None:
            figures.append(_bars(f"Entirely right, by kind of scene, set '{found.name}'", _kind_bars(samples)))
            by_kind.append(table(content))
    if not figures:
        return []
    note = "Bars: the rate. Lines: its 95 % interval. Dashed: a rate whose interval lies below it is called weak."
    return [_paragraph(note, "quiet"), element("div", *figures, class_="plots"), *by_kind]


def _kind_bars(samples: Sequence[Sample]) -> list[plots.Bar]:
    wholes = {kind: truth.entirely_right(group) for kind, group in truth.by_kind(samples).items()}
    return [plots.Bar(f"{kind}, {words.plural(whole.count, 'clip')}", whole) for kind, whole in wholes.items() if whole]


def _bars(title: str, bars: Sequence[plots.Bar], mark: float | None = None) -> Html:
    return element("figure", element("h3", title), plots.bar_plot(title, bars, mark))


def _over_time(material: Material) -> list[Html]:
    parts: list[Html] = []
    for found in material.results.sets:
        content = tables.time_tables(found, material.ends[found.name])
        samples = truth.samples_of(material.results, found.name)
        figures = [_curve(found, name, drift, samples) for name, drift in found.drift.items()]
        if content:
            parts += [element("h3", f"Set '{found.name}', clips of {found.seconds:.3g} s"), *map(table, content)]
            parts += [element("div", *figures, class_="plots")] if figures else []
    return [_paragraph(summary.HOW_TO_READ_DRIFT), *parts] if parts else []


def _curve(found: SetResults, name: str, drift: DriftScore, samples: Sequence[Sample]) -> Html:
    score = found.scores.get(name)
    unit = f", {score.unit}" if score and score.unit else ""
    times = [second for second, _ in drift.curve]
    singles = [sample.curves[name] for sample in samples if len(sample.curves.get(name, ())) == len(times)]
    slope = f"{words.value_of(drift.slope)} per minute ({words.span_of(drift.slope)})"
    told = f"Drift {words.four_digits(drift.drift)}, slope {slope}."
    content = _paragraph("No curve was stored.")
    if drift.curve:
        behind = [list(zip(times, values, strict=True)) for values in singles[:CURVES]]
        label = f"{words.label(name)} over {found.seconds:.3g} seconds. {told}"
        content = plots.line_plot(label, drift.curve, behind, drift.slope.value)
    title = element("h4", f"{words.label(name)}{unit}")
    return element("figure", title, content, element("figcaption", told))


def _comparison(material: Material) -> list[Html]:
    if not material.paired:
        return []
    content = tables.comparison_table(material.paired, material.results.provenance.model, material.other)
    return [_paragraph(summary.HOW_TO_READ_PAIRS), table(content)]


def _sheet(results: EvalResults, picture: Picture) -> list[Html]:
    found = truth.short_set(results)
    samples = truth.samples_of(results, found.name)[:SHEET_CLIPS] if found else ()
    if not found or not samples:
        return []
    rows, missing = [], 0
    for sample in samples:
        clip = picture(sample, False)
        missing += not clip.strip
        words_beside = [_paragraph(sample.prompt, "prompt"), *_verdict(sample), _paragraph(sample.name, "quiet")]
        rows.append(element("li", element("figure", _strip(sample, clip), element("figcaption", *words_beside))))
    note = f"The first {len(samples)} clips of '{found.name}', not chosen: frames in time order from left to right."
    parts = [_paragraph(note)]
    if missing:
        parts.append(_paragraph(f"{missing} of these {len(samples)} clips cannot be shown.", "warning"))
    return [*parts, element("ol", join(*rows, between="\n"), class_="sheet")]


def _strip(sample: Sample, clip: clips.Clip) -> Html:
    if not clip.strip:
        return _paragraph(clip.problem, "warning")
    alt = f"{words.plural(clip.frames, 'frame')} of the clip {sample.name}, asked for: {sample.prompt}"
    return element("img", src=clip.strip, alt=alt)


def _verdict(sample: Sample) -> list[Html]:
    """What of the prompt is shown and what is not, in words and with a mark."""
    lines = []
    for outcome, mark, name, class_ in ((True, "✓", "shown", "right"), (False, "✗", "not shown", "wrong")):
        listed = tables.attributes(sample, outcome)
        if listed:
            sign = element("span", f"{mark} {name}: ", class_=class_)
            lines.append(element("p", sign, listed))
    return lines


def _ranked(results: EvalResults, picture: Picture) -> list[Html]:
    found = truth.short_set(results)
    if found is None:
        return []
    groups = truth.ranked(truth.samples_of(results, found.name))
    parts: list[Html] = []
    for title, samples in (("Best", groups.best), ("Median", groups.median), ("Worst", groups.worst)):
        if samples:
            cards = [_card(sample, picture(sample, True)) for sample in samples]
            parts += [element("h3", title), element("div", *cards, class_="clips")]
    note = f"{summary.HOW_RANKED} Clips of '{found.name}'; videos show the first {clips.VIDEO_SECONDS:g} s at most."
    return [_paragraph(note), *parts] if parts else []


def _card(sample: Sample, clip: clips.Clip) -> Html:
    parts = [element("h4", f"{sample.name}: {tables.score_of(sample)} right"), _paragraph(sample.prompt, "prompt")]
    if clip.video:
        label = f"Video of the clip {sample.name}, asked for: {sample.prompt}"
        how = {"controls": True, "loop": True, "muted": True, "playsinline": True, "preload": "metadata"}
        parts.append(element("video", src=clip.video, poster=clip.poster, aria_label=label, **how))
    elif clip.strip:
        parts.append(_paragraph(clip.problem, "quiet"))
    parts += [_strip(sample, clip), *_verdict(sample)]
    if seen := tables.seen(sample):
        parts.append(_paragraph(f"Seen: {seen}", "quiet"))
    return element("article", *parts)


def _provenance(results: EvalResults) -> list[Html]:
    return [table(tables.provenance_table(results), "provenance")]
