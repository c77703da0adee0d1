"""Checkpoints of every format in the field, as one kind of network and back."""

from reward_forcing.checkpoints.detect import CheckpointInfo, inspect
from reward_forcing.checkpoints.hub import resolve
from reward_forcing.checkpoints.load import load_transformer

__all__ = ["CheckpointInfo", "inspect", "load_transformer", "resolve"]
