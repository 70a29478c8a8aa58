"""Memory that runs out: smaller micro-batches, the same update; and the trial that lets it run out at the start."""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fulltune.base.errors import Interrupted, MachineError
from fulltune.base.records import Progress
from fulltune.batch import Batch
from fulltune.data.lay import Budget
from fulltune.training.trouble import Shortage, agreed, attempted, out_of_memory
from tests import tiny
from tests.contract.ground import Ground
from tests.contract.updates import BATCH, NO_ROOM, Updates, same


def of_rows(most: int) -> Callable[[Batch], bool]:
    return lambda batch: batch.ids.shape[0] <= most


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_micro_batches_are_halved_and_the_update_is_the_same(tmp_path: Path, where: str) -> None:
    tight, plain = Updates(tmp_path / "a", micro=4), Updates(tmp_path / "b", micro=4)
    tight.make(1)
    tight.fill(of_rows(1), where=where)
    progress = tight.make(3, replace(tight.make(0), update=1, position=BATCH))
    plain.make(4)
    assert (progress.update, progress.position, progress.skipped) == (4, 4 * BATCH, 0)
    assert progress.halvings == 2
    assert tight.losses() == pytest.approx(plain.losses(), abs=1e-6)
    lines = tight.lines("warning")
    assert [(line["micro_examples"], line["step"]) for line in lines] == [(2, 1), (1, 1)], "and not again later"
    assert [line["micro_tokens"] for line in lines] == [5_000, 2_500]
    assert all(line["what"].startswith("out of memory: ") and NO_ROOM in line["what"] for line in lines)


def test_gradients_of_the_attempt_that_failed_are_dropped(tmp_path: Path) -> None:
    """Had those of the first micro-batches stayed, they would count twice: a part of the update fits, the rest not."""
    tight, plain = Updates(tmp_path / "a", micro=2), Updates(tmp_path / "b", micro=1)
    first = tight.members(0)
    longest = max(first, key=lambda i: tight.ground.store.lengths[i])
    tight.fill(lambda batch: longest in batch.examples or len(batch.examples) == 1)
    tight.make(1)
    plain.make(1)
    assert same(tight.state(), plain.state())


def test_one_example_that_does_not_fit_ends_the_run_with_advice(tmp_path: Path) -> None:
    updates = Updates(tmp_path, micro=4)
    progress = updates.make(1)
    before = updates.state()
    updates.fill(lambda batch: False)
    with pytest.raises(MachineError, match="one example in a micro-batch") as caught:
        updates.update(progress)
    assert caught.value.exit_code == 4
    assert "memory.checkpointing=full" in caught.value.faults[0].mend
    assert "data.max_length" in caught.value.faults[0].mend
    assert same(before, updates.state())


def test_a_long_example_alone_is_not_halved_for_ever(tmp_path: Path) -> None:
    updates = Updates(tmp_path, micro=4)
    lengths = updates.ground.store.lengths
    bad = max(updates.members(0), key=lambda i: lengths[i])
    updates.fill(lambda batch: bad not in batch.examples)
    with pytest.raises(MachineError, match="one example"):
        updates.make(1)
    assert [line["micro_examples"] for line in updates.lines("warning")] == [2, 1]


def test_one_example_alone_that_does_not_fit_is_not_helped_by_cutting_the_others(tmp_path: Path) -> None:
    updates = Updates(tmp_path, tokens=40)
    cut = updates.feed.cut(updates.members(0), updates.update.budget)
    assert {len(micro) for micro in cut} == {1, 2}
    updates.fill(lambda batch: len(batch.examples) > 1)
    with pytest.raises(MachineError, match="one example"):
        updates.make(1)
    assert updates.lines("warning") == []


def test_a_budget_far_above_what_it_holds_is_halved_until_something_changes(tmp_path: Path) -> None:
    updates = Updates(tmp_path, micro=1000)
    updates.fill(of_rows(2))
    assert updates.make(1).halvings == 7
    assert [line["micro_tokens"] for line in updates.lines("warning")] == [10_000 >> 7], "6 halvings cut nothing"


def test_collating_may_run_out_of_memory_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    updates, plain = Updates(tmp_path / "a", micro=4), Updates(tmp_path / "b", micro=2)
    made = updates.feed.batches

    def batches(members: list[int], budget: Budget) -> Iterator[Batch]:
        if budget.examples > 2:
            raise MemoryError("Unable to allocate 8.00 PiB for an array")
        return made(members, budget)

    monkeypatch.setattr(updates.feed, "batches", batches)
    assert updates.make(2).halvings == 1
    plain.make(2)
    assert same(updates.state(), plain.state())


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "CUDA out of memory"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_memory_that_runs_out_while_the_weights_move_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception, said: str
) -> None:
    updates = Updates(tmp_path)

    def update(rates: Iterable[float]) -> None:
        raise fault

    monkeypatch.setattr(updates.ground.engine, "update", update)
    with pytest.raises(MachineError, match=f"while the weights moved: {said}"):
        updates.make(1)
    assert updates.lines("warning") == []


def test_a_run_goes_on_with_the_micro_batches_that_it_had(tmp_path: Path) -> None:
    """With dropout the masks follow the micro-batches, so that others would be seen in the losses."""

    def model() -> Any:
        return tiny.model("gpt2", resid_pdrop=0.3, embd_pdrop=0.3)

    whole, resumed = Updates(tmp_path / "a", model=model()), Updates(tmp_path / "b", model=model())
    whole.fill(of_rows(2))
    progress = whole.make(2)
    assert progress.halvings == 1
    whole.save(progress)
    whole.make(3, progress)
    loaded, _, _ = whole.checkpoints.load(2, resumed.ground.engine)
    assert loaded == progress
    resumed.make(3, loaded)
    assert resumed.losses() == whole.losses()[2:]
    assert same(resumed.state(), whole.state())
    other = Updates(tmp_path / "c", model=model())
    whole.checkpoints.load(2, other.ground.engine)
    other.make(3, replace(loaded, halvings=0))
    assert other.losses() != resumed.losses(), "the test can fail"


def test_what_says_that_memory_ran_out() -> None:
    with pytest.raises(RuntimeError) as real:
        torch.empty(1 << 60)
    assert out_of_memory(real.value)
    said = ["CUDA error: out of memory", "not enough memory: you tried", "CUBLAS_STATUS_ALLOC_FAILED when calling"]
    assert all(out_of_memory(RuntimeError(words)) for words in said)
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert out_of_memory(MemoryError())
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not out_of_memory(ValueError("out of memory"))
    assert isinstance(attempted(lambda: torch.empty(1 << 60)), Shortage)
    with pytest.raises(RuntimeError, match="shapes"):
        attempted(lambda: torch.ones(2, 3) @ torch.ones(2, 3))


class Beside:
    """The engine of a process beside which another one answers the questions too."""

    def __init__(self, *others: bool) -> None:
        self.others, self.cleared, self.asked = list(others), 0, 0

    def any(self, flag: bool) -> bool:
        self.asked += 1
        return self.others.pop(0) or flag

    def clear(self) -> None:
        self.cleared += 1


def test_ranks_agree_in_one_question() -> None:
    own = Shortage("here", alone=False)
    quiet = Beside(False)
    assert agreed(None, quiet, lambda: False) is None  # type: ignore[arg-type]
    assert (quiet.asked, quiet.cleared) == (1, 0)
    beside = Beside(True, False, True)
    assert agreed(None, beside, lambda: False) == Shortage("on another rank", alone=True)  # type: ignore[arg-type]
    assert beside.cleared == 1
    assert agreed(own, Beside(False, False, False), lambda: False) == own  # type: ignore[arg-type]
    for others, mine in (((True, True), False), ((False, False), True)):
        engine = Beside(*others)
        with pytest.raises(Interrupted):
            agreed(own, engine, lambda: mine)  # type: ignore[arg-type,misc]  # noqa: B023
        assert engine.cleared == 1


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_trial_moves_nothing(tmp_path: Path, optimizer: str) -> None:
    tried, plain = (Updates(tmp_path / name, ground={"optimizer": optimizer}) for name in "ab")
    tried.scale(range(32), math.nan)  # not even by gradients that are not finite
    engine = tried.ground.engine._optimizer
    before, groups = tried.state(), json.dumps([_values(group) for group in engine.param_groups])
    progress = tried.update.rehearse(Progress())
    assert progress == Progress()
    assert same(before, tried.state())
    assert not engine.state
    assert json.dumps([_values(group) for group in engine.param_groups]) == groups
    assert all(parameter.grad is None for parameter in tried.ground.model.parameters())
    tried.ground.objective._forward_hooks.clear()
    tried.make(4, progress)
    plain.make(4)
    assert tried.losses() == plain.losses()
    assert same(tried.state(), plain.state())


def _values(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def test_the_trial_takes_the_optimizers_memory_and_gives_it_back(tmp_path: Path) -> None:
    """Also that of an optimizer which counts in its groups, as schedule-free ones do."""

    class Counting(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                group["k"] = group.get("k", 0) + 1
            return super().step(closure)

    ground = Ground(tmp_path, tiny.model("llama"), count=4)
    engine = ground.engine
    engine._optimizer = engine._weights.optimizer = Counting(engine._optimizer.param_groups, lr=0.5, weight_decay=0.1)
    weights = [parameter.detach().clone() for parameter in ground.model.parameters()]
    with engine.rehearsing():
        assert len(engine._optimizer.state) == len(weights)
        assert all(parameter.grad is None for parameter in ground.model.parameters())
    assert not engine._optimizer.state
    assert all("k" not in group and group["lr"] == 1e-3 for group in engine._optimizer.param_groups)
    assert all(torch.equal(old, new) for old, new in zip(weights, ground.model.parameters(), strict=True))


def test_a_trial_where_a_run_goes_on_keeps_its_moments(tmp_path: Path) -> None:
    updates = Updates(tmp_path)
    progress = updates.make(2)
    before = updates.state()
    assert updates.update.rehearse(progress) == progress
    assert same(before, updates.state())


def test_memory_that_runs_out_in_the_trial_halves_before_the_first_update(tmp_path: Path) -> None:
    updates = Updates(tmp_path, micro=4)
    updates.fill(of_rows(2))
    progress = updates.update.rehearse(Progress())
    assert progress == Progress(halvings=1)
    [line] = updates.lines("warning")
    assert (line["step"], line["micro_examples"]) == (0, 2)
    updates.make(3, progress)
    assert len(updates.lines("warning")) == 1
    nothing = Updates(tmp_path / "b")
    nothing.fill(lambda batch: False)
    with pytest.raises(MachineError):
        nothing.update.rehearse(Progress())
    assert not nothing.ground.engine._optimizer.state


def test_the_trial_tries_the_longest_examples_and_the_fullest_micro_batch(tmp_path: Path) -> None:
    updates = Updates(tmp_path, micro=4)
    seen = _seen_in_the_trial(updates)
    lengths = updates.ground.store.lengths
    assert int(lengths.max()) in {int(lengths[i]) for micro in seen for i in micro}
    most = max(len(micro) * updates.update.budget.width(max(int(lengths[i]) for i in micro)) for micro in seen)
    for update in range(64):
        for batch in updates.feed.batches(updates.members(update), updates.update.budget):
            assert batch.ids.numel() <= most


def test_the_trial_has_gradients_beside_what_it_tries_where_updates_do(tmp_path: Path) -> None:
    """An update of several micro-batches has those of the ones before it."""
    several, one = Updates(tmp_path / "a", micro=BATCH // 2), Updates(tmp_path / "b", micro=BATCH)
    for updates, beside in ((several, True), (one, False)):
        found: list[bool] = []
        weight = next(updates.ground.model.parameters())
        updates.ground.objective.register_forward_pre_hook(
            lambda *_, weight=weight, found=found: found.append(weight.grad is not None)
        )
        seen = _seen_in_the_trial(updates)
        small = updates.feed.shortest
        tried = [beside for micro, beside in zip(seen, found, strict=True) if list(micro) != small]
        assert tried and tried == [beside] * len(tried)


def _seen_in_the_trial(updates: Updates) -> list[tuple[int, ...]]:
    seen: list[tuple[int, ...]] = []
    updates.ground.objective.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].examples))
    updates.update.rehearse(Progress())
    return seen
