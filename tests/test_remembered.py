"""What was measured is asked for once, and a file that cannot be read or written stops nobody."""

from pathlib import Path

import pytest

from reward_forcing import remembered


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "folder" / "measured.json"
    monkeypatch.setattr(remembered, "answers_file", lambda: file)
    return file


def ask(question: str, answer: str) -> str:
    return remembered.remembered(question, ("left", "right"), lambda: answer)


def test_the_first_answer_stays_and_every_question_has_its_own(file: Path) -> None:
    assert (ask("a", "left"), ask("b", "right")) == ("left", "right")
    assert (ask("a", "right"), ask("b", "left")) == ("left", "right")


def test_another_processor_is_asked_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask("a", "left")
    monkeypatch.setattr(remembered, "processor", lambda: "another")
    assert ask("a", "right") == "right"


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}'])
def test_a_damaged_file_is_made_anew(file: Path, content: str) -> None:
    file.parent.mkdir()
    file.write_text(content)
    assert ask("a", "left") == "left"
    assert ask("a", "right") == "left"


def test_an_answer_that_is_no_longer_possible_is_not_given(file: Path) -> None:
    ask("a", "left")
    file.write_text(file.read_text().replace("left", "up"))
    assert ask("a", "right") == "right"


def test_where_nothing_can_be_written_every_process_measures(file: Path) -> None:
    file.parent.write_text("a file where the folder should be")
    assert (ask("a", "left"), ask("a", "right")) == ("left", "right")
