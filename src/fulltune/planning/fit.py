"""Whether a run fits a machine: a refusal with what would help, or a warning. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from fulltune.base.errors import MachineError
from fulltune.base.memory import Forecast, Part, between, gib
from fulltune.planning.engine import Case, Chosen, Crowd, choose_engine
from fulltune.planning.levers import deeper_than
from fulltune.planning.precision import moves_one, precision_plan, rounds, takes_parts

BUDGET = "memory.budget_gb"
"""Where a run does not fit because the recipe allows less than there is."""
_SHOWN = 3
"""Mends of which each helps by itself."""
_COUNTS = tuple(2**power for power in range(1, 11))
"""Of GPUs, which are looked at."""
_LARGE = 0.02
"""Part of all from which one is named."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a run asks of a GPU, or of a host, and what that has. In bytes."""

    where: str
    parts: tuple[Part, ...]
    """Of one process."""
    processes: int
    """That share it."""
    room: int

    @property
    def low(self) -> int:
        """Without so much it does not go."""
        return self.processes * sum(part.low for part in self.parts)

    @property
    def high(self) -> int:
        """With so much it is expected to go."""
        return self.processes * sum(part.high for part in self.parts)

    def __str__(self) -> str:
        each = f", {self.processes} processes of {self._one}" if self.processes > 1 else ""
        large = [part for part in self.parts if self.processes * part.high >= _LARGE * self.high]
        return f"{between(self.low, self.high)} GiB{each} ({', '.join(map(str, large))})"

    @property
    def _one(self) -> str:
        return between(self.low / self.processes, self.high / self.processes)


def demands(case: Case, found: Forecast, available: int) -> tuple[Demand, ...]:
    """Of each process's GPU and of the host, or of the host alone. `available`: bytes that the host can give now."""
    here, host = case.crowd.here, "this machine's memory"
    there = available if case.machine.kind == "cpu" else case.machine.bytes_per_device
    room = int(min(there, case.budget))
    if case.machine.kind == "cpu":
        return (Demand(host if room == there else BUDGET, found.parts, here, room),)
    device = Demand(f"the memory of {case.machine.name}" if room == there else BUDGET, found.parts, 1, room)
    return (device, Demand(host, found.host, here, available)) if found.host else (device,)


def require_fit(case: Case, chosen: Chosen, available: int) -> str | None:
    """MachineError if the run cannot fit; a warning if it may not; None if it does.

    Refused is only what is certain: where the least that a run takes is more than there is. On a GPU micro-batches are
    halved when memory runs out, so there the least is that of one example. A CPU does not say when memory runs out, the
    kernel ends the process: there the least is that of the micro-batches as they are planned.
    """
    least = chosen.forecast
    if case.machine.kind == "cuda":
        least = min((_found(cut) for cut in (case, *case.cuts())), key=lambda found: found.low)
    for demand in demands(case, least, available):
        if demand.low > demand.room:
            raise MachineError(
                f"the run does not fit: it takes {demand}, and there are {gib(demand.room)} GiB",
                where=demand.where,
                mend=_mend(case, available),
            )
    for demand in demands(case, chosen.forecast, available):
        if demand.high > demand.room:
            helps = [told for told, _ in _helping(case, available)]
            more = f". It helps: {', or '.join(helps[:_SHOWN])}" if helps else ""
            return f"memory may run out: the run takes {demand}, and there are {gib(demand.room)} GiB{more}"
    return None


def _found(case: Case) -> Forecast:
    return choose_engine(case).forecast


def _mend(case: Case, available: int) -> str:
    """What would make it fit: settings that do by themselves, or all together; else how much memory would."""
    helps = [told for told, _ in _helping(case, available)]
    if helps:
        return ", or ".join(helps[:_SHOWN])
    settings, more = [], _more_devices(case, available)
    while steps := list(_steps(case, available)):
        setting, case = steps[0]
        settings.append(setting)
        if _fits(case, available):
            return f"{' '.join(settings)} ({_figures(case, available)})"
    least = _figures(case, available)
    if settings:
        return f"{more}a smaller model or more memory: with {' '.join(settings)} it takes {least} still"
    return f"{more}a smaller model, or more memory"


def _more_devices(case: Case, available: int) -> str:
    """With how many GPUs such as these it would fit."""
    if case.machine.kind == "cpu" or not case.divisible:
        return ""
    smallest = [case, *case.cuts()][-1]
    shared = smallest.changed("engine", name="fsdp2", replicas=1)
    asked = "engine.name=fsdp2" if smallest is case else f"engine.name=fsdp2 {_named(smallest)}"
    for count in _COUNTS:
        several = replace(shared, crowd=Crowd(count, min(count, max(case.crowd.here, case.machine.devices))))
        if count > case.crowd.size and _fits(several, available):
            return f"{asked} on {count} such GPUs ({_figures(several, available)} on each), or "
    return ""


def _helping(case: Case, available: int) -> Iterator[tuple[str, Case]]:
    """Settings of which each makes the run fit by itself, with the figures."""
    for setting, changed in _steps(case, available):
        if _fits(changed, available):
            yield f"{setting} ({_figures(changed, available)})", changed


def _fits(case: Case, available: int) -> bool:
    return all(demand.high <= demand.room for demand in demands(case, _found(case), available))


def _figures(case: Case, available: int) -> str:
    """Of the fullest place."""
    fullest = max(demands(case, _found(case), available), key=lambda demand: demand.high / max(1, demand.room))
    return f"{between(fullest.low, fullest.high)} GiB"


def _steps(case: Case, available: int) -> Iterator[tuple[str, Case]]:
    """Every setting that saves memory here, those that cost least first."""
    now = _found(case).high
    return (step for step in _settings(case, available) if _found(step[1]).high < now)


def _settings(case: Case, available: int) -> Iterator[tuple[str, Case]]:
    """Every setting that may save memory and was not made."""
    recipe, crowd = case.recipe, case.crowd
    if cuts := case.cuts():
        cut = next((cut for cut in cuts if _fits(cut, available)), cuts[-1])
        yield _named(cut), cut
    if deeper := [case.changed("memory", checkpointing=way) for way in deeper_than(case.checkpointing, case)]:
        again = next((one for one in deeper if _fits(one, available)), deeper[-1])
        yield f"memory.checkpointing={again.checkpointing}", again
    if crowd.size == 1 and recipe.engine.name in ("auto", "single") and rounds(recipe.optim.name):
        if case.dtypes.weights == "float32":
            yield "train.precision=bf16-sr", _rounded(case, "float32")
        elif recipe.optim.moments == "float32":
            yield "optim.moments=bfloat16", _rounded(case, "bfloat16")
        elif recipe.optim.moments == "bfloat16" and takes_parts(recipe.optim.name):
            yield "optim.moments=int8", _rounded(case, "int8")
    name = _found(case).engine
    waits = case.recipe.memory.moments_wait or not moves_one(recipe.optim.name)
    if case.machine.kind == "cuda" and name in ("single", "ddp") and not waits:
        told = "both" if case.recipe.memory.activations_wait else "moments"
        yield f"memory.offload={told}", case.changed("memory", offload=told)
    divisible = crowd.size > 1 and case.divisible
    if divisible and name == "ddp":
        yield "engine.name=fsdp2", case.changed("engine", name="fsdp2")
    elif divisible and name == "fsdp2" and case.machine.kind == "cuda" and not _found(case).offload:
        told = "engine.name=fsdp2 engine.offload=true"
        yield told, case.changed("engine", name="fsdp2", offload=True)


def _named(case: Case) -> str:
    if case.layout == "packed":
        return f"train.micro_tokens={case.load.width}"
    return f"train.micro_examples={case.load.rows}"


def _rounded(case: Case, moments: str) -> Case:
    optim = case.recipe.optim.model_copy(update={"moments": moments})
    dtypes = precision_plan("bf16-sr", optim, several=case.load.several)
    return replace(case.changed("optim", moments=moments), dtypes=dtypes)
