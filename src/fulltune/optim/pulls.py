"""PULLS: what acts on weights besides the optimizer. It holds them near where they began, or averages them.

A new pull is one class and one line. It sees float32 shards: whatever part of a weight lies in this process, of any
engine. So it must treat each number by itself.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fulltune.base.errors import RecipeError
from fulltune.base.table import Table

if TYPE_CHECKING:
    from torch import Tensor

SEPARATOR = "/"
"""Between the name of a weight and what is remembered of it."""


Draw = Callable[["Tensor"], "Tensor"]
"""Uniform numbers from 0 to 1 of the shape of a tensor."""


class Pull:
    """What every pull is. Nothing is called on an update that is skipped, nor of a weight whose rate is 0."""

    on_gradients: bool = False
    """Whether `before` does anything; only then is it called."""
    remembers: ClassVar[tuple[str, ...]] = ()
    """What `kept` has of each weight: so many float32 numbers for each of its own."""
    needs_fisher: ClassVar[bool] = False
    """Whether its `fisher` is to be filled with Fisher information before the first update."""
    mixes: ClassVar[bool] = False
    """Whether weights are others while an update's passes are made (`enter`, `leave`). It needs whole weights then."""
    holds: ClassVar[int] = 0
    """How many more float32 numbers of each weight it holds meanwhile."""
    examples: int = 0
    """Then: from how many examples it is estimated."""
    online: float = 0.0
    """Then: what part of the information in its file is added to what is estimated; 0: a file is taken as it is."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}
        """`weight/what` -> a tensor of the shard's shape. All that it remembers, since checkpoints hold no more."""

    def begin(self, name: str, shard: "Tensor") -> None:
        """Before the first update, of each shard: remember what the run begins with."""

    def before(self, name: str, shard: "Tensor", grad: "Tensor") -> None:
        """Add to the gradient before it is clipped."""

    def after(self, name: str, shard: "Tensor", lr: float) -> None:
        """Move the weights after the update; `lr` is the rate of their group in this update."""

    def enter(self, name: str, shard: "Tensor", draw: "Draw") -> None:
        """Before the passes of an update: change the weight; `draw` is of this update and weight alone."""

    def leave(self, name: str, shard: "Tensor") -> None:
        """Behind them, whatever became of them: put it back, unless `before` did."""

    def instead(self, name: str) -> "Tensor | None":  # noqa: ARG002
        """What stands for a weight where the model is evaluated, and in the result; None: the weight itself."""
        return None

    def fault(self, lr: float) -> str | None:  # noqa: ARG002
        """What is wrong with it at this peak rate, if anything."""
        return None

    def _keep(self, what: str, name: str, value: "Tensor") -> None:
        self.kept[f"{name}{SEPARATOR}{what}"] = value

    def _kept(self, what: str, name: str) -> "Tensor":
        return self.kept[f"{name}{SEPARATOR}{what}"]


class _ToTheStart(Pull):
    """Remembers the weights that the run began with, and pulls as strongly as alpha says."""

    remembers = ("start",)

    def __init__(self, *, alpha: float) -> None:
        super().__init__()
        self._alpha = _positive("alpha", alpha)

    def begin(self, name: str, shard: "Tensor") -> None:
        self._keep("start", name, shard.clone())


class L2SP(_ToTheStart):
    """L2-SP, decoupled: after each update w -= lr * alpha * (w - w0), w0 being the weights that the run began with.

    The pull towards the start of Li, Grandvalet and Davoine 2018, arXiv 1802.01483, made as AdamW makes weight decay:
    beside the update and not through the gradient, so that Adam does not divide it by the size of gradients.
    """

    def after(self, name: str, shard: "Tensor", lr: float) -> None:
        shard.lerp_(self._kept("start", name), lr * self._alpha)

    def fault(self, lr: float) -> str | None:
        part = lr * self._alpha
        return f"alpha {self._alpha:g} at the rate {lr:g} would move weights beyond their start" if part > 1 else None


class L2SPPenalty(_ToTheStart):
    """L2-SP as the paper has it, the penalty alpha / 2 * |w - w0|^2: adds alpha * (w - w0) to the gradient.

    Li, Grandvalet and Davoine 2018, arXiv 1802.01483. It counts in the gradient's norm, and Adam scales it.
    """

    on_gradients = True

    def before(self, name: str, shard: "Tensor", grad: "Tensor") -> None:
        grad.add_(shard - self._kept("start", name), alpha=self._alpha)


class EWC(Pull):
    """Elastic weight consolidation, the penalty strength / 2 * sum F (w - w0)^2: adds strength * F * (w - w0).

    Kirkpatrick et al. 2017, arXiv 1612.00796. F is the diagonal of the Fisher information for each token of the
    retention data (`training/fisher.py`): weights that these texts depend on are held, others may move. The strength is
    the paper's lambda. With `online` F is that of the file times this, and what is estimated: of all tasks so far, of
    which earlier ones fade (online EWC, Schwarz et al. 2018, arXiv 1805.06370).
    """

    on_gradients = True
    remembers = ("start", "fisher")
    needs_fisher = True

    def __init__(self, *, strength: float, examples: int = 256, online: float = 0.0) -> None:
        super().__init__()
        if not (_number(online) and 0 <= online <= 1):
            raise ValueError(f"online is {online!r}, and lies between 0 and 1")
        self.online = float(online)
        self._strength = _positive("strength", strength)
        if isinstance(examples, bool) or not isinstance(examples, int) or examples < 1:
            raise ValueError(f"examples is {examples!r}, and counts examples")
        self.examples = examples

    def begin(self, name: str, shard: "Tensor") -> None:
        self._keep("start", name, shard.clone())
        self._keep("fisher", name, shard.new_zeros(shard.shape))

    def before(self, name: str, shard: "Tensor", grad: "Tensor") -> None:
        grad.addcmul_(shard - self._kept("start", name), self._kept("fisher", name), value=self._strength)


class EMA(Pull):
    """Exponential average of the weights: after each update a = decay * a + (1 - decay) * w, from a = w0 on.

    Polyak and Juditsky 1992; for language models that keep what they knew: Wortsman et al. 2022, arXiv 2109.01903,
    section 5. It moves no weight. With `result` evaluations are of the average, and the average is what a run writes.
    """

    remembers = ("average",)

    def __init__(self, *, decay: float = 0.99, result: bool = True) -> None:
        super().__init__()
        if not (_number(decay) and 0 < decay < 1):
            raise ValueError(f"decay is {decay!r}, and lies between 0 and 1")
        if not isinstance(result, bool):
            raise ValueError(f"result is {result!r}, and is true or false")
        self._decay, self._result = decay, result

    def begin(self, name: str, shard: "Tensor") -> None:
        self._keep("average", name, shard.clone())

    def after(self, name: str, shard: "Tensor", lr: float) -> None:  # noqa: ARG002
        self._kept("average", name).lerp_(shard, 1 - self._decay)

    def instead(self, name: str) -> "Tensor | None":
        return self._kept("average", name) if self._result else None


class ScheduleFreeAverage(Pull):
    """The average that schedule-free AdamW makes, and that its model is (`optim/schedule_free.py`): it moves nothing.

    That optimizer brings it; a recipe does not ask for it.
    """

    remembers = ("average",)

    def begin(self, name: str, shard: "Tensor") -> None:
        self._keep("average", name, shard.clone())

    def of(self, name: str, shard: "Tensor") -> "Tensor":
        """The average of a weight, to be moved; it begins at the weight itself."""
        if f"{name}{SEPARATOR}average" not in self.kept:
            self.begin(name, shard)
        return self._kept("average", name)

    def instead(self, name: str) -> "Tensor | None":
        return self._kept("average", name)


class Mixout(Pull):
    """Mixout: in each update every number of a matrix is, with this probability, the one that the run began with.

    Lee, Cho and Kang 2020, arXiv 1909.11299: w0 + keep * (w - w0), keep being 0 with the probability and else
    1 / (1 - probability), so that the expected weight is w. The gradient is that of the numbers that stay. One draw for
    an update, whatever its micro-batches. Vectors (norms, biases) are left alone.
    """

    on_gradients = True
    remembers = ("start",)
    mixes = True
    holds = 2

    def __init__(self, *, probability: float) -> None:
        super().__init__()
        if not (_number(probability) and 0 < probability < 1):
            raise ValueError(f"probability is {probability!r}, and lies between 0 and 1")
        self._probability = probability
        self._aside: dict[str, tuple[Tensor, Tensor]] = {}

    def begin(self, name: str, shard: "Tensor") -> None:
        self._keep("start", name, shard.clone())

    def enter(self, name: str, shard: "Tensor", draw: "Draw") -> None:
        if shard.ndim < 2:
            return
        keep = draw(shard).ge_(self._probability).div_(1 - self._probability)
        self._aside[name] = shard.clone(), keep
        start = self._kept("start", name)
        shard.sub_(start).mul_(keep).add_(start)

    def before(self, name: str, shard: "Tensor", grad: "Tensor") -> None:
        if name in self._aside:
            own, keep = self._aside.pop(name)
            shard.copy_(own)
            grad.mul_(keep)

    def leave(self, name: str, shard: "Tensor") -> None:
        if name in self._aside:
            shard.copy_(self._aside.pop(name)[0])


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _positive(name: str, value: Any) -> float:
    if not (_number(value) and 0 < value < float("inf")):
        raise ValueError(f"{name} is {value!r}, and is a number above 0")
    return float(value)


MakePull = Callable[..., Pull]

PULLS: Table[MakePull] = Table(
    "pull", {"l2_sp": L2SP, "l2_sp_penalty": L2SPPenalty, "ewc": EWC, "ema": EMA, "mixout": Mixout}
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A pull by its name, as a recipe asks for it."""

    use: str
    options: Mapping[str, Any]


def make(asked: Sequence[Asked]) -> dict[str, Pull]:
    """The pulls of a run by name, with nothing remembered yet. RecipeError if one does not take its options."""
    made: dict[str, Pull] = {}
    for number, one in enumerate(asked):
        where = f"optim.pulls.{number}"
        if one.use in made:
            raise RecipeError(f"{one.use} stands there twice", where=where, mend="keep one of them")
        try:
            made[one.use] = PULLS.find(one.use, where=f"{where}.use")(**one.options)
        except (TypeError, ValueError) as fault:
            raise RecipeError(
                f"pull {one.use!r}: {fault}", where=f"{where}.options", mend="see docs/retention.md for what it takes"
            ) from fault
    return made
