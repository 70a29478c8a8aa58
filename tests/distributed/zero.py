"""What each rank checks of engines on DeepSpeed beside one process.

`python -m tests.distributed.zero FOLDER PRECISION LAYOUT...`, started by `run_together`. What is compared with is
computed in each rank by itself, on the same examples.
"""

import gc
import math
import os
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from fulltune.base.errors import MachineError
from fulltune.batch import Batch
from fulltune.engine.launch import Meeting, joined
from fulltune.engine.pieces import file_of
from fulltune.training.step import Outcome, step
from tests import tiny
from tests.contract.ground import Ground
from tests.distributed.ranks import Case, curve, ground, weights

RATES = [1e-3, 1e-3]


class Checks:
    """Engines of one layout, as many as it takes."""

    def __init__(self, folder: Path, meeting: Meeting, layout: str, precision: str) -> None:
        self.folder, self.meeting = folder, meeting
        self.case = Case(layout, "llama-tied", 2, precision)

    def made(self, name: str, case: Case | None = None, **more: Any) -> Ground:
        place = self.folder / name / f"rank-{self.meeting.world.rank}"
        return ground(place, case or self.case, self.meeting.world, self.meeting.crew, **more)

    def alone(self, name: str, **more: Any) -> Ground:
        """One process with all examples."""
        place = self.folder / name / f"rank-{self.meeting.world.rank}"
        return Ground(place, tiny.model("llama-tied"), count=40, micro=2, clip=1.0, **more)

    def saved(self, name: str, made: Ground) -> Path:
        """Each rank's part in one folder, as checkpoints have them."""
        folder = self.folder / name / "saved"
        folder.mkdir(parents=True, exist_ok=True)
        self.meeting.crew.any(False)
        made.engine.capture({}).write(folder)
        self.meeting.crew.any(False)
        return folder

    def same(self, found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], *, most: float = 2e-6) -> None:
        """Rank 0 has the whole weights."""
        if self.meeting.world.rank == 0:
            assert found.keys() == wanted.keys()
            apart = max(float((found[name] - wanted[name]).abs().max()) for name in wanted)
            assert apart <= most, apart

    def what_is_read_is_what_it_has(self) -> None:
        made, other = self.made("filled"), self.made("other")
        curve(other, range(2))
        wanted = {name: value + 0.25 for name, value in self.alone("numbers").model.state_dict().items()}
        made.engine.fill(lambda name, rows: wanted[name] if rows is None else wanted[name][rows])
        self.same(weights(made), {name: wanted[name] for name in weights(made)}, most=0)
        again = self.made("again")
        again.engine.fill(lambda name, _: wanted[name])
        assert curve(made, range(2)) == curve(again, range(2)), "and computes with"

    def ranks_may_pass_through_the_head_in_different_numbers_of_pieces(self) -> None:
        """Stage 3 gathers it for each: without the empty pieces that `most` asks for, ranks would not gather alike."""
        calm, made = self.made("whole"), self.made("pieces")
        wanted = curve(calm, range(2))
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("fulltune.objectives.CHUNK_BYTES", 4 * tiny.VOCAB * 2)
            found = curve(made, range(2))
        close = 1e-6 if self.case.precision == "float32" else 1e-2
        assert found == [pytest.approx(pair, rel=close) for pair in wanted]

    def nothing_moves_where_the_gradient_is_none_on_one(self) -> None:
        made, calm = self.made("nonfinite"), self.made("calm")
        curve(made, range(2)), curve(calm, range(2))
        before = weights(made)
        forward: Callable[[Batch], Any] = made.engine.forward
        sick = float("inf") if self.meeting.world.rank == 1 else 1.0

        def instead(batch: Batch) -> Any:  # the loss is finite, its gradient is not
            sums = forward(batch)
            sums["next_token"].register_hook(lambda gradient: gradient * sick)
            return sums

        made.engine.forward = instead
        outcome = update(made, 2)
        assert not outcome.applied and not math.isfinite(outcome.grad_norm) and math.isfinite(outcome.loss)
        made.engine.forward = forward
        self.same(weights(made), before, most=0)
        assert curve(made, range(2, 5)) == curve(calm, range(2, 5)), "no trace of it is left"
        self.same(weights(made), weights(calm), most=0)

    def a_group_at_rate_0_stays(self) -> None:
        made, alone = self.made("spared"), self.alone("spared-alone")
        for number, rates in enumerate([RATES, [1e-3, 0.0], RATES, [0.0, 1e-3], [0.0, 0.0], RATES]):
            before = weights(made)
            found, wanted = update(made, number, rates), update(alone, number, rates)
            assert abs(found.grad_norm - wanted.grad_norm) <= 1e-5, rates
            now = weights(made)
            if self.meeting.world.rank == 0:
                moved = {name in alone.spared for name in now if not torch.equal(now[name], before[name])}
                assert moved == {spared for spared, rate in zip([False, True], rates, strict=True) if rate}
        self.same(weights(made), weights(alone))

    def dropped_gradients_leave_no_trace(self) -> None:
        made, calm = self.made("dropped"), self.made("dropped-calm")
        for number in range(3):
            for several in (1, 2, 99):  # until one micro-batch, several, all of the update
                batches = examples(made, number)
                for batch in batches[:several]:
                    with made.engine.micro(last=batch is batches[-1]):
                        made.engine.backward(made.engine.forward(batch)["next_token"])
                made.engine.clear()
            assert curve(made, range(number, number + 1)) == curve(calm, range(number, number + 1))

    def a_rehearsal_takes_memory_and_moves_nothing(self) -> None:
        made, calm = self.made("rehearsed"), self.made("rehearsed-calm")
        before, groups = weights(made), [dict(group) for group in made.engine._groups]
        with made.engine.rehearsing():
            moments = sum(v.numel() for s in made.engine._optimizer.state.values() for v in s.values() if v.ndim)
            lines = sum(line.numel() for _, line in made.engine._fragments.lines())
            assert moments == 2 * lines > 0
            for batch in (batches := examples(made, 0)):
                with made.engine.micro(last=batch is batches[-1]):
                    made.engine.backward(made.engine.forward(batch)["next_token"])
        assert not made.engine._optimizer.state
        for group, was in zip(made.engine._groups, groups, strict=True):
            assert {key: value for key, value in group.items() if key != "params"} == {
                key: value for key, value in was.items() if key != "params"
            }
        self.same(weights(made), before, most=0)
        assert curve(made, range(3)) == curve(calm, range(3))

    def what_is_visited_may_be_changed(self) -> None:
        made, alone = self.made("visited"), self.alone("visited-alone")
        curve(made, range(1)), curve(alone, range(1))
        for each in (made, alone):
            each.engine.visit(lambda name, shard: shard.mul_(0.5))
        self.same(weights(made), weights(alone))
        for (loss, norm), (true_loss, true_norm) in zip(
            curve(made, range(1, 3)), curve(alone, range(1, 3)), strict=True
        ):
            assert abs(loss - true_loss) <= 1e-5 and abs(norm - true_norm) <= 1e-5

    def measuring_changes_nothing(self) -> None:
        made, alone = self.made("measured"), self.alone("measured-alone")
        ids = torch.arange(9)[None] % tiny.VOCAB
        for number in range(2):
            curve(made, range(number, number + 1)), curve(alone, range(number, number + 1))
            with made.engine.evaluating(), alone.engine.evaluating():
                assert not made.model.training and not torch.is_grad_enabled()
                found = sum(float(made.engine.forward(batch)["next_token"]) for batch in examples(made, 0))
                wanted = sum(float(alone.engine.forward(batch)["next_token"]) for batch in examples(alone, 0))
                total = float(made.engine.sum(torch.tensor(found, dtype=torch.float64)))
                assert abs(total - wanted) <= 1e-4
            assert made.model.training and torch.is_grad_enabled()
            for each in (made, alone):
                each.logits = each.engine.inside(lambda model: model(input_ids=ids, use_cache=False).logits.detach())
            assert torch.allclose(made.logits, alone.logits, atol=1e-5)
        self.same(weights(made), weights(alone))

    def what_was_saved_goes_on_to_the_bit(self) -> None:
        made, other = self.made("kept"), self.made("kept-other")
        curve(made, range(3))
        folder = self.saved("kept", made)
        whole = weights(made)
        curve(other, range(5))
        for reader in (other, self.made("kept-fresh")):
            reader.engine.load(folder)
            self.same(weights(reader), whole, most=0)
        wanted = curve(made, range(3, 6))
        assert curve(other, range(3, 6)) == curve(reader, range(3, 6)) == wanted
        reader.engine.load(folder, weights_only=True)
        self.same(weights(reader), whole, most=0)
        assert curve(reader, range(3, 6))[1:] != wanted[1:], "its moments are those of later"

    def every_engine_goes_on_from_any_other(self) -> None:
        made, alone = self.made("saved"), self.alone("saved-alone")
        curve(made, range(3)), curve(alone, range(3))
        folder = self.saved("saved", made)
        files = {path.name for path in folder.glob("*.safetensors")}
        assert {file_of("weights", rank) for rank in range(self.meeting.world.size)} <= files
        native = self.made("saved-fsdp2", Case("fsdp2", "llama-tied", 2))
        curve(native, range(3))
        theirs = self.saved("saved-fsdp2", native)
        true = curve(alone, range(3, 6))
        curve(made, range(3, 6))
        readers = [self.alone("read-alone"), self.made("read-fsdp2", Case("fsdp2", "llama-tied", 2)), self.made("read")]
        # The last two go over what is there, as a rollback does.
        for reader, place in [*((each, folder) for each in readers), (made, theirs), (made, folder)]:
            reader.engine.load(place)
            for found, wanted in zip(curve(reader, range(3, 6)), true, strict=True):
                assert max(abs(one - other) for one, other in zip(found, wanted, strict=True)) <= 1e-5
            self.same(weights(reader), weights(alone))

    def lion_moves_parts_as_it_moves_the_whole(self) -> None:
        """What is nearly 0 has the sign of a rounding error, so a few numbers go the other way; across engines too."""
        lion: Any = {"optimizer": "lion"}
        alone = self.alone("lion-alone", **lion)
        zero, native = self.made("lion", **lion), self.made("lion-fsdp2", Case("fsdp2", "llama-tied", 2), **lion)
        true = curve(alone, range(2))
        for each in (zero, native):
            assert curve(each, range(2)) == [pytest.approx(pair, rel=1e-3) for pair in true]
        places = [self.saved("lion", zero), self.saved("lion-fsdp2", native)]
        native.engine.load(places[0])
        zero.engine.load(places[1])
        true = curve(alone, range(2, 4))
        for each in (zero, native):
            assert curve(each, range(2, 4)) == [pytest.approx(pair, rel=1e-3) for pair in true]
            found, wanted = weights(each), weights(alone)
            if self.meeting.world.rank == 0:
                apart = torch.cat([((found[name] - wanted[name]).abs() > 1e-6).flatten() for name in wanted])
                assert float(apart.double().mean()) < 0.01

    def every_number_lies_in_one_process(self) -> None:
        made = self.made("counted")
        for name, whole in tiny.model("llama-tied").named_parameters():
            mine = [f for f in made.engine._fragments if f.name == name]
            assert len(mine) <= 1 and all(f.shape == tuple(whole.shape) for f in mine)
            here = torch.zeros(whole.numel())
            for fragment in mine:  # masters begin with what was read, not with what DeepSpeed rounds it to
                here[fragment.start : fragment.start + fragment.count] += 1
                part = whole.detach().reshape(-1)[fragment.start : fragment.start + fragment.count]
                assert torch.equal(fragment.master, part)
            assert torch.equal(self.meeting.crew.sum(here), torch.ones(whole.numel())), name

    def a_pass_that_broke_off_is_dropped_where_nothing_was_exchanged(self) -> None:
        made = self.made("torn")
        for within_backward in (False, True):
            engine = made.engine
            with pytest.raises(MemoryError), engine.micro(last=False):
                share = engine.forward(examples(made, 0)[0])["next_token"]
                if within_backward:
                    share.register_hook(_fail)
                    engine.backward(share)
                raise MemoryError
            if engine._stage == 3 or (engine._stage == 2 and within_backward):
                with pytest.raises(MachineError, match="exchanges with other processes"):
                    engine.clear()
                return
            engine.clear()
        calm = self.made("torn-calm")
        assert curve(made, range(3)) == curve(calm, range(3))

    def gloo_carries_it(self) -> None:
        """Through DeepSpeed's shared memory one would wait for ever for a process that ended."""
        import deepspeed

        assert deepspeed.comm.comm.cdb.shm_comm_op is None


def examples(made: Ground, number: int) -> list[Batch]:
    begin = number * 7 % 40
    return made.batches(range(begin, min(begin + 7, 40)))


def update(made: Ground, number: int, rates: list[float] = RATES) -> Outcome:
    outcome = step(examples(made, number), rates, engine=made.engine, objective=made.objective)
    assert isinstance(outcome, Outcome)
    return outcome


def _fail(_: torch.Tensor) -> torch.Tensor:
    raise MemoryError


BY_ITSELF = [
    Checks.what_is_read_is_what_it_has,
    Checks.ranks_may_pass_through_the_head_in_different_numbers_of_pieces,
    Checks.nothing_moves_where_the_gradient_is_none_on_one,
    Checks.dropped_gradients_leave_no_trace,
    Checks.a_rehearsal_takes_memory_and_moves_nothing,
    Checks.what_was_saved_goes_on_to_the_bit,
    Checks.every_number_lies_in_one_process,
    Checks.a_pass_that_broke_off_is_dropped_where_nothing_was_exchanged,
    Checks.gloo_carries_it,
]
BESIDE_ONE_PROCESS = [
    Checks.a_group_at_rate_0_stays,
    Checks.what_is_visited_may_be_changed,
    Checks.measuring_changes_nothing,
    Checks.every_engine_goes_on_from_any_other,
    Checks.lion_moves_parts_as_it_moves_the_whole,
]


def main(folder: Path, precision: str, layouts: Sequence[str]) -> None:
    asked = BY_ITSELF if precision != "float32" else BY_ITSELF + BESIDE_ONE_PROCESS
    with joined(60) as meeting:
        for layout, check in product(layouts, asked):
            gc.freeze()  # one of DeepSpeed's optimizers collects garbage a dozen times while it begins
            check(Checks(folder / layout, meeting, layout, precision))
            if meeting.world.rank == 0:
                print("done:", layout, check.__name__, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # gloo's threads may abort a process that ends in order
