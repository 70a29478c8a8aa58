"""A journal that another process writes is heard line by line."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fulltune.training.journal import Journal, followed, standing


def test_what_another_process_writes_is_heard(tmp_path: Path) -> None:
    """Not what stood there before; also behind a cut, as a run makes that goes on; and the last line."""

    class Heard:
        def __init__(self) -> None:
            self.lines: list[tuple[str, int]] = []

        def hear(self, kind: str, values: Mapping[str, Any]) -> None:
            self.lines.append((kind, values["n"]))

    path, heard = tmp_path / "journal.jsonl", Heard()
    with Journal(path) as journal:
        journal.write("step", {"n": 1})
        keep = journal.size
        journal.write("step", {"n": 2})
        with followed(path, [heard]):
            journal.write("step", {"n": 3})
            deadline = time.monotonic() + 10
            while not heard.lines and time.monotonic() < deadline:
                time.sleep(0.01)
            journal.cut(keep)
            time.sleep(0.5)
            journal.write("end", {"n": 4})
    assert heard.lines == [("step", 3), ("end", 4)]


def test_what_was_cut_and_grew_again_between_two_looks_is_heard_whole(tmp_path: Path) -> None:
    """Its new lines end elsewhere than the old ones did."""

    class Heard:
        def __init__(self) -> None:
            self.lines: list[tuple[int, str]] = []

        def hear(self, kind: str, values: Mapping[str, Any]) -> None:
            self.lines.append((values["n"], values["text"]))

    path, heard = tmp_path / "journal.jsonl", Heard()
    with Journal(path) as journal:
        journal.write("step", {"n": 1, "text": "a"})
        keep = journal.size
        journal.write("step", {"n": 2, "text": "b" * 30})
        journal.write("step", {"n": 3, "text": "c" * 30})
        with followed(path, [heard]):
            journal.write("step", {"n": 4, "text": "d"})
            deadline = time.monotonic() + 10
            while not heard.lines and time.monotonic() < deadline:
                time.sleep(0.01)
            journal.cut(keep)
            for number in (2, 3, 4, 5):
                journal.write("step", {"n": number, "text": "e" * 50})
    assert heard.lines == [(4, "d"), *((number, "e" * 50) for number in (2, 3, 4, 5))]


def test_what_a_rollback_took_back_does_not_stand(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        for step in (0, 2, 4):
            journal.write("suite", {"step": step, "suite": "one"})
        journal.write("evaluation", {"step": 4})
        journal.write("rollback", {"step": 5, "to": 2})
        journal.write("suite", {"step": 3, "suite": "one"})
        journal.write("step", {"step": 3})
    assert [line["step"] for line in standing(journal.path, "suite")] == [0, 2, 3]
    assert standing(journal.path, "evaluation") == []
