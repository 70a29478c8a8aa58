"""Two models before a person who does not know which is which, or before a judge's command; as a user reaches them."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import fulltune
from fulltune.base.errors import CheckpointError, DataError, RecipeError
from fulltune.base.files import read_record
from fulltune.base.results import Examination
from fulltune.evaluation.blind import Key, key_of, write_blind
from fulltune.evaluation.pairs import Pair
from tests import command, tiny
from tests.unit.reporting.folders import EVIL

CHROMIUM = Path("/usr/bin/chromium")
LONGER = (
    "import json, sys\n"
    "for line in sys.stdin:\n"
    " q = json.loads(line)\n"
    " print('tie' if len(q['a']) == len(q['b']) else 'a' if len(q['a']) > len(q['b']) else 'b')"
)


def made(count: int) -> list[Pair]:
    return [Pair(str(n), f"prompt {n} {EVIL}", ("right",), f"first {n} {EVIL}", f"second {n}") for n in range(count)]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """Forty pairs of answers, and two prompts that both answered alike."""
    alike = [Pair(str(n), "alike", (), "same", "same") for n in (40, 41)]
    write_blind(tmp_path / "page.html", [*made(40), *alike], one="my-model", other="their-model")
    return tmp_path / "page.html"


def data(page: Path) -> dict[str, Any]:
    (found,) = re.findall(r'id="data">(.*?)</script>', page.read_text())
    values: dict[str, Any] = json.loads(found)
    return values


def choose(page: Path, choices: dict[int, str], *, of: str | None = None) -> Path:
    path = page.with_name("choices.json")
    path.write_text(json.dumps({"page": of or data(page)["page"], "choices": choices}))
    return path


def test_the_page_holds_answers_and_no_key(page: Path) -> None:
    text, values, key = page.read_text(), data(page), read_record(key_of(page), Key)
    assert "my-model" not in text
    assert "their-model" not in text
    assert values.keys() == {"page", "items"}
    assert all(item.keys() == {"prompt", "left", "right"} for item in values["items"])
    assert (len(values["items"]), key.same) == (40, 2)
    for item, whose in zip(values["items"], key.left, strict=True):
        number = item["prompt"].split()[1]
        first, second = (item["left"], item["right"]) if whose == "one" else (item["right"], item["left"])
        assert (first, second) == (f"first {number} {EVIL}", f"second {number}")
    assert {"one", "other"} == set(key.left), "sides differ: 2 in 10^12 that 40 draws are alike"
    assert [item["prompt"] for item in values["items"]] != [pair.prompt for pair in made(40)], "so does the order"


def test_sides_hang_on_nothing_that_a_reader_could_know(tmp_path: Path) -> None:
    keys = [write_blind(tmp_path / f"{n}.html", made(40), one="x", other="y") for n in range(2)]
    assert keys[0].left != keys[1].left
    assert keys[0].page != keys[1].page


def test_nothing_that_a_model_says_becomes_markup_and_nothing_is_fetched(page: Path) -> None:
    text = page.read_text()
    assert text.startswith("<!doctype html><!-- written by fulltune evaluate -->")

    class Tags(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.found: list[tuple[str, dict[str, str | None]]] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.found.append((tag, dict(attrs)))

    tags = Tags()
    tags.feed(text)
    assert "img" not in {tag for tag, _ in tags.found}
    assert sum(tag == "script" for tag, _ in tags.found) == 2
    assert not [attrs for _, attrs in tags.found if {"src", "href", "onerror"} & attrs.keys()]
    assert "default-src 'none'" in text
    assert "innerHTML" not in text


def test_choices_are_counted_by_the_key(page: Path) -> None:
    key = read_record(key_of(page), Key)
    chosen = {n: "left" if whose == "one" else "right" for n, whose in enumerate(key.left) if n < 12}
    chosen |= {12: "tie", 13: "left" if key.left[13] == "other" else "right"}
    done = command.run("evaluate", str(key_of(page)), "--count", str(choose(page, chosen)), "--json", cwd=page.parent)
    wins = json.loads(done.stdout)
    assert (wins["one"], wins["one_wins"], wins["other_wins"], wins["ties"], wins["prompts"]) == (
        "my-model",
        12,
        1,
        3,
        16,
    )
    assert wins["shares"]["my-model"] == pytest.approx(12 / 13)
    assert "26 of 40 items of the page have no choice" in done.stderr
    shown = command.run("evaluate", str(key_of(page)), "--count", str(choose(page, chosen)), cwd=page.parent).stdout
    assert re.search(r"my-model +12 +3 +16 +92\.3% +\[66\.7%, 98\.6%\] +95% Wilson, exact p 0\.00342", shown)


def test_choices_of_another_page_and_what_are_none_are_refused(page: Path, tmp_path: Path) -> None:
    key = key_of(page)
    with pytest.raises(DataError, match="choices of another page"):
        fulltune.count_choices(key, choose(page, {0: "left"}, of="0" * 32))
    with pytest.raises(DataError, match="no item 40"):
        fulltune.count_choices(key, choose(page, {40: "left"}))
    with pytest.raises(DataError, match="these are no choices"):
        fulltune.count_choices(key, choose(page, {0: "middle"}))
    with pytest.raises(DataError, match="cannot be read"):
        fulltune.count_choices(key, tmp_path / "none.json")
    with pytest.raises(CheckpointError, match="not a Key"):
        fulltune.count_choices(choose(page, {0: "left"}), choose(page, {0: "left"}))


def test_a_page_that_is_there_is_not_replaced_and_one_needs_something_to_choose(page: Path, tmp_path: Path) -> None:
    before = page.read_bytes()
    asked = command.run("evaluate", "a", "--against", "b", "--blind", "page.html", cwd=page.parent)
    assert (asked.returncode, page.read_bytes()) == (2, before)
    assert "exists already" in asked.stderr
    with pytest.raises(DataError, match="the same answer to each of 1 prompts"):
        write_blind(tmp_path / "new.html", [Pair("0", "p", (), "x", "x")], one="x", other="y")
    assert not (tmp_path / "new.html").exists()


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Path:
    """A run of two updates, another model, and a suite of six questions."""
    work = tmp_path_factory.mktemp("asked")
    rows = tiny.jsonl(work / "rows.jsonl", tiny.rows(40))
    short = {"train": {"steps": 2, "batch_examples": 8}, "evaluate": {"samples": 0, "sample_tokens": 3}}
    fulltune.train(tiny.recipe(llama, rows, **short, optim={"lr": 0.1}), out=work / "run")
    tiny.jsonl(work / "questions.jsonl", [{"q": row["prompt"], "a": row["completion"]} for row in tiny.rows(6)])
    (work / "suite.yaml").write_text(
        "data: questions.jsonl\nprompt: q\nanswer: a\nmetrics: contains\nmax_new_tokens: 4\n"
    )
    return work


def test_a_page_is_made_of_the_held_out_prompts_of_a_run(asked: Path, tmp_path: Path) -> None:
    done = command.run(
        "evaluate", "run", "--against", "base", "--blind", str(tmp_path / "p.html"), "--prompts", "3", cwd=asked
    )
    assert done.returncode == 0, done.stderr
    values, key = data(tmp_path / "p.html"), read_record(tmp_path / "p.key.json", Key)
    assert (key.one, key.other) == ("result", "base")
    assert len(values["items"]) + key.same == 3
    known = {row["prompt"] for row in tiny.rows(40)}
    assert {item["prompt"] for item in values["items"]} <= known
    assert "result" not in values["items"][0]


def test_a_judge_compares_two_models_on_a_suite(asked: Path, tmp_path: Path) -> None:
    judge = shlex.join([sys.executable, "-I", "-S", "-c", LONGER])
    done = command.run(
        *("evaluate", "run", "--suite", "suite.yaml", "--against", "base", "--out", str(tmp_path / "out")),
        *("--judge", judge),
        cwd=asked,
    )
    assert done.returncode == 0, done.stderr
    assert "the judge's command, which is run without a shell" in done.stderr
    found = read_record(tmp_path / "out/result-against-base.json", Examination)
    (wins,) = found.judged
    lines = list(map(json.loads, (tmp_path / "out/result-against-base.suite.judged.jsonl").read_text().splitlines()))
    assert (wins.prompts, wins.swayed, len(lines)) == (6, 0, 6)
    longer = [(len(line["one"]) > len(line["other"])) - (len(line["one"]) < len(line["other"])) for line in lines]
    verdicts = [{1: "one", -1: "other", 0: "tie"}[sign] for sign in longer]
    assert [line["verdict"] for line in lines] == verdicts
    assert wins.one_wins == verdicts.count("one")
    assert "by the judge, in both orders" in done.stdout


def test_a_judge_that_fails_leaves_nothing_of_its_own(asked: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the judge wrote 'maybe'"):
        fulltune.examine(
            asked / "run",
            [asked / "suite.yaml"],
            against="base",
            out=tmp_path / "out",
            judge=shlex.join([sys.executable, "-I", "-S", "-c", "import sys\nfor _ in sys.stdin: print('maybe')"]),
        )
    assert not list((tmp_path / "out").glob("*against*"))


def test_what_goes_with_what_is_said(asked: Path) -> None:
    def refused(*options: str) -> str:
        done = command.run("evaluate", "run", *options, cwd=asked)
        assert done.returncode == 2
        return done.stderr

    assert "name the other with --against" in refused("--suite", "suite.yaml", "--judge", "x")
    assert "name the other with --against" in refused("--blind", "page.html")
    assert "--prompts means nothing beside" in refused("--prompts", "3")
    assert "--judge-timeout means nothing beside" in refused("--judge-timeout", "3")
    assert "--out means nothing beside" in refused("--blind", "page.html", "--against", "base", "--out", "there")
    assert "--suite means nothing beside" in refused("--count", "choices.json", "--suite", "suite.yaml")
    assert "KEY=VALUE is of losses" in refused("optim.lr=1", "--suite", "suite.yaml")
    assert "exclude each other" in refused("--blind", "page.html", "--judge", "x", "--against", "base")
    assert "there is no such folder" in refused("--blind", "none/page.html", "--against", "base")
    with pytest.raises(RecipeError, match="--out DIR"):
        model = asked / "run/model"
        fulltune.examine(model, [asked / "suite.yaml"], against=model, judge="x")


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}")
def test_a_browser_lets_a_reader_choose_by_keys_and_clicks(page: Path, tmp_path: Path) -> None:
    key = "for (const key of {keys}) document.body.dispatchEvent(new KeyboardEvent('keydown', {{key, bubbles: true}}));"
    act = key.format(keys="['ArrowLeft', '2', 'ArrowRight', 'ArrowUp', 'ArrowLeft']") + "at('tie').click();"
    act += "load(JSON.stringify({page: 'another', choices: {}}));"
    act += "const out = document.body.appendChild(document.createElement('output')); out.textContent = saved();"
    (tmp_path / "act.html").write_text(page.read_text().replace("if (0 in choices) open();", act))
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    more = ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run(
        [str(CHROMIUM), *flags.split(), *more, (tmp_path / "act.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    shutil.rmtree(tmp_path / "profile")
    assert done.returncode == 0, done.stderr
    assert "<title>Which answer is better?</title>" in done.stdout, "no script of an answer ran"
    (said,) = re.findall(r"<output>(.*?)</output>", done.stdout, re.DOTALL)
    chosen = json.loads(said)
    assert chosen == {"page": data(page)["page"], "choices": {"0": "left", "1": "tie", "2": "left", "3": "tie"}}
    assert "5 of 40 · 4 chosen" in done.stdout
    assert "These are the choices of another page." in done.stdout
    assert "<img" not in done.stdout
    (tmp_path / "choices.json").write_text(said)
    assert fulltune.count_choices(key_of(page), tmp_path / "choices.json").prompts == 6
