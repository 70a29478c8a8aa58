"""Which states a rule puts first, and what a gate says of a result: by the numbers alone."""

import math
from typing import Any

import pytest

from fulltune.base.gate import Gate, GateVerdict
from fulltune.base.rule import Better, Bound, Rule, gain

BASE = {"test.loss": 3.0, "retention.loss": 2.0, "maths.numeric": 0.2}
KEPT = Bound("retention.loss", "lower", 0.05, over_base=True)


def order(rule: Rule, *states: dict[str, float]) -> list[int]:
    """Numbers of the states, best first."""
    stands = [rule.stands(state, BASE) for state in states]
    return sorted(range(len(states)), key=lambda number: stands[number].order if stands[number] else ())


def state(heldout: float, retention: float = 2.0, numeric: float = 0.5) -> dict[str, float]:
    return {"heldout.loss": heldout, "retention.loss": retention, "maths.numeric": numeric}


def test_the_better_score_goes_first_whichever_way_is_up() -> None:
    assert order(Rule("heldout.loss", "lower"), state(2.0), state(1.0)) == [1, 0]
    assert order(Rule("maths.numeric", "higher"), state(2.0, numeric=0.3), state(2.0, numeric=0.4)) == [1, 0]


def test_what_breaks_a_bound_comes_behind_whatever_keeps_it() -> None:
    rule = Rule("heldout.loss", "lower", (KEPT,))
    better_but_forgot, kept, on_the_line = state(1.0, 2.06), state(2.5, 2.04), state(2.4, 2.0 + 0.05 - 1e-9)
    assert order(rule, better_but_forgot, kept, on_the_line) == [2, 1, 0]
    stands = [rule.stands(one, BASE) for one in (better_but_forgot, kept)]
    assert [one.kept for one in stands if one] == [False, True]


def test_of_states_that_break_it_the_least_breaking_goes_first() -> None:
    """The number of broken bounds, then how far each is broken in the rule's order, then the score."""
    rule = Rule("heldout.loss", "lower", (KEPT, Bound("maths.numeric", "higher", 0.4)))
    both, far, near, floor = state(1.0, 2.1, 0.1), state(1.0, 2.5), state(2.0, 2.1), state(3.0, 2.0, 0.39)
    assert order(rule, both, far, near, floor) == [3, 2, 1, 0]
    assert order(rule, state(2.0, 2.1), state(1.0, 2.1)) == [1, 0]


def test_a_floor_of_a_score_that_falls_is_a_ceiling() -> None:
    ceiling = Bound("heldout.loss", "lower", 2.0)
    assert ceiling.excess(state(2.5), {}) == 0.5
    assert ceiling.excess(state(1.5), {}) == -0.5
    assert Bound("maths.numeric", "higher", 0.75).excess(state(1.0), {}) == 0.25
    assert str(ceiling) == "heldout.loss at most 2"
    assert str(Bound("maths.numeric", "higher", 0.75)) == "maths.numeric at least 0.75"


def test_a_state_of_which_something_was_not_measured_is_no_candidate() -> None:
    rule = Rule("heldout.loss", "lower", (KEPT,))
    assert rule.stands({"heldout.loss": 1.0}, BASE) is None
    assert rule.stands({"retention.loss": 2.0}, BASE) is None
    assert rule.stands(state(1.0), {}) is None, "the base was not measured"


def test_landmine_I5_what_is_no_number_never_wins_and_keeps_nothing() -> None:
    assert Rule("heldout.loss", "lower").stands(state(math.nan), BASE) is None
    rule = Rule("heldout.loss", "lower", (KEPT,))
    stands = rule.stands(state(1.0, math.nan), BASE)
    assert stands is not None
    assert not stands.kept
    assert order(rule, state(1.0, math.nan), state(9.0, 8.0)) == [1, 0]
    assert judged(gate(), test__loss=math.nan).ship is False
    assert judged(gate(), retention__loss=math.nan).ship is False


def test_limits_that_differ_make_another_rule() -> None:
    """By its words a rule is known again when a run goes on."""
    rules = [Rule("a.loss", "lower", (Bound("b.loss", "lower", limit),)) for limit in (0.1234567, 0.1234568)]
    assert str(rules[0]) != str(rules[1])
    assert (
        str(Rule("a.b", "higher", (KEPT,))) == "the highest a.b with retention.loss at most 0.05 worse than the base's"
    )


def gate(score: str | None = "test.loss", better: Better = "lower", **more: Any) -> Gate:
    return Gate(**({"score": score, "better": better, "min_gain": 0.0, "bounds": (KEPT,), "asked": True} | more))


def judged(made: Gate, *, interval: tuple[float, float] | None = None, **after: float) -> GateVerdict:
    scores = {"test.loss": 2.5, "retention.loss": 2.0, "maths.numeric": 0.5}
    return made.judge(
        BASE, scores | {name.replace("__", "."): v for name, v in after.items()}, interval=lambda _: interval
    )


def test_a_result_that_gained_and_kept_is_shipped() -> None:
    verdict = judged(gate(), retention__loss=2.02)
    assert verdict.ship is True
    assert verdict.reasons == ()
    assert verdict.headline == (
        "gained 0.5000 [interval not known] of test.loss (3.0000 -> 2.5000), "
        "lost 0.0200 [interval not known] of retention.loss (2.0000 -> 2.0200): SHIP"
    )
    assert "lost nothing [" in judged(gate(), retention__loss=1.9).headline


@pytest.mark.parametrize(
    ("made", "after", "why"),
    [
        (gate(), {"test__loss": 3.0}, "failed: a gain of more than 0 in test.loss, and it is 0.0000"),
        (gate(min_gain=0.5), {}, "failed: a gain of more than 0.5 in test.loss, and it is 0.5000"),
        (
            gate(),
            {"retention__loss": 2.1},
            "failed: retention.loss at most 0.05 worse than the base's, and it is 0.1000",
        ),
        (
            gate(bounds=(Bound("maths.numeric", "higher", 0.75),)),
            {},
            "failed: maths.numeric at least 0.75, and it is 0.5000",
        ),
        (gate("maths.numeric", "higher", bounds=()), {"maths__numeric": 0.1}, "in maths.numeric, and it is -0.1000"),
    ],
)
def test_what_fails_is_named(made: Gate, after: dict[str, float], why: str) -> None:
    verdict = judged(made, **after)
    assert verdict.ship is False
    assert verdict.headline.endswith(": DO NOT SHIP")
    (reason,) = verdict.reasons
    assert reason.endswith(why)


def test_what_was_not_measured_is_never_passed() -> None:
    nothing = gate(score=None)
    assert judged(nothing).ship is None
    assert judged(nothing).headline.endswith(": NOT JUDGED")
    assert judged(nothing).failures == ("not measured: a gain of more than 0 in a score of test or held-out data",)
    lacking = judged(gate(bounds=(Bound("blue.bleu", "higher", 1.0),)))
    assert (lacking.ship, lacking.failures) == (None, ("not measured: blue.bleu at least 1",))
    both = judged(gate(bounds=(Bound("blue.bleu", "higher", 1.0), KEPT)), retention__loss=3.0)
    assert both.ship is False, "what fails fails whatever else is not known"


def test_a_gain_whose_interval_reaches_below_the_limit_is_said_to_be_unsure() -> None:
    made = gate("maths.numeric", "higher", bounds=())
    (note,) = judged(made, interval=(-0.02, 0.6)).reasons
    assert "reaches down to -0.0200" in note
    assert judged(made, interval=(0.01, 0.6)).reasons == ()
    assert "gained 0.3000 [0.0100, 0.6000] of maths.numeric" in judged(made, interval=(0.01, 0.6)).headline


def test_gain_is_better_whichever_way_is_up() -> None:
    assert gain("lower", 3.0, 2.0) == 1.0
    assert gain("higher", 3.0, 2.0) == -1.0
