"""The model card: front matter that Hugging Face reads, facts that are the run's own, text that stays text."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

import fulltune
from fulltune.base.gate import GateVerdict, Moved
from fulltune.base.records import EvalReport, SourceFacts
from fulltune.exporting.card import Card, hub_id, licence_of, text
from tests import tiny

EVIL = "x | y `code` <script>alert(1)</script> [link](javascript:alert(1))\n---\nlicense: mit\n# head \x1b[31m \u202e"


def source(path: str, **changes: Any) -> SourceFacts:
    values: dict[str, Any] = {
        "path": path,
        "files": (path,),
        "format": "text",
        "sha256": "ab" * 32,
        "rows": 7,
        "examples": 6,
    }
    return SourceFacts(**(values | changes))


def card(tmp_path: Path, **changes: Any) -> Card:
    values: dict[str, Any] = {
        "name": "my-run",
        "base": "my-org/my-model",
        "base_folder": tmp_path,
        "step": 40,
        "mixed": None,
        "sources": {"train": (source("org/data"),), "heldout": (source("/home-of/mine/held.jsonl"),)},
        "before": EvalReport(step=0, scores={"heldout.loss": 5.0}, counts={"heldout": 99}),
        "after": EvalReport(
            step=40,
            scores={
                "heldout.loss": 2.5,
                "heldout.perplexity": 12.18,
                "retention.loss": float("nan"),
                "heldout.a.loss": 2,
            },
            counts={"heldout": 99},
        ),
        "intervals": {},
        "settings": {"learning rate": "1e-05 at the peak, cosine"},
        "versions": {"torch": "2.13"},
        "chat": True,
    }
    return Card(**(values | changes))


def front(made: str) -> dict[str, Any]:
    """The front matter as YAML 1.1 reads it, which the hub uses."""
    found = re.match(r"---\n(.*?)\n---\n", made, re.DOTALL)
    assert found is not None
    values: dict[str, Any] = yaml.safe_load(found[1])
    return values


def test_the_front_matter_says_what_is_known(tmp_path: Path) -> None:
    made = text(card(tmp_path))
    values = front(made)
    assert values["base_model"] == "my-org/my-model"
    assert values["datasets"] == ["org/data"]
    assert values["library_name"] == "transformers"
    assert values["pipeline_tag"] == "text-generation"
    assert values["tags"] == ["fulltune", "full-fine-tuning", "conversational"]
    assert "language" not in values
    assert "license" not in values
    (model,) = values["model-index"]
    assert model["name"] == "my-run"
    (result,) = model["results"]
    assert result["dataset"] == {"name": "held-out data", "type": "local", "split": "heldout"}
    metrics = [(metric["type"], metric["value"]) for metric in result["metrics"]]
    assert metrics == [("loss", 2.5), ("perplexity", 12.18)]


def test_the_hub_itself_reads_it(tmp_path: Path) -> None:
    read = ModelCard(text(card(tmp_path)))
    assert read.data.base_model == "my-org/my-model"
    assert [result.metric_value for result in read.data.eval_results or ()] == [2.5, 12.18]
    assert read.text.lstrip().startswith("# my-run")


def test_suites_of_questions_stand_beside_losses(tmp_path: Path) -> None:
    scores = {"heldout.loss": 2.5, "retention.loss": 1.5, "sums.exact": 0.6}
    after = EvalReport(step=40, scores=scores, counts={"heldout": 99, "sums": 80})
    made = text(card(tmp_path, after=after, intervals={"sums.exact": (0.5, 0.7)}))
    assert "| sums.exact | not measured | 0.6 (0.5 to 0.7) | 80 questions |" in made
    assert "| heldout.loss | 5 | 2.5 | 99 tokens |" in made
    results = front(made)["model-index"][0]["results"]
    assert [(one["dataset"]["name"], one["metrics"][0]["value"]) for one in results] == [
        ("held-out data", 2.5),
        ("retention data", 1.5),
        ("sums", 0.6),
    ]


def test_of_a_folder_nobody_knows_the_name_on_the_hub(tmp_path: Path) -> None:
    made = text(card(tmp_path, base="/home-of/mine/stories", sources={"train": (source("/home-of/mine/rows.jsonl"),)}))
    assert "base_model" not in front(made)
    assert "datasets" not in front(made)
    assert "`stories`, whose weights were trained further" in made
    assert "rows.jsonl" in made
    assert "home-of" not in made, "no path of somebody's machine is published"
    assert [hub_id(name) for name in ("a/b", "gpt2", "/a/b", "../b", "a/b/c", "https://x/y")] == [
        "a/b",
        "gpt2",
        *[None] * 4,
    ]


def test_a_mixture_is_called_one(tmp_path: Path) -> None:
    made = text(card(tmp_path, step=None, mixed="0.4 of the base, 0.6 of <my> run"))
    assert "These weights are a mixture, made after training: 0.4 of the base, 0.6 of \\<my\\> run." in made
    assert "mixture" not in text(card(tmp_path))


def test_without_a_measure_it_says_so(tmp_path: Path) -> None:
    made = text(card(tmp_path, before=None, after=None))
    assert "model-index" not in front(made)
    assert "Nothing was measured of these weights." in made
    assert "What the model forgot was not measured." in text(
        card(tmp_path, after=EvalReport(step=1, scores={"heldout.loss": 1.0}, counts={}))
    )


def test_what_others_wrote_stays_text(tmp_path: Path) -> None:
    made = text(card(tmp_path, name=EVIL, sources={"train": (source(f"/x/{EVIL}"),)}, settings={EVIL: EVIL}))
    values = front(made)
    assert "license" not in values
    body = made.split("\n---\n", 1)[1]
    assert "<script>" not in body
    assert "](javascript" not in body
    assert "\x1b" not in body
    assert "\u202e" not in body
    assert not re.search(r"^(---|# head|license:)", body, re.MULTILINE)
    (row,) = [line for line in body.splitlines() if line.startswith("| train |")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 5, "a name adds no column"


@pytest.mark.parametrize(
    ("name", "written", "found"),
    [
        ("README.md", "---\nlicense: apache-2.0\ntags: [a]\n---\n# Base\n", {"license": "apache-2.0"}),
        (
            "README.md",
            "---\nlicense: \"other\" # see\nlicense_name: 'llama3.1'\n---\n",
            {"license": "other", "license_name": "llama3.1"},
        ),
        ("README.md", "# Base\nlicense: mit\n", {}),
        ("README.md", "---\ntags: [a]\n---\nlicense: mit\n", {}),
        (
            "LICENSE",
            "                 Apache License\n           Version 2.0, January 2004\n",
            {"license": "apache-2.0"},
        ),
        ("LICENSE", "MIT License\n\nCopyright", {"license": "mit"}),
        ("LICENSE.txt", "You may not use this.\n", {}),
    ],
)
def test_the_licence_is_what_the_base_names(tmp_path: Path, name: str, written: str, found: dict[str, str]) -> None:
    (tmp_path / name).write_text(written)
    assert licence_of(tmp_path) == found
    values = front(text(card(tmp_path)))
    assert {key: values[key] for key in found} == found
    assert ("license" in values) == bool(found)


def test_a_result_ships_its_own_card_and_never_that_of_its_base(tmp_path: Path) -> None:
    base = tiny.folder(tmp_path / "base")
    (base / "README.md").write_text("---\nlicense: mit\nlanguage: fr\n---\n# The base wins every benchmark\n")
    recipe = tiny.recipe(base, tiny.jsonl(tmp_path / "rows.jsonl", tiny.rows(30)), data={"heldout": 0.3})
    record = fulltune.train(recipe, out=tmp_path / "run")
    made = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "wins every benchmark" not in made
    values = front(made)
    assert (values["license"], values.get("language")) == ("mit", None)
    after = next(report for report in record.evaluations if report.step == record.result_step)
    metrics = {metric["type"]: metric["value"] for metric in values["model-index"][0]["results"][0]["metrics"]}
    assert metrics["loss"] == pytest.approx(after.scores["heldout.loss"], rel=1e-5)
    assert f"after {record.result_step} updates" in made
    assert "| precision | float32 |" in made
    assert str(tmp_path) not in made
    (code,) = re.findall(r"```python\n(.*?)```", made, re.DOTALL)
    exec(code.replace('"."', repr(str(tmp_path / "run" / "model"))).replace("=256", "=4"), {})
    assert f"| train | rows.jsonl | {record.data.splits['train'].examples} |" in made
    place = fulltune.export(tmp_path / "run", tmp_path / "again", step=record.result_step)
    assert (place / "README.md").read_text() == made


def test_the_verdict_stands_above_the_scores_and_stays_text(tmp_path: Path) -> None:
    gained = Moved(score="test.loss", before=5.0, after=4.0, gain=1.0, interval=None)
    verdict = GateVerdict(ship=True, gained=gained, lost=None, conditions=(), asked=False, notes=(EVIL,))
    made = text(card(tmp_path, verdict=verdict))
    assert made.index("**SHIP**: gained 1.0000") < made.index("| score |")
    assert "<script>" not in made
    assert "\u202e" not in made
    assert "SHIP" not in text(card(tmp_path))
