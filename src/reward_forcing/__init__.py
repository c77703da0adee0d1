"""Streaming video generation: few-step autoregressive video diffusion models, their training and their judging.

`reward_forcing.StreamingVideoPipeline` is the way in; it is imported when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reward_forcing.streaming.pipeline import StreamingVideoPipeline

__all__ = ["StreamingVideoPipeline"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The pipeline class, so that `import reward_forcing` itself stays instant; AttributeError for all else."""
    if name == "StreamingVideoPipeline":
        from reward_forcing.logs import silence_imports

        silence_imports()
        from reward_forcing.streaming.pipeline import StreamingVideoPipeline

        return StreamingVideoPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
