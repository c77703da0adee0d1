"""The command `rforce` as tests call it."""

import pytest

from reward_forcing.cli.main import main


def rforce(*arguments: object) -> int:
    """The exit code of the command, run in this process."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)
