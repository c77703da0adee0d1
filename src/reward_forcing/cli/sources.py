"""Options that several verbs share: what makes the clips, under which name, and the form they are brought to."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from reward_forcing.cli.generate import parse_size

if TYPE_CHECKING:
    from reward_forcing.evaluation.diffusers_source import PipelineSource
    from reward_forcing.evaluation.matching import Form
    from reward_forcing.evaluation.sources import StreamedSource


def parse_named(text: str, option: str) -> tuple[str, str]:
    """Name and place of `NAME=PLACE`; a place alone is called by its last part, as far as that can be a name.

    Raises ValueError if one of them is missing, and for a name that could be no file name.
    """
    name, equals, place = text.strip().partition("=")
    if not equals:
        name, place = re.sub(r"[^\w-]+", "-", re.split(r"[/\\]", name.strip("/"))[-1]).strip("-"), name
    if not place.strip() or not re.fullmatch(r"[\w-]+", name.strip()):
        raise ValueError(f"{option} must be NAME=PLACE, the name of letters, digits, '_' and '-', got '{text}'")
    return name.strip(), place.strip()


def form_of(size: str | None, fps: float | None) -> "Form | None":
    """The form that `--size` and `--fps` name, None without both; raises ValueError for one of them alone."""
    from reward_forcing.evaluation.matching import Form

    if size is None and fps is None:
        return None
    if size is None or fps is None:
        raise ValueError("give --size and --fps together: clips are brought to both before they are measured")
    height, width = parse_size(size)
    return Form(height=height, width=width, fps=fps)


def open_model(
    model: str,
    method: str | None = None,
    weights: str | None = None,
    changes: Sequence[str] = (),
    decoder: str | None = None,
) -> "StreamedSource":
    """A model that streams, looked through but not loaded; see `open_model_folder`."""
    import transformers

    from reward_forcing.evaluation.sources import StreamedSource
    from reward_forcing.streaming.model_folder import open_model_folder

    transformers.utils.logging.disable_progress_bar()
    return StreamedSource(open_model_folder(model, method, weights, changes, decoder))


def open_pipeline(pipeline: str, changes: Sequence[str] = ()) -> "PipelineSource":
    """A diffusers pipeline, looked through but not loaded; see `diffusers_source.open_pipeline`."""
    import diffusers
    import transformers

    from reward_forcing.evaluation import diffusers_source

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    return diffusers_source.open_pipeline(pipeline, changes)
