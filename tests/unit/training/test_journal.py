"""A journal that another process writes is heard line by line."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fulltune.training.journal import Journal, followed


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
