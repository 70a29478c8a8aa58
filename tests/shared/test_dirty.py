"""Broken inputs: every problem line named in one run, or exactly the usable rows left (must show 7).

`expected.json` beside the files says what is wrong with each. Faults stop a run; what it calls notes and warnings
about rows that can be taught are noted. Classification and preference files belong to formats that are not
read yet; they must be refused whole.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import fulltune
from fulltune.base.errors import DataError
from fulltune.base.records import DataFacts
from tests import tiny
from tests.conftest import SHARED

pytestmark = pytest.mark.usefixtures("shared")

FAULTS = {
    "bad_json.jsonl",
    "missing_field.jsonl",
    "role_order.jsonl",
    "empty_assistant.jsonl",
    "non_utf8.jsonl",
    "huge_line.jsonl",
    "exact_duplicates.jsonl",
    "mixed_schema.jsonl",
    "numbers_for_text.jsonl",
    "unicode_edges.jsonl",
    "cut_off_copy.jsonl",
    "tool_call_trouble.jsonl",
    "answer_cut_away.jsonl",
    "broken.csv",
}
"""Some rows cannot be taught."""
FINE = {
    "bom_crlf.jsonl",
    "array_named_jsonl.jsonl",
    "gzip_named_jsonl.jsonl",
    "near_duplicates.jsonl",
    "special_tokens_in_text.jsonl",
    "duplicate_ids.jsonl",
    "quoted_newlines.csv",
}
"""All rows can be taught; what is odd about them is noted."""
UNREADABLE = {"utf16.jsonl", "empty.jsonl", "blank_lines_only.jsonl", "corpus_with_binary.txt"}
OTHER_FORMATS = {
    "nulls.jsonl",
    "label_trouble.jsonl",
    "preference_trouble.jsonl",
}
NOTED = {"short_answer", "control_char", "duplicate_key", "blank_line", "suspicious_text"}
"""Codes of expected.json that leave a row teachable."""
MIXED = "mixed_schema.jsonl"


def expected() -> dict[str, dict[str, Any]]:
    path = SHARED / "dirty/expected.json"
    return {entry["file"]: entry for entry in json.loads(path.read_text())} if path.exists() else {}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Path:
    """A tiny model with a large real vocabulary, so that real rows fit into its context, and tools in its template."""
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(shared / "tokenizers/llama2-32k")
    calls = "{% if m.tool_calls %}{% for c in m.tool_calls %}{{ c.function.name + c.function.arguments|tojson }}"
    calls += "{% endfor %}{% endif %}"
    tokens.chat_template = (
        "{{ bos_token }}{% if tools %}{{ tools|tojson + '\\n' }}{% endif %}{% for m in messages %}"
        "{{ m.role + ':' + m.content }}" + calls + "{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    folder = tmp_path_factory.mktemp("dirty") / "model"
    return tiny.folder(folder, tokens=tokens, vocab=32_000, max_position_embeddings=16_384)


def prepare(model: Path, shared: Path, name: str, out: Path, **data: Any) -> DataFacts:
    options = {"train": str(shared / "dirty" / name), "heldout": 0, "max_length": 16_384, **data}
    return fulltune.prepare({"model": {"path": str(model)}, "data": options}, out=out)


def options(name: str) -> dict[str, Any]:
    """The file about cut answers means a limit of 512 tokens and truncation; its prompts are stories of 2,000 words."""
    return {"over_length": "truncate", "max_length": 512} if name == "answer_cut_away.jsonl" else {}


def model_for(name: str, model: Path, shared: Path) -> Path:
    return shared / "models/stories260K" if name == "answer_cut_away.jsonl" else model


def lines(name: str) -> set[tuple[int, str]]:
    """(line, code) of what must be named."""
    entry = expected()[name]
    found = {(p["line"], p["code"]) for p in entry["problems"] if p["line"] and p["code"] not in NOTED}
    for group in entry.get("lines_of_repeats", ()):
        found |= {(line, "duplicate") for line in group[1:]}
    if name == "cut_off_copy.jsonl":
        found.add((len((SHARED / "dirty" / name).read_bytes().split(b"\n")), "json_parse"))
    return found


def test_every_file_is_known() -> None:
    known = FAULTS | FINE | UNREADABLE | OTHER_FORMATS
    assert {name for name in expected() if "/" not in name} == known


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_every_problem_line_is_named_in_one_run(tmp_path: Path, model: Path, shared: Path, name: str) -> None:
    with pytest.raises(DataError) as caught:
        prepare(model_for(name, model, shared), shared, name, tmp_path / "run", **options(name))
    path = str(shared / "dirty" / name)
    found = {(int(f.where.removeprefix(path + ":")), f.code) for f in caught.value.faults}
    assert found == lines(name)
    assert all(fault.what and fault.mend for fault in caught.value.faults)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_dropping_leaves_exactly_the_usable_rows(tmp_path: Path, model: Path, shared: Path, name: str) -> None:
    facts = prepare(model_for(name, model, shared), shared, name, tmp_path / "run", on_bad_row="drop", **options(name))
    assert facts.splits["train"].examples == expected()[name]["usable_rows"]
    reasons = Counter(code for _, code in lines(name))
    if name == MIXED:  # rows of another schema are read by their own keys, and noted
        assert facts.dropped == {}
        assert facts.notes["mixed_schema"].startswith(f"{reasons['mixed_schema']} x")
    else:
        assert facts.dropped == dict(reasons)


@pytest.mark.parametrize("name", sorted(FINE))
@pytest.mark.parametrize("policy", ["error", "drop"])
def test_what_is_only_odd_is_taught_and_noted(
    tmp_path: Path, model: Path, shared: Path, name: str, policy: str
) -> None:
    facts = prepare(model, shared, name, tmp_path / "run", on_bad_row=policy)
    assert facts.splits["train"].examples == expected()[name]["usable_rows"]
    assert facts.dropped == {}


def test_what_the_notes_say(tmp_path: Path, model: Path, shared: Path) -> None:
    def notes(name: str) -> dict[str, str]:
        return prepare(model, shared, name, tmp_path / name).notes

    assert set(notes("bom_crlf.jsonl")) == {"byte_order_mark", "crlf"}
    assert set(notes("gzip_named_jsonl.jsonl")) == {"gzip"}
    assert set(notes("array_named_jsonl.jsonl")) == {"json_array"}
    ids = notes("duplicate_ids.jsonl")
    assert ids["duplicate_id"].endswith("jsonl:13 (the id of line 11)")
    assert ids["id_type"].endswith("jsonl:14 (not of the type of those before it)")
    spelled = notes("special_tokens_in_text.jsonl")["special_token_text"]
    assert "jsonl:5 (</s>)" in spelled
    assert "jsonl:9 (<unk>)" in spelled
    assert spelled.startswith("2 x"), "the other two are no control tokens of this tokenizer"


@pytest.mark.parametrize("name", sorted(UNREADABLE | OTHER_FORMATS))
@pytest.mark.parametrize("policy", ["error", "drop"])
def test_what_cannot_be_read_is_refused_whole(
    tmp_path: Path, model: Path, shared: Path, name: str, policy: str
) -> None:
    with pytest.raises(DataError) as caught:
        prepare(model, shared, name, tmp_path / "run", on_bad_row=policy)
    assert caught.value.exit_code == 3
    assert all(fault.mend for fault in caught.value.faults)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["label_trouble.jsonl", "preference_trouble.jsonl"])
def test_rows_of_later_tasks_are_checked(tmp_path: Path, model: Path, shared: Path, name: str) -> None:
    with pytest.raises(DataError) as caught:
        prepare(model, shared, name, tmp_path / "run")
    path = str(shared / "dirty" / name)
    other = [fault for fault in caught.value.faults if fault.code == "other_task"]
    found = {(int(f.where.removeprefix(path + ":")), f.code) for f in caught.value.faults if f not in other}
    assert found == lines(name)
    assert other[0].what.startswith(f"{expected()[name]['usable_rows']} rows of")


def test_a_file_of_texts_with_nulls_is_read_as_text_if_asked(tmp_path: Path, model: Path, shared: Path) -> None:
    source = {"path": str(shared / "dirty/nulls.jsonl"), "format": "text"}
    with pytest.raises(DataError) as caught:
        prepare(model, shared, "", tmp_path / "run", train=source)
    assert [int(f.where.rpartition(":")[2]) for f in caught.value.faults] == [6, 13, 19, 23, 26]


def test_leaks_into_the_test_set(tmp_path: Path, model: Path, shared: Path) -> None:
    files = {"train": str(shared / "dirty/leak/train.jsonl"), "test": [str(shared / "dirty/leak/test.jsonl")]}
    with pytest.raises(DataError) as caught:
        prepare(model, shared, "", tmp_path / "run", **files)
    problems = {problem["line"] for problem in expected()["leak/test.jsonl"]["problems"]}
    assert {int(f.where.rpartition(":")[2]) for f in caught.value.faults} == problems
    facts = prepare(model, shared, "", tmp_path / "run", on_bad_row="drop", **files)
    assert facts.splits["test"].examples == expected()["leak/test.jsonl"]["usable_rows"]
    assert facts.splits["train"].examples == expected()["leak/train.jsonl"]["usable_rows"]
    assert facts.dropped == {"leak": len(problems)}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("truncated_weights", "bytes, its header says"),
        ("missing_tensor", "missing: model.layers.2.mlp.up_proj.weight"),
        ("wrong_shape", "172"),
        ("nan_weight", "model.layers.1.self_attn.q_proj.weight: 1 values are not finite"),
        ("tokenizer_larger_than_embedding", r"<\|im_start\|>.*512 rows|512 rows.*<\|im_start\|>"),
        ("no_tokenizer", "no tokenizer"),
    ],
)
def test_broken_models_are_named_before_the_first_step(tmp_path: Path, shared: Path, name: str, said: str) -> None:
    data = tiny.jsonl(tmp_path / "rows.jsonl", [{"text": row["prompt"]} for row in tiny.rows(20)])
    recipe = tiny.recipe(shared / "dirty/models" / name, data)
    with pytest.raises(DataError, match=said) as caught:
        fulltune.train(recipe, out=tmp_path / "run")
    assert caught.value.faults[0].mend
    journal = tmp_path / "run/journal.jsonl"
    assert not journal.exists() or '"step"' not in journal.read_text()


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("syntax_error", "does not parse"),
        ("undefined_variable", "suffix_token"),
        ("drops_system", "leaves out or changes: system"),
        ("no_generation_prompt", "without a stop token"),
        ("not_prefix_stable", "leaves out or changes"),
    ],
)
def test_broken_templates_are_refused(tmp_path: Path, llama: Path, shared: Path, name: str, code: str) -> None:
    turns = [("system", "be kind"), ("user", "a" * 30), ("assistant", "b" * 30), ("user", "c"), ("assistant", "d")]
    data = tiny.jsonl(tmp_path / "m.jsonl", [{"messages": [{"role": r, "content": c} for r, c in turns]}])
    template = str(shared / f"dirty/templates/{name}.jinja")
    recipe = tiny.recipe(llama, data, model={"chat_template": template}, data={"heldout": 0})
    with pytest.raises(DataError, match=code):
        fulltune.prepare(recipe, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_command_line_says_it_in_three_lines_with_exit_3(tmp_path: Path, model: Path, shared: Path) -> None:
    from fulltune import cli

    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"model: {{path: {model}}}\ndata: {{train: {shared}/dirty/bad_json.jsonl, heldout: 0}}\n")
    assert CliRunner().invoke(cli.app, ["prepare", str(recipe)]).exception is not None
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "fulltune", "prepare", str(recipe), "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: not JSON") == done.stderr.count("mend:") == 3
    for line in (17, 29, 34):
        assert f"bad_json.jsonl:{line}\n" in done.stderr
    assert not (tmp_path / "run").exists()
