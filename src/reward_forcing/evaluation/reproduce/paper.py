"""What the paper prints (Reward Forcing, Table 3), to stand beside our numbers: other models, prompts and measures.

Percent of VBench's scores, and the drift of imaging quality on a scale of 0 to 100. Read as truncated to two decimals.
"""

COLUMNS = {
    "background": "Background",
    "smoothness": "Smooth",
    "dynamic": "Dynamic",
    "quality": "Quality",
    "drift": "Drift",
}
"""Measure -> the paper's column that it stands in."""

TABLE3: dict[str, tuple[float, float, float, float, float]] = {
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
"""Variant -> the paper's row, in the order of COLUMNS. "Ours" and alpha = 0.99 name one setting and differ there."""
