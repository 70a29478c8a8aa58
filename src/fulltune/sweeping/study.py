"""The memory of a sweep: an Optuna study in SQLite, asked for values and told what came of them."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fulltune.base.errors import CheckpointError, RecipeError
from fulltune.base.sweeps import Axis, State
from fulltune.sweeping.space import at, combinations, every, proper

Prune = Literal["median", "halving", "none"]

_FIRST = 4
"""Trials that are spread evenly before values are chosen by what came of them; two more for each axis."""
_UNPRUNED = 4
"""Trials that must be done before another one is ended early."""
_TRIES = 24
"""Values that were tried already are proposed again at most so often."""


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as fault:
        raise RecipeError("a sweep needs Optuna", where="sweep", mend="pip install 'fulltune[sweep]'") from fault
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


class Study:
    """The trials of a sweep on disk. One process has it; what it was told survives that process."""

    def __init__(self, file: Path, axes: Sequence[Axis], *, falls: bool, prune: Prune, seed: int) -> None:
        self._optuna, self._axes, self._seed = _optuna(), tuple(axes), seed
        from sqlalchemy.exc import DatabaseError  # it comes with Optuna

        self._kinds = {axis.field: self._distribution(axis) for axis in axes}
        self._direction = "minimize" if falls else "maximize"
        pruners = self._optuna.pruners
        pruner = {
            "median": lambda: pruners.MedianPruner(n_startup_trials=_UNPRUNED),
            "halving": lambda: pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3),
            "none": pruners.NopPruner,
        }[prune]()
        try:
            self._study = self._optuna.create_study(
                study_name="sweep",
                storage=f"sqlite:///{file.resolve()}",
                direction=self._direction,
                pruner=pruner,
                load_if_exists=True,
            )
        except (self._optuna.exceptions.StorageInternalError, DatabaseError) as fault:
            raise CheckpointError(
                "the trials of this sweep cannot be read", where=str(file), mend="name a new folder with --out"
            ) from fault

    def next(self, budget: int) -> int | None:
        """The number of the trial that is to begin now; None if the budget is spent, or all combinations were tried."""
        history = self._study.get_trials(deepcopy=False)
        if len(history) >= budget:
            return None
        values = self._propose(history, budget)
        if values is None:
            return None
        created = self._optuna.trial.create_trial
        open_state = self._optuna.trial.TrialState.RUNNING
        self._study.add_trial(created(state=open_state, params=self._written(values), distributions=self._kinds))
        return len(history)

    def states(self) -> Iterator[tuple[int, State, dict[str, Any], str]]:
        """Of each trial its number, its state, its values and why it ended so."""
        names: dict[str, State] = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed"}
        for trial in self._study.get_trials(deepcopy=False):
            reason = str(trial.user_attrs.get("reason", ""))
            yield trial.number, names.get(trial.state.name, "open"), self._read(trial.params), reason

    def values(self, number: int) -> dict[str, Any]:
        """The values of a trial by field."""
        return self._read(self._trial(number).params)

    def hear(self, number: int, place: int, score: float) -> bool:
        """Note a score that a trial has on its way; whether it is to be ended early. `place`: how far it is."""
        trial = self._optuna.trial.Trial(self._study, self._trial(number)._trial_id)
        if place not in self._trial(number).intermediate_values:  # a trial that was taken up measures again
            trial.report(score, place)
        return bool(trial.should_prune())

    def done(self, number: int, score: float) -> None:
        """A trial ended by itself."""
        self._study.tell(number, score)

    def pruned(self, number: int, reason: str) -> None:
        """A trial was ended early."""
        self._end(number, "PRUNED", reason)

    def failed(self, number: int, reason: str) -> None:
        """A trial came to nothing."""
        self._end(number, "FAIL", reason)

    def _end(self, number: int, state: str, reason: str) -> None:
        trial = self._optuna.trial.Trial(self._study, self._trial(number)._trial_id)
        trial.set_user_attr("reason", reason)
        self._study.tell(number, state=self._optuna.trial.TrialState[state])

    def _trial(self, number: int) -> Any:
        return self._study.get_trials(deepcopy=False)[number]

    def _propose(self, history: Sequence[Any], budget: int) -> dict[str, Any] | None:
        """The next values: a pure function of the trials before, so that a sweep that was stopped goes on the same."""
        tried = [self._read(trial.params) for trial in history]
        count = combinations(self._axes)
        if count is not None and count <= budget:
            return next((values for values in every(self._axes) if values not in tried), None)
        values: dict[str, Any] = {}
        for attempt in range(_TRIES):
            number = len(history) + attempt * budget
            if len(history) < _FIRST + 2 * len(self._axes):
                values = spread(self._axes, number + self._seed)
            else:
                values = self.sampled(number)
            if values not in tried:
                break
        return values

    def sampled(self, number: int) -> dict[str, Any]:
        """Draw `number` by a tree-structured Parzen estimator (Bergstra et al. 2011) over the trials before.

        It is of its own memory, so that what it draws depends on nothing else. A trial that failed counts as bad as
        the worst that did not: values near it are not looked for.
        """
        sampler = self._optuna.samplers.TPESampler(
            seed=self._seed * 1_000_003 + number, n_startup_trials=1, constant_liar=True
        )
        fresh = self._optuna.create_study(direction=self._direction, sampler=sampler)
        history = self._study.get_trials(deepcopy=False)
        scores = [trial.value for trial in history if trial.value is not None]
        worst = (max if self._direction == "minimize" else min)(scores, default=0.0)
        for trial in history:
            if trial.state.name == "FAIL":
                trial = self._optuna.trial.create_trial(
                    params=trial.params, distributions=trial.distributions, value=worst
                )
            if trial.params:
                fresh.add_trial(trial)
        params = fresh.ask(self._kinds).params
        return {axis.field: proper(axis, self._read(params)[axis.field]) for axis in self._axes}

    def _distribution(self, axis: Axis) -> Any:
        kinds = self._optuna.distributions
        if axis.kind == "choice":
            return kinds.CategoricalDistribution([json.dumps(value) for value in axis.choices])
        if axis.kind == "int":
            return kinds.IntDistribution(int(axis.low), int(axis.high), log=axis.log)
        return kinds.FloatDistribution(axis.low, axis.high, log=axis.log)

    def _written(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            axis.field: json.dumps(v) if axis.kind == "choice" else v
            for axis in self._axes
            for v in [values[axis.field]]
        }

    def _read(self, params: Mapping[str, Any]) -> dict[str, Any]:
        kinds = {axis.field: axis.kind for axis in self._axes}
        return {name: json.loads(v) if kinds[name] == "choice" else v for name, v in params.items()}


def spread(axes: Sequence[Axis], number: int) -> dict[str, Any]:
    """Point `number` of a sequence that fills the space evenly, whenever it is stopped.

    An additive recurrence by the generalised golden ratio: x with x^(d + 1) = x + 1 in d dimensions (Roberts 2018).
    """
    ratio = 2.0
    for _ in range(32):
        ratio = (1 + ratio) ** (1 / (len(axes) + 1))
    shares = [math.modf(0.5 + (number + 1) / ratio ** (place + 1))[0] for place in range(len(axes))]
    return {axis.field: at(axis, share) for axis, share in zip(axes, shares, strict=True)}
