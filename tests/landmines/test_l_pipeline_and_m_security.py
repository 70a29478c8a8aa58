"""Landmines L and M: what is prepared is what lies there now; nothing that data or a template names is opened."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fulltune
from fulltune.base.errors import DataError
from fulltune.data import gather
from tests import tiny

SECRET = "the cat sat on a secret mat"
_HEARD: list[tuple[str, str]] = []
_LISTENING: list[bool] = []


def _hear(event: str, args: tuple[Any, ...]) -> None:
    if _LISTENING and event in ("open", "socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system"):
        _HEARD.append((event, str(args[:2])))


sys.addaudithook(_hear)  # cannot be taken off again, so it is silent but for one test


def test_landmine_L1_what_changed_outside_of_the_recipe_is_prepared_again(tmp_path: Path, llama: Path) -> None:
    """A template's file, the model's files, and rows that changed under the same name, size and time."""
    model = shutil.copytree(llama, tmp_path / "model")
    rows = tiny.jsonl(tmp_path / "rows.jsonl", tiny.rows(8))
    template = tmp_path / "t.jinja"
    template.write_text(tiny.TEMPLATE)
    asked = tiny.recipe(model, rows, data={"heldout": 0}, model={"path": str(model), "chat_template": str(template)})

    def prepared() -> tuple[str, bytes]:
        facts = fulltune.prepare(asked, out=tmp_path / "run")
        return facts.fingerprint, (tmp_path / "run/data/shards/000000/ids.bin").read_bytes()

    def same_size_and_time() -> None:
        before = rows.stat()
        rows.write_text(rows.read_text().replace("the", "cat"))
        os.utime(rows, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (rows.stat().st_size, rows.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)

    def tokenizer() -> None:
        path = model / "tokenizer.json"
        values = json.loads(path.read_text())
        values["model"]["merges"] = values["model"]["merges"][:-9]
        path.write_text(json.dumps(values))

    first = prepared()
    assert prepared() == first
    for change in (
        same_size_and_time,
        lambda: template.write_text(tiny.TEMPLATE.replace("'|>' +", "'|> ' +")),
        tokenizer,
    ):
        change()
        again = prepared()
        assert again[0] != first[0]
        assert again[1] != first[1]
        assert prepared() == again
        first = again


def test_landmine_M6_nothing_that_a_row_names_is_opened_or_asked_for(tmp_path: Path, llama: Path) -> None:
    """Paths and addresses in rows are letters, wherever they stand."""
    secret = tmp_path / "secret.json"
    secret.write_text(json.dumps({"text": SECRET}))
    names = [
        str(secret),
        f"file://{secret}",
        "../secret.json",
        "http://127.0.0.1:9/x",
        f"${{file:{secret}}}",
        f"!{secret}",
    ]
    turn = {"role": "user", "content": "look", "images": names, "file": str(secret), "image_url": {"url": names[3]}}
    made: list[Any] = [{"messages": [{**turn, "content": n}, {"role": "assistant", "content": "yes"}]} for n in names]
    made[0] |= {"image": names[0], "path": names[0], "url": names[3], "$ref": names[1]}
    (tmp_path / "data").mkdir()
    asked = tiny.recipe(llama, tiny.jsonl(tmp_path / "data/rows.jsonl", made), data={"heldout": 0})
    _HEARD.clear()
    _LISTENING.append(True)
    try:
        fulltune.prepare(asked, out=tmp_path / "run")
    finally:
        _LISTENING.clear()
    assert any("rows.jsonl" in what for event, what in _HEARD if event == "open"), "nothing was heard"
    assert [what for event, what in _HEARD if event != "open" or "secret" in what] == []
    ids = (tmp_path / "run/data/shards/000000/ids.bin").read_bytes()
    tokens = tiny.tokenizer()
    assert SECRET not in tokens.decode(np.frombuffer(ids, np.int32))


@pytest.mark.parametrize(
    "reach",
    [
        "{% include 'SECRET' %}",
        "{% import 'SECRET' as m %}{{ m }}",
        "{% extends 'SECRET' %}",
        "{{ open('SECRET').read() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('cat SECRET').read() }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
    ],
)
def test_landmine_M6_a_chat_template_opens_nothing(tmp_path: Path, llama: Path, reach: str) -> None:
    secret, template = tmp_path / "secret.txt", tmp_path / "t.jinja"
    secret.write_text(SECRET)
    template.write_text(reach.replace("SECRET", str(secret)) + tiny.TEMPLATE)
    rows = tiny.jsonl(tmp_path / "rows.jsonl", tiny.rows(3))
    section = {"path": str(llama), "chat_template": str(template)}
    with pytest.raises(DataError) as caught:
        fulltune.prepare(tiny.recipe(llama, rows, data={"heldout": 0}, model=section), out=tmp_path / "run")
    assert SECRET not in str(caught.value)


@pytest.mark.slow
def test_landmine_K9_workers_start_beside_threads_that_run(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's and the tokenizer's threads have worked in this process; a forked worker could wait for them for ever."""
    torch.ones(600, 600) @ torch.ones(600, 600)
    tiny.tokenizer()([f"the cat {n}" for n in range(500)])
    monkeypatch.setattr(gather, "ROWS", 16)
    rows = tiny.jsonl(tmp_path / "rows.jsonl", tiny.rows(160))
    facts = [
        fulltune.prepare(
            tiny.recipe(llama, rows, data={"heldout": 0.1, "processes": count}), out=tmp_path / f"run{count}"
        )
        for count in (1, 2)
    ]
    assert facts[0] == facts[1]
    assert facts[0].kept == 160
