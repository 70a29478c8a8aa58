"""Cadence, step, journal, checkpoints, loop: the parts that serve one update after the other."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fulltune.base.errors import CheckpointError, DivergedError, Interrupted
from fulltune.base.files import to_json
from fulltune.base.records import EvalReport, Every, Mark, Plan, Progress
from fulltune.base.rule import Rule
from fulltune.planning.precision import precision_plan
from fulltune.recipe.schema import OptimSection
from fulltune.training.acts import Evaluating
from fulltune.training.cadence import Cadence
from fulltune.training.journal import Journal, read
from fulltune.training.loop import Run, train
from fulltune.training.step import reseed, step
from tests import tiny
from tests.contract.ground import Ground

PLAN = Plan(
    updates=10,
    warmup_updates=1,
    examples=80,
    epoch_examples=40,
    micro_examples=8,
    micro_tokens=99,
    context=None,
    layout="padded",
    precision="float32",
    dtypes=precision_plan("float32", OptimSection(), several=False),
    mix=(),
)


def at(update: int, **more: object) -> Progress:
    begun = Mark(8 * (update - 1), update - 1, 30.0 * (update - 1))
    return Progress(update=update, position=8 * update, seconds=30.0 * update, **{"begun": begun, **more})  # type: ignore[arg-type]


ASKS_NOTHING: dict[str, Any] = {"examine": lambda step: (), "asks": lambda progress: False}


def cadence(evaluate: Every, save: Every, patience: int | None = None, plan: Plan = PLAN) -> Cadence:
    return Cadence(plan=plan, evaluate=evaluate, save=save, patience=patience)


@pytest.mark.parametrize(
    ("every", "wanted"),
    [
        (Every(3, "updates"), [3, 6, 9, 10]),
        (Every(1, "epochs"), [5, 10]),
        (Every(0.5, "epochs"), [3, 5, 8, 10]),
        (Every(2, "minutes"), [4, 8, 10]),
        (Every(100, "updates"), [10]),
    ],
)
def test_cadences(every: Every, wanted: list[int]) -> None:
    asked = cadence(every, every)
    assert [u for u in range(1, 11) if asked.evaluates(at(u))] == wanted
    assert [u for u in range(1, 11) if asked.saves(at(u))] == wanted
    assert not any(asked.evaluates(at(u, judged=u)) or asked.saves(at(u, saved=u)) for u in range(1, 11))


def test_a_tenth_of_an_epoch_comes_ten_times_each_in_its_place() -> None:
    """0.3 / 0.1 is 2.9999999999999996."""
    plan = replace(PLAN, epoch_examples=10, examples=100)
    asked = cadence(Every(0.1, "epochs"), Every(1, "epochs"), plan=plan)
    assert all(asked.evaluates(Progress(update=u, position=u, begun=Mark(u - 1, u - 1))) for u in range(1, 31))


def test_a_new_best_is_saved_at_once() -> None:
    asked = cadence(Every(100, "updates"), Every(100, "updates"))
    assert asked.saves(at(4, best_update=4, judged=4, best_score=1.0))
    assert not asked.saves(at(5, best_update=4, judged=4, best_score=1.0))


def test_runs_end_with_their_data_their_updates_or_their_patience() -> None:
    by_data, by_updates = cadence(Every(1, "epochs"), Every(1, "epochs")), replace(PLAN, examples=None, updates=4)
    assert [by_data.finished(at(u)) for u in (9, 10)] == [False, True]
    assert by_data.finished(replace(at(9), position=80)), "a skipped update used its data"
    counted = cadence(Every(1, "epochs"), Every(1, "epochs"), plan=by_updates)
    assert [counted.finished(at(u)) for u in (3, 4)] == [False, True]
    patient = cadence(Every(1, "epochs"), Every(1, "epochs"), patience=2)
    assert [patient.finished(at(1, stale=n)) for n in (1, 2)] == [False, True]


def test_the_loop_asks_and_acts_in_order() -> None:
    said: list[str] = []

    def act(name: str, change: object = None):  # type: ignore[no-untyped-def]
        def inner(progress: Progress) -> Progress:
            said.append(f"{name} {progress.update}")
            return change(progress) if change else progress  # type: ignore[operator]

        return inner

    run = Run(
        progress=Progress(),
        cadence=cadence(Every(2, "updates"), Every(3, "updates"), plan=replace(PLAN, examples=None, updates=4)),
        update=act("update", lambda p: at(p.update + 1, judged=p.judged, saved=p.saved)),
        evaluate=act("evaluate", lambda p: replace(p, judged=p.update)),
        save=act("save", lambda p: replace(p, saved=p.update)),
    )
    states = list(train(run))
    assert [state.update for state in states] == [0, 1, 2, 3, 4]
    assert said == ["update 0", "update 1", "evaluate 2", "update 2", "save 3", "update 3", "evaluate 4", "save 4"]


@pytest.mark.parametrize("where", ["update 3", "evaluate 4"])
def test_a_signal_drops_what_is_half_done_and_saves_the_state_between_two_updates(where: str) -> None:
    said: list[str] = []
    saved: list[Progress] = []

    def act(name: str, after: Callable[[Progress], Progress]) -> Callable[[Progress], Progress]:
        def inner(progress: Progress) -> Progress:
            said.append(f"{name} {progress.update}")
            if said[-1] == where:
                raise Interrupted("stopped")
            return after(progress)

        return inner

    def keep(progress: Progress) -> Progress:
        saved.append(progress)
        return replace(progress, saved=progress.update)

    def run(begun: Progress) -> Run:
        return Run(
            progress=begun,
            cadence=cadence(Every(2, "updates"), Every(9, "updates"), plan=replace(PLAN, examples=None, updates=4)),
            update=act("update", lambda p: at(p.update + 1, judged=p.judged, saved=p.saved)),
            evaluate=act("evaluate", lambda p: replace(p, judged=p.update)),
            save=keep,
        )

    with pytest.raises(Interrupted):
        list(train(run(Progress())))
    assert (
        saved[-1].update
        == int(where[-1])
        == len([one for one in said if one.startswith("update")]) - (where == "update 3")
    )
    where, before = "", list(said)
    list(train(run(saved[-1])))
    assert said[len(before) :] == (["update 3", "evaluate 4"] if saved[0].update == 3 else ["evaluate 4"])


def test_the_step_reports_the_loss_that_it_minimises(tmp_path: Path) -> None:
    for micro in (1, 3, 8):
        ground = Ground(tmp_path / str(micro), tiny.model("llama"), count=8, micro=micro)
        total = count = 0.0
        with torch.no_grad():
            for ids, labels in ground.rows():
                logits = ground.model(input_ids=ids[None], use_cache=False).logits[0]
                total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
                count += int((labels != -100).sum())
        outcome = step(ground.batches(), [1e-3, 1e-3], engine=ground.engine, objective=ground.objective)
        assert outcome.applied
        assert outcome.loss == pytest.approx(total / count, abs=1e-5)


def test_an_update_that_is_not_finite_names_its_micro_batch(tmp_path: Path) -> None:
    ground = Ground(tmp_path, tiny.model("llama"), count=8, micro=2)
    batches = ground.batches()
    bad = ground.store[3].ids[0]
    with torch.no_grad():
        ground.model.model.embed_tokens.weight[int(bad)] = math.nan
    hit = {i for batch in batches if (batch.ids == int(bad)).any() for i in batch.examples}
    before = [p.detach().clone() for p in ground.model.parameters()]
    outcome = step(batches, [1e-3, 1e-3], engine=ground.engine, objective=ground.objective)
    assert not outcome.applied
    assert math.isnan(outcome.loss)
    assert 3 in outcome.suspects
    assert set(outcome.suspects) <= hit
    for old, new in zip(before, ground.model.parameters(), strict=True):
        assert torch.equal(old.nan_to_num(7.0), new.nan_to_num(7.0))


def test_seeds_depend_on_seed_position_and_rank() -> None:
    drawn = set()
    for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
        reseed(*key)
        drawn.add(float(torch.rand(1)))
        reseed(*key)
        assert float(torch.rand(1)) in drawn
    assert len(drawn) == 4


def test_the_journal_is_lines_on_disk_and_can_be_cut_back(tmp_path: Path) -> None:
    heard: list[str] = []

    class Sink:
        def hear(self, kind: str, values: object) -> None:
            heard.append(kind)

    path = tmp_path / "journal.jsonl"
    with Journal(path, [Sink()]) as journal:
        journal.write("step", {"step": 1, "loss": 0.5})
        size = journal.size
        journal.write("step", {"step": 2, "loss": 0.4})
        assert len(path.read_text().splitlines()) == 2, "on disk when write returns"
        journal.cut(size)
        journal.write("step", {"step": 2, "loss": 0.3})
    assert [line["loss"] for line in read(path, "step")] == [0.5, 0.3]
    assert heard == ["step"] * 3
    with Journal(path) as journal, pytest.raises(CheckpointError, match="journal has"):
        journal.cut(10_000)
    with Journal(path) as journal, pytest.raises(ValueError, match="JSON"):
        journal.write("step", {"loss": math.nan})


def test_suites_have_a_cadence_of_their_own_at_which_losses_are_measured_too(tmp_path: Path) -> None:
    asking = replace(cadence(Every(4, "updates"), Every(9, "updates")), ask=Every(3, "updates"))
    states = [replace(at(update), begun=Mark(0, update - 1, 0.0)) for update in range(1, 8)]
    assert [state.update for state in states if asking.asks(state)] == [3, 6]
    assert [state.update for state in states if asking.evaluates(state)] == [3, 4, 6]
    assert not any(cadence(Every(4, "updates"), Every(9, "updates")).asks(state) for state in states)


def test_judging_remembers_the_best_and_counts_the_rest(tmp_path: Path) -> None:
    scores = iter([3.0, 2.0, 2.5, 2.0])
    with Journal(tmp_path / "j.jsonl") as journal:
        evaluating = Evaluating(
            measure=lambda step: EvalReport(step=step, scores={"heldout.loss": next(scores)}, counts={"heldout": 1}),
            rule=Rule("heldout.loss", "lower"),
            journal=journal,
            **ASKS_NOTHING,
        )
        progress = at(1)
        seen = []
        for update in range(1, 5):
            progress = evaluating(replace(progress, update=update))
            seen.append((progress.best_update, progress.stale))
    assert seen == [(1, 0), (2, 0), (2, 1), (2, 2)]


def test_a_score_that_is_nan_ends_the_run_and_stands_in_the_journal(tmp_path: Path) -> None:
    report = EvalReport(step=4, scores={"heldout.loss": math.nan}, counts={"heldout": 1})
    with Journal(tmp_path / "j.jsonl") as journal:
        evaluating = Evaluating(
            measure=lambda step: report, rule=Rule("heldout.loss", "lower"), journal=journal, **ASKS_NOTHING
        )
        with pytest.raises(DivergedError, match=r"heldout\.loss is NaN"):
            evaluating(at(4))
    assert json.loads((tmp_path / "j.jsonl").read_text())["scores"] == {"heldout.loss": "NaN"}
    assert to_json(report)["scores"] == {"heldout.loss": "NaN"}
