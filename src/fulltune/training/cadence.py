"""When to evaluate, save and stop. Pure: asked with where the run stands, answers yes or no."""

from dataclasses import dataclass

from fulltune.base.records import Every, Plan, Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Cadence:
    """Answers the loop's questions. `patience`: evaluations without a new best after which the run is over."""

    plan: Plan
    evaluate: Every
    save: Every
    patience: int | None
    ask: Every | None = None
    """Between two times that suites of questions are asked; None: not while training."""

    def finished(self, progress: Progress) -> bool:
        """Whether all data was seen, all updates were made, or the run stopped getting better."""
        if self.patience is not None and progress.stale >= self.patience:
            return True
        if self.plan.examples is None:
            return progress.update >= self.plan.updates
        return progress.position >= self.plan.examples

    def evaluates(self, progress: Progress) -> bool:
        """Whether it is time to measure; after the last update in any case."""
        if progress.judged == progress.update:
            return False
        return self.finished(progress) or self._crossed(self.evaluate, progress) or self.asks(progress)

    def asks(self, progress: Progress, *, last: bool = False) -> bool:
        """Whether it is time to ask suites of questions; held-out loss is measured then too.

        `last`: after the last update in any case, since the best is chosen by them.
        """
        return self.ask is not None and (self._crossed(self.ask, progress) or (last and self.finished(progress)))

    def saves(self, progress: Progress) -> bool:
        """Whether it is time to save; at what would be chosen now, and after the last update in any case."""
        if progress.saved == progress.update:
            return False
        newly_chosen = progress.chosen == progress.update == progress.judged
        return newly_chosen or self.finished(progress) or self._crossed(self.save, progress)

    def _crossed(self, every: Every, now: Progress) -> bool:
        before = now.begun
        match every.unit:
            case "updates":
                passed = float(before.update), float(now.update)
            case "epochs":
                epoch = self.plan.epoch_examples
                passed = before.position / epoch, now.position / epoch
            case "minutes":
                passed = before.seconds / 60, now.seconds / 60
        # 0.3 / 0.1 is a little less than 3 in floating point, and the third tenth of an epoch would come late.
        return int(passed[0] / every.amount + 1e-9) < int(passed[1] / every.amount + 1e-9)
