"""One device: nothing is wrapped, nothing is exchanged."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fulltune.base.errors import CheckpointError
from fulltune.base.records import Precision
from fulltune.batch import Batch
from fulltune.engine.capture import Capture, Staging
from fulltune.engine.contract import Extra, MakeOptimizer, Pull, Update, Visitor, World
from fulltune.engine.state import flatten, restore

_FILES = frozenset({"weights.safetensors", "optimizer.safetensors", "optimizer.json", "extra.safetensors"})


class SingleEngine:
    """The model as it is, float32 weights and moments on one device; the forward pass in float32 or bf16 autocast."""

    def __init__(
        self,
        model: nn.Module,
        objective: nn.Module,
        make_optimizer: MakeOptimizer,
        world: World,
        *,
        clip: float | None,
        precision: Precision,
        pulls: Sequence[Pull] = (),
    ) -> None:
        """`objective` is the module around `model` that computes the loss; None for `clip` means no limit."""
        self.world = world
        self._objective = objective.to(world.device).train()
        self._model = model
        self._names = {parameter: name for name, parameter in self._model.named_parameters()}
        self._optimizer = make_optimizer(self._model.named_parameters())
        self._limit = math.inf if clip is None else clip
        self._precision: Precision = precision
        self._pulls = tuple(pulls)
        self._staging: Staging = {}
        self._captured: Capture | None = None

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with self._autocast():
            sums: dict[str, Tensor] = self._objective(batch.to(self.world.device))
            return sums

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._precision == "float32":
            return nullcontext()
        # Uncached: the cache would hold a bf16 copy of every weight until the forward pass ends, 2 bytes a parameter,
        # also where checkpointing frees all else; and no weight but a tied one is used twice in it.
        return torch.autocast(self.world.device.split(":")[0], torch.bfloat16, cache_enabled=False)

    def micro(self, *, last: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def backward(self, share: Tensor) -> None:
        share.backward()  # type: ignore[no-untyped-call]

    def update(self, rates: Sequence[float]) -> Update:
        groups = self._optimizer.param_groups
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
            if rate == 0:  # optimizers leave a parameter without a gradient alone, and its moments
                for parameter in group["params"]:
                    parameter.grad = None
        for pull in self._pulls:
            for parameter, name in self._names.items():
                if parameter.grad is not None:
                    pull.before(name, parameter.data, parameter.grad)
        moved = [parameter for group in groups for parameter in group["params"] if parameter.grad is not None]
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in moved if p.grad is not None], foreach=True))
        applied = math.isfinite(norm)
        if applied:
            self._release()
            if norm > self._limit:
                torch.nn.utils.clip_grads_with_norm_(moved, self._limit, torch.tensor(norm), foreach=True)
            self._optimizer.step()
            self._pull_after()
        self.clear()
        return Update(norm, applied)

    @torch.no_grad()
    def _pull_after(self) -> None:
        for pull in self._pulls:
            for group in self._optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        pull.after(self._names[parameter], parameter.data, group["lr"])

    def clear(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        before = self._objective.training
        self._objective.eval()
        try:
            with torch.no_grad(), self._autocast():
                yield
        finally:
            self._objective.train(before)

    @torch.no_grad()
    def visit(self, act: Visitor) -> None:
        self._release()
        for name, parameter in self._model.named_parameters():
            act(name, parameter.data)

    def sum(self, value: Tensor) -> Tensor:
        return value

    @property
    def files(self) -> frozenset[str]:
        return _FILES

    def capture(self, extra: Extra) -> Capture:
        self._release()
        tensors, numbers = flatten(self._optimizer, self._names)
        buffers = {name for name, _ in self._model.named_buffers()}  # a forward pass may write into them: copied now
        weights = {n: v.clone() if n in buffers else v for n, v in _unique_state(self._model).items()}
        files = {"weights.safetensors": weights, "optimizer.safetensors": tensors}
        self._captured = Capture(
            {**files, "extra.safetensors": dict(extra)}, {"optimizer.json": json.dumps(numbers)}, self._staging
        )
        return self._captured

    def _release(self) -> None:
        """Before weights or moments move: the last capture must have been copied."""
        if self._captured is not None:
            self._captured.wait()
            self._captured = None

    @torch.no_grad()
    def load(self, folder: Path, *, weights_only: bool = False) -> Extra:
        self._release()
        saved = load_file(folder / "weights.safetensors")
        own = _unique_state(self._model)
        if saved.keys() != own.keys():
            raise CheckpointError(
                f"the checkpoint's weights are not the model's: {sorted(saved.keys() ^ own.keys())[:5]}",
                where=str(folder),
                mend="it belongs to another model; use a new run folder",
            )
        for name, value in own.items():
            value.copy_(saved[name])
        if not weights_only:
            numbers = json.loads((folder / "optimizer.json").read_text(encoding="utf-8"))
            restore(self._optimizer, self._names, load_file(folder / "optimizer.safetensors"), numbers)
        return load_file(folder / "extra.safetensors")

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        for name, value in _unique_state(self._model).items():
            yield name, value.detach().cpu().contiguous()


def _unique_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, each once: tied weights stand under the first of their names."""
    seen: set[int] = set()
    unique: dict[str, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen.add(id(value))
            unique[name] = value.detach()
    return unique
