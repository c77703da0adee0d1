"""One prompt and one noise with several methods, pipelines and videos: clips, a labelled video of all, a table."""

from reward_forcing.evaluation.side_by_side.columns import Column, Wanted, form_like, video_of
from reward_forcing.evaluation.side_by_side.comparison import FILES, Comparison, compare
from reward_forcing.evaluation.side_by_side.table import table

__all__ = ["FILES", "Column", "Comparison", "Wanted", "compare", "form_like", "table", "video_of"]
