"""Moments that wait on the host: the same bits, in the order that hides the copies, and no more on the device."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
import torch
from torch import nn

from fulltune.engine import away
from fulltune.engine.away import Away, portions
from fulltune.engine.in_backward import InBackward
from fulltune.engine.single import Single
from tests import tiny
from tests.contract.ground import CPU, Ground

HOST = torch.device("cpu")


def updated(ground: Ground, updates: int = 3) -> list[float]:
    losses = []
    for _ in range(updates):
        losses.append(ground.backward())
        ground.engine.update([1e-2] * len(ground.groups))
    return losses


def held(ground: Ground) -> dict[str, Any]:
    """Weights, and all that the optimizer keeps."""
    optimizer, names = ground.engine._optimizer, ground.engine._names
    moments = {
        f"{names[weight]}/{key}": value for weight, state in optimizer.state.items() for key, value in state.items()
    }
    return {**dict(ground.model.named_parameters()), **moments}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    if one.keys() != other.keys():
        return False
    return all(torch.equal(torch.as_tensor(value), torch.as_tensor(other[key])) for key, value in one.items())


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Portions of few numbers, so that there are many."""
    monkeypatch.setattr("fulltune.engine.weights.portions", lambda weights: portions(weights, 2000))


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize(
    ("optimizer", "formats"),
    [
        ("adamw", {}),
        ("lion", {}),
        ("sgd", {}),
        ("adafactor", {}),
        ("muon", {}),
        ("adamw", {"precision": "bf16-sr"}),
        ("adamw", {"precision": "bf16-sr", "moments": "int8"}),
        ("adamw", {"precision": "bf16-sr", "moments": "bfloat16"}),
    ],
)
@pytest.mark.parametrize("kind", ["plain", "in_backward"])
def test_an_update_is_the_same_to_the_bit(tmp_path: Path, optimizer: str, formats: dict[str, Any], kind: str) -> None:
    found = []
    for wait in (False, True):
        engine: dict[str, Any] = {"clip": 0.5}
        if kind == "in_backward":
            engine = {
                "make_engine": lambda *given, wait=wait, **named: InBackward(
                    *given, Single(CPU, moments_wait=wait), clip=0.5, two_passes=True, **named
                )
            }
        else:
            engine["lay"] = Single(CPU, moments_wait=wait)
        ground = Ground(
            tmp_path / str(wait), tiny.model("llama"), count=8, micro=8, optimizer=optimizer, **formats, **engine
        )
        assert (ground.engine._weights._away is not None) == wait
        found.append((updated(ground), held(ground)))
    assert found[0][0] == found[1][0]
    assert same(found[0][1], found[1][1])


@pytest.mark.usefixtures("_small")
def test_a_checkpoint_of_either_is_read_by_the_other(tmp_path: Path) -> None:
    def made(name: str, *, wait: bool) -> Ground:
        return Ground(tmp_path / name, tiny.model("llama"), count=8, lay=Single(CPU, moments_wait=wait))

    for wait in (False, True):
        first, saved = made(f"a{wait}", wait=wait), tmp_path / f"saved{wait}"
        updated(first)
        saved.mkdir()
        capture = first.engine.capture({})
        capture.copy()
        capture.write(saved)
        second = made(f"b{wait}", wait=not wait)
        second.engine.load(saved)
        assert same(held(first), held(second))
        assert updated(first) == updated(second)
        assert same(held(first), held(second))


def test_rates_of_0_leave_moments_as_they_are(tmp_path: Path) -> None:
    ground = Ground(tmp_path, tiny.model("llama"), count=8, lay=Single(CPU, moments_wait=True))
    updated(ground, 1)
    before = {key: torch.as_tensor(value).clone() for key, value in held(ground).items()}
    ground.backward()
    ground.engine.update([0.0] * len(ground.groups))
    assert same(before, held(ground))


class Told:
    """Lanes that tell what is asked of them."""

    def __init__(self, device: torch.device) -> None:
        self.said: list[str] = []
        self.sent = 0

    def bring(self, tensors: Any, after: Sequence[Any] = ()) -> tuple[list[torch.Tensor], Any]:
        made = [tensor.clone() for tensor in tensors]
        behind = "".join(f" behind {event}" for event in after if event)
        self.said.append(f"{'+'.join(str(int(one[0])) for one in made) or 'nothing'} comes{behind}")
        return made, f"arrival of {len(made)}"

    def send(self, pairs: Any) -> str:
        for source, place in pairs:
            place.copy_(source)
        self.sent += 1
        self.said.append(f"portion {self.sent} goes")
        return f"departure {self.sent}"

    def wait(self, event: Any) -> None:
        if event is not None:
            self.said.append(f"wait for {event}")

    def settle(self) -> None:
        self.said.append("all wait")


def test_the_next_ones_are_asked_for_before_a_portion_is_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(away, "Lanes", Told)
    weights = [nn.Parameter(torch.zeros(2)) for _ in range(4)]
    state: dict[Any, dict[str, Any]] = {
        weight: {"step": torch.tensor(1.0), "moment": torch.full((2,), float(number))}
        for number, weight in enumerate(weights)
    }
    waits = Away(state, HOST)
    said = waits._lanes.said  # type: ignore[attr-defined]
    for _ in range(2):
        for (weight,) in waits.in_turn([weight] for weight in weights):
            said.append(f"{int(state[weight]['moment'][0])} is moved")
            state[weight]["moment"] += 10
    end = said.index("portion 4 goes") + 1
    first, second = said[:end], said[end:]
    assert first == [
        "0 comes", "1 comes", "wait for arrival of 1", "0 is moved", "portion 1 goes",
        "2 comes", "wait for arrival of 1", "1 is moved", "wait for departure 1", "portion 2 goes",
        "3 comes", "wait for arrival of 1", "2 is moved", "wait for departure 2", "portion 3 goes",
        "nothing comes", "wait for arrival of 1", "3 is moved", "wait for departure 3", "portion 4 goes",
    ]  # fmt: skip
    assert "10 comes behind departure 1" in second, "what is still on its way to the host is not read there"
    assert [int(state[weight]["moment"][0]) for weight in weights] == [20, 21, 22, 23]
    assert all(state[weight]["step"] == 1 for weight in weights), "numbers stay where optimizers keep them"
    said.clear()
    waits.drain()
    assert said == ["wait for departure 8"]


def test_moments_of_three_portions_are_on_the_device_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counted(Told):
        def bring(self, tensors: Any, after: Sequence[Any] = ()) -> tuple[list[torch.Tensor], Any]:
            made = super().bring(tensors, after)
            here.extend(map(ref, made[0]))
            most.append(sum(one() is not None for one in here))
            return made

    here: list[Any] = []
    most: list[int] = []
    monkeypatch.setattr(away, "Lanes", Counted)
    weights = [nn.Parameter(torch.zeros(2)) for _ in range(6)]
    state: dict[Any, dict[str, Any]] = {weight: {"moment": torch.ones(2)} for weight in weights}
    waits = Away(state, HOST)
    for _ in range(2):
        for _ in waits.in_turn([weight] for weight in weights):
            pass
        waits.drain()
    assert max(most) == 3
    assert sum(one() is not None for one in here) == 0


def test_places_on_the_host_are_kept_unless_the_format_changes() -> None:
    weight = nn.Parameter(torch.zeros(4))
    state: dict[Any, dict[str, Any]] = {}
    waits, places = Away(state, HOST), []
    for value in (torch.ones(4), torch.zeros(4), torch.ones(4, dtype=torch.bfloat16)):
        for _ in waits.in_turn([[weight]]):
            state.setdefault(weight, {})["moment"] = value
        assert torch.equal(state[weight]["moment"], value)
        assert state[weight]["moment"] is not value
        places.append(state[weight]["moment"].data_ptr())
    assert places[0] == places[1] != places[2]


def test_a_round_that_was_left_is_begun_anew() -> None:
    weights = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    state: dict[Any, dict[str, Any]] = {weight: {"moment": torch.ones(2)} for weight in weights}
    waits = Away(state, HOST)
    with pytest.raises(MemoryError):
        for _ in waits.in_turn([weight] for weight in weights):
            raise MemoryError
    for (weight,) in waits.in_turn([weight] for weight in weights):
        state[weight]["moment"] += 1
    assert all(bool((state[weight]["moment"] == 2).all()) for weight in weights)


def test_portions_have_so_many_numbers_at_least() -> None:
    weights = [nn.Parameter(torch.zeros(size)) for size in (3, 3, 10, 1, 1)]
    assert [[len(one) for one in portion] for portion in portions(weights, 6)] == [[3, 3], [10], [1, 1]]
    assert not list(portions([], 6))
