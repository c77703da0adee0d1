"""The streaming half of the paper: schedule, sinks, cache, switches, noise, and the one loop over them.

Read in this order: `schedule`, `sink`, `sinks`, `positions`, `storage`, `kv_cache`, `switch`, `switches`, `noise`,
`rollout`.
"""

from reward_forcing.rollout.kv_cache import CacheSettings, KVCache
from reward_forcing.rollout.kv_flush import KVFlush
from reward_forcing.rollout.noise import Noise, SeededNoise
from reward_forcing.rollout.rolling_sink import RollingSink
from reward_forcing.rollout.rollout import Chunk, Rollout, RolloutState, piece_lengths
from reward_forcing.rollout.rope_cut import RopeCut
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
from reward_forcing.rollout.sink import Sink
from reward_forcing.rollout.sinks import SINKS, EmaSink, NoSink, SinkSettings, StaticSink
from reward_forcing.rollout.storage import Storage
from reward_forcing.rollout.switch import SwitchPolicy
from reward_forcing.rollout.switches import SWITCHES, Blend, Keep, Recache, Reset, SwitchSettings

__all__ = [
    "SCHEDULES",
    "SINKS",
    "SWITCHES",
    "Blend",
    "CacheSettings",
    "Chunk",
    "EmaSink",
    "KVCache",
    "KVFlush",
    "Keep",
    "NoSink",
    "Noise",
    "Pass",
    "Recache",
    "Reset",
    "RollingSink",
    "Rollout",
    "RolloutState",
    "RopeCut",
    "SeededNoise",
    "Sink",
    "SinkSettings",
    "StaticSink",
    "Storage",
    "SwitchPolicy",
    "SwitchSettings",
    "check_passes",
    "chunks_at_once",
    "chunkwise",
    "format_timetable",
    "piece_lengths",
    "rolling",
    "schedule_named",
    "timetable",
]
