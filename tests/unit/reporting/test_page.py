"""The report as a file: it needs nothing else, nothing in it can act, and it tells what is there and what is not."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fulltune.account import report
from fulltune.base.errors import RecipeError
from fulltune.reporting.facts import Beside, histogram
from fulltune.reporting.markup import el, shell, text
from fulltune.reporting.page import page
from fulltune.reporting.story import read_story
from tests.unit.reporting.folders import EVIL, bare, evaluation, long, step, trained

CHROMIUM = Path("/usr/bin/chromium")
SECTIONS = [
    "gained-and-lost",
    "curves",
    "before-and-after",
    "data",
    "plan-and-actual",
    "weight-change",
    "how-to-reproduce",
]


class Elements(HTMLParser):
    """Every element of a page with its attributes, and all text that a reader sees."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.seen: list[str] = []
        self._hidden = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.seen.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.seen).split())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Path:
    """A real run whose every row is hostile."""
    return trained(tmp_path_factory.mktemp("hostile"), llama)


@pytest.fixture(scope="module")
def html(run: Path) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


def told(story_of: Path) -> str:
    return Elements(page(read_story(story_of), Beside())).text


def test_every_run_has_a_report_with_all_its_parts(html: str) -> None:
    elements = Elements(html)
    assert [attrs.get("id") for tag, attrs in elements.found if tag == "section"] == SECTIONS
    for words in ("What it learned", "What it kept", "Overfitting", "Loss on held-out data", "Loss on retention data"):
        assert words in elements.text
    titles = re.findall(r"<figcaption><b>(.*?)</b>", html)
    assert titles == ["Loss", "Retention loss", "KL from the base", "Learning rate", "Gradient norm", "Speed"]
    assert html.count("<svg") == 6
    assert "model.embed_tokens" in elements.text
    assert "self_attn" in elements.text
    assert re.search(r"updates 6, \d of them warm-up 6", elements.text)
    assert "loaded anew" in elements.text
    assert "This run is not done" not in elements.text


def test_the_page_needs_nothing_else(html: str) -> None:
    elements = Elements(html)
    assert not {tag for tag, _ in elements.found} & {
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "base",
        "a",
        "form",
        "image",
    }
    assert not {name for _, attrs in elements.found for name in attrs} & {
        "src",
        "href",
        "srcset",
        "action",
        "xlink:href",
    }
    assert not [name for _, attrs in elements.found for name in attrs if name.startswith("on")]
    styles = "".join(re.findall(r"<style>(.*?)</style>", html, re.DOTALL))
    scripts = "".join(re.findall(r"<script>(.*?)</script>", html, re.DOTALL))
    assert not re.search(r"@import|url\(|https?:", styles)
    assert not re.search(r"fetch\(|XMLHttp|WebSocket|import\(|innerHTML|document\.write|eval|https?:", scripts)
    assert "default-src 'none'" in html
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_nothing_that_a_row_says_becomes_markup(html: str) -> None:
    elements = Elements(html)
    assert [tag for tag, _ in elements.found].count("script") == 1
    assert [tag for tag, _ in elements.found].count("style") == 1
    assert "alert(1)" in elements.text  # it is there, as text
    assert "&lt;/script&gt;&lt;script&gt;" in html
    assert "<b>rows'" not in html
    assert "&lt;b&gt;rows&#x27;.jsonl" in html
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", html)
    assert "␛[31mred" in html
    assert "&lt;U+202E&gt;" in html
    assert html.count("@BODY@") == elements.text.count("@BODY@") > 0  # what a slot holds is never filled again


@pytest.mark.parametrize("place", ["recipe", "record", "journal", "data", "plan", "name"])
def test_no_card_can_bring_markup_in(tmp_path: Path, run: Path, place: str) -> None:
    """The same where somebody wrote it into the cards by hand: every text in every card is hostile."""
    folder = tmp_path / ("<img src=x>'\"" if place == "name" else "run")
    shutil.copytree(run, folder)
    path = folder / ("journal.jsonl" if place == "journal" else f"{place}.json")
    if place == "recipe":
        (folder / "recipe.yaml").write_text(f"model:\n  path: {json.dumps(EVIL)}\n")
    elif place != "name":

        def spoiled(value: object) -> object:
            if isinstance(value, dict):
                return {key: spoiled(inner) if key != "kind" else inner for key, inner in value.items()}
            if isinstance(value, list):
                return [spoiled(inner) for inner in value]
            return f"{value}{EVIL}" if isinstance(value, str) else value

        lines = (
            [json.dumps(spoiled(json.loads(line))) for line in path.read_text().splitlines()]
            if place == "journal"
            else []
        )
        path.write_text("\n".join(lines) + "\n" if lines else json.dumps(spoiled(json.loads(path.read_text()))))
    made = page(read_story(folder), Beside(why=EVIL), fault=EVIL)
    elements = Elements(made)
    assert {tag for tag, _ in elements.found} <= {
        tag for tag, _ in Elements((run / "report.html").read_text()).found
    } | {"li", "ul"}
    assert not [
        name for _, attrs in elements.found for name in attrs if name.startswith("on") or name in ("src", "href")
    ]
    assert [tag for tag, _ in elements.found].count("script") == 1
    assert "\x1b" not in made
    assert "\u202e" not in made


def test_secrets_of_the_environment_are_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "a-very-secret-value")
    made = page(
        read_story(bare(tmp_path / "run", [], data={"rows": 1, "kept": 1})),
        Beside(why="cannot log in with a-very-secret-value"),
    )
    assert "a-very-secret-value" not in made
    assert "cannot log in with ***" in made


def test_ten_thousand_updates_stay_below_two_megabytes(tmp_path: Path) -> None:
    sample = dict.fromkeys(("prompt", "expected", "before", "after"), "word " * 5000)
    record = {"result_step": 10_000, "samples": [sample] * 200}
    made = page(read_story(bare(tmp_path / "run", long(10_000), record=record)), Beside(lengths=range(10_000)))
    assert len(made.encode()) < 1_500_000
    assert "47.25" in made, "the spike is told"
    assert "1 value is not finite" in made
    assert "176 more samples in record.json" in made
    assert "22,000 more characters" in made
    tops = [
        min(float(pair.split(",")[1]) for pair in points.split())
        for points in re.findall(r'points="([^"]+)" class="line c raw"', made)
    ]
    assert tops[0] == pytest.approx(10, abs=20), "and drawn, far above all else"


def test_a_run_that_was_killed_before_its_first_update(tmp_path: Path) -> None:
    plan = {
        "updates": 9,
        "warmup_updates": 1,
        "micro_examples": 2,
        "micro_tokens": 64,
        "layout": "padded",
        "precision": "float32",
    }
    words = told(
        bare(tmp_path / "run", [{"kind": "start", "updates": 9}, evaluation(0, 5.0, answers=["hm"])], plan=plan)
    )
    assert "This run is not done: no update was made." in words
    assert "Not in its folder: data.json: there is none; record.json: there is none." in words
    assert "There are no answers after training" in words
    assert "Nothing was measured after training." in words
    assert "How far the weights moved is not known: the run has no result yet." in words
    assert "my-org/my-model trained for 0 of 9 updates." in words


def test_a_run_that_measured_nothing(tmp_path: Path) -> None:
    record = {"result_step": 3, "progress": {"skipped": 0}}
    lines = [step(n, 3.0 - n / 2) for n in range(1, 4)] + [{"kind": "end", "step": 3}]
    words = told(bare(tmp_path / "run", lines, record=record))
    for said in (
        "unproven", "not measured", "unknown", "Nothing was measured: no evaluation was made.",
        "Nothing was held out, so there is no held-out loss beside it.", "No answers were kept",
        "data.json is not there", "plan.json is not there", "the record has none",
    ):  # fmt: skip
        assert said in words, said


def test_an_empty_folder_still_makes_a_page(tmp_path: Path) -> None:
    words = told(tmp_path)
    assert "This run is not done: no update was made." in words
    assert "recipe.yaml is not there." in words
    assert "an unknown base model trained." in words


def test_what_ended_it_is_shown(tmp_path: Path) -> None:
    made = page(
        read_story(bare(tmp_path / "run", [step(1, 2.0)])), Beside(), fault="error: disk full\nmend:  free some"
    )
    assert "it stands after update 1" in made
    assert "error: disk full\nmend:  free some" in made


def test_lengths_are_counted_in_round_bins() -> None:
    assert histogram([5, 5, 6]) == [("5", 2), ("6", 1)]
    made = histogram([*range(100, 612)])
    assert made[0] == ("100–149", 50)
    assert made[-1] == ("600–649", 12)
    assert sum(count for _, count in made) == 512
    assert histogram([7]) == [("7", 1)]


def test_markup_is_made_by_us_alone() -> None:
    assert (
        el("p", "<b>", el("i", "&"), None, cls='"x"', data_x="'")
        == '<p class="&quot;x&quot;" data-x="&#x27;">&lt;b&gt;<i>&amp;</i></p>'
    )
    assert shell("a @X@ @Y@ b@c", "", "", X=text("@Y@"), Y=text("<")) == "a @Y@ &lt; b@c"


def test_only_a_page_of_ours_is_replaced(tmp_path: Path, run: Path) -> None:
    mine = tmp_path / "mine.html"
    mine.write_text("years of work")
    for place in (mine, tmp_path):
        with pytest.raises(RecipeError):
            report(run, out=place)
    assert mine.read_text() == "years of work"
    assert report(run, out=tmp_path / "new.html") == tmp_path / "new.html"
    assert (
        report(run, out=tmp_path / "new.html")
        .read_text()
        .startswith("<!doctype html><!-- written by fulltune report -->")
    )


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}")
def test_a_browser_shows_the_page_and_tells_numbers_under_the_pointer(run: Path, html: str, tmp_path: Path) -> None:
    act = (
        "const chart = document.querySelector('svg'), box = chart.getBoundingClientRect();"
        "chart.dispatchEvent(new PointerEvent('pointermove', {clientX: box.left + box.width, clientY: box.top + 9}));"
    )
    (tmp_path / "page.html").write_text(html.replace("</script>\n</body>", f"{act}\n</script>\n</body>"))
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    more = ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    command = [str(CHROMIUM), *flags.split(), *more, (tmp_path / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    shown = Elements(done.stdout)
    assert f"<title>{run.name}</title>" in done.stdout, "no script of a row ran"
    (readout, *_) = re.findall(r'<p class="readout faint">(.*?)</p>', done.stdout)
    assert re.fullmatch(r"training [\d.]+ at 6; held-out [\d.]+ at 6", readout)
    assert "img" not in {tag for tag, _ in shown.found}


def test_the_verdict_of_the_gate_stands_on_top_and_is_nothing_but_text(tmp_path: Path) -> None:
    moved = {"score": EVIL, "before": 5.0, "after": 4.0, "gain": 1.0, "interval": [0.5, 1.5]}
    failed = {"what": f"more of {EVIL}", "found": 1.0, "kept": False}
    verdict = {"ship": False, "gained": moved, "lost": None, "conditions": [failed], "asked": True, "notes": [EVIL]}
    lines = [evaluation(0, 5.0), step(1, 4.5), evaluation(1, 4.0)]
    folder = bare(tmp_path / "run", lines, record={"result_step": 1, "verdict": verdict})
    made = page(read_story(folder), Beside())
    parsed = Elements(made)
    assert {tag for tag, _ in parsed.found if tag in ("img", "a")} == set()
    assert sum(tag == "script" for tag, _ in parsed.found) == 1
    assert "DO NOT SHIP gained 1.0000 [0.5000, 1.5000] of" in parsed.text
    assert "failed: more of" in parsed.text
    assert parsed.text.index("DO NOT SHIP") < parsed.text.index("What it learned")
    assert "\u202e" not in made
    unjudged = bare(tmp_path / "other", lines, record={"result_step": 1})
    assert 'class="gate"' not in page(read_story(unjudged), Beside()), "a record from before the gate"
