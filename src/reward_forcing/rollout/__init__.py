"""The streaming half of the paper: schedule, sinks, cache, noise, and the one loop over them.

Read in this order: `schedule`, `sinks`, `kv_cache`, `noise`, `rollout`.
"""

from reward_forcing.rollout.kv_cache import CacheSettings, KVCache
from reward_forcing.rollout.noise import Noise, SeededNoise
from reward_forcing.rollout.rollout import Chunk, Rollout, RolloutState
from reward_forcing.rollout.schedule import (
    SCHEDULES,
    Pass,
    chunks_at_once,
    chunkwise,
    format_timetable,
    rolling,
    timetable,
)
from reward_forcing.rollout.sinks import SINKS, EmaSink, NoSink, Sink, SinkSettings, StaticSink

__all__ = [
    "SCHEDULES",
    "SINKS",
    "CacheSettings",
    "Chunk",
    "EmaSink",
    "KVCache",
    "NoSink",
    "Noise",
    "Pass",
    "Rollout",
    "RolloutState",
    "SeededNoise",
    "Sink",
    "SinkSettings",
    "StaticSink",
    "chunks_at_once",
    "chunkwise",
    "format_timetable",
    "rolling",
    "timetable",
]
