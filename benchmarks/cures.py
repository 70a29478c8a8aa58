"""CURES: what keeps a fine-tuned model from forgetting, as settings of a recipe. One more is one line."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class Cure:
    """One row of the table."""

    name: str
    """At most twenty letters are shown in the picture."""
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What differs from the plain recipe, field by field."""
    factors: Mapping[str, float] = field(default_factory=dict)
    """Of the plain recipe's `lr` and `epochs`."""
    blended: float | None = None
    """No run: so much of the plain run's result, the rest of the base."""
    everywhere: bool = False
    """Whether it is tried on the second target too."""
    kind: str = "c"
    """Its colour in the picture: the class of its family."""

    @property
    def replay(self) -> float:
        """The share of replay, if any."""
        share: float = self.sections.get("data", {}).get("replay", {}).get("share", 0.0)
        return share

    @property
    def needs_fisher(self) -> bool:
        """Whether it takes Fisher information, which is estimated on replay's texts: the others are judged by."""
        pull = self.sections.get("optim", {}).get("pulls", {})
        return bool(pull.get("use") == "ewc")


def _replay(share: float) -> dict[str, dict[str, Any]]:
    return {"data": {"replay": {"share": share}}}


def _pull(use: str, **options: Any) -> dict[str, dict[str, Any]]:
    # Weight decay pulls towards 0, which is not where a pretrained model wants to be.
    decay = {"weight_decay": 0.0} if use.startswith("l2_sp") else {}
    return {"optim": {"pulls": {"use": use, "options": options}, **decay}}


CURES = (
    Cure(PLAIN, everywhere=True, kind="ink"),
    Cure("replay 5%", _replay(0.05), everywhere=True, kind="a"),
    Cure("replay 10%", _replay(0.1), everywhere=True, kind="a"),
    Cure("replay 10%, kl 1", {**_replay(0.1), "train": {"kl_weight": 1.0}}, everywhere=True, kind="a"),
    Cure("blend 0.75", blended=0.75, everywhere=True, kind="d"),
    Cure("blend 0.5", blended=0.5, everywhere=True, kind="d"),
    Cure("blend 0.25", blended=0.25, everywhere=True, kind="d"),
    Cure("rate x 0.3", factors={"lr": 0.3}, everywhere=True),
    Cure("l2_sp 100", _pull("l2_sp", alpha=100.0), everywhere=True, kind="b"),
    Cure("ewc 1,000", _pull("ewc", strength=1000.0), kind="b"),
    Cure("half as long", factors={"epochs": 0.5}),
    Cure("mixout 0.5", _pull("mixout", probability=0.5), kind="b"),
    Cure("penalty 0.1", _pull("l2_sp_penalty", alpha=0.1), kind="b"),
    Cure("ema 0.95", _pull("ema", decay=0.95), kind="d"),
    Cure("layer_decay 0.8", {"optim": {"layer_decay": 0.8}}, kind="e"),
    Cure("last 2 layers", {"optim": {"train_only": [r"layers\.[34]\.", r"model\.norm"]}}, kind="e"),
    Cure("unfreeze 0.3", {"optim": {"unfreeze": 0.3}}, kind="e"),
)
"""In the order in which they are run: those of the claim first. `last 2 layers` fits the model of five."""


def named(names: list[str]) -> list[Cure]:
    """Those of these names and plain training, beside which all are judged. KeyError of a name that is none."""
    unknown = sorted(set(names) - {cure.name for cure in CURES})
    if unknown:
        raise KeyError(f"no cure is called {', '.join(unknown)}; there are: {', '.join(cure.name for cure in CURES)}")
    return [cure for cure in CURES if cure.name in {PLAIN, *names}]
