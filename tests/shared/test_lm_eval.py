"""A local task of lm-evaluation-harness: through its own model, through ours, and as a suite of ours."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import fulltune
from fulltune.base.results import SuiteReport
from fulltune.examining import Named, ask, suites_of
from fulltune.model.folder import section_of
from fulltune.recipe.ask import load_suites
from tests import command, tiny

pytest.importorskip("lm_eval")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.filterwarnings("error::RuntimeWarning")]

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{text}"
{rest}
"""
QUESTIONS = 40


def task(folder: Path, name: str, data: Path, kind: str, text: str, rest: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(TASK.format(name=name, data=data, kind=kind, text=text, rest=rest))
    return path


CHOICE = """doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def reports(model: Path, suites: list[Any], folder: Path | None = None) -> list[SuiteReport]:
    made = ask(Named("m", section_of(model)), suites_of(load_suites(suites, "test")), batch_tokens=2048, folder=folder)
    return [one.report for one in made]


@pytest.mark.usefixtures("cache")
def test_accuracies_are_those_of_lm_eval_itself(shared: Path, tmp_path: Path) -> None:
    """The same log-likelihoods to 1e-3, and therefore the same choices and accuracies, plain and by length."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    lines = (shared / "data/arc_easy/all.norm.jsonl").read_text().splitlines()[:QUESTIONS]
    data = tmp_path / "arc.jsonl"
    data.write_text("\n".join(lines) + "\n")
    path = task(tmp_path, "arc", data, "multiple_choice", "{{question}}\\nAnswer:", CHOICE)
    folder = shared / "models/stories260K"
    theirs = simple_evaluate(
        model=HFLM(
            pretrained=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            tokenizer=AutoTokenizer.from_pretrained(folder),
            batch_size=8,
            device="cpu",
            max_length=512,
        ),
        tasks=["arc"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )
    ours, own = reports(
        folder,
        [{"kind": "lm_eval", "data": str(path)}, {"use": "arc_easy", "data": str(data)}],
        tmp_path / "out",
    )
    wanted = theirs["results"]["arc"]
    assert ours.questions == own.questions == QUESTIONS
    for name, same in (("acc", "choice"), ("acc_norm", "choice_by_length")):
        assert ours.scores[name] == pytest.approx(wanted[f"{name},none"], abs=1e-9)
        assert own.scores[same] == pytest.approx(wanted[f"{name},none"], abs=1e-9)
        assert ours.better[name] == "higher"
        assert ours.intervals[name] == pytest.approx(own.intervals[same])
    samples = sorted(theirs["samples"]["arc"], key=lambda sample: sample["doc_id"])
    for suite in ("arc", "arc_easy"):
        kept = [json.loads(line) for line in (tmp_path / f"out/m/{suite}.jsonl").read_text().splitlines()]
        for line, sample in zip(kept, samples, strict=True):
            assert line["logprobs"] == pytest.approx([one[0] for one in sample["filtered_resps"]], abs=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
def test_tasks_of_other_kinds_on_the_command_line(tmp_path: Path) -> None:
    rows = [{"q": row["prompt"], "a": row["completion"]} for row in tiny.rows(6)]
    data = tiny.jsonl(tmp_path / "rows.jsonl", rows)
    said = 'doc_to_target: a\ngeneration_kwargs: {until: ["."], max_gen_toks: 6}\n'
    said += "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]"
    task(tmp_path, "said", data, "generate_until", "{{q}}", said)
    rolling = 'doc_to_target: "{{a}}"\n'
    rolling += "metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]"
    task(tmp_path, "likely", data, "loglikelihood_rolling", "", rolling)
    tiny.folder(tmp_path / "model")
    text = {"name": "ours", "kind": "text", "data": "rows.jsonl", "answer": "a"}
    (tmp_path / "ours.yaml").write_text(json.dumps(text))
    words = ["evaluate", "model", "--suite", "lm_eval=said.yaml", "--out", "out"]
    done = command.run(*words, "--suite", "ours.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report, ours = json.loads(done.stdout)["reports"]
    assert report["scores"] == {"exact_match": 0.0}
    assert report["form"] == "task"
    line = json.loads((tmp_path / "out/model/said.jsonl").read_text().splitlines()[0])
    assert line["question"] == rows[0]["q"]
    assert line["answer"]
    (tmp_path / "likely.yaml").rename(tmp_path / "rolling.yaml")
    done = command.run("evaluate", "model", "--suite", "lm_eval=rolling.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (likely,) = json.loads(done.stdout)["reports"]
    assert likely["scores"]["bits_per_byte"] == pytest.approx(ours["scores"]["bits_per_byte"], rel=1e-4)
    assert likely["better"] == {"bits_per_byte": "lower"}
    done = command.run("evaluate", "model", "--suite", "lm_eval=rolling.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "bits_per_byte" in done.stdout, "a score without an interval"


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
def test_a_task_in_a_run_changes_nothing_that_is_learned(tmp_path: Path, llama: Path, data: Path) -> None:
    """lm-eval seeds every generator that there is; updates are seeded for themselves."""
    rows = [{"q": row["prompt"], "choices": ["yes", "no"], "answer": n % 2} for n, row in enumerate(tiny.rows(4))]
    asked = task(tmp_path, "chosen", tiny.jsonl(tmp_path / "q.jsonl", rows), "multiple_choice", "{{q}}", CHOICE)
    suites = {"suites": [{"kind": "lm_eval", "data": str(asked)}], "suites_every": 2}
    recipe = tiny.recipe(llama, data, model={"dropout": 0.1, "path": str(tiny.folder(tmp_path / "gpt2", "gpt2"))})
    record = fulltune.train(recipe, out=tmp_path / "with", evaluate=suites)
    assert [report.step for report in record.suites] == [0, 2, 4, 6]
    assert all(report.form == "task" and report.questions == 4 for report in record.suites)
    fulltune.train(recipe, out=tmp_path / "without")
    one, other = (load_file(tmp_path / name / "model/model.safetensors") for name in ("with", "without"))
    assert all(bool((one[name] == other[name]).all()) for name in other)


@pytest.mark.usefixtures("cache")
def test_mistakes(tmp_path: Path, llama: Path) -> None:
    (tmp_path / "group.yaml").write_text("group: x\ntask: []\n")
    (tmp_path / "none.yaml").write_text("nothing: here\n")
    task(tmp_path, "broken", tmp_path / "no.jsonl", "multiple_choice", "{{q}}", CHOICE)
    for words, code, said in (
        (["lm_eval=nowhere.yaml"], 3, "no such task file"),
        (["lm_eval=none.yaml"], 3, "no task is defined here"),
        (["lm_eval=group.yaml"], 3, "a group of tasks"),
        (["lm_eval=broken.yaml"], 3, "lm-eval cannot do this task"),
    ):
        done = command.run("evaluate", str(llama), "--suite", *words, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert said in done.stderr
    with pytest.raises(Exception, match="`prompt` is in the task itself"):
        load_suites([{"kind": "lm_eval", "data": "x.yaml", "prompt": "q"}], "test")
