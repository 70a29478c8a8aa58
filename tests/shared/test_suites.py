"""Metrics beside their libraries, and every suite that is described already, on real data and a real model."""

import json
import random
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fulltune.base import stop
from fulltune.evaluation.answers import Answer, Reference
from fulltune.evaluation.asking import Examinee
from fulltune.evaluation.generate import greedy, ways
from fulltune.evaluation.metrics import metric
from fulltune.evaluation.scoring import Scored, Scorer
from fulltune.evaluation.speaking import Decoding, Speaker
from fulltune.evaluation.texts import number_in
from fulltune.examining import suites_of
from fulltune.material import template
from fulltune.model.folder import stop_ids
from fulltune.recipe.ask import load_suites
from fulltune.recipe.schema import ModelSection
from fulltune.recipe.suites import SUITES

DATA = {
    "gsm8k": "gsm8k/test",
    "arc_easy": "arc_easy/all",
    "lambada": "lambada_openai/all",
    "text": "tinystories/val",
    "banking77": "banking77/test",
    "sst2": "sst2/test",
    "sms_spam": "sms_spam/test",
    "conlang_translation": "conlang_translation/all",
    "qmsum": "qmsum_product/test",
    "advbench_refusals": "advbench/all",
}


def rows(shared: Path, name: str) -> Iterator[dict[str, Any]]:
    with (shared / f"data/{name}.norm.jsonl").open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def table(name: str, said: list[str], right: list[str], **options: Any) -> tuple[Any, np.ndarray]:
    made = metric(name, options, "answer", where="x")
    return made, np.asarray(made.items([Answer(s) for s in said], [Reference((r,)) for r in right]))


@pytest.fixture(scope="module")
def stories(shared: Path) -> Examinee:
    folder = shared / "models/stories260K"
    section = ModelSection(path=str(folder))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Examinee(model, tokenizer, template(section, tokenizer), frozenset(stop_ids(section)), 4096, stop.check)


def test_every_published_answer_of_gsm8k_ends_in_its_number(shared: Path) -> None:
    found = [(number_in(row["messages"][1]["content"]), row["answer"]) for row in rows(shared, "gsm8k/test")]
    assert len(found) == 1319
    assert all(number == Decimal(answer.replace(",", "")) for number, answer in found)


def test_translation_metrics_are_sacrebleus(shared: Path) -> None:
    from sacrebleu.metrics import BLEU, CHRF

    right = [row["target"] for row in rows(shared, "conlang_translation/all")]
    right += [row["messages"][1]["content"] for row in rows(shared, "gsm8k/test")][:300]
    rng = random.Random(0)
    said = [" ".join(word for word in text.split() if rng.random() < 0.8) for text in right]
    for name, library in (("bleu", BLEU()), ("chrf", CHRF())):
        made, items = table(name, said, right)
        assert made.total(items) == pytest.approx(library.corpus_score(said, [right]).score, abs=1e-9)


def test_rouge_l_is_the_packages(shared: Path) -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=False)
    some = list(rows(shared, "qmsum_product/test"))
    said, right = [row["source"][:600] for row in some], [row["target"] for row in some]
    _, items = table("rouge_l", said, right)
    wanted = [scorer.score(r, s)["rougeL"].fmeasure for s, r in zip(said, right, strict=True)]
    assert items[:, 0] == pytest.approx(wanted, abs=1e-12)
    assert 0.05 < items[:, 0].mean() < 0.5


@pytest.mark.parametrize("name", ["banking77/test", "sst2/dev", "sms_spam/test"])
def test_classification_is_scikit_learns(shared: Path, name: str) -> None:
    from sklearn.metrics import accuracy_score, f1_score

    right = [row["label"] for row in rows(shared, name)]
    rng = random.Random(1)
    said = [label if rng.random() < 0.7 else rng.choice([*right, "nothing of it"]) for label in right]
    labels = sorted(set(right))
    wanted = {"accuracy": accuracy_score(right, said)}
    for average in ("macro", "micro"):
        wanted[f"{average}_f1"] = f1_score(right, said, average=average, labels=labels, zero_division=0)
    for metric_name, value in wanted.items():
        made, items = table(metric_name, said, right)
        assert made.total(items) == pytest.approx(value, abs=1e-12)


def test_calls_of_tools_fit_the_schemas_of_their_tools(shared: Path) -> None:
    """By the package jsonschema, asked directly; and what does not fit is not let through."""
    from jsonschema import validate
    from jsonschema.exceptions import ValidationError

    seen = right = 0
    for row in rows(shared, "glaive_toolcall_demo/all"):
        shapes = {tool["function"]["name"]: tool["function"]["parameters"] for tool in row["tools"]}
        for turn in row["messages"]:
            for call in turn.get("tool_calls") or ():
                shape, said = shapes[call["function"]["name"]], call["function"]["arguments"]
                for value in (said, {}, [said]):
                    try:
                        validate(value, shape)
                        fits = 1.0
                    except ValidationError:
                        fits = 0.0
                    made, items = table("json_schema", [json.dumps(value)], [""], schema=shape)
                    assert made.total(items) == fits
                    seen, right = seen + 1, right + fits
    assert seen > 300
    assert 0.2 < right / seen < 0.9


@pytest.mark.slow
def test_answers_of_a_real_model_in_batches_are_those_of_one_by_one(shared: Path, stories: Examinee) -> None:
    assert (ways(stories.model).cache, ways(stories.model).together) == (True, "padded")
    starts = [" ".join(row["text"].split()[: 3 + n % 9]) for n, row in enumerate(rows(shared, "tinystories/val"))][:12]
    prompts = [stories.tokenizer(text)["input_ids"] for text in starts]
    names = [str(number) for number in range(len(prompts))]
    for temperature in (0.0, 0.7):
        speaker = Speaker(stories, Decoding(tokens=40, temperature=temperature))
        alone = [speaker([prompt], [name])[0] for prompt, name in zip(prompts, names, strict=True)]
        assert speaker(prompts, names) == alone
        assert len({said.text for said in alone}) > 6


def test_a_recurrent_model_is_asked_in_a_way_that_is_right(shared: Path) -> None:
    """RWKV has no attention that could be masked, and in transformers 5.23 its rows mix where there is a cache."""
    folder = shared / "models/tiny-rwkv-4v0-660K"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    section = ModelSection(path=str(folder))
    asked = Examinee(model, tokenizer, template(section, tokenizer), frozenset(), 4096, stop.check)
    assert (ways(model).cache, ways(model).together) == (True, "alone")
    prompts, names = [list(b"Once upon"), list(b"The"), list(b"A dog"), list(b"One")], ["0", "1", "2", "3"]
    said = [list(one.ids) for one in Speaker(asked, Decoding(tokens=5))(prompts, names)]
    assert said == greedy(model, prompts, stop_ids=[], tokens=5)
    for prompt, answer in zip(prompts, said, strict=True):
        ids = list(prompt)
        for _ in range(5):
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        assert answer == ids[len(prompt) :]


def test_likelihoods_of_a_real_model_are_its_own(shared: Path, stories: Examinee) -> None:
    texts = [row["text"] for row in rows(shared, "tinystories/val")][:12]
    ids = [stories.tokenizer(text)["input_ids"][:500] for text in texts]
    found = Scorer(stories)([Scored(row, 1) for row in ids])
    for row, one in zip(ids, found, strict=True):
        with torch.no_grad():
            logits = stories.model(input_ids=torch.tensor([row])).logits[0, :-1].double()
        wanted = -torch.nn.functional.cross_entropy(logits, torch.tensor(row[1:]), reduction="sum")
        assert one.logprob / one.tokens == pytest.approx(float(wanted) / (len(row) - 1), abs=1e-5)


@pytest.mark.parametrize("name", sorted(DATA))
def test_suites_that_are_described_already_fit_their_data(shared: Path, stories: Examinee, name: str) -> None:
    asked = {"use": name, "data": str(shared / f"data/{DATA[name]}.norm.jsonl"), "limit": 5, "resamples": 100}
    if name not in ("arc_easy", "lambada", "text", "sst2", "sms_spam"):
        asked["max_new_tokens"] = 4
    (suite,) = suites_of(load_suites([asked], "test"))
    report = suite.examine(stories, model="stories", step=None, folder=None).report
    assert report.questions == 5
    assert all(np.isfinite(score) for score in report.scores.values())


def test_every_description_is_tried_here() -> None:
    assert set(SUITES) == {*DATA, "lm_eval"}
