"""A sweep as a page: nothing in it becomes markup, nothing is fetched, every trial is in the picture or named."""

import re
from dataclasses import replace
from typing import Any

from fulltune.base.sweeps import Axis, Sweep, Trial
from fulltune.reporting.sweep_page import page
from tests.unit.reporting.folders import EVIL
from tests.unit.reporting.test_page import Elements

LR = Axis(field="optim.lr", kind="float", low=1e-6, high=1e-4, log=True)
KIND = Axis(field="optim.name", kind="choice", choices=("adamw", EVIL))


def trial(number: int, lr: float, score: float | None, **more: Any) -> Trial:
    values = {"optim.lr": lr, "optim.name": EVIL if number else "adamw"}
    given = {"state": "done", "folder": f"runs/{EVIL}/{number}", **more}
    return Trial(number=number, values=values, score=score, **given)


MADE = Sweep(
    folder=f"runs/{EVIL}",
    by="heldout.loss",
    better="lower",
    axes=(LR, KIND),
    before={"heldout.loss": 3.0, "retention.loss": 2.0},
    trials=(
        trial(1, 1e-5, 1.0, rank=1, retention=2.2, tokens=1000, seconds=61.0),
        trial(0, 1e-6, 2.0, rank=2, retention=2.1),
        trial(2, 5e-5, 2.5, state="pruned", reason=EVIL),
        trial(3, 1e-4, None, state="failed", reason=f"NaN {EVIL}"),
    ),
    best="runs/x/best.yaml",
    advice=(EVIL,),
    notes=(EVIL,),
)


def test_whatever_a_user_wrote_stays_text() -> None:
    text = page(MADE)
    found = Elements(text)
    assert [tag for tag, _ in found.found if tag in ("script", "style", "img", "iframe")] == ["style", "script"]
    assert not any(name.startswith("on") for _, attributes in found.found for name in attributes)
    assert EVIL not in text
    assert "default-src 'none'" in text
    assert not any(name in ("src", "href", "srcset") for _, attributes in found.found for name in attributes)
    assert "url(" not in text


def test_each_field_has_its_picture_on_its_own_scale() -> None:
    text = page(MADE)
    lr, kind = re.findall(r'<figure class="chart">.*?</figure>', text, re.DOTALL)
    assert len(re.findall("<circle", lr)) == 3, "of two that are done, and of one that ended early"
    assert 'class="odd"' in lr, "and a mark of the one that failed"
    assert "Logarithmic values" in lr
    assert "Logarithmic" not in kind
    places = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', lr)]
    low, high = 52, 372 - 14
    assert any(abs(place - (low + high) / 2) < 0.2 for place in places), "1e-5 is in the middle of 1e-6 and 1e-4"
    assert 'class="pareto"' in text


def test_a_sweep_without_any_trial_is_a_page_too() -> None:
    text = page(replace(MADE, trials=(), best=None, before={}))
    assert "No trial is done yet." in text
    assert "<circle" not in text
