"""KL divergence from the base, from recipe to result: measured, told, held down, and the same after a stop."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import fulltune
from fulltune.base.errors import RecipeError
from fulltune.base.records import IGNORE
from fulltune.data.store import Store
from fulltune.divergence import divergence, likeliest
from fulltune.training.journal import read
from tests import tiny
from tests.contract.test_resume import digest, run, steps

TOP = 40


def recipe(folder: Path, *, tokens: int = 150, **train: Any) -> dict[str, Any]:
    """Dropout on; 9 updates, a checkpoint every 3, an evaluation every 4; texts that are measured and replayed."""
    folder.mkdir(exist_ok=True)
    model = tiny.folder(folder / "model", "gpt2", attn_pdrop=0.1, embd_pdrop=0.1, resid_pdrop=0.1)

    def texts(name: str, seed: int, count: int) -> str:
        rows = [{"text": row["prompt"]} for row in tiny.rows(count, seed=seed)]
        return str(tiny.jsonl(folder / f"{name}.jsonl", rows))

    data = {"retention": [texts("news", 5, 9), texts("code", 6, 6)], "duplicates": "drop"}
    return tiny.recipe(
        model,
        tiny.jsonl(folder / "rows.jsonl", tiny.rows(60)),
        data={**data, "replay": {"sources": texts("general", 8, 20), "share": 0.3}},
        train={"steps": 9, **train},
        evaluate={"every": 4, "kl_tokens": tokens, "kl_top": TOP, "samples": 0},
        checkpoint={"every": 3},
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without and one with a penalty, in `plain` and `held`; `known` is its recipe."""
    folder = tmp_path_factory.mktemp("kl")
    asked = recipe(folder, tokens=10**6)
    fulltune.train(asked, out=folder / "plain")
    asked["train"]["kl_weight"] = 30.0
    fulltune.train(asked, out=folder / "held")
    return folder


def test_the_score_lies_below_the_exact_divergence_by_no_more_than_the_bound(trained: Path) -> None:
    """Of the result's own files against the base's, token by token, over the whole vocabulary."""
    run = trained / "plain"
    store = Store(run / "data/retention", [("news.jsonl",), ("code.jsonl",)])
    base, tuned = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (trained / "model", run / "model"))
    exact = bucketed = most = tokens = 0.0
    for number in range(len(store)):
        ids, rows = torch.tensor(store[number].ids).long(), torch.tensor(store[number].labels) != IGNORE
        with torch.no_grad():
            old, new = (model(input_ids=ids[None]).logits[0][rows].double() for model in (base, tuned))
        p, q, kept = old.log_softmax(-1), new.log_softmax(-1), likeliest(old, TOP)
        exact += float((p.exp() * (p - q)).sum())
        bucketed += float(divergence(new, kept).sum())
        others = q.scatter(-1, kept.ids, torch.inf).min(-1).values
        left = q.scatter(-1, kept.ids, -torch.inf).logsumexp(-1)
        lacking = kept.rest.exp() * (kept.logs[:, -1] - others) - kept.rest.exp() * (kept.rest - left)
        most += float((divergence(new, kept) + lacking).sum())
        tokens += int(rows.sum())
    scores = fulltune.evaluate(run)
    found = scores["result"].scores["retention.kl"]
    assert scores["base"].scores["retention.kl"] < 1e-9
    assert found == pytest.approx(bucketed / tokens, rel=1e-3)
    assert found < exact / tokens < most / tokens
    assert scores["result"].counts["retention.kl"] == tokens == scores["result"].counts["retention"]


def test_it_is_told_wherever_retention_loss_is(trained: Path) -> None:
    run = trained / "plain"
    found = [line["scores"]["retention.kl"] for line in read(run / "journal.jsonl", "evaluation")]
    assert found[0] < 1e-9 < 1e-5 < found[1] < found[-1]
    record = json.loads((run / "record.json").read_text())
    assert record["evaluations"][-1]["scores"]["retention.kl"] == found[-1]
    assert set(record["baseline"]["scores"]) >= {"retention.kl", "retention.news.kl", "retention.code.kl"}
    assert f"| retention.kl | 0 | {found[-1]:.4g} |" in (run / "model/README.md").read_text()
    assert "KL from the base" in (run / "report.html").read_text()
    scores = fulltune.evaluate(run)["result"].scores
    assert scores["retention.kl"] == pytest.approx(found[-1], rel=1e-3)
    scores = fulltune.blend(run, at="0,1").points
    assert scores[0].scores["retention.kl"] < 1e-9
    assert scores[1].scores["retention.kl"] == pytest.approx(found[-1], rel=1e-3)


def test_a_run_that_kept_nothing_asks_the_base_when_it_is_evaluated(trained: Path, tmp_path: Path) -> None:
    """And leaves the folder as it was."""
    shutil.copytree(trained / "plain", tmp_path / "run")
    wanted = fulltune.evaluate(tmp_path / "run")["result"].scores
    shutil.rmtree(tmp_path / "run/base-retention")
    assert fulltune.evaluate(tmp_path / "run")["result"].scores == wanted
    assert not (tmp_path / "run/base-retention").exists()


def test_the_penalty_holds_the_model_to_the_base_on_texts_that_are_measured_apart(trained: Path) -> None:
    """Its part of the update is told, and stands in no loss; retention texts were never trained on."""
    plain, held = (list(read(trained / name / "journal.jsonl", "step")) for name in ("plain", "held"))
    assert all(line["penalty"] == 0 for line in plain) and all(line["penalty"] > 0 for line in held)
    assert held[0]["loss"] == plain[0]["loss"], "the loss is that of the data"
    ends = [list(read(trained / name / "journal.jsonl", "evaluation"))[-1]["scores"] for name in ("plain", "held")]
    assert ends[1]["retention.kl"] < 0.9 * ends[0]["retention.kl"]
    assert "KL on replayed text, weight 30" in (trained / "held/model/README.md").read_text()
    general = load_file(next((trained / "held/base-replay").glob("*.safetensors")))
    mixed = json.loads((trained / "held/data.json").read_text())["splits"]["train"]["by_source"]
    assert {mixed[0] <= int(member) < sum(mixed) for member in general["examples"]} == {True}


def test_it_is_measured_anew_where_it_is_asked_for_otherwise_on_the_way(trained: Path, tmp_path: Path) -> None:
    """A run that goes on has its base once more, before the checkpoint is read."""
    shutil.copytree(trained / "plain", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/base-retention")
    record = fulltune.train(tmp_path / "run", train={"steps": 10}, evaluate={"kl_top": 299})
    again = [report.scores["retention.kl"] for report in record.evaluations]
    before = list(read(trained / "plain/journal.jsonl", "evaluation"))[-1]["scores"]["retention.kl"]
    assert again[-1] > before, "of more tokens one by one, and after another update"
    card = json.loads((tmp_path / "run/base-retention/card.json").read_text())
    assert (card["top"], card["rest"] < 0.01) == (299, True)


def test_it_can_be_left_out(trained: Path) -> None:
    scores = fulltune.evaluate(trained / "plain", evaluate={"kl_tokens": 0})["result"].scores
    assert "retention.loss" in scores
    assert not [name for name in scores if name.endswith("kl")]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"data": {"replay": None}}, "there are none"),
        ({"train": {"kl_weight": 0.0, "kl_top": 5}}, "that is 0"),
        ({"train": {"objective": "tests.contract.test_kl:recipe"}}, "knows of no base"),
    ],
)
def test_what_cannot_be_is_refused_before_any_row_is_read(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    asked = recipe(tmp_path, kl_weight=1.0)
    (tmp_path / "rows.jsonl").unlink()
    for section, values in change.items():
        asked[section] |= values
    with pytest.raises(RecipeError, match=said):
        fulltune.train(asked, out=tmp_path / "run")


@pytest.mark.slow
def test_killed_runs_end_with_the_same_bits(tmp_path: Path) -> None:
    """Also where what the base predicts was lost in between."""
    asked = recipe(tmp_path, kl_weight=10.0)
    assert run(asked, tmp_path / "whole") == 0
    killed = tmp_path / "killed"
    assert run(asked, killed, kill=2) == run(asked, killed, kill=5) == -signal.SIGKILL
    shutil.rmtree(killed / "base-replay")
    next((killed / "base-retention").glob("rows*")).write_bytes(b"torn")
    assert run(asked, killed) == 0
    assert digest(killed) == digest(tmp_path / "whole")
    assert steps(killed) == steps(tmp_path / "whole")
    scores = [
        [line["scores"] for line in read(at / "journal.jsonl", "evaluation")] for at in (killed, tmp_path / "whole")
    ]
    assert scores[0] == scores[1]
