"""One process of a run of which the memory was forecast: it trains a random model, and says what it held and would."""

import gc
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from fulltune.base.formats import BYTES
from fulltune.base.memory import Forecast
from fulltune.base.records import EngineName, Layout, Plan, Precision
from fulltune.batch import Batch
from fulltune.engine.launch import Meeting, joined, machine
from fulltune.engines import By, engine_for, reusing
from fulltune.model.facts import facts, head, keeps_logits
from fulltune.objectives import NextToken
from fulltune.planning.engine import Case, Crowd, choose_engine
from fulltune.planning.precision import precision_plan
from fulltune.planning.way import Pass
from fulltune.recipe.load import load_recipe
from fulltune.recipe.schema import Recipe

_UPDATES = 3
"""From the second on the moments are there; what the allocator holds grows a little for some more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A model, how it is trained, and its micro-batches."""

    model: Mapping[str, Any]
    """Its config."""
    precision: Precision
    layout: Layout
    rows: int
    tokens: int
    """Of each row."""
    micros: int
    engine: EngineName
    sections: Mapping[str, Any]
    """Of the recipe."""

    def asked(self) -> Recipe:
        """The recipe."""
        values: dict[str, Any] = {"model": {"path": "/none"}, "data": {"train": "/none"}, **self.sections}
        return load_recipe(values, {})


def _resident(what: str) -> int:
    """Bytes of this process, files too: VmRSS now, VmHWM at most since `_forget`."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def _forget() -> None:
    """The peak begins anew."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")


def _batch(trial: Trial, vocab: int) -> Batch:
    """Random tokens, all of them taught."""
    count = trial.rows * trial.tokens
    packed = trial.layout == "packed"
    shape = (1, count) if packed else (trial.rows, trial.tokens)
    positions: Tensor | None = torch.arange(trial.tokens).repeat(trial.rows)[None] if packed else None
    return Batch(
        ids=torch.randint(vocab, shape),
        labels=torch.randint(vocab, shape),
        weights=torch.ones(shape),
        positions=positions,
        taught=torch.arange(count),
        examples=tuple(range(trial.rows)),
        lengths=(trial.tokens,) * trial.rows,
        weight=float(count),
    )


def _plan(trial: Trial, recipe: Recipe) -> Plan:
    """As far as an engine asks it."""
    return Plan(
        updates=_UPDATES,
        warmup_updates=0,
        examples=None,
        epoch_examples=1,
        micro_examples=trial.rows,
        micro_tokens=trial.rows * trial.tokens,
        context=None,
        layout=trial.layout,
        precision=trial.precision,
        dtypes=precision_plan(trial.precision, recipe.optim, several=trial.micros > 1),
        mix=(),
    )


def expected(trial: Trial, processes: int) -> tuple[int, Forecast]:
    """How many parameters the model has, and what is forecast."""
    recipe = trial.asked()
    config = AutoConfig.for_model(**trial.model)
    with torch.device("meta"):
        about = facts(AutoModelForCausalLM.from_config(config), config, "float32")
    packed = trial.layout == "packed"
    rows, width = (1, trial.rows * trial.tokens) if packed else (trial.rows, trial.tokens)
    load = Pass(rows=rows, width=width, taught=rows * width, several=trial.micros > 1, longest=trial.tokens)
    case = Case(
        recipe=recipe,
        dtypes=_plan(trial, recipe).dtypes,
        layout=trial.layout,
        model=about,
        machine=machine(),
        crowd=Crowd(processes, processes),
        load=load,
    )
    return about.parameters, choose_engine(case).forecast


def held(trial: Trial, here: Meeting) -> int:
    """The peak of some updates, in bytes, less what this process held before the model was made."""
    recipe = trial.asked()
    config = AutoConfig.for_model(**trial.model)
    with torch.device("meta"):  # as planning does; all modules are imported then
        AutoModelForCausalLM.from_config(config)
    _forget()
    before = _resident("VmRSS")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    most = trial.rows * trial.tokens if trial.engine == "zero3" else 0
    objective = NextToken(model, head(model), keeps_logits=keeps_logits(model), most=most)
    engine = engine_for(recipe, _plan(trial, recipe), model, objective, here, By(trial.engine))
    _forget()
    batch = _batch(trial, trial.model["vocab_size"])
    for _ in range(_UPDATES):
        for number in range(trial.micros):
            with engine.micro(last=number == trial.micros - 1):
                loss = engine.forward(batch)["next_token"] / batch.weight / trial.micros / here.world.size
                engine.backward(loss)
        engine.update([1e-5, 1e-5])
    return _resident("VmHWM") - before


def _largest(trial: Trial) -> int:
    """Bytes of the largest activations."""
    recipe, config = trial.asked(), AutoConfig.for_model(**trial.model)
    with torch.device("meta"):
        about = facts(AutoModelForCausalLM.from_config(config), config, "float32")
    return trial.rows * trial.tokens * about.shape.widest * BYTES[_plan(trial, recipe).dtypes.compute]


def main(trial: Trial, folder: Path) -> None:
    """Write `rank-N.json` into the folder."""
    frugal = trial.asked().optim.in_backward != "off"
    with (
        joined(600, grouped=trial.engine != "single") as here,
        reusing(here.world, By(trial.engine), _largest(trial), frugal=frugal),
    ):
        peak = held(trial, here)
        (folder / f"rank-{here.world.rank}.json").write_text(json.dumps(peak))


if __name__ == "__main__":
    main(Trial(**json.loads(sys.argv[1])), Path(sys.argv[2]))
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort a process that ends in order
