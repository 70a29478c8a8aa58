"""By which score trials are ranked, and which way is up."""

import pytest

from fulltune.base.errors import RecipeError
from fulltune.terms import ranked_by
from tests.unit.planning.test_scores import card, recipe


def test_a_score_says_itself_which_way_is_up() -> None:
    data = card(retention=2)
    assert ranked_by(recipe(), data, "heldout.loss") == ("heldout.loss", True)
    assert ranked_by(recipe(), data, "retention.kl") == ("retention.kl", True)
    assert ranked_by(recipe(), data, "maths.numeric") == ("maths.numeric", False)


@pytest.mark.parametrize(
    ("by", "said"),
    [
        ("test.loss", "not looked at while anything is chosen"),
        ("train.loss", "it is what is learned"),
        ("retention.loss", "retention.loss is not measured"),
        ("maths.bleu", "maths.bleu is not measured"),
    ],
)
def test_what_is_not_measured_is_refused(by: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        ranked_by(recipe(), card(test=3), by)
