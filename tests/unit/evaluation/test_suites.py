"""Suites: questions as they are read, answers in batches as one by one, likelihoods as the model has them."""

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fulltune import quickstart
from fulltune.base import stop
from fulltune.base.errors import DataError, DivergedError, Interrupted, RecipeError
from fulltune.base.files import read_record
from fulltune.base.results import SuiteReport
from fulltune.evaluation import generate
from fulltune.evaluation.asking import Examinee, Spelling, batches
from fulltune.evaluation.generate import greedy, padded, ways
from fulltune.evaluation.scoring import Scored, Scorer
from fulltune.evaluation.speaking import Decoding, Speaker
from fulltune.evaluation.suites import Examined, Suite, pieces_of
from fulltune.examining import suites_of
from fulltune.material import template
from fulltune.model.folder import load_tokenizer, section_of, stop_ids
from fulltune.model.load import load_model
from fulltune.recipe.ask import load_suites
from fulltune.recipe.schema import ModelSection
from tests import tiny
from tests.conftest import ROOT

PROMPTS = [[5, 6, 7], [9], [10, 11, 12, 13, 14, 15, 16], [17, 18], [20] * 11, [21, 22, 23], [40, 41]]
NAMES = [str(number) for number in range(len(PROMPTS))]


def examinee(model: Any, *, tokens: int = 4096, tokenizer: Any = None, stops: Sequence[int] = (2,)) -> Examinee:
    own = tokenizer or tiny.tokenizer()
    return Examinee(model, own, template(ModelSection(path="/model"), own), frozenset(stops), tokens, stop.check)


def suite(path: Path, **fields: Any) -> Suite:
    (made,) = suites_of(load_suites([{"data": str(path), **fields}], "test"))
    assert isinstance(made, Suite)
    return made


def asked(
    made: Suite, model: Any, *, tokens: int = 4096, folder: Path | None = None, tokenizer: Any = None
) -> Examined:
    return made.examine(examinee(model, tokens=tokens, tokenizer=tokenizer), model="tiny", step=None, folder=folder)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows = [
        {"id": f"q{n}", "question": row["prompt"], "answer": row["completion"]} for n, row in enumerate(tiny.rows(9))
    ]
    return tiny.jsonl(tmp_path / "q.jsonl", rows)


# --- answers in batches ---


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "qwen3", "mamba"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_answers_in_batches_are_those_of_one_by_one(kind: str, temperature: float) -> None:
    model = tiny.model(kind)
    how = Decoding(tokens=9, temperature=temperature, seed=3)
    alone = [Speaker(examinee(model), how)([prompt], [name])[0] for prompt, name in zip(PROMPTS, NAMES, strict=True)]
    for tokens in (1, 50, 10_000):
        assert Speaker(examinee(model, tokens=tokens), how)(PROMPTS, NAMES) == alone
    some = [3, 0, 6]
    assert Speaker(examinee(model), how)([PROMPTS[n] for n in some], [NAMES[n] for n in some]) == [
        alone[n] for n in some
    ]
    if not temperature:
        assert [list(said.ids) for said in alone] == greedy(model, PROMPTS, stop_ids=[2], tokens=9)


class Deaf:
    """A forward pass that is not told what is padding; and with `forgets` nothing of what was read before."""

    def __init__(self, model: Any, *, forgets: bool = False) -> None:
        self._plain, self._forgets = model.forward, forgets

    def __call__(self, input_ids: Any = None, attention_mask: Any = None, **others: Any) -> Any:
        if self._forgets:
            others["past_key_values"] = None
        return self._plain(input_ids=input_ids, **others)


@pytest.mark.parametrize(
    ("deaf", "wanted"), [({}, (True, "alike")), ({"forgets": True}, (False, "alike"))], ids=["padding", "cache"]
)
def test_what_a_model_does_wrong_is_noticed_and_gone_around(deaf: Any, wanted: tuple[bool, str]) -> None:
    for kind in ("llama", "gpt2"):
        assert (ways(tiny.model(kind)).cache, ways(tiny.model(kind)).together) == (True, "padded")
    model = tiny.model("gpt2")
    model.forward = Deaf(model, **deaf)
    found = ways(model)
    assert (found.cache, found.together) == wanted
    how = Decoding(tokens=6)
    said = Speaker(examinee(model), how)(PROMPTS, NAMES)
    assert said == [Speaker(examinee(tiny.model("gpt2")), how)([prompt], ["0"])[0] for prompt in PROMPTS]
    assert [list(one.ids) for one in said] == greedy(model, PROMPTS, stop_ids=[2], tokens=6)


def test_noise_of_16_bits_is_no_fault_of_a_model_that_is_asked_in_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are float32, and flash attention computes under autocast: with a cache the third digit is another."""
    model = tiny.model("llama")
    monkeypatch.setattr(generate, "arithmetic", lambda _: torch.autocast("cpu", torch.bfloat16))
    assert (ways(model).cache, ways(model).together) == (True, "padded")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "qwen3", "granite"])
def test_logits_do_not_hang_on_the_side_of_padding_or_the_batch(kind: str) -> None:
    """The next token's logits: alone, padded to the left as generation does, padded to the right as scoring does."""
    model = tiny.model(kind)
    ids, mask = padded(PROMPTS, 0)
    with torch.no_grad():
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        left = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -1]
        for row, prompt in enumerate(PROMPTS):
            alone = model(input_ids=torch.tensor([prompt])).logits[0, -1]
            assert left[row] == pytest.approx(alone, abs=1e-5)
            right = torch.tensor([prompt + [0] * (ids.shape[1] - len(prompt))])
            assert model(input_ids=right).logits[0, len(prompt) - 1] == pytest.approx(alone, abs=1e-5)


def test_an_answer_ends_at_stop_tokens_and_at_stop_texts() -> None:
    model, tokenizer = tiny.model("llama"), tiny.tokenizer()
    free = Speaker(examinee(model), Decoding(tokens=24))(PROMPTS, NAMES)
    first = free[0]
    assert not first.ended
    ends = Speaker(examinee(model, stops=(first.ids[3],)), Decoding(tokens=24))(PROMPTS, NAMES)[0]
    assert (ends.ids, ends.ended) == (first.ids[: first.ids.index(first.ids[3])], True)
    stop_text = tokenizer.decode([first.ids[2]])
    cut = Speaker(examinee(model), Decoding(tokens=24, stop_texts=(stop_text,)))(PROMPTS, NAMES)
    for said, before in zip(cut, free, strict=True):
        assert said.text == before.text.partition(stop_text)[0]
        assert said.ended == (stop_text in before.text)
    assert any(said.ended for said in cut)


def test_what_is_drawn_follows_the_models_probabilities() -> None:
    """Gumbel noise on logits / temperature draws from the softmax of them; greedily the same token comes each time."""
    model = tiny.model("llama", seed=1)
    with torch.no_grad():
        model.lm_head.weight.mul_(8)
        logits = model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1]
    chances = torch.softmax(logits / 1.5, -1)
    speaker = Speaker(examinee(model, stops=()), Decoding(tokens=1, temperature=1.5))
    drawn = [said.ids[0] for said in speaker([[5, 6, 7]] * 4000, [str(n) for n in range(4000)]) if said.ids]
    likely = chances.argsort(descending=True)[:5].tolist()
    for token in likely:
        wanted = float(chances[token])
        assert drawn.count(token) / 4000 == pytest.approx(wanted, abs=4 * (wanted * (1 - wanted) / 4000) ** 0.5)
    other = Speaker(examinee(model, stops=()), Decoding(tokens=1, temperature=1.5, seed=1))
    assert [said.ids for said in other([[5, 6, 7]] * 20, NAMES[:1] * 20)] != [
        said.ids for said in speaker([[5, 6, 7]] * 20, NAMES[:1] * 20)
    ]


def test_where_the_context_ends_each_prompt_keeps_its_own_room() -> None:
    model = tiny.model("gpt2", n_positions=12)
    prompts = [list(range(5, 5 + length)) for length in (3, 12, 10, 5, 11, 10, 4)]
    said = Speaker(examinee(model), Decoding(tokens=8))(prompts, NAMES)
    assert [list(one.ids) for one in said] == greedy(model, prompts, stop_ids=[2], tokens=8)
    assert said[1].ids == ()


def test_the_budget_bounds_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("llama")
    seen: list[tuple[int, int]] = []
    plain = model.generate

    def generate(ids: Any, **options: Any) -> Any:
        seen.append((ids.shape[0], ids.shape[1] + options["generation_config"].max_new_tokens))
        return plain(ids, **options)

    speaker = Speaker(examinee(model, tokens=40), Decoding(tokens=5))
    model.generate = generate
    speaker(PROMPTS, NAMES)
    assert all(rows * width <= 40 or rows == 1 for rows, width in seen)
    assert sum(rows for rows, _ in seen) == len(PROMPTS)
    assert max(rows for rows, _ in seen) > 1
    assert list(batches([3, 9, 4, 9], 18)) == [[1, 3], [2, 0]]
    assert list(batches([3, 9, 4, 9], 18, alike=True)) == [[1, 3], [2], [0]]


# --- likelihoods ---


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "cohere", "granite", "phi", "mamba"])
def test_likelihoods_are_the_models_own_whatever_the_batch(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model(kind)
    rows = [Scored(prompt, start) for prompt, start in zip(PROMPTS, (1, 1, 4, 1, 6, 2, 0), strict=True)]
    wanted = []
    for row in rows:
        ids, first = torch.tensor([list(row.ids)]), max(1, row.start)
        with torch.no_grad():
            logprobs = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0].double(), -1)
        found = [
            (float(logprobs[at - 1, ids[0, at]]), int(logprobs[at - 1].argmax() == ids[0, at]))
            for at in range(first, ids.shape[1])
        ]
        wanted.append((sum(p for p, _ in found), len(found), sum(hit for _, hit in found)))
    for tokens, chunk in ((1, 1 << 28), (16, 1 << 28), (10_000, 1 << 28), (10_000, 4 * tiny.VOCAB * 3)):
        monkeypatch.setattr("fulltune.evaluation.scoring.CHUNK_BYTES", chunk)
        made = Scorer(examinee(model, tokens=tokens))(rows)
        assert [one.tokens for one in made] == [tokens for _, tokens, _ in wanted]
        assert [one.hits for one in made] == [hits for _, _, hits in wanted]
        assert [one.logprob for one in made] == pytest.approx([logprob for logprob, _, _ in wanted], abs=1e-4)


def test_a_model_keeps_its_mode() -> None:
    model = tiny.model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5).train()
    rows = [Scored(prompt, 1) for prompt in PROMPTS]
    assert Scorer(examinee(model))(rows) == Scorer(examinee(model))(rows), "no dropout meanwhile"
    Speaker(examinee(model), Decoding(tokens=2))(PROMPTS, NAMES)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("limit", [4, 7, 64])
@pytest.mark.parametrize(("size", "start"), [(5, 1), (30, 1), (30, 12), (30, 29), (9, 8), (100, 3)])
def test_long_texts_are_cut_into_pieces_that_ask_every_token_once(limit: int, size: int, start: int) -> None:
    ids = list(range(1000, 1000 + size))
    pieces, cut = pieces_of(ids, start, limit)
    assert all(len(piece.ids) - 1 <= limit for piece in pieces), "the last token is only predicted"
    asked_about = [token for piece in pieces for token in piece.ids[max(1, piece.start) :]]
    assert asked_about == ids[start:]
    assert cut == (pieces[0].ids[0] != ids[0])
    if cut:
        assert pieces[0].start >= limit // 2, "the nearest half of the context is kept"
    else:
        assert size <= limit + 1 or start <= limit // 2


def test_a_choice_begins_where_its_text_does() -> None:
    tokenizer = tiny.tokenizer()
    spelling = Spelling(examinee(tiny.model("llama"), tokenizer=tokenizer), "plain")
    prompt = spelling.prompt((), "the cat", "x")
    ids, start = spelling.followed(prompt, "the cat", " ", "sat on")
    assert tokenizer.decode(ids[start:]) == " sat on"
    assert ids[:start] == prompt == [1, *tokenizer("the cat", add_special_tokens=False)["input_ids"]]
    ids, start = spelling.followed([], "", " ", "the cat")
    assert (ids[:start], tokenizer.decode(ids[start:])) == ([1], "the cat"), "behind BOS, without a separator"
    ids, _ = spelling.followed(prompt, "the cat", " ", "</s> and <|user|>")
    assert not {2, 3} & set(ids), "what a row spells is no control token"


# --- suites as a whole ---


def test_the_numbers_of_a_text_suite_are_those_of_the_model(questions: Path) -> None:
    model, tokenizer = tiny.model("llama"), tiny.tokenizer()
    made = suite(questions, kind="text", prompt="question", answer="answer")
    found = asked(made, model)
    nats = tokens = size = 0.0
    for line in map(json.loads, questions.read_text().splitlines()):
        whole = [1, *tokenizer(f"{line['question']} {line['answer']}", add_special_tokens=False)["input_ids"]]
        start = 1 + len(tokenizer(line["question"], add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([whole])).logits[0, start - 1 : -1].double()
        nats += float(torch.nn.functional.cross_entropy(logits, torch.tensor(whole[start:]), reduction="sum"))
        tokens += len(whole) - start
        size += len(f" {line['answer']}".encode())
    assert found.report.scores["loss"] == pytest.approx(nats / tokens, abs=1e-5)
    assert found.report.scores["bits_per_byte"] == pytest.approx(nats / np.log(2) / size, rel=1e-5)
    assert found.report.counts["tokens"] == tokens
    for budget in (1, 37, 100_000):
        other = asked(made, model, tokens=budget)
        for name, rows in found.items.items():
            assert other.items[name] == pytest.approx(rows, abs=1e-4, rel=1e-5)
            assert other.report.scores[name] == pytest.approx(found.report.scores[name], abs=1e-5, rel=1e-5)


def test_what_is_kept_of_a_suite(tmp_path: Path, questions: Path) -> None:
    made = suite(
        questions, name="mine", prompt="question", answer="answer", metrics=["chrf", "exact_match"], max_new_tokens=6
    )
    found = asked(made, tiny.model("llama"), folder=tmp_path / "out")
    assert read_record(tmp_path / "out/mine.json", SuiteReport) == found.report
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["mine.json", "mine.jsonl"]
    rows = [json.loads(line) for line in (tmp_path / "out/mine.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"q{n}" for n in range(9)]
    assert np.array([row["numbers"]["chrf"] for row in rows]) == pytest.approx(found.items["chrf"])
    assert rows[0]["scores"]["chrf"] == found.items["chrf"][0, 0]
    assert rows[0]["right"] == [tiny.rows(9)[0]["completion"]]
    report = found.report
    assert report.questions == 9
    assert report.asked == "chat"
    assert report.intervals["chrf"][0] <= report.scores["chrf"] <= report.intervals["chrf"][1]
    assert asked(made, tiny.model("llama")).report.scores == report.scores
    assert report.better == {"chrf": "higher", "exact_match": "higher"}


def test_windows_change_nothing(tmp_path: Path, questions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = suite(questions, prompt="question", answer="answer", metrics="chrf", max_new_tokens=6, temperature=0.7)
    whole = asked(made, tiny.model("llama"))
    monkeypatch.setattr("fulltune.evaluation.suites._AT_ONCE", 2)
    assert (asked(made, tiny.model("llama")).items["chrf"] == whole.items["chrf"]).all()


def test_questions_go_through_the_template_or_not(questions: Path) -> None:
    plain = asked(suite(questions, prompt="question", answer="answer", through="plain", max_new_tokens=3), tiny.model())
    chat = asked(suite(questions, prompt="question", answer="answer", max_new_tokens=3), tiny.model())
    assert (plain.report.asked, chat.report.asked) == ("plain", "chat")
    bare = tiny.tokenizer(template=None)
    auto = asked(suite(questions, prompt="question", answer="answer", max_new_tokens=3), tiny.model(), tokenizer=bare)
    assert auto.report.asked == "plain"
    with pytest.raises(DataError, match="this model has none"):
        asked(suite(questions, prompt="question", answer="answer", through="chat"), tiny.model(), tokenizer=bare)


def test_choices_of_labels_are_scored_as_classes(tmp_path: Path) -> None:
    rows = [{"text": tiny.rows(8)[n]["prompt"], "label": ("no", "yes")[n % 2]} for n in range(8)]
    path = tiny.jsonl(tmp_path / "labels.jsonl", rows)
    made = suite(
        path,
        kind="choice",
        prompt="{{ text }}?",
        choices=["no", "yes"],
        answer="label",
        metrics=["choice", "accuracy", "macro_f1", "calibration"],
    )
    found = asked(made, tiny.model(), folder=tmp_path)
    scores = found.report.scores
    assert scores["choice"] == scores["accuracy"]
    assert found.report.confusion is not None
    assert found.report.confusion.labels == ("no", "yes", "(anything else)")
    assert sum(map(sum, found.report.confusion.counts)) == 8
    line = json.loads((tmp_path / "labels.jsonl").read_text().splitlines()[0])
    assert line["right"] == ["no"]
    assert line["answer"] == ["no", "yes"][int(np.argmax(line["logprobs"]))]


def test_a_suite_that_is_stopped_leaves_no_half_file(
    tmp_path: Path, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = suite(questions, prompt="question", answer="answer", max_new_tokens=3)
    monkeypatch.setattr("fulltune.evaluation.suites._AT_ONCE", 3)
    model = tiny.model().train()
    plain, calls = model.generate, []

    def generate(*given: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(*given, **options)

    model.generate = generate
    with stop.listening(), pytest.raises(Interrupted):
        asked(made, model, folder=tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    assert model.training


def test_numbers_that_are_not_finite_end_it(questions: Path) -> None:
    model = tiny.model("llama")
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    with pytest.raises(DivergedError, match="loss of suite q is not finite"):
        asked(suite(questions, kind="text", answer="answer"), model)


def test_the_embedded_model_is_asked_as_the_quickstart_asks_it(tmp_path: Path) -> None:
    """Through its chat template, in batches: the answers of one by one, and the share that is right to the letter."""
    embedded = ROOT / "src/fulltune/embedded"
    some = quickstart.questions(embedded / "heldout.jsonl")[:10]
    path = tiny.jsonl(tmp_path / "q.jsonl", [{"prompt": one.prompt, "right": one.completion} for one in some])
    section = section_of(embedded / "model")
    model, tokenizer = load_model(section), load_tokenizer(section)
    made = suite(path, prompt="prompt", answer="right", max_new_tokens=64)
    asked = Examinee(model, tokenizer, template(section, tokenizer), frozenset(stop_ids(section)), 2048, stop.check)
    report = made.examine(asked, model="embedded", step=None, folder=tmp_path / "out").report
    kept = [json.loads(line)["answer"] for line in (tmp_path / "out/q.jsonl").read_text().splitlines()]
    alone = quickstart.answers(embedded / "model", some)
    assert kept == alone
    assert report.asked == "chat"
    assert report.scores["exact_match"] == quickstart.right(some, alone)


# --- questions that are none ---


@pytest.mark.parametrize(
    ("row", "fields", "said"),
    [
        ({"q": "x"}, {}, "there is no `answer`"),
        ({"question": 3, "answer": "x"}, {}, "the prompt is int"),
        ({"question": [], "answer": "x"}, {}, "a text or messages"),
        ({"question": " \n", "answer": "x"}, {}, "the prompt is empty"),
        ({"question": [{"role": "assistant", "content": "x"}], "answer": "x"}, {}, "nobody asks"),
        ({"question": [{"role": "boss", "content": "x"}], "answer": "x"}, {}, "boss"),
        ({"question": "x", "answer": None}, {}, "write a text, a number"),
        ({"question": "x", "answer": {"a": 1}}, {}, "write a text, a number"),
        ({"question": "x", "answer": 2, "c": ["a", "b"]}, {"kind": "choice", "choices": "c"}, "from 0 to 1"),
        ({"question": "x", "answer": "d", "c": ["a", "b"]}, {"kind": "choice", "choices": "c"}, "none of them"),
        ({"question": "x", "answer": 0, "c": ["a"]}, {"kind": "choice", "choices": "c"}, "2 or more"),
        ({"question": "x", "answer": ""}, {"kind": "text"}, "write a text"),
    ],
)
def test_rows_that_are_no_questions_are_all_named(tmp_path: Path, row: Any, fields: Any, said: str) -> None:
    path = tiny.jsonl(tmp_path / "q.jsonl", [row, {"question": "x", "answer": "y", "c": ["y", "z"]}, row])
    with pytest.raises(DataError) as caught:
        suite(path, prompt="question", answer="answer", **fields)
    assert [fault.where for fault in caught.value.faults] == [f"{path}:1", f"{path}:3"]
    assert any(said in f"{fault.what} {fault.mend}" for fault in caught.value.faults)


def test_files_that_hold_no_questions(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "torn.jsonl").write_text('{"question": "x", "answer": "y"}\n{"question": "x", "ans')
    for name, said in (("none.jsonl", "no such file"), ("empty.jsonl", "0 rows"), ("torn.jsonl", "incomplete")):
        with pytest.raises(DataError, match=said):
            suite(tmp_path / name, prompt="question", answer="answer")


def test_what_may_stand_in_a_row(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    rows = [
        {"question": [*chat, {"role": "assistant", "content": "4"}], "answer": ["4", "four"]},
        {"id": 7, "question": "1+1?", "answer": 2},
    ]
    one, other = list(suite(tiny.jsonl(tmp_path / "q.jsonl", rows), prompt="question", answer="answer").questions)
    assert [turn.role for turn in one.turns] == ["system", "user"], "the answer is not told"
    assert (one.id, one.reference.texts) == ("1", ("4", "four"))
    assert (other.id, other.prompt, other.reference.texts) == ("7", "1+1?", ("2",))
    limited = suite(tmp_path / "q.jsonl", prompt="question", answer="answer", limit=1)
    assert len(list(limited.questions)) == 1
    assert limited.fingerprint() != suite(tmp_path / "q.jsonl", prompt="question", answer="answer").fingerprint()


def test_descriptions_that_do_not_fit_are_refused(tmp_path: Path, questions: Path) -> None:
    own = {"data": str(questions), "prompt": "question"}
    for fields, said in (
        ({"kind": "choice"}, "needs `choices` and `answer`"),
        ({"kind": "text"}, "needs `answer`"),
        ({"choices": ["a", "b"]}, "add kind: choice"),
        ({"kind": "text", "prompt": None, "answer": "answer", "through": "chat"}, "needs a `prompt`"),
        ({"kind": "text", "answer": "answer", "temperature": 1.0}, "`stop` and `temperature` are of answers"),
        ({"metrics": ["regex", {"use": "regex", "options": {"pattern": "a"}}]}, "two metrics are called regex"),
        ({"metrics": "blue"}, "did you mean 'bleu'"),
        ({"metrics": "loss", "answer": "answer"}, "this one is of kind answer"),
        ({"metrics": "exact_match"}, "the suite names none"),
        ({"use": "gsm9k"}, "did you mean 'gsm8k'"),
        ({"prompts": "x"}, "did you mean `prompt`"),
    ):
        with pytest.raises(RecipeError) as caught:
            suites_of(load_suites([{**own, **fields}], "test"))
        assert said in str(caught.value), fields
    with pytest.raises(RecipeError, match="several suites are called q"):
        load_suites([{**own, "answer": "answer"}] * 2, "test")
    with pytest.raises(RecipeError, match="holds questions, and nothing says how"):
        load_suites([str(questions)], "test")
