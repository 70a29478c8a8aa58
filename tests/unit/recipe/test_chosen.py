"""A recipe file with other values: its comments stay, its paths hold from elsewhere, and it says what was chosen."""

from pathlib import Path
from typing import Any

from fulltune.recipe.chosen import rewritten
from fulltune.recipe.load import load_recipe
from fulltune.recipe.write import as_values

TEXT = """# Ours.
model: {path: ./model}  # small
data:
  train:
    # first
    - a.jsonl
    - {path: b.jsonl, format: text}
train:
  steps: 30  # enough
optim: {lr: 1e-5}
"""


def made(folder: Path, text: str, **changes: Any) -> str:
    source = folder / "recipe.yaml"
    source.write_text(text)
    overrides = {name.replace("__", "."): value for name, value in changes.items()}
    wanted = load_recipe(source, overrides)
    out = rewritten(source, overrides, wanted)
    (folder / "deep").mkdir(exist_ok=True)
    (folder / "deep/best.yaml").write_text(out)
    assert as_values(load_recipe(folder / "deep/best.yaml")) == as_values(wanted)
    return out


def test_comments_stay_and_paths_hold(tmp_path: Path) -> None:
    out = made(tmp_path, TEXT, optim__lr=3.3e-5, optim__schedule="linear")
    assert "# Ours." in out
    assert "# small" in out
    assert "# enough" in out
    assert "3.3e-05" in out
    assert f"{tmp_path}/b.jsonl" in out


def test_what_stands_in_place_of_another_displaces_it(tmp_path: Path) -> None:
    out = made(tmp_path, TEXT, train__epochs=2)
    assert "steps" not in out
    assert "epochs: 2" in out


def test_where_an_anchor_would_change_two_fields_all_is_written_out(tmp_path: Path) -> None:
    text = (
        "model: {path: ./model}\n"
        "data: {train: a.jsonl}\n"
        "optim: {options: &shared {eps: 1.0e-8}, pulls: [{use: ema, options: *shared}]}\n"
    )
    out = made(tmp_path, text, optim__options__eps=1e-6)
    assert "&" not in out


def test_secrets_are_masked_and_without_a_file_every_field_is_written(tmp_path: Path) -> None:
    source = tmp_path / "recipe.yaml"
    source.write_text(TEXT + "  # hf_abcdefghijklmnopqrstuvwxyz012345\n")
    assert "hf_abc" not in rewritten(source, {}, load_recipe(source))
    bare = rewritten(None, {}, load_recipe(source))
    assert "weight_decay: 0.01" in bare
