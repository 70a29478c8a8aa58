"""The sharded step of a real width, traced as one of many: what is exchanged is what the table of formulas says."""

from dataclasses import replace

import pytest

from fulltune.base.records import ModelFacts
from tools.make_scale import MODELS
from tools.trace_scale import Case, by_table, trace


def two_layers(name: str) -> ModelFacts:
    about = MODELS[name]
    return replace(about, layers=2, parameters=2 * about.shape.block + about.shape.outside)


@pytest.mark.parametrize(
    "case",
    [
        Case("Llama 3.1 8B", 8),
        Case("Llama 3.1 8B", 8, reshard=False),
        Case("Llama 3.1 8B", 64, replicas=8),
        Case("Llama 3.1 70B", 512),
    ],
    ids=str,
)
def test_what_is_exchanged_is_what_the_table_says(case: Case) -> None:
    about = two_layers(case.model)
    found = trace(about, case, tokens=64)
    groups = about.layers + 1
    assert found.calls["allgather"] == groups * (2 if case.reshard else 1)
    assert found.calls["reduce_scatter"] == groups
    assert found.calls["allreduce"] == (groups if case.replicas > 1 else 0)
    assert found.sent == pytest.approx(by_table(about, case), rel=0.01)
    assert found.held == pytest.approx(about.parameters * case.replicas / case.processes, rel=0.01)
