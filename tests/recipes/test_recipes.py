"""Every shipped recipe loads and plans."""

from dataclasses import replace
from pathlib import Path

import pytest

from fulltune.data.template import Template
from fulltune.planning.make import make_plan
from fulltune.recipe.load import load_recipe
from tests.conftest import ROOT
from tests.unit.planning.test_make import CPU, GPUS, count, facts, model

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def test_there_are_recipes() -> None:
    assert {path.name for path in RECIPES} >= {
        "quickstart.yaml",
        "gsm8k-stories260k.yaml",
        "llama-3.1-8b-chat.yaml",
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_loads_and_plans(path: Path) -> None:
    recipe = load_recipe(path)
    for machine in (CPU, GPUS):
        known = facts(train=10_000, retention=10)
        if recipe.data.replay is not None:  # which lies behind the rows that are taught
            train = replace(known.splits["train"], by_source=(9_000, 1_000))
            known = replace(known, splits={**known.splits, "train": train})
        made = make_plan(recipe, known, model(131_072), machine, count)
        assert made.updates > made.warmup_updates > 0


def test_the_quickstarts_recipe_is_the_embedded_one() -> None:
    assert (ROOT / "recipes/quickstart.yaml").resolve() == ROOT / "src/fulltune/embedded/quickstart.yaml"
    recipe = load_recipe(ROOT / "recipes/quickstart.yaml")
    for path in (recipe.model.path, *(source.path for source in recipe.data.train + recipe.data.retention)):
        assert Path(path).exists()


def test_the_llama_template_writes_llama_3_chats() -> None:
    """The published form of the format; a template must exist where the recipe looks for it."""
    from tests import tiny

    recipe = load_recipe(ROOT / "recipes/llama-3.1-8b-chat.yaml")
    assert recipe.model.path == "meta-llama/Llama-3.1-8B"
    assert recipe.model.chat_template is not None
    source = Path(recipe.model.chat_template).read_text()
    template = Template(tiny.tokenizer(), source, "llama-3")
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    head = "<s><|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    assert template.render(turns[:1], prompt=True) == head
    assert template.render(turns, prompt=False) == head + "a<|eot_id|>"
