"""What is kept of mixtures of models: which, and how each scores."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BlendPoint:
    """One mixture."""

    parts: tuple[float, ...]
    """Of each model."""
    scores: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Blend:
    """Mixtures of the weights of several models, and how each scores (`blend.json`)."""

    models: tuple[str, ...]
    """The run's result comes last."""
    points: tuple[BlendPoint, ...]
    written: str | None
    """The folder that one was written to."""
