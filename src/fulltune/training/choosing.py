"""Which state of a run is the best so far, by its rule. What breaks the rule is never best."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from fulltune.base.errors import RecipeError
from fulltune.base.records import Progress
from fulltune.base.rule import Rule, Selection
from fulltune.training.journal import standing


def choose(progress: Progress, rule: Rule, scores: Mapping[str, float]) -> Progress:
    """With the best so far and how long ago it was, after a state of these scores was measured.

    The best is the best score among states that keep the rule; the first of equals. While none kept it, the state is
    remembered that breaks it least: the fewest bounds, then the least of each in their order, then the better score.
    A state of which something that the rule looks at was not measured is no candidate, and counts for nothing.
    """
    stands = rule.stands(scores, progress.base)
    if stands is None:
        return progress
    progress = replace(progress, best_by=str(rule))
    if stands.kept:
        merit = stands.order[-1]
        best = progress.best_score
        if best is None or merit < (best if rule.better == "lower" else -best):
            return replace(progress, best_score=stands.score, best_update=progress.update, stale=0)
    elif progress.best_update is None and (progress.nearest is None or stands.order < progress.nearest):
        progress = replace(progress, nearest=stands.order, nearest_update=progress.update)
    return replace(progress, stale=progress.stale + 1)


def choose_anew(progress: Progress, rule: Rule, journal: Path, there: Collection[int]) -> Progress:
    """With the best by a rule that is another now, by what the journal says of the states so far.

    `there`: the updates whose checkpoints are on disk; of the others none can be chosen any more. RecipeError if the
    rule counts from scores of the base that were not measured.
    """
    suites = standing(journal, "suite")
    known = replace(progress, best_by="", best_score=None, best_update=None, nearest=None, nearest_update=None, stale=0)
    for line in standing(journal, "evaluation"):
        update, scores = int(line["step"]), {name: float(score) for name, score in line["scores"].items()}
        if update == 0:
            known = replace(known, base=scores)
            _require_base(rule, scores, journal)
            continue
        for suite in (one for one in suites if one["step"] == update):
            scores |= {f"{suite['suite']}.{name}": float(score) for name, score in suite["scores"].items()}
        if update in there:
            known = choose(replace(known, update=update), rule, scores)
        elif rule.stands(scores, known.base) is not None:
            known = replace(known, stale=known.stale + 1)
    return replace(known, update=progress.update)


def _require_base(rule: Rule, base: Mapping[str, float], journal: Path) -> None:
    lacking = [bound.score for bound in rule.bounds if bound.over_base and bound.score not in base]
    if lacking:
        raise RecipeError(
            f"the rule counts from the base's {lacking[0]}, which was not measured before the first update",
            where=str(journal),
            mend="--fresh makes a new run, or take this limit out of checkpoint.best_by",
        )


def fallen_back(progress: Progress, rule: Rule, *, asked: bool) -> str:
    """What is to be said where the result is not the best by the rule; nothing where it is. `asked`: one is wanted."""
    if progress.chosen is None and asked:
        return f"no state was measured by checkpoint.best_by ({rule}): the result is the last one"
    if progress.chosen is not None and progress.best_update is None:
        return f"no state keeps checkpoint.best_by ({rule}): the result is the one that breaks it least"
    return ""


def selection(progress: Progress, rule: Rule, scores: Mapping[str, float]) -> Selection | None:
    """How the result was chosen. `scores`: its own. None where nothing chose: the result is the last state."""
    if progress.chosen is None:
        return None
    broken = []
    for bound in rule.bounds:
        excess, found = bound.excess(scores, progress.base), bound.found(scores, progress.base)
        if excess is not None and excess > 0:
            broken.append(f"{bound}: {found:.4f}")
    return Selection(rule=str(rule), kept=progress.best_update is not None, broken=tuple(broken))
