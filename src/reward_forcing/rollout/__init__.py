"""The streaming half of the paper: schedule, sinks, cache, switches, noise, and the one loop over them.

Read in this order: `schedule`, `sinks`, `kv_cache`, `switches`, `noise`, `rollout`.
"""

from reward_forcing.rollout.kv_cache import CacheSettings, KVCache
from reward_forcing.rollout.noise import Noise, SeededNoise
from reward_forcing.rollout.rollout import Chunk, Rollout, RolloutState
from reward_forcing.rollout.schedule import (
    SCHEDULES,
    Pass,
    check_passes,
    chunks_at_once,
    chunkwise,
    format_timetable,
    rolling,
    schedule_named,
    timetable,
)
from reward_forcing.rollout.sinks import SINKS, EmaSink, NoSink, Sink, SinkSettings, StaticSink
from reward_forcing.rollout.switches import SWITCHES, Blend, Keep, Recache, Reset, SwitchPolicy, SwitchSettings

__all__ = [
    "SCHEDULES",
    "SINKS",
    "SWITCHES",
    "Blend",
    "CacheSettings",
    "Chunk",
    "EmaSink",
    "KVCache",
    "Keep",
    "NoSink",
    "Noise",
    "Pass",
    "Recache",
    "Reset",
    "Rollout",
    "RolloutState",
    "SeededNoise",
    "Sink",
    "SinkSettings",
    "StaticSink",
    "SwitchPolicy",
    "SwitchSettings",
    "check_passes",
    "chunks_at_once",
    "chunkwise",
    "format_timetable",
    "rolling",
    "schedule_named",
    "timetable",
]
