"""How far a run has come: what travels from update to update, and into every checkpoint."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a run: examples consumed, updates made, seconds spent on them."""

    position: int = 0
    update: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run has come: all resumable state besides weights and optimizer. Replaced, never edited."""

    position: int = 0
    """Place in the order of the data: examples consumed, also by skipped updates."""
    update: int = 0
    """Optimizer updates made."""
    skipped: int = 0
    """Updates that were not made, and left everything as it was."""
    rollbacks: int = 0
    """How often the run went back to a checkpoint."""
    halvings: int = 0
    """How often the micro-batches were halved because memory ran out."""
    healthy: bool = True
    """Whether the last update was made and was no spike: a state to go back to."""
    losses: tuple[float, ...] = ()
    """The last losses that were no spikes, by which the next one is judged."""
    tokens: int = 0
    """Learned from; not those that a rollback took back."""
    supervised_tokens: int = 0
    seconds: float = 0.0
    """Time spent on updates, over all resumptions, on those too that were skipped or taken back."""
    base: dict[str, float] = field(default_factory=dict)
    """Scores before the first update."""
    best_by: str = ""
    """The rule by which states were judged, in words."""
    best_score: float | None = None
    best_update: int | None = None
    """Of the best state that keeps the rule."""
    nearest: tuple[float, ...] | None = None
    """While none kept it: how the state stands that breaks it least."""
    nearest_update: int | None = None
    stale: int = 0
    """Evaluations in a row without a new best."""
    begun: Mark = Mark()
    """Where the last update began: a cadence asks what was passed since."""
    judged: int = 0
    """The update after which the last evaluation was made."""
    saved: int | None = None
    """The update after which the last checkpoint was begun."""

    @property
    def chosen(self) -> int | None:
        """The update of the best state, or of the one that breaks the rule least if none keeps it; None: no choice."""
        return self.nearest_update if self.best_update is None else self.best_update
