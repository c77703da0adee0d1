"""The command's frame: help without torch, version, one-line errors, exit codes."""

import subprocess
import sys
from typing import Any

import pytest
from pydantic import BaseModel

from reward_forcing import __version__
from reward_forcing.cli import main as cli
from reward_forcing.cli.main import VERBS, Verb, main


def run(arguments: list[str]) -> int:
    """The exit code of `rforce *arguments`, run in this process."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return int(stop.value.code or 0)


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes the verb `fail` raise the error it is given."""

    def install(error: BaseException) -> None:
        def fail() -> None:
            """Raise."""
            raise error

        monkeypatch.setattr(cli, "VERBS", {"fail": Verb("tests:fail", "Fail.")})
        monkeypatch.setattr(Verb, "load", lambda self: fail)

    return install


def test_help_lists_every_verb_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    for name, verb in VERBS.items():
        assert name in text
        assert verb.help[:30] in text


def test_help_does_not_import_torch() -> None:
    code = "import sys; from reward_forcing.cli.main import main\n"
    code += "try: main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize("verb", VERBS)
def test_every_registered_verb_loads_and_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([verb, "--help"]) == 0
    assert f"rforce {verb}" in capsys.readouterr().out


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"rforce {__version__}\n"


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["docter"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown command 'docter'; did you mean 'doctor'?")


def test_an_unknown_option_is_bad_input() -> None:
    assert run(["doctor", "--jsn"]) == 2


def bad_settings() -> Exception:
    """A pydantic error, whose own text spans several lines."""

    class Sink(BaseModel):
        frames: int

    try:
        Sink(frames="three")  # pyright: ignore[reportArgumentType]
    except ValueError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("expected 3 frames,\n  got 4"), "error: expected 3 frames, got 4"),
        (FileNotFoundError(2, "No such file or directory", "a.pt"), "error: No such file or directory: a.pt"),
        (FileNotFoundError("no weights in 'x'"), "error: no weights in 'x'"),
        (PermissionError(13, "Permission denied", "a.mp4"), "error: Permission denied: a.mp4"),
        (bad_settings(), "error: frames: input should be a valid integer"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    raising: Any, error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(error)
    assert run(["fail"]) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith(line)
    assert stderr.count("\n") == 1


def test_a_failure_inside_is_exit_code_1_and_hides_its_traceback(
    raising: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(RuntimeError("shapes differ"))
    assert run(["fail"]) == 1
    assert capsys.readouterr().err == "error: RuntimeError: shapes differ (RFORCE_DEBUG=1 shows where)\n"


def test_debug_shows_the_traceback(
    raising: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RFORCE_DEBUG", "1")
    raising(ValueError("no"))
    assert run(["fail"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_is_exit_code_130(raising: Any) -> None:
    raising(KeyboardInterrupt())
    assert run(["fail"]) == 130
