"""`rforce doctor`: it reports what is there, and says how to get what is not."""

import importlib.metadata as metadata
import json
from collections.abc import Iterator

import pytest
import torch

from reward_forcing.checkpoints import hub
from reward_forcing.cli import doctor
from reward_forcing.cli.main import main


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads on a busy machine wait for each other, which has nothing to do with what is tested."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(*arguments: str) -> int:
    """The exit code of `rforce doctor *arguments`, run in this process."""
    with pytest.raises(SystemExit) as stop:
        main(["doctor", *arguments])
    return int(stop.value.code or 0)


def test_the_report_as_json_has_every_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json", "--no-speed") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["versions"]["torch"] == metadata.version("torch")
    assert report["devices"][0]["device"] == "cpu"
    assert report["devices"][0]["gflops"]["float32"] > 0
    assert "libx264" in report["encoders"]
    assert report["extras"].keys() >= {"train", "eval"}
    assert set(report["bundled"]) == set(hub.bundled())


def test_the_report_as_text_names_devices_and_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--no-speed") == 0
    text = capsys.readouterr().out
    assert f"torch            {metadata.version('torch')}" in text
    assert "GFLOP/s: float32" in text


def test_a_missing_extra_comes_with_its_pip_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = metadata.version

    def without_tensorboard(name: str) -> str:
        if name == "tensorboard":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(doctor.metadata, "version", without_tensorboard)
    assert doctor.extras()["train"] == {
        "missing": ["tensorboard"],
        "install": "pip install -e '.[train]' in its checkout",
    }
    assert run("--no-speed") == 0
    assert "missing tensorboard: pip install -e '.[train]'" in capsys.readouterr().out


def test_without_a_bundled_model_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub, "bundled", dict)
    assert run() == 0
    assert "bundled models: none in this installation" in capsys.readouterr().out
