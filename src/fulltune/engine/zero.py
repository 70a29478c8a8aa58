"""The engine on DeepSpeed's ZeRO: optimizer state, gradients and weights are divided over the processes, by its stage.

DeepSpeed is driven directly (`decisions/0006-deepspeed-direct.md`): our optimizer goes in, and fulltune says which
micro-batch is the last. Its checkpoints are not used, since they are pickles: each process writes its fragments as the
native engines write rows, and any of them goes on from what any other saved.
"""

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fulltune.base.errors import MachineError
from fulltune.base.formats import PrecisionPlan
from fulltune.batch import Batch
from fulltune.engine.capture import Capture, Staging
from fulltune.engine.contract import Extra, MakeOptimizer, Pull, Read, Update, Visitor
from fulltune.engine.deepspeed import begun, library
from fulltune.engine.fragments import fragments_of, pulled
from fulltune.engine.launch import Meeting
from fulltune.engine.native import unique_state
from fulltune.engine.pieces import FILES, Pieces, require_same
from fulltune.engine.precision import autocast
from fulltune.engine.zero_state import Members, Parts, read_extra, restore

T = TypeVar("T")


class ZeroEngine:
    """A model that DeepSpeed divides over the processes of a run."""

    def __init__(
        self,
        model: nn.Module,
        objective: nn.Module,
        make_optimizer: MakeOptimizer,
        meeting: Meeting,
        configuration: Mapping[str, Any],
        *,
        precision: PrecisionPlan,
        pulls: Sequence[Pull] = (),
    ) -> None:
        """`configuration`: DeepSpeed's own, complete. `pulls` act behind the update alone (`planning/pulls.py`)."""
        self._pulls = tuple(pulls)
        self.world, self._crew = meeting.world, meeting.crew
        self._model, self._objective = model, objective.to(meeting.world.device).train()
        self._stage = int(configuration["zero_optimization"]["stage"])
        self._optimizer = make_optimizer(model.named_parameters())
        self._members = Members(self._optimizer, model)
        self._groups = self._members.groups
        # DeepSpeed rounds weights before it copies them: what was read in float32 is to be the masters' beginning.
        rounded = precision.compute != "float32"
        read = {name: parameter.detach() for name, parameter in model.named_parameters()} if rounded else {}
        entry = _Entry(self._objective, precision, meeting.world.device)
        self._engine = begun(entry, self._optimizer, configuration, meeting)
        self._fragments = fragments_of(model, self._engine.optimizer)
        if rounded:
            self._write(lambda name, _: read[name])
        self._still: set[int] = set()
        self._torn = False
        self._optimizer.register_step_pre_hook(self._hide)
        self._optimizer.register_step_post_hook(self._show)
        self._hidden: list[tuple[Tensor, Tensor | None]] = []
        self._staging: Staging = {}
        self._captured: Capture | None = None

    @torch.no_grad()
    def _write(self, read: Read) -> None:
        """Float32 numbers of what the optimizer moves."""
        for fragment in self._fragments:
            whole = read(fragment.name, None).reshape(-1)
            fragment.master.copy_(whole[fragment.start : fragment.start + fragment.count])
        self._fragments.publish()

    @property
    def whole(self) -> bool:
        return self._stage < 3

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        here = batch.to(self.world.device)
        sums: dict[str, Tensor] = self._engine(lambda objective: objective(here))
        return sums

    @contextmanager
    def micro(self, *, last: bool) -> Iterator[None]:
        self._engine.set_gradient_accumulation_boundary(last)
        self._torn = self._stage == 3  # which exchanges weights in the forward pass already
        yield
        self._torn = False

    def backward(self, share: Tensor) -> None:
        self._torn = self._stage > 1
        self._engine.backward(share * self._crew.size)  # DeepSpeed takes the mean over ranks, the contract is the sum

    def update(self, rates: Sequence[float]) -> Update:
        for group, rate in zip(self._groups, rates, strict=True):
            group["lr"] = rate
        self._still = {number for number, rate in enumerate(rates) if rate == 0}
        if len(self._still) == len(self._groups):
            self.clear()
            return Update(0.0, applied=True)
        for number in self._still:
            self._fragments.spare(number)
        self._release()
        self._engine.step()
        norm, applied = float(self._engine.get_global_grad_norm()), bool(self._engine.was_step_applied())
        assert applied == math.isfinite(norm)
        if not applied:  # DeepSpeed forgets them itself, but for those of bfloat16 that wait on the host
            self._fragments.clear()
        elif self._pulls:
            pulled(self._fragments, self._pulls, rates)
        return Update(norm, applied)

    def _hide(self, optimizer: Any, *_arguments: Any) -> None:
        """Before torch's optimizer steps: it leaves alone what has no gradient, and its moments."""
        still = [self._groups[number] for number in self._still]
        spared = [group for group in optimizer.param_groups if any(group is one for one in still)]
        self._hidden = [(line, line.grad) for group in spared for line in group["params"]]
        for line, _ in self._hidden:
            line.grad = None

    def _show(self, *_arguments: Any) -> None:
        """Behind it: DeepSpeed keeps the memory of some gradients for the next ones."""
        for line, gradient in self._hidden:
            line.grad = gradient
        self._hidden = []

    def clear(self) -> None:
        if self._torn:
            raise MachineError(
                f"memory ran out in a pass in which ZeRO {self._stage} exchanges with other processes",
                where="engine.name",
                mend="lower train.micro_tokens, memory.checkpointing=full, engine.offload=true, or more processes",
            )
        self._fragments.clear()

    @contextmanager
    def rehearsing(self) -> Iterator[None]:
        fresh = not self._optimizer.state  # where a run goes on, the moments are there already
        kept = [
            {key: copy.deepcopy(value) for key, value in group.items() if key != "params"} for group in self._groups
        ]
        try:
            if fresh:
                self._step_in_place()
            yield
        finally:
            self.clear()
            if fresh:
                self._optimizer.state.clear()
                for group, values in zip(self._groups, kept, strict=True):
                    parameters = group["params"]
                    group.clear()
                    group.update(params=parameters, **values)

    def _step_in_place(self) -> None:
        """An update at rate 0 by gradients of 0, one stretch at a time as DeepSpeed makes it."""
        self._still = set()
        before = [group["params"] for group in self._groups]
        for number, line in self._fragments.lines():
            for other, group in enumerate(self._groups):
                group["params"], group["lr"] = [line] if other == number else [], 0.0
            kept, line.grad = line.grad, torch.zeros_like(line)
            self._optimizer.step()
            line.grad = kept
        for group, parameters in zip(self._groups, before, strict=True):
            group["params"] = parameters

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        before = self._objective.training
        self._objective.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self._objective.train(before)

    def inside(self, act: Callable[[nn.Module], T]) -> T:
        result: T = self._engine(lambda objective: objective.through(act))
        return result

    @torch.no_grad()
    def visit(self, act: Visitor) -> None:
        self._release()
        for fragment in self._fragments:
            act(fragment.name, fragment.master)
        self._fragments.publish()

    def sum(self, value: Tensor) -> Tensor:
        return self._crew.sum(value)

    def any(self, flag: bool) -> bool:
        return self._crew.any(flag)

    @property
    def files(self) -> frozenset[str]:
        return FILES

    def capture(self, extra: Extra) -> Capture:
        self._release()
        parts = Parts(self._fragments, self._crew.rank)
        parts.weights(self._unmoved())
        numbers = parts.moments(self._optimizer, self._members, self._fragments.lines())
        parts.remembered(extra)
        texts = {"optimizer.json": json.dumps(numbers)} if self._crew.rank == 0 else {}
        self._captured = Capture(parts.files, texts, self._staging, parts.pieces, self._crew.size)
        return self._captured

    def _unmoved(self) -> dict[str, Tensor]:
        """What the optimizer does not move, the same on all: frozen weights and buffers, copied now."""
        return {name: self._gathered(name) for name in sorted(self._names() - self._trained())}

    def _names(self) -> set[str]:
        return set(unique_state(self._model))

    def _trained(self) -> set[str]:
        return {name for name, parameter in self._model.named_parameters() if parameter.requires_grad}

    def _release(self) -> None:
        """Before weights or moments move: the last capture must have been copied."""
        if self._captured is not None:
            self._captured.wait()
            self._captured = None

    @torch.no_grad()
    def load(self, folder: Path, *, weights_only: bool = False) -> Extra:
        self._release()
        saved = Pieces(folder, "weights")
        own, trained = self._names(), self._trained()
        require_same(saved, own, folder)
        for fragment in self._fragments:
            fragment.master.copy_(saved.read(fragment.name, fragment.piece, fragment.count))
        for name in sorted(own - trained):
            with self._opened(name) as value:
                value.copy_(saved.read(name))
        self._fragments.publish()
        if not weights_only:
            restore(folder, self._optimizer, self._members, self._fragments)
        return read_extra(folder, self._fragments)

    @torch.no_grad()
    def fill(self, read: Read) -> None:
        self._release()
        for name in sorted(self._names() - self._trained()):
            with self._opened(name) as value:
                value.copy_(read(name, None))
        self._write(read)

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        trained = self._trained()
        for name, value in unique_state(self._model).items():
            whole = self._master(name) if name in trained else self._gathered(name)
            if self.world.rank == 0:
                yield name, whole.detach().to("cpu", copy=whole is value).contiguous()

    def _master(self, name: str) -> Tensor:
        """A weight's float32 numbers, from all processes."""
        whole: Tensor = library().utils.safe_get_full_fp32_param(self._model.get_parameter(name))
        return whole

    def _gathered(self, name: str) -> Tensor:
        """What the optimizer does not move, whole."""
        with self._opened(name) as value:
            return value.detach().clone()

    @contextmanager
    def _opened(self, name: str) -> Iterator[Tensor]:
        """In here it is whole; what the first process writes into it all have."""
        value = self._model.state_dict(keep_vars=True)[name]
        if self.whole or not isinstance(value, nn.Parameter):
            yield value
            return
        with library().zero.GatheredParameters([value], modifier_rank=0):
            yield value


class _Entry(nn.Module):
    """What DeepSpeed wraps: all that a pass computes begins at its forward, in the precision of the run."""

    def __init__(self, objective: nn.Module, precision: PrecisionPlan, device: str) -> None:
        super().__init__()
        self.objective, self._precision, self._device = objective, precision, device

    def forward(self, act: Callable[[nn.Module], T]) -> T:
        with autocast(self._precision, self._device):
            return act(self.objective)
