"""Updates that must not be made: skipped, taken back, or the end of the run."""

import math
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
from hypothesis import given, strategies

from fulltune.base.errors import DivergedError, Interrupted
from fulltune.base.files import read_record, write_record
from fulltune.base.records import Progress
from fulltune.engine.contract import Update
from fulltune.training.spikes import Spikes, score
from tests.contract.updates import BATCH, Updates, same

BACK = {"on_nonfinite": "rollback"}
SPIKES = {"spikes": Spikes(policy="rollback", window=64, limit=10.0)}


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_skipped_update_leaves_the_state_as_it_was_and_names_its_rows(tmp_path: Path, factor: float) -> None:
    updates = Updates(tmp_path)
    progress = updates.make(2)
    bad = updates.members(2)[1]
    updates.scale([bad], factor)
    before = updates.state()
    after = updates.update(progress)
    assert same(before, updates.state())
    assert (after.update, after.position, after.skipped, after.healthy) == (2, 3 * BATCH, 1, False)
    [line] = updates.lines("warning")
    assert line["loss"] in ("NaN", "Infinity")
    assert f"rows.jsonl:{bad + 1}" in line["rows"]
    assert updates.update(after).healthy


def test_a_run_that_skips_is_the_run_without_these_examples(tmp_path: Path) -> None:
    skipping, reference = Updates(tmp_path / "a"), Updates(tmp_path / "b")
    skipping.scale(skipping.members(3), math.nan)
    end = skipping.make(7)
    removed = reference.make(3)
    reference.make(3, replace(removed, position=removed.position + BATCH))
    assert end.update == 6
    assert skipping.losses() == reference.losses()
    assert same(skipping.state(), reference.state())


def test_the_first_update_that_is_not_finite_may_end_the_run(tmp_path: Path) -> None:
    updates = Updates(tmp_path, on_nonfinite="stop")
    progress = updates.make(1)
    before = updates.state()
    updates.scale(updates.members(1), math.nan)
    with pytest.raises(DivergedError, match=r"not finite after update 1 \(loss NaN") as caught:
        updates.update(progress)
    assert caught.value.exit_code == 5
    assert f"rows.jsonl:{updates.members(1)[0] + 1}" in caught.value.faults[0].where
    assert same(before, updates.state())


def test_a_rollback_returns_to_the_healthy_state_and_goes_on_behind_the_examples(tmp_path: Path) -> None:
    updates, reference = Updates(tmp_path / "a", **BACK), Updates(tmp_path / "b")
    healthy = updates.make(2)
    updates.save(healthy)
    saved = updates.state()
    now = replace(updates.make(2, healthy), halvings=1)
    updates.scale(updates.members(4), math.nan)
    after = updates.update(now)
    assert same(saved, updates.state())
    assert (after.update, after.position, after.rollbacks, after.skipped) == (2, 5 * BATCH, 1, 0)
    assert after.healthy
    assert after.halvings == 1, "memory did not grow"
    assert (after.losses, after.tokens) == (healthy.losses, healthy.tokens), "what was taken back was not learned"
    assert after.seconds > now.seconds > healthy.seconds, "but took its time"
    [line] = updates.lines("rollback")
    assert (line["step"], line["to"], line["position"], line["loss"]) == (4, 2, 5 * BATCH, "NaN")
    assert line["rows"] == [f"rows.jsonl:{i + 1}" for i in updates.members(4)]
    updates.make(2, replace(after, halvings=0))
    reference.make(2, replace(reference.make(2), position=5 * BATCH))
    assert updates.losses()[-2:] == reference.losses()[-2:]
    assert same(updates.state(), reference.state())


def test_rollbacks_are_numbered_and_the_next_one_stops(tmp_path: Path) -> None:
    updates = Updates(tmp_path, **BACK)
    healthy = updates.make(1)
    updates.save(healthy)
    updates.scale([*updates.members(1), *updates.members(3)], math.nan)
    progress = updates.make(2, healthy)
    assert (progress.update, progress.rollbacks) == (2, 1)
    with pytest.raises(DivergedError, match="1 rollbacks before it") as caught:
        updates.update(progress)
    assert caught.value.exit_code == 5
    assert len(updates.lines("rollback")) == 1
    never = Updates(tmp_path / "never", **BACK, max_rollbacks=0)
    never.scale(never.members(0), math.nan)
    with pytest.raises(DivergedError, match="0 rollbacks before it"):
        never.make(1)


def test_without_a_healthy_checkpoint_there_is_no_way_back(tmp_path: Path) -> None:
    def nowhere(now: Progress) -> Progress:
        raise DivergedError(f"no healthy checkpoint before update {now.update}")

    updates = Updates(tmp_path, **BACK, back=nowhere)
    updates.scale(updates.members(1), math.nan)
    with pytest.raises(DivergedError, match="no healthy checkpoint before update 1"):
        updates.make(2)


def test_a_spike_is_refused_before_the_weights_move(tmp_path: Path) -> None:
    updates = Updates(tmp_path, count=120, **SPIKES)
    progress = updates.make(17)
    updates.save(progress)
    saved = updates.state()
    updates.scale(updates.members(17), 50.0)
    after = updates.update(progress)
    assert same(saved, updates.state())
    assert all(parameter.grad is None for parameter in updates.ground.model.parameters())
    assert after == replace(progress, position=18 * BATCH, rollbacks=1, seconds=after.seconds)
    [line] = updates.lines("rollback")
    assert line["why"] == "loss spike"
    assert line["loss"] > 100
    assert len(line["rows"]) == BATCH
    assert updates.update(after).update == 18


def test_a_spike_that_is_warned_of_is_learned_from_and_is_no_measure(tmp_path: Path) -> None:
    updates = Updates(tmp_path, count=120)
    progress = updates.make(16)
    assert len(progress.losses) == 16
    updates.scale(updates.members(16), 50.0)
    spiking = updates.update(progress)
    assert (spiking.update, spiking.healthy, spiking.skipped) == (17, False, 0)
    assert spiking.losses == progress.losses
    [line] = updates.lines("warning")
    assert line["what"].startswith("loss spike")
    assert sorted(line["rows"]) == sorted(f"rows.jsonl:{i + 1}" for i in updates.members(16))
    assert updates.update(spiking).healthy


def test_the_first_sixteen_losses_are_not_judged_and_off_is_off(tmp_path: Path) -> None:
    early = Updates(tmp_path / "early", count=120)
    early.scale(early.members(15), 50.0)
    assert early.make(16).healthy
    off = Updates(tmp_path / "off", count=120, spikes=Spikes(policy="off", window=64, limit=10.0))
    off.scale(off.members(16), 50.0)
    progress = off.make(17)
    assert progress.healthy
    assert progress.losses == ()
    assert off.lines("warning") == early.lines("warning") == []


losses = strategies.lists(strategies.floats(-10, 10), min_size=16, max_size=64)


@given(losses, strategies.floats(-1e3, 1e3))
def test_the_score_is_the_formula(window: list[float], loss: float) -> None:
    middle = (
        sorted(window)[len(window) // 2] if len(window) % 2 else sum(sorted(window)[len(window) // 2 - 1 :][:2]) / 2
    )
    away = sorted(abs(value - middle) for value in window)
    spread = max(1.4826 * median(away), 0.02 * abs(middle))
    found = score(loss, window)
    if spread == 0:
        assert found == (math.inf if loss > middle else 0.0)
    else:
        assert found == pytest.approx((loss - middle) / spread)
    assert score(loss, window[:15]) == 0.0


def test_the_window_forgets_and_spikes_do_not_enter_it() -> None:
    spikes = Spikes(policy="warn", window=16, limit=10.0)
    seen: tuple[float, ...] = ()
    for loss in [*range(100, 120), 10_000]:
        seen = spikes.remembered(float(loss), seen)
    assert seen == tuple(map(float, range(104, 120)))
    assert spikes.found(10_000.0, seen)
    assert not spikes.found(0.0, seen), "a loss may fall"


def test_progress_is_read_back_whole(tmp_path: Path) -> None:
    updates = Updates(tmp_path)
    progress = replace(updates.make(3), rollbacks=1, halvings=2, skipped=1, healthy=False)
    assert len(progress.losses) == 3
    write_record(tmp_path / "progress.json", progress)
    assert read_record(tmp_path / "progress.json", Progress) == progress


def test_a_wish_to_stop_drops_the_update_that_was_begun(tmp_path: Path) -> None:
    asked: list[None] = []
    wish = iter([False] * 7 + [True] * 99)

    def stopped() -> bool:
        asked.append(None)
        return next(wish)

    updates = Updates(tmp_path, micro=1, stopped=stopped)
    progress = updates.make(1)  # asked before the first micro-batch and behind each: 5 times
    before = updates.state()
    with pytest.raises(Interrupted) as caught:
        updates.update(progress)
    assert len(asked) == 8, "within the update, not at its end"
    assert caught.value.exit_code == 75
    assert same(before, updates.state())
    assert all(parameter.grad is None for parameter in updates.ground.model.parameters())
    assert len(updates.lines("step")) == 1


def test_an_overflow_of_the_loss_scale_makes_the_same_update_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates, plain = Updates(tmp_path / "a"), Updates(tmp_path / "b")
    engine, tries = updates.ground.engine, []
    move = engine.update

    def overflowing(rates: list[float]) -> Update:
        tries.append(rates)
        if len(tries) in (1, 2):
            engine.clear()
            return Update(math.inf, applied=False, again=True)
        return move(rates)

    monkeypatch.setattr(engine, "update", overflowing)
    progress = updates.make(2)
    plain.make(2)
    assert len(tries) == 4
    assert (progress.update, progress.skipped, progress.position) == (2, 0, 2 * BATCH)
    assert updates.losses() == plain.losses()
    assert updates.lines("warning") == []
    assert same(updates.state(), plain.state())
