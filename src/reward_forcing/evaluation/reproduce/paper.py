"""What the paper prints (Reward Forcing), to stand beside our numbers: of other models, prompts and measures.

VBench's scores in percent, the drift of imaging quality on a scale of 0 to 100, and ratings from 1 to 5. Read as
truncated to two decimals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

TableName = Literal["table3", "methods"]


@dataclass(frozen=True)
class PaperTable:
    """A table, or several joined, of the paper.

    columns: measure -> the paper's column that it stands in. rows: variant -> column -> the paper's number. drawn:
    variants whose courses are drawn; all of them in one picture could not be told apart.
    """

    title: str
    columns: Mapping[str, str]
    rows: Mapping[str, Mapping[str, float]]
    drawn: tuple[str, ...]


_ABLATION = {
    "background": "Background",
    "smoothness": "Smooth",
    "dynamic": "Dynamic",
    "quality": "Quality",
    "drift": "Drift",
}
_ABLATION_ROWS = {
    "ours": (95.07, 98.82, 64.06, 70.57, 2.51),
    "without_re_dmd": (95.85, 98.91, 43.75, 71.42, 1.77),
    "without_ema": (95.61, 98.64, 35.15, 70.50, 2.65),
    "without_sink": (94.94, 98.56, 51.56, 69.92, 5.08),
    "alpha_0_99": (95.90, 98.96, 65.15, 70.81, 2.52),
    "alpha_0_9": (95.80, 99.09, 63.15, 71.37, 3.23),
    "alpha_0_5": (94.57, 98.89, 64.37, 71.11, 3.78),
    "beta_1": (95.14, 98.31, 54.68, 71.73, 2.63),
    "beta_2_3": (95.02, 98.46, 60.93, 70.61, 1.91),
    "beta_1_3": (94.94, 98.43, 58.59, 69.29, 2.02),
    "beta_1_5": (92.40, 96.40, 94.53, 68.26, 3.13),
}
_METHODS = {
    "quality": "Table 1, Quality",
    "alignment": "Table 1, Semantic",
    "subject": "Table 2, Subject",
    "background": "Table 2, Background",
    "smoothness": "Table 2, Smoothness",
    "long_dynamic": "Table 2, Dynamic",
    "drift": "Table 2, Drift",
    "long_alignment": "Table 2, Text",
}
_METHOD_ROWS = {
    "ours": (84.84, 81.32, 97.26, 96.05, 98.88, 66.95, 2.505, 4.04),
    "self_forcing": (84.59, 80.64, 97.10, 96.03, 98.48, 54.94, 5.075, 3.11),
    "longlive": (83.68, 81.37, 97.96, 96.50, 98.79, 35.54, 2.531, 3.98),
    "rolling": (84.08, 69.78),
}


def _named(columns: Mapping[str, str], rows: Mapping[str, tuple[float, ...]]) -> dict[str, dict[str, float]]:
    return {variant: dict(zip(columns, numbers, strict=False)) for variant, numbers in rows.items()}


TABLES: dict[TableName, PaperTable] = {
    "table3": PaperTable(  # "Ours" and alpha = 0.99 name one setting and differ there
        "The paper's ablation in miniature",
        _ABLATION,
        _named(_ABLATION, _ABLATION_ROWS),
        ("ours", "without_re_dmd", "without_ema", "without_sink"),
    ),
    "methods": PaperTable(
        "The papers' methods in miniature (Tables 1 and 2)",
        _METHODS,
        _named(_METHODS, _METHOD_ROWS),
        ("ours", "self_forcing", "longlive", "rolling"),
    ),
}
