"""Rows as training sees them: which, what of them, and how they are shown."""

import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import fulltune
from fulltune.base.errors import RecipeError
from fulltune.base.records import IGNORE
from fulltune.base.visible import visible
from fulltune.data.store import Store
from fulltune.inspection.terminal import put, show
from tests import tiny

CHROMIUM = Path("/usr/bin/chromium")
EVIL = "</script><script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\"><!--"
ROWS: list[Any] = [
    [
        ("user", "Wie heißt 日本? 🎉"),
        ("assistant", "Japan 🇯🇵.\n日本!"),
        ("user", "</s> bye"),
        ("assistant", "I see <|end|>"),
    ],
    [("user", EVIL), ("assistant", "<b>&amp;\x1b[31mred\u202eabc")],
    [("user", "tell"), ("assistant", "the cat sat " * 72)],
    [("user", "hi"), ("assistant", "yes")],
]


def chat(turns: list[tuple[str, str]]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Path:
    """A prepared run, its recipe beside it."""
    folder = tmp_path_factory.mktemp("inspect")
    rows = tiny.jsonl(folder / "rows.jsonl", [chat(row) for row in ROWS])
    test = tiny.jsonl(folder / "test.jsonl", tiny.rows(30))
    data = {"heldout": 0, "test": str(test), "max_length": 200, "over_length": "truncate"}
    (folder / "recipe.yaml").write_text(json.dumps(tiny.recipe(llama, rows, data=data)))
    fulltune.prepare(folder / "recipe.yaml", out=folder / "run")
    return folder


def test_a_row_is_what_the_store_holds(work: Path) -> None:
    store = Store(work / "run/data/train", [str(work / "rows.jsonl")])
    rows = fulltune.inspect(work / "run", first=4)
    assert [row.origin for row in rows] == [f"{work}/rows.jsonl:{line}" for line in (1, 2, 3, 4)]
    for number, row in enumerate(rows):
        assert list(row.ids) == store[number].ids.tolist()
        assert list(row.labels) == store[number].labels.tolist()
        assert list(row.weights) == store[number].weights.tolist()
        assert row.taught == store[number].supervised
        assert "".join(piece.text for piece in row.pieces) == row.text


def test_each_stretch_is_one_turn_with_its_stop_token(work: Path) -> None:
    first, second, long, _ = fulltune.inspect(work / "run", first=4)
    assert first.supervised == ("Japan 🇯🇵.\n日本!<|end|>", "I see <|end|><|end|>")
    assert second.supervised == ("<b>&amp;\x1b[31mred\u202eabc<|end|>",)
    assert first.text.startswith("<s><|user|>Wie heißt 日本? 🎉<|end|><|assistant|>Japan")
    assert not long.supervised[0].endswith("<|end|>")
    for piece in first.pieces:
        assert piece.taught == (first.labels[piece.start - 1] != IGNORE if piece.start else False)


def test_what_was_cut_is_told_from_what_just_fits(work: Path, tmp_path: Path, llama: Path) -> None:
    long = fulltune.inspect(work / "run", longest=True)[0]
    assert (long.length, long.truncated) == (200, True)
    whole = fulltune.inspect(work / "recipe.yaml", out=tmp_path / "whole", longest=True, data={"max_length": 256})[0]
    rows = [chat(ROWS[2]), chat(ROWS[3])]
    exact = tiny.jsonl(tmp_path / "exact.jsonl", rows)
    data = {"heldout": 0, "max_length": whole.uncut, "over_length": "truncate"}
    fits = fulltune.inspect(tiny.recipe(llama, exact, data=data), out=tmp_path / "exact", longest=True)[0]
    assert fits.length == whole.uncut
    assert not fits.truncated
    assert long.uncut == whole.uncut


def test_held_out_rows_come_from_the_training_file(tmp_path: Path, llama: Path, data: Path) -> None:
    recipe = tiny.recipe(llama, data, data={"max_length": 20, "over_length": "truncate", "on_bad_row": "drop"})
    rows = fulltune.inspect(recipe, out=tmp_path / "run", split="heldout", first=100)
    assert any(row.truncated for row in rows)
    assert all(row.truncated == (row.uncut > 20) for row in rows)


def test_rows_are_named_in_five_ways(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = work / "run"
    assert [row.row for row in fulltune.inspect(run)] == [0, 1, 2]
    assert [row.row for row in fulltune.inspect(run, row=3)] == [3]
    monkeypatch.chdir(work)
    for origin in (f"{work}/rows.jsonl:2", "rows.jsonl:2", "./rows.jsonl:2", f"{work.name}/rows.jsonl:2"):
        assert [row.row for row in fulltune.inspect(run, origin=origin)] == [1]
    assert [row.row for row in fulltune.inspect(run, longest=True)] == [2]
    few = [row.row for row in fulltune.inspect(run, split="test", random=3)]
    more = [row.row for row in fulltune.inspect(run, split="test", random=6)]
    assert len(few) == 3
    assert set(few) < set(more), "the same rows again, and more of them"
    assert len(fulltune.inspect(run, split="test", random=99)) == 30


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"row": 4}, "its rows are 0 to 3"),
        ({"row": -1}, "its rows are 0 to 3"),
        ({"origin": "rows.jsonl:9"}, "rows.jsonl:1 to :4"),
        ({"origin": "test.jsonl:1"}, "--split test"),
        ({"origin": "nonsense"}, "rows.jsonl:1 to :4"),
        ({"split": "retention"}, "train (4), test (30)"),
        ({"row": 1, "longest": True}, "--row and --longest exclude each other"),
        ({"random": 0}, "--random"),
        ({"first": 0}, "--first"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(work: Path, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(said)):
        fulltune.inspect(work / "run", **asked)


def test_without_colour_brackets_say_what_is_taught(work: Path) -> None:
    shown = show(fulltune.inspect(work / "run", row=0), colour=False).plain
    assert "‹<|assistant|>›⟦Japan 🇯🇵.\n日本!‹<|end|>›⟧‹<|user|>›</s> bye‹<|end|>›" in shown
    assert "2 stretches" in shown
    cut = show(fulltune.inspect(work / "run", row=2), colour=False).plain
    assert "cut here" in cut


def test_in_colour_the_same_text_without_brackets(work: Path) -> None:
    rows = fulltune.inspect(work / "run", row=0)
    file = io.StringIO()
    put(Console(file=file, force_terminal=True, color_system="standard", no_color=False), rows)
    assert "\x1b[" in file.getvalue()
    assert "⟦" not in file.getvalue()
    assert "Wie heißt 日本? 🎉" in re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue())
    file = io.StringIO()
    put(Console(file=file, force_terminal=True, color_system="standard", no_color=True), rows)
    assert "\x1b" not in file.getvalue()


def test_no_row_can_speak_to_the_terminal(work: Path) -> None:
    shown = show(fulltune.inspect(work / "run", row=1), colour=False, tokens=True).plain
    assert "␛[31mred<U+202E>abc" in shown
    assert "\x1b" not in shown
    assert visible("a\tb\n\r\x9b\ud800") == "a\tb\n␍<U+009B><U+D800>"


def test_the_table_has_a_line_for_every_token(work: Path) -> None:
    (row,) = fulltune.inspect(work / "run", row=3)
    lines = show([row], colour=False, tokens=True).plain.splitlines()
    table = lines[next(n for n, line in enumerate(lines) if line.startswith("index")) + 1 :]
    assert len(table) == row.length
    for index, line in enumerate(table):
        assert line.split()[:2] == [str(index), str(row.ids[index])]
        assert str(row.labels[index]) in line


class Elements(HTMLParser):
    """Every element of a page, with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def html(work: Path) -> Path:
    """A page of all rows."""
    fulltune.inspect(work / "run", html=work / "rows.html")
    return work / "rows.html"


def test_the_page_needs_nothing_else(html: Path) -> None:
    text = html.read_text()
    parser = Elements()
    parser.feed(text)
    assert not {tag for tag, _ in parser.found} & {"link", "img", "iframe", "object", "embed", "base", "a"}
    assert not any({"src", "href", "onerror", "onload"} & attrs.keys() for _, attrs in parser.found)
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(|fetch\(|XMLHttp|innerHTML|document\.write", text)
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text


def test_no_row_breaks_out_of_the_page(html: Path) -> None:
    text = html.read_text()
    parser = Elements()
    parser.feed(text)
    assert [tag for tag, _ in parser.found].count("script") == 2
    assert "document.title" not in text.split("</script>", 1)[1]
    (data,) = re.findall(r'<script type="application/json" id="data">(.*)</script>', text)
    assert not re.search(r"[<>&]|[^\x00-\x7f]", data)
    values = json.loads(data)
    assert EVIL in "".join(piece[2] for piece in values["rows"][1]["pieces"])
    assert values["facts"]["splits"]["train"]["examples"] == 4
    assert values["rows"][2]["uncut"] > len(values["rows"][2]["ids"]) == 200


def test_only_a_page_of_ours_is_replaced(work: Path, html: Path, tmp_path: Path) -> None:
    fulltune.inspect(work / "run", html=html, row=0)
    assert '"row":1' not in html.read_text()
    fulltune.inspect(work / "run", html=html)
    (tmp_path / "mine.html").write_text("years of work")
    for place in (tmp_path / "mine.html", tmp_path):
        with pytest.raises(RecipeError):
            fulltune.inspect(work / "run", html=place)
    assert (tmp_path / "mine.html").read_text() == "years of work"


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}")
def test_a_browser_shows_the_page(html: Path, tmp_path: Path) -> None:
    shown = _browse(html.read_text(), tmp_path, "go(1)")
    assert "<title>What is taught</title>" in shown, "no script of a row ran"
    assert "train 1 · " in shown
    assert "&lt;/script&gt;&lt;script&gt;" in "".join(re.findall(r">([^<]*)<", shown.split('id="text"')[1]))
    assert 'class="odd">U+202E<' in shown
    tip = _browse(html.read_text(), tmp_path, "explain(document.querySelector('#text .taught'))").split('id="tip"')[1]
    assert "<td>yes</td>" in tip
    filtered = _browse(html.read_text(), tmp_path, "document.getElementById('filter').value='TELL'; list()")
    assert "1 of 1 shown" in filtered
    assert "cut here" in filtered


def _browse(page: str, folder: Path, act: str) -> str:
    """The page's document after an act of a user."""
    (folder / "page.html").write_text(page.replace("\nlist();\n", f"\nlist();\n{act};\n"))
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    more = ["--disable-component-update", "--disable-sync", f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    command = [str(CHROMIUM), *flags.split(), *more, (folder / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    shutil.rmtree(folder / "profile")
    assert done.returncode == 0, done.stderr
    return done.stdout
