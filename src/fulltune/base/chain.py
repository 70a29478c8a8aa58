"""The tasks before a run's own: the runs that its model comes from, and what of them is measured again."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierTask:
    """One run that the model comes from."""

    name: str
    run: str
    """Its folder."""
    recipe: str
    """Fingerprint of its recipe as resolved."""
    result_step: int
    """The update that its result is of."""
    retention: tuple[str, ...] = ()
    """Sources of its held-out data that are measured again, by the names that its scores have."""
    suites: tuple[str, ...] = ()
    """Its suites, as they are called in this run."""
    missing: tuple[str, ...] = ()
    """What of it is not measured again, and why."""

    def __str__(self) -> str:
        parts = [*(["its held-out data"] if self.retention else []), *(f"the suite {name}" for name in self.suites)]
        return f"{self.name}: {' and '.join(parts) or 'nothing'} measured before and after"
