"""In which number format what is held, as the plan writes it down."""

import pytest

from fulltune.base.files import as_text, from_json, to_json
from fulltune.base.formats import PrecisionPlan
from fulltune.optim.optimizers import OPTIMIZERS
from fulltune.planning.precision import precision_plan
from fulltune.recipe.schema import OptimSection


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_it_is_read_as_it_was_written(name: str) -> None:
    """A plan that is written anew, for a 0 in place of 0.0, asks for the lock of a run that trains."""
    plan = precision_plan("float32", OptimSection(name=name, schedule="constant"), several=False)
    assert as_text(from_json(to_json(plan), PrecisionPlan)) == as_text(plan)
