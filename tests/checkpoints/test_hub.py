"""Names of models: a path first, then a bundled name, then the hub; mistakes name the nearest."""

from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from reward_forcing.checkpoints import hub
from reward_forcing.checkpoints.hub import MODEL_FILES, resolve


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of bundled models that holds one, `mini`."""
    (tmp_path / "assets" / "mini" / "transformer").mkdir(parents=True)
    monkeypatch.setattr(hub, "ASSETS", tmp_path / "assets")
    return tmp_path / "assets"


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What would have been fetched from the hub."""
    calls: list[tuple[str, ...]] = []

    def snapshot(repository: str, allow_patterns: list[str]) -> str:
        calls.append((repository, *allow_patterns))
        return "/cache/snapshot"

    def file(repository: str, name: str) -> str:
        calls.append((repository, name))
        return "/cache/file"

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    monkeypatch.setattr(hub, "hf_hub_download", file)
    return calls


def test_a_bundled_name_is_its_folder(assets: Path) -> None:
    assert resolve("mini") == assets / "mini"


def test_a_path_that_exists_comes_before_all_names(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini").mkdir()
    assert resolve("mini") == Path("mini")


def test_a_misspelt_bundled_name_names_the_nearest(assets: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no file, folder or bundled model 'minni'; did you mean 'mini'"):
        resolve("minni")


def test_a_misspelt_file_names_its_neighbour(assets: Path, tmp_path: Path) -> None:
    (tmp_path / "student.pt").touch()
    with pytest.raises(FileNotFoundError, match=r"did you mean '.*student.pt'"):
        resolve(tmp_path / "studnet.pt")


def test_a_hub_id_fetches_the_wanted_files_only(assets: Path, fetched: list[tuple[str, ...]]) -> None:
    assert resolve("owner/model") == Path("/cache/snapshot")
    assert fetched == [("owner/model", *MODEL_FILES)]


def test_a_file_on_the_hub_is_fetched_alone(assets: Path, fetched: list[tuple[str, ...]]) -> None:
    assert resolve("owner/model/checkpoints/a.pt") == Path("/cache/file")
    assert fetched == [("owner/model", "checkpoints/a.pt")]


def test_without_a_connection_the_message_says_so(assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(FileNotFoundError, match="no file or folder 'owner/model' here, and the hub could not be"):
        resolve("owner/model")
