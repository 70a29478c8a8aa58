"""What ZeRO's processes have of a run's state, as the named tensors of a checkpoint, and back. No pickle."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fulltune.base.errors import CheckpointError
from fulltune.engine.contract import Extra
from fulltune.engine.fragments import Fragment, Fragments
from fulltune.engine.moments import require_numbers
from fulltune.engine.pieces import STEMS, Piece, Pieces, file_of
from fulltune.engine.state import GROUP, SEPARATOR, group_numbers, restore_group


class Members:
    """Which weights an optimizer was made for, by group: DeepSpeed puts stretches of them in their place."""

    def __init__(self, optimizer: Optimizer, model: nn.Module) -> None:
        names = {parameter: name for name, parameter in model.named_parameters()}
        self.groups = list(optimizer.param_groups)
        self.names = [[names[parameter] for parameter in group["params"]] for group in self.groups]
        self.shapes = {name: tuple(parameter.shape) for parameter, name in names.items()}


class Parts:
    """Tensors of this process for each file of a checkpoint, and which part of a whole tensor each is."""

    def __init__(self, fragments: Iterable[Fragment], rank: int) -> None:
        self._fragments, self._rank = list(fragments), rank
        self._held: dict[str, dict[str, Tensor]] = {stem: {} for stem in STEMS}
        self._cut: dict[str, dict[str, Piece]] = {stem: {} for stem in STEMS}

    @property
    def files(self) -> dict[str, dict[str, Tensor]]:
        """By name."""
        return {file_of(stem, self._rank): tensors for stem, tensors in self._held.items()}

    @property
    def pieces(self) -> dict[str, dict[str, Piece]]:
        """By file."""
        return {file_of(stem, self._rank): cut for stem, cut in self._cut.items()}

    def weights(self, unmoved: Mapping[str, Tensor]) -> None:
        """The masters, and what the optimizer does not move, which the first process writes."""
        for fragment in self._fragments:
            self._add("weights", fragment.name, fragment.master, fragment.piece)
        self._whole("weights", unmoved)

    def moments(self, optimizer: Optimizer, members: Members, lines: Sequence[tuple[int, Tensor]]) -> dict[str, Any]:
        """The optimizer's state; what of it is no tensor comes back."""
        for fragment in self._fragments:
            for entry, value in optimizer.state.get(fragment.line, {}).items():
                if isinstance(value, Tensor) and value.shape == fragment.line.shape:
                    self._add("optimizer", _key(fragment.name, entry), fragment.of(value), fragment.piece)
        numbers: dict[str, Any] = {}
        for number, line in dict(lines).items():  # of a group each stretch counts the same
            for entry, value in optimizer.state.get(line, {}).items():
                if isinstance(value, Tensor) and value.shape == line.shape:
                    continue
                each = {_key(name, entry): value for name in members.names[number]}
                if isinstance(value, Tensor):
                    self._whole("optimizer", each)
                else:
                    numbers |= each
        tensors, plain = group_numbers(members.groups)
        self._whole("optimizer", tensors)
        return numbers | plain

    def remembered(self, extra: Extra) -> None:
        """What pulls and averages remember: by fragment, as `visit` shows them, or whole."""
        known = {fragment.name: fragment for fragment in self._fragments}
        for key, value in extra.items():
            fragment = known.get(key.rpartition(SEPARATOR)[0])
            if fragment is not None and value.shape == (fragment.count,):
                self._add("extra", key, value, fragment.piece)
            else:
                self._whole("extra", {key: value})

    def _add(self, stem: str, key: str, value: Tensor, piece: Piece) -> None:
        self._held[stem][key], self._cut[stem][key] = value, piece

    def _whole(self, stem: str, tensors: Mapping[str, Tensor]) -> None:
        if self._rank == 0:
            self._held[stem] |= tensors


@torch.no_grad()
def restore(folder: Path, optimizer: Optimizer, members: Members, fragments: Fragments) -> None:
    """Put a saved optimizer state back, whoever saved it."""
    saved = Pieces(folder, "optimizer")
    require_numbers(list(saved), folder)
    numbers = json.loads((folder / "optimizer.json").read_text(encoding="utf-8"))
    for key in [*saved, *numbers]:
        name, _, entry = key.rpartition(SEPARATOR)
        if name.startswith(GROUP):
            value = saved.read(key) if key in set(saved) else numbers[key]
            restore_group(members.groups, name, entry, value)
        elif name not in members.shapes:
            raise CheckpointError(
                f"the optimizer state speaks of {name!r}, which the model has not",
                where=str(folder),
                mend="the checkpoint belongs to another model; use a new run folder",
            )
    here = list(fragments)
    for number, line in fragments.lines():
        entries = _entries(members, number, saved, numbers, folder)
        before = optimizer.state.get(line, {})
        state: dict[str, Any] = {}
        for entry, value in entries.items():
            if value is not None:
                state[entry] = _placed(value, line)
                continue
            old = before.get(entry)
            state[entry] = old.zero_() if isinstance(old, Tensor) else torch.zeros_like(line)
            for fragment in here:
                key = _key(fragment.name, entry)
                if fragment.line is line and key in set(saved):
                    fragment.of(state[entry]).copy_(saved.read(key, fragment.piece, fragment.count))
        optimizer.state[line] = state


def _entries(members: Members, number: int, saved: Pieces, numbers: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What a group's stretches have of state: a count that all of its weights share, or None for numbers of each.

    CheckpointError if weights of the group were counted apart.
    """
    found: dict[str, Any] = {}
    keys = set(saved)
    for name in members.names[number]:
        for key in [key for key in [*keys, *numbers] if key.rpartition(SEPARATOR)[0] == name]:
            entry = key.rpartition(SEPARATOR)[2]
            cut = key in keys and saved.shape(key) == members.shapes[name] and members.shapes[name] != ()
            value = None if cut else saved.read(key) if key in keys else numbers[key]
            if entry in found and not _same(found[entry], value):
                raise CheckpointError(
                    f"ZeRO counts {entry} of a group of weights together, and {name} has another than those before it",
                    where=str(folder),
                    mend="go on with the engine that saved it",
                )
            found[entry] = value
    return found


def read_extra(folder: Path, fragments: Iterable[Fragment]) -> dict[str, Tensor]:
    """What pulls and averages remember, of this process's fragments where it is of a weight's shape."""
    saved, known = Pieces(folder, "extra"), {fragment.name: fragment for fragment in fragments}
    found = {}
    for key in saved:
        fragment = known.get(key.rpartition(SEPARATOR)[0])
        cut = fragment is not None and saved.shape(key) == fragment.shape
        found[key] = saved.read(key, fragment.piece, fragment.count) if fragment and cut else saved.read(key)
    return found


def _key(name: str, entry: str) -> str:
    return f"{name}{SEPARATOR}{entry}"


def _same(one: Any, other: Any) -> bool:
    return (
        torch.equal(one, other)
        if isinstance(one, Tensor) and isinstance(other, Tensor)
        else bool(one is other or one == other)
    )


def _placed(value: Any, line: Tensor) -> Any:
    """A step counter stays where torch's optimizers keep it."""
    if not isinstance(value, Tensor):
        return value
    return value.to(line.device) if line.is_cuda else value.clone()
