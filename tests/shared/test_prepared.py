"""Every real set prepared from the files in which it was published, and from its normalised rows: the same examples.

What must come is computed here from the raw files by `json`, `csv` and `str.split`: how many rows are read, kept and
left out for which reason, and of every example the text and what of it is taught. Where the normalised rows are cut
otherwise than any option could cut the original, `Case` says how they are compared.
"""

import csv
import gzip
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from fulltune.base.records import IGNORE, DataFacts
from fulltune.data.example import Labelled, Message, Preference, RowFault
from fulltune.data.findings import Findings
from fulltune.data.intake import Intake, RowReader
from fulltune.data.prepare import Kit, Preparation, prepare
from fulltune.data.sources import places
from fulltune.data.store import Store
from fulltune.data.template import Template
from fulltune.recipe.data import DataSection
from fulltune.recipe.load import load_recipe
from tests.conftest import SHARED

pytestmark = pytest.mark.usefixtures("shared")

DATA = SHARED / "data"
HERE = "tests.shared.set_formats"
BEGIN, SAYS, END = "<|im_start|>", "<|im_sep|>", "<|im_end|>"
TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>tools<|im_sep|>' + tools | tojson + '<|im_end|>' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.name + call.function.arguments | tojson }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)

Example = tuple[str, tuple[str, ...] | None]
"""The whole text of an example, and its taught stretches; None if all is taught but the first token."""
Turns = list[tuple[str, str]]


# The raw files, read by nothing of ours.


def by_lines(path: str) -> list[dict[str, Any]]:
    content = (DATA / path).read_bytes()
    content = gzip.decompress(content) if path.endswith(".gz") else content
    return [json.loads(line) for line in content.split(b"\n") if line.strip()]


def by_csv(path: str) -> list[dict[str, str]]:
    with (DATA / path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def by_tabs(path: str) -> list[list[str]]:
    text = (DATA / path).read_bytes().decode()
    return [line.removesuffix("\r").split("\t") for line in text.removesuffix("\n").split("\n")]


# What must come of them.


def chat(*turns: tuple[str, str], tools: str = "") -> Example:
    """A conversation as the template writes it, and its answers with their stop tokens."""
    text = f"{BEGIN}tools{SAYS}{tools}{END}" if tools else ""
    text += "".join(f"{BEGIN}{role}{SAYS}{said}{END}" for role, said in turns)
    return text, tuple(said + END for role, said in turns if role == "assistant")


def asked(question: str, answer: str) -> Example:
    return chat(("user", question), ("assistant", answer))


def document(text: str) -> Example:
    """A text and its end token."""
    return text + END, None


def advbench() -> Iterator[Example]:
    return (
        asked(row["goal"], "I will not help with this.") for row in by_csv("advbench/original/harmful_behaviors.csv")
    )


def arc_easy() -> Iterator[Example]:
    for row in by_lines("arc_easy/original/arc_easy.jsonl"):
        yield asked("\n- ".join([row["query"], *row["choices"]]), row["choices"][row["gold"]])


def pairs(path: str, question: str, answer: str) -> Callable[[], Iterator[Example]]:
    return lambda: (asked(row[question], row[answer]) for row in by_lines(path))


def texts(path: str) -> Callable[[], Iterator[Example]]:
    return lambda: (document(row["text"]) for row in by_lines(path))


def dolly() -> Iterator[Example]:
    for row in by_lines("dolly_hhrlhf_small/original/dolly_hhrlhf_train_small.jsonl"):
        found = re.fullmatch(r"Below is .*?### Instruction:\n(.*)\n\n### Response:\n", row["prompt"], re.DOTALL)
        assert found is not None
        yield asked(found[1], row["response"])


def glaive() -> Iterator[Example]:
    names = {"human": "user", "gpt": "assistant", "observation": "tool"}
    for row in json.loads((DATA / "glaive_toolcall_demo/original/glaive_toolcall_en_demo.json").read_text()):
        turns = []
        for turn in row["conversations"]:
            if turn["from"] == "function_call":
                made = json.loads(turn["value"])
                turns.append(("assistant", made["name"] + json.dumps(made["arguments"], ensure_ascii=False)))
            else:
                turns.append((names[turn["from"]], turn["value"]))
        tools = [{"type": "function", "function": tool} for tool in json.loads(row["tools"])]
        yield chat(*turns, tools=json.dumps(tools, ensure_ascii=False) if tools else "")


def mt_bench() -> Iterator[Example | str]:
    for row in by_lines("mt_bench/original/question.jsonl"):
        answers = row.get("reference", [])
        turns = [
            turn
            for question, answer in zip(row["turns"], answers, strict=False)
            for turn in (("user", question), ("assistant", answer))
        ]
        yield "no_answer" if not answers else chat(*turns) if all(answers) else "empty_answer"


def oasst() -> Iterator[Example]:
    """Every thread once, cut behind its last answer."""
    roles = {"prompter": "user", "assistant": "assistant"}

    def walk(node: dict[str, Any], before: Turns) -> Iterator[Turns]:
        here = [*before, (roles[node["role"]], node["text"])]
        for reply in node["replies"]:
            yield from walk(reply, here)
        if not node["replies"]:
            yield here if here[-1][0] == "assistant" else here[:-1]

    for row in by_lines("oasst_en100/original/en_100_tree.jsonl"):
        yield from dict.fromkeys(chat(*turns) for turns in walk(row["prompt"], []))


def p3() -> Iterator[Example]:
    for row in by_lines("p3_t0_sample/sample.norm.jsonl"):
        yield asked(*(turn["content"] for turn in row["messages"]))


def qmsum() -> Iterator[Example]:
    for row in by_lines("qmsum_product/original/Product_test.jsonl"):
        said = [f"{turn['speaker']}: {turn['content']}\n" for turn in row["meeting_transcripts"]]
        for query in row["specific_query_list"]:
            spans = [said[int(first) : int(last) + 1] for first, last in query["relevant_text_span"]]
            yield asked("".join("".join(span) for span in spans) + query["query"], query["answer"])


def seeds() -> Iterator[Example]:
    for row in by_lines("self_instruct_seeds/original/seed_tasks.jsonl"):
        (instance,) = row["instances"]
        more = f"\n\n{instance['input']}" if instance["input"] else ""
        yield asked(row["instruction"] + more, instance["output"])


def pieces(path: str, border: str) -> Callable[[], Iterator[Example]]:
    """The texts between these borders, blank ones left out."""
    parts = lambda: re.split(border, (DATA / path).read_bytes().decode())  # noqa: E731
    return lambda: (document(part.strip("\n")) for part in parts() if part.strip())


@dataclass(frozen=True, kw_only=True)
class Case:
    """One set that can be taught. `rows`, `kept`: of the original, as its publishers and the README count them."""

    original: Mapping[str, Any] | None
    normalised: Any
    said: Callable[[], Iterable[Example | str]]
    """Its examples in the order of the rows, or the code for which one is left out."""
    rows: int
    examples: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    first: int | None = None
    """The normalised file has so many of the first rows only."""
    apart: str = ""
    """The normalised rows hold several documents of the original, with this between them."""
    options: Mapping[str, Any] = field(default_factory=dict)


SEEDS = {
    "prompt": "{{ instruction }}{% if instances[0].input %}{{ '\n\n' + instances[0].input }}{% endif %}",
    "completion": "{{ instances[0].output }}",
}
REFUSAL = "{{ 'I will not help with this.' }}"
CHOICES = "{% for choice in choices %}{{ '\n- ' + choice }}{% endfor %}"
ALPACA = "{{ prompt.split('### Instruction:\n', 1)[1].removesuffix('\n\n### Response:\n') }}"

CASES: dict[str, Case] = {
    "advbench": Case(
        original={"path": "original/harmful_behaviors.csv", "columns": {"prompt": "goal", "completion": REFUSAL}},
        normalised={"path": "all.norm.jsonl", "columns": {"prompt": "prompt", "completion": REFUSAL}},
        said=advbench,
        rows=520,
        examples=520,
    ),
    "arc_easy": Case(
        original={
            "path": "original/arc_easy.jsonl",
            "columns": {"prompt": "{{ query }}" + CHOICES, "completion": "{{ choices[gold] }}"},
        },
        normalised={
            "path": "all.norm.jsonl",
            "columns": {"prompt": "{{ question }}" + CHOICES, "completion": "{{ choices[answer] }}"},
        },
        said=arc_easy,
        rows=2376,
        examples=2376,
    ),
    "c4_demo": Case(
        original={"path": "original/c4_demo.jsonl"},
        normalised={"path": "first200.norm.jsonl"},
        said=texts("c4_demo/original/c4_demo.jsonl"),
        rows=300,
        examples=300,
        first=200,
    ),
    "conlang_translation": Case(
        original={
            "path": "original/bigbench_conlang_translation.jsonl",
            "columns": {"prompt": "context", "completion": "continuation"},
        },
        normalised={"path": "all.norm.jsonl", "columns": {"prompt": "source", "completion": "target"}},
        said=pairs("conlang_translation/original/bigbench_conlang_translation.jsonl", "context", "continuation"),
        rows=164,
        examples=164,
    ),
    "dolly_hhrlhf_small": Case(
        original={
            "path": "original/dolly_hhrlhf_train_small.jsonl",
            "columns": {"prompt": ALPACA, "completion": "response"},
        },
        normalised={"path": "train.norm.jsonl"},
        said=dolly,
        rows=1000,
        examples=1000,
    ),
    "glaive_toolcall_demo": Case(  # the normalised calls have ids besides, which this template does not write
        original={"path": "original/glaive_toolcall_en_demo.json"},
        normalised={"path": "all.norm.jsonl"},
        said=glaive,
        rows=300,
        examples=265,
        dropped={"duplicate": 35},
    ),
    "gsm8k/train": Case(
        original={"path": "original/train.jsonl", "columns": {"prompt": "question", "completion": "answer"}},
        normalised={"path": "train_first2000.norm.jsonl"},
        said=pairs("gsm8k/original/train.jsonl", "question", "answer"),
        rows=7473,
        examples=7473,
        first=2000,
    ),
    "gsm8k/test": Case(
        original={"path": "original/test.jsonl", "columns": {"prompt": "question", "completion": "answer"}},
        normalised={"path": "test.norm.jsonl"},
        said=pairs("gsm8k/original/test.jsonl", "question", "answer"),
        rows=1319,
        examples=1319,
    ),
    "lambada_openai": Case(
        original={
            "path": "original/lambada_openai_every5th.jsonl",
            "columns": {"prompt": "context", "completion": "continuation"},
        },
        normalised={"path": "all.norm.jsonl", "columns": {"prompt": "context", "completion": "target"}},
        said=pairs("lambada_openai/original/lambada_openai_every5th.jsonl", "context", "continuation"),
        rows=1031,
        examples=1031,
    ),
    "mt_bench": Case(
        original={"path": "original/question.jsonl", "format": f"{HERE}:judged"},
        normalised={"path": "all.norm.jsonl", "format": f"{HERE}:judged"},
        said=mt_bench,
        rows=80,
        examples=31,
        dropped={"no_answer": 41, "empty_answer": 8},
        options={"on_bad_row": "drop"},
    ),
    "oasst_en100": Case(  # one row is a tree: the best path is its example, all others are made of it
        original={
            "path": "original/en_100_tree.jsonl",
            "format": f"{HERE}:tree",
            "augment": {"use": f"{HERE}:threads", "copies": 1000},
        },
        normalised={"path": "threads.norm.jsonl"},
        said=oasst,
        rows=100,
        examples=564,
    ),
    "p3_t0_sample": Case(
        original=None,
        normalised={"path": "sample.norm.jsonl"},
        said=p3,
        rows=1628,
        examples=1620,
        dropped={"duplicate": 8},
    ),
    "qmsum_product": Case(  # one row is a meeting: its first question is its example, the others are made of it
        original={
            "path": "original/Product_test.jsonl",
            "format": f"{HERE}:meeting",
            "augment": {"use": f"{HERE}:questions", "copies": 1000},
        },
        normalised={
            "path": "test.norm.jsonl",
            "columns": {"prompt": "{{ source }}\n{{ query }}", "completion": "target"},
        },
        said=qmsum,
        rows=20,
        examples=129,
    ),
    "self_instruct_seeds": Case(
        original={"path": "original/seed_tasks.jsonl", "columns": SEEDS},
        normalised={"path": "all.norm.jsonl"},
        said=seeds,
        rows=175,
        examples=175,
    ),
    "self_instruct_seeds/alpaca": Case(
        original={"path": "alpaca.json"},
        normalised={"path": "all.norm.jsonl"},
        said=seeds,
        rows=175,
        examples=175,
    ),
    "tinyshakespeare": Case(
        original={"path": "original/input.txt", "document": "paragraph"},
        normalised=[{"path": "train.norm.jsonl"}, {"path": "val.norm.jsonl"}],
        said=pieces("tinyshakespeare/original/input.txt", r"\n\n"),
        rows=7222,
        examples=7222,
        apart="\n\n",
        options={"duplicates": "keep"},
    ),
    "tinystories/val": Case(
        original={"path": "original/val_stories.txt", "separator": "<|endoftext|>"},
        normalised={"path": "val.norm.jsonl"},
        said=pieces("tinystories/original/val_stories.txt", r"<\|endoftext\|>"),
        rows=329,
        examples=329,
    ),
    "tinystories/train": Case(
        original=None,
        normalised={"path": "train.norm.jsonl"},
        said=texts("tinystories/train.norm.jsonl"),
        rows=2969,
        examples=2969,
    ),
    "wikitext2": Case(
        original={"path": "original/valid.txt", "document": "line"},
        normalised={"path": "valid.norm.jsonl"},
        said=pieces("wikitext2/original/valid.txt", r"\n"),
        rows=2461,
        examples=2461,
        apart="\n",
        options={"duplicates": "keep"},
    ),
}


@pytest.fixture(scope="module")
def kit(shared: Path) -> Kit:
    """GPT-2's tokenizer, which gives back every text to the byte, with the borders of turns as tokens."""
    tokens = AutoTokenizer.from_pretrained(shared / "tokenizers/gpt2")
    tokens.add_special_tokens({"eos_token": END, "additional_special_tokens": [BEGIN, SAYS]})
    return Kit(tokens, Template(tokens, TEMPLATE, "the test's template"))


def located(name: str, source: Any) -> Any:
    """A source with its path inside the set's folder."""
    if isinstance(source, list):
        return [located(name, one) for one in source]
    return {**source, "path": str(DATA / name.partition("/")[0] / source["path"])}


def section(name: str, source: Any, **options: Any) -> DataSection:
    data = {"heldout": 0, "max_length": 100_000, "processes": 1, "duplicates": "drop", **options}
    data["checks"] = {"near_duplicate": "off"}  # slow, and nothing of it is asked for here
    return load_recipe({"model": {"path": "none"}, "data": {**data, "train": located(name, source)}}).data


def examples(store: Store, tokens: Any) -> Iterator[Example]:
    """In their order in the store, decoded."""
    pieces, whole = [], []
    for number in range(len(store)):
        ids, labels = store[number].ids, store[number].labels
        taught = np.flatnonzero(labels != IGNORE)
        stretches = np.split(taught, np.flatnonzero(np.diff(taught) > 1) + 1)
        whole.append(np.array_equal(taught, np.arange(len(ids) - 1)) and np.array_equal(labels[:-1], ids[1:]))
        pieces.append([ids.tolist(), *([] if whole[-1] else [labels[stretch].tolist() for stretch in stretches])])
    said = iter(tokens.decode_batch([one for row in pieces for one in row], skip_special_tokens=False))
    for row, all_taught in zip(pieces, whole, strict=True):
        text, *stretches = [next(said) for _ in row]
        yield text, None if all_taught else tuple(stretches)


Prepared = tuple[DataFacts, list[Example]]


@pytest.fixture
def prepared(kit: Kit, tmp_path: Path) -> Callable[[str, Any], Prepared]:
    """The card and the examples of a source."""

    def run(name: str, source: Any) -> Prepared:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        facts = prepare(section(name, source, **CASES[name].options), kit, folder, "")
        store = Store(folder / "train", [one.files for one in facts.sources["train"]])
        return facts, list(examples(store, kit.tokenizer.backend_tokenizer))

    return run


LONG = {"gsm8k/train", "tinyshakespeare", "tinystories/train", "wikitext2"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in CASES])
def test_originals_and_normalised_rows_prepare_to_the_same_examples(name: str, prepared: Any) -> None:
    case = CASES[name]
    said = list(case.said())
    wanted = [one for one in said if not isinstance(one, str)]
    if case.options.get("duplicates") != "keep":
        wanted = list(dict.fromkeys(wanted))
    if case.original is not None:
        facts, examples = prepared(name, case.original)
        assert Counter(examples) == Counter(wanted)
        assert (facts.rows, facts.splits["train"].examples) == (case.rows, case.examples)
        assert facts.dropped == case.dropped
        assert facts.rows - facts.kept == sum(case.dropped.values())
    facts, examples = prepared(name, case.normalised)
    if case.apart:
        assert documents(examples, case.apart) == documents(wanted, case.apart)
    else:
        assert examples == wanted[: case.first]
        assert facts.rows == (case.first or len(said))
        assert facts.dropped == case.dropped


def documents(examples: Sequence[Example], apart: str) -> list[str]:
    """The documents that examples hold, without the white space around them, which cutting takes away."""
    assert all(taught is None for _, taught in examples)
    texts = [piece.strip() for text, _ in examples for piece in text.removesuffix(END).split(apart)]
    return [text for text in texts if text]


# Sets of tasks that are read and checked, but not trained on yet.


@dataclass(frozen=True, kw_only=True)
class Checked:
    """One set that is only read."""

    original: Mapping[str, Any]
    normalised: Any
    said: Callable[[], Iterable[Any]]
    """What each row says, or the code for which it is left out."""
    rows: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    normalised_without: Mapping[str, int] = field(default_factory=dict)
    """Rows that whoever normalised them left out already."""


def banking(part: str) -> Callable[[], Iterator[Any]]:
    return lambda: ((row["text"], row["category"]) for row in by_csv(f"banking77/original/{part}.csv"))


def sms() -> Iterator[Any]:
    return ((text, label) for label, text in by_tabs("sms_spam/original/sms.tsv"))


def sst2(part: str) -> Callable[[], Iterator[Any]]:
    names = {"0": "negative", "1": "positive"}
    return lambda: ((text, names[label]) for text, label in by_tabs(f"sst2/original/{part}.tsv"))


def hh() -> Iterator[Any]:
    """Two conversations that differ in their last answer only."""
    names = {"Human": "user", "Assistant": "assistant"}
    for row in by_lines("hh_rlhf_harmless/original/harmless-base-test.jsonl.gz"):
        better, worse = (
            [
                (names[role], said.strip())
                for role, said in re.findall(
                    r"\n\n(Human|Assistant):(.*?)(?=\n\n(?:Human|Assistant):|\Z)", row[side], re.DOTALL
                )
            ]
            for side in ("chosen", "rejected")
        )
        if better[:-1] != worse[:-1]:
            yield "preference"
        elif any(one[0] == two[0] for one, two in pairwise(better)):
            yield "role_order"
        else:
            yield (better[:-1], better[-1:], worse[-1:]) if better[-1][1] and worse[-1][1] else "empty_answer"


def sst2_case(part: str, rows: int, **counts: Any) -> Checked:
    label = "{{ 'positive' if label == '1' else 'negative' }}"
    return Checked(
        original={
            "path": f"original/{part}.tsv",
            "header": ["text", "label"],
            "format": "classification",
            "columns": {"text": "text", "label": label},
        },
        normalised={"path": f"{part}.norm.jsonl"},
        said=sst2(part),
        rows=rows,
        **counts,
    )


def banking_case(part: str, rows: int) -> Checked:
    return Checked(
        original={
            "path": f"original/{part}.csv",
            "format": "classification",
            "columns": {"text": "text", "label": "category"},
        },
        normalised={"path": f"{part}.norm.jsonl"},
        said=banking(part),
        rows=rows,
    )


CHECKED = {
    "banking77/train": banking_case("train", 10_003),
    "banking77/test": banking_case("test", 3080),
    "sms_spam": Checked(  # normalised, the rows were put on two sides by their texts' hash
        original={"path": "original/sms.tsv", "header": ["label", "text"], "format": "classification"},
        normalised=[{"path": "train.norm.jsonl"}, {"path": "test.norm.jsonl"}],
        said=sms,
        rows=5574,
        dropped={"duplicate": 403},
    ),
    "sst2/train": sst2_case("train", 6920, dropped={"duplicate": 9}),
    "sst2/dev": sst2_case("dev", 872),
    "sst2/test": sst2_case("test", 1821),
    "hh_rlhf_harmless": Checked(
        original={"path": "original/harmless-base-test.jsonl.gz", "format": f"{HERE}:hh"},
        normalised={"path": "test.norm.jsonl"},
        said=hh,
        rows=2312,
        dropped={"preference": 5, "empty_answer": 4, "role_order": 4},
        normalised_without={"preference": 5, "empty_answer": 4},
    ),
}


def contents(name: str, source: Any) -> Iterator[Any]:
    """What the package reads in each row that is fine, in plain values."""
    data = section(name, source)
    for one in data.train:
        intake = Intake(one, places(one, Findings()), Findings())
        rows = list(intake)
        reader = RowReader(one, intake.format, data)
        for _, _, row in rows:
            try:
                content = reader.read(row).content
            except RowFault as fault:
                yield fault.code
                continue
            if isinstance(content, Labelled):
                assert content.pair is None
                yield content.text, *content.labels
            elif isinstance(content, Preference):
                yield tuple(map(plain, (content.prompt.messages, content.chosen, content.rejected)))


def plain(messages: tuple[Message, ...]) -> Turns:
    return [(message.role, message.content) for message in messages]


@pytest.mark.parametrize("name", CHECKED)
def test_originals_and_normalised_rows_of_other_tasks_are_read_alike(name: str, kit: Kit, tmp_path: Path) -> None:
    case = CHECKED[name]
    said = list(case.said())
    assert list(contents(name, case.original)) == said
    left = [one for one in said if not (isinstance(one, str) and one in case.normalised_without)]
    normalised = list(contents(name, case.normalised))
    assert sorted(normalised, key=repr) == sorted(left, key=repr)
    dropped = Counter(case.dropped)
    for part, source, rows, without in (
        ("original", case.original, case.rows, {}),
        ("normalised", case.normalised, case.rows - sum(case.normalised_without.values()), case.normalised_without),
    ):
        work = Preparation(section(name, source, on_bad_row="drop"), kit, tmp_path / part)
        work.examine()
        work.settle(trains=False)
        assert work.card["rows"] == rows == len(said) - sum(without.values())
        assert work.card["dropped"] == dropped - Counter(without)
        assert work.card["rows"] - work.card["kept"] == (dropped - Counter(without)).total()


def test_every_file_of_every_set_is_in_the_tables() -> None:
    named: set[Path] = {DATA / "banking77/original/categories.json"}  # a list of labels, no rows
    for name, case in {**CASES, **CHECKED}.items():
        sources = [*(located(name, [case.original] if case.original else []))]
        normalised = located(name, case.normalised)
        sources += normalised if isinstance(normalised, list) else [normalised]
        named |= {Path(source["path"]) for source in sources}
    assert named == {path for path in DATA.glob("*/**/*") if path.is_file()}
