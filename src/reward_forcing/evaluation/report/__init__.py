"""A report on an evaluation: report.html for anybody, report.md with the same tables.

Made from `EvalResults` and the clips beside results.json; the same input gives the same bytes.
"""

from __future__ import annotations

import os
from pathlib import Path

from reward_forcing.evaluation.report.comparison import gather
from reward_forcing.evaluation.report.page import html_page
from reward_forcing.evaluation.report.text import markdown_page
from reward_forcing.evaluation.results import EvalResults

__all__ = ["MARKDOWN", "PAGE", "write_report"]

PAGE, MARKDOWN = "report.html", "report.md"


def write_report(results: EvalResults, folder: Path, against: EvalResults | None = None) -> Path:
    """Write `folder`/report.html and report.md, each whole or not at all, and return the path of the first.

    folder: where the clips are, under the names of `Sample.file`; the page says which are missing. against: another
    evaluation with the same sets, prompts and seeds, compared clip by clip; its clips are not needed.
    Raises FileNotFoundError if there is no folder, ValueError if `against` shares fewer than two prompts.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder '{folder}'; name the one with results.json and its clips")
    material = gather(results, against)
    _write(folder / MARKDOWN, markdown_page(material))
    return _write(folder / PAGE, html_page(material, folder))


def _write(path: Path, text: str) -> Path:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path
