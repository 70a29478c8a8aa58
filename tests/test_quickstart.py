"""The quickstart keeps its word: offline, from the package alone, and right on what training never saw."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fulltune.quickstart import answers, questions, quickstart, right
from tests.conftest import ROOT
from tools.embedded import support, words

EMBEDDED = ROOT / "src/fulltune/embedded"


class Deaf:
    """A sink that shows nothing."""

    def hear(self, kind: str, values: object) -> None:
        pass


def test_the_embedded_base_is_small_and_knows_nothing_of_support() -> None:
    assert sum(path.stat().st_size for path in (EMBEDDED / "model").iterdir()) <= 3 << 20
    asked = questions(EMBEDDED / "heldout.jsonl")[:24]
    assert right(asked, answers(EMBEDDED / "model", asked)) < 0.2


def test_held_out_slots_are_in_no_training_row() -> None:
    """Names, numbers and products of held-out prompts; the second group has other phrasings besides."""
    taught = (EMBEDDED / "train.jsonl").read_text()
    for name in ("heldout.jsonl", "phrasings.jsonl"):
        for question in questions(EMBEDDED / name):
            copied = {w.strip(".,?!") for w in question.prompt.split()} & {
                w.strip(".,?!") for w in question.completion.split()
            }
            slots = {word for word in copied if word[0].isupper() or word[0].isdigit()}
            assert any(words.unseen(slot) or slot not in taught for slot in slots), question.prompt
    known = {phrase for wish in support.WISHES for phrase in wish.asked}
    assert not known & {phrase for wish in support.WISHES for phrase in wish.asked_otherwise}


def test_the_embedded_data_is_what_its_script_makes(tmp_path: Path) -> None:
    from tools.make_embedded import make_data

    make_data(tmp_path)
    for name in ("train.jsonl", "heldout.jsonl", "phrasings.jsonl", "general.jsonl", "replay.jsonl"):
        assert (tmp_path / name).read_bytes() == (EMBEDDED / name).read_bytes()


@pytest.mark.slow
def test_it_runs_offline_and_tells_before_and_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of it; any attempt to reach the network fails."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the quickstart reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    told = quickstart(tmp_path / "run", Deaf(), train={"epochs": 1.5})
    for said in ("held-out loss", "general-text loss", "right answers, unseen names", "unseen phrasings", "before: "):
        assert said in told
    assert told.count("asked:") == 3
    assert (tmp_path / "run/model/model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_unseen_names_numbers_and_products_are_copied(tmp_path: Path, seed: int) -> None:
    """At least 80% right to the letter, the base under 20%, for three seeds."""
    quickstart(tmp_path / "run", Deaf(), train={"seed": seed})
    asked = questions(EMBEDDED / "heldout.jsonl")
    assert right(asked, answers(EMBEDDED / "model", asked)) < 0.2
    assert right(asked, answers(tmp_path / "run/model", asked)) >= 0.8
    record = json.loads((tmp_path / "run/record.json").read_text())
    assert record["evaluations"][-1]["scores"]["heldout.loss"] < 0.1


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fulltune", "quickstart"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "right answers" in done.stdout
    assert (tmp_path / "runs/quickstart/model").is_dir()
