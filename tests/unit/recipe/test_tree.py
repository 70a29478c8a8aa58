"""YAML that cannot be read is a fault with its line, and nothing untrue is said after it."""

from pathlib import Path

import pytest
from hypothesis import given, strategies

from fulltune.base.errors import Fault, RecipeError
from fulltune.recipe.load import load_recipe
from fulltune.recipe.tree import parse

GOOD = "model: {path: m/x}\ndata: {train: rows.jsonl}\n"


def told(folder: Path, text: str) -> tuple[Fault, ...]:
    path = folder / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    return caught.value.faults


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train: {epochs: !!int abc}", "'abc' is no YAML int"),
        ("train: {epochs: !!int ''}", "'' is no YAML int"),
        ("train: {epochs: !!float abc}", "'abc' is no YAML float"),
        ("memory: {checkpointing: !!bool maybe}", "'maybe' is no YAML bool"),
        ("train: !!map foo", "'foo' is no YAML map"),
        ("train: !!seq foo", "'foo' is no YAML seq"),
        ("train: !!python/object:os.system x", "is not allowed"),
        ("train: {seed: " + "9" * 5000 + "}", "too long for a YAML int"),
        ("train: {seed: 0x" + "f" * 5000 + "}", "too long for a YAML int"),
        ("train: &a [*a]", "an alias lies inside itself"),
        ("train: &a {x: *a, y: *a, z: [*a, *a]}", "an alias lies inside itself"),
        ("train: " + "[" * 400 + "]" * 400, "levels deep"),
        ("train: " + "[" * 3000 + "]" * 3000, "levels deep"),
        ("train: " + "{a: " * 3000 + "}" * 3000, "levels deep"),
        ("train: {<<: {epochs: 1}}", "`<<` is not supported"),
        ("<<: {train: {}}", "`<<` is not supported"),
        ("? [a]\n: 2", "not a plain word"),
        ("train: [", "not YAML"),
    ],
    ids=lambda text: text[:40],
)
def test_what_cannot_be_read_is_one_fault_with_its_line(tmp_path: Path, line: str, said: str) -> None:
    faults = told(tmp_path, GOOD + line + "\n")
    assert [said in fault.what for fault in faults] == [True], faults
    assert faults[0].where in (f"{tmp_path}/r.yaml:3", f"{tmp_path}/r.yaml:4")
    assert faults[0].mend


@pytest.mark.parametrize("text", ["model: [\n", "- a\n", "x", "null", "a: 1\n---\nb: 2\n", "model:\n\tpath: x\n", "\0"])
def test_after_a_syntax_fault_nothing_is_called_missing(tmp_path: Path, text: str) -> None:
    faults = told(tmp_path, text)
    assert len(faults) == 1
    assert "missing" not in faults[0].what


def test_what_can_be_read_is_still_checked(tmp_path: Path) -> None:
    faults = told(tmp_path, GOOD + "train: {epochs: !!int abc, layout: pakced}\noptim: {lr: -1}\n")
    assert [fault.where.rpartition(":")[2] for fault in faults] == ["3", "3", "4"]


def test_merging_hides_only_the_faults_of_its_section(tmp_path: Path) -> None:
    faults = told(tmp_path, "model: {path: x}\ndata:\n  <<: {train: a.jsonl}\noptim: {lr: -1}\n")
    assert [fault.where.rpartition(":")[2] for fault in faults] == ["3", "4"]


def test_a_chain_of_aliases_is_no_way_around_the_depth() -> None:
    text = "a0: &a0 [x]\n"
    for n in range(1, 100):
        text += f"a{n}: &a{n} [[[*a{n - 1}]]]\n"
    assert "levels deep" in parse(text, "r.yaml").faults[0].what


@given(
    strategies.sampled_from("!!int !!float !!bool !!null !!map !!seq !!str !!timestamp !!binary !!set !x".split()),
    strategies.text("0123456789abcdefxo_+-.:TZ~ truefalsn", max_size=20) | strategies.text(max_size=10),
)
def test_no_tag_makes_the_reader_crash(tag: str, text: str) -> None:
    quoted = text.replace("'", "''")
    for value in (text, f"'{quoted}'", f"[{text}]"):
        tree = parse(f"value: {tag} {value}\n", "r.yaml")
        assert tree.faults or isinstance(tree.values, dict)
