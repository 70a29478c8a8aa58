"""Policies for what is odd: all that cannot be had, at once, with what was probably meant."""

import pytest

from fulltune.base.errors import RecipeError
from fulltune.recipe.checks import ANALYSES, PER_ROW, WHOLE, check_policies


def test_policies_that_would_have_no_effect_are_refused_at_once() -> None:
    policies = {"pii_mail": "drop", "pii_email": "dorp", "label_slip": "drop", "mojibake": "off", "api_key": "error"}
    with pytest.raises(RecipeError) as caught:
        check_policies(policies)
    told = {fault.where: fault.mend for fault in caught.value.faults}
    assert told == {
        "data.checks.pii_mail": "did you mean 'pii_email'?",
        "data.checks.pii_email": "did you mean 'drop'?",
        "data.checks.label_slip": "one of keep, error",
        "data.checks.mojibake": "one of keep, drop, error",
    }


def test_a_name_like_no_other_is_told_all_of_them() -> None:
    with pytest.raises(RecipeError, match="one of empty_answer, repetition"):
        check_policies({"zzz": "keep"})


def test_every_policy_that_can_be_had() -> None:
    check_policies({})
    for policy, codes in {
        "keep": [*PER_ROW, *WHOLE],
        "error": [*PER_ROW, *WHOLE],
        "drop": PER_ROW,
        "off": ANALYSES,
    }.items():
        check_policies(dict.fromkeys(codes, policy))
