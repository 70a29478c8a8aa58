"""Moments that wait on the host from one update to the next, and come to their weight's device as it is moved.

While some weights are moved, the moments of the next ones are on their way, and those of the ones before go back. So
Ren et al. 2021 (ZeRO-Offload, arXiv 2101.06840) hide such copies, whose arithmetic is the host's; here it stays on the
device. Moments of three portions are there at most.
"""

from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fulltune.base.memory import AWAY_AT_ONCE
from fulltune.lanes import Lanes, lasting

_Moments = dict[tuple[Tensor, str], Tensor]
"""Of a portion, by weight and name."""


class Away:
    """The moments of some weights, wherever they are."""

    def __init__(self, state: MutableMapping[Any, dict[str, Any]], device: torch.device) -> None:
        """`state`: the optimizer's, by weight; what is no scalar in it waits on the host between updates."""
        self._state, self._lanes = state, Lanes(device)
        self._places: _Moments = {}
        """On the host: kept from update to update, since to pin memory takes long, and just as large as they are."""
        self._left: dict[Tensor, Any] = {}
        """Events, by weight: when its moments have arrived on the host."""
        self._leaving: tuple[Any, list[Tensor]] = None, []
        """The event that a portion has left, and what must be held until then."""

    def in_turn(self, portions: Iterable[Sequence[nn.Parameter]]) -> Iterator[Sequence[nn.Parameter]]:
        """Each of them, with its moments on the device; what they are when the next one is asked for goes back."""
        rest = iter(portions)
        now = next(rest, None)
        here = coming = self._bring(now or ())
        try:
            while now is not None:
                following = next(rest, None)
                coming = self._bring(following or ())
                self._arrive(here)
                yield now
                self._send(now)
                now, here = following, coming
        finally:  # also of a round that is left before its end: memory is given back behind what is written into it
            self._lanes.wait(coming[1])

    def settle(self) -> None:
        """All moments are on the host, and can be read there."""
        self._lanes.settle()
        self._leaving = None, []

    def drain(self) -> None:
        """Let go on the device of what goes back: what comes next there waits for it."""
        event, _ = self._leaving
        self._lanes.wait(event)
        self._leaving = None, []

    def _bring(self, portion: Sequence[nn.Parameter]) -> tuple[_Moments, Any]:
        found = self._moments(portion)
        made, event = self._lanes.bring(found.values(), [self._left.get(weight) for weight in portion])
        return dict(zip(found, made, strict=True)), event

    def _arrive(self, brought: tuple[_Moments, Any]) -> None:
        moments, event = brought
        self._lanes.wait(event)
        for (weight, key), value in moments.items():
            self._state[weight][key] = value

    def _send(self, portion: Sequence[nn.Parameter]) -> None:
        self.drain()  # of the portion before it, which had all the time that this one took
        found = self._moments(portion)
        places = {key: self._place(key, value) for key, value in found.items()}
        event = self._lanes.send(zip(found.values(), places.values(), strict=True))
        for (weight, key), place in places.items():
            self._state[weight][key] = place
        self._places.update(places)
        self._left.update(dict.fromkeys(portion, event))
        self._leaving = event, list(found.values())

    def _place(self, key: tuple[Tensor, str], value: Tensor) -> Tensor:
        before = self._places.get(key)
        fits = before is not None and (before.shape, before.dtype) == (value.shape, value.dtype)
        return before if before is not None and fits else lasting(value)

    def _moments(self, portion: Sequence[nn.Parameter]) -> _Moments:
        return {
            (weight, key): value
            for weight in portion
            for key, value in self._state.get(weight, {}).items()
            if isinstance(value, Tensor) and value.ndim
        }


def portions(weights: Iterable[nn.Parameter], numbers: int = AWAY_AT_ONCE) -> Iterator[Sequence[nn.Parameter]]:
    """Of weights, in order, as many as have so many numbers together at least."""
    portion: list[nn.Parameter] = []
    for weight in weights:
        portion.append(weight)
        if sum(each.numel() for each in portion) >= numbers:
            yield portion
            portion = []
    if portion:
        yield portion
