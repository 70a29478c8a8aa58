"""What comes of a run: the verified model folder, answers before and after, the record."""

import platform
import resource
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import tokenizers
import torch
import transformers
from torch import Tensor, nn

from fulltune.assemble import target
from fulltune.base import stop
from fulltune.base.files import from_json, write_whole, writing
from fulltune.base.gate import GateVerdict
from fulltune.base.records import EvalReport, ModelFacts, Plan, Progress, RunRecord, Sample
from fulltune.base.results import SuiteReport
from fulltune.base.version import __version__
from fulltune.describing import Mixture, model_card
from fulltune.engine.contract import Engine
from fulltune.engine.crew import Crew
from fulltune.engine.launch import machine
from fulltune.evaluation.generate import greedy
from fulltune.exporting.distance import weight_changes
from fulltune.exporting.targets import Target, state_for, write
from fulltune.exporting.verify import Written, probe_ids, verify
from fulltune.material import Prepared, template
from fulltune.model.folder import base_folder
from fulltune.model.load import empty_model
from fulltune.model.trust import exported
from fulltune.recipe.schema import ExportSection
from fulltune.runs import RunFolder
from fulltune.training.journal import standing


@dataclass(frozen=True, slots=True)
class Outcome:
    """The model of a run as it is now, and what can be made of it."""

    run: RunFolder
    data: Prepared
    facts: ModelFacts
    model: nn.Module
    tokenizer: Any
    engine: Engine
    crew: Crew
    mixture: Mixture | None = None
    """What the weights are, if they are no state of the run."""

    def write_model(
        self, folder: Callable[[], AbstractContextManager[Path]], section: ExportSection, *, step: int
    ) -> float:
        """Write the weights as they are now, and verify the folder; returns the largest difference of logits.

        `folder` makes the place, in which it is whole or vanishes. Of several processes all give their weights, and
        the first writes. `step`: the update that the weights are of, which the model card says.
        """
        recipe = self.run.recipe
        shipped = template(recipe.model, self.tokenizer)
        goal = target(recipe.model, section, self.data.facts, shipped, self.facts.dtype)
        state = state_for(goal, self.engine.full_weights())
        return self.crew.told(lambda: self._written(folder, goal, state, step))

    def _written(
        self, folder: Callable[[], AbstractContextManager[Path]], goal: Target, state: Mapping[str, Tensor], step: int
    ) -> float:
        section = self.run.recipe.model
        asked = self.data.stores["heldout" if "heldout" in self.data.stores else "train"][0]
        # A model in parts computes together with other processes or not at all, and kernels of others round in other
        # places than those of the folder that is loaded: then its shape alone is asked.
        model = self.model if self.engine.whole and not section.liger else empty_model(section).eval()
        buffers = dict(self.model.named_buffers())
        source = Written(state, model, buffers, self.engine.world.device, exported(section))
        with folder() as draft, writing(draft):
            write(self.model, state, goal, draft)
            self.describe(draft, step)
            return verify(draft, source, goal, probe_ids(asked.ids), self.tokenizer)

    def describe(self, folder: Path, step: int, verdict: GateVerdict | None = None) -> None:
        """Write the model card of the weights after so many updates, by what the run's folder says now.

        `verdict`: on them, if it does not stand in the record yet.
        """
        chat = self.tokenizer.chat_template is not None or self.run.recipe.model.chat_template is not None
        facts, mixture = self.data.facts, self.mixture
        card = model_card(self.run, facts, step=step, chat=chat, versions=versions(), mixture=mixture, verdict=verdict)
        write_whole(folder / "README.md", card)

    def answers(self) -> list[str]:
        """Greedy answers to the first held-out prompts."""
        if "heldout" not in self.data.stores:
            return []
        store, wanted = self.data.stores["heldout"], self.run.recipe.evaluate
        prompts = [store.prompt_and_answer(i)[0] for i in range(min(wanted.samples, len(store)))]
        stops = self.data.facts.stop_ids
        check = partial(stop.check_all, self.crew.any)
        made = self.engine.inside(
            lambda model: greedy(model, prompts, stop_ids=stops, tokens=wanted.sample_tokens, check=check)
        )
        return [str(self.tokenizer.decode(answer)) for answer in made]

    def record(self, plan: Plan, progress: Progress, chosen: int, difference: float, after: Sequence[str]) -> RunRecord:
        """The paper that explains the run, from its journal and cards.

        `chosen`: the update that the result is of; `after`: what it answers.
        """
        lines = standing(self.run.journal, "evaluation")
        before: list[str] = next((line["answers"] for line in lines if "answers" in line), [])
        # A run that is asked for more measures its last state again.
        evaluations = list({line["step"]: scores_of(line) for line in lines}.values())
        return RunRecord(
            recipe=self.run.identity,
            versions=versions(),
            data=self.data.facts,
            model=self.facts,
            machine=machine(),
            plan=plan,
            progress=progress,
            baseline=next((report for report in evaluations if report.step == 0), None),
            evaluations=tuple(report for report in evaluations if report.step > 0),
            result_step=chosen,
            result=str(self.run.model),
            largest_logit_difference=difference,
            samples=tuple(self._samples(before, after)),
            suites=_suites(standing(self.run.journal, "suite")),
            peak_bytes=peak_bytes(),
            weights=weight_changes(base_folder(self.run.recipe.model), self.run.model),
        )

    def _samples(self, before: Sequence[str], after: Sequence[str]) -> Iterator[Sample]:
        # Where `evaluate.samples` changed on the way, those count that were asked both times.
        for index, (old, new) in enumerate(zip(before, after, strict=False)):
            prompt, expected = self.data.stores["heldout"].prompt_and_answer(index)
            wanted = [token for token in expected if token not in self.data.facts.stop_ids]
            asked, answer = str(self.tokenizer.decode(prompt)), str(self.tokenizer.decode(wanted))
            yield Sample(prompt=asked, expected=answer, before=old, after=new)


def scores_of(line: Mapping[str, Any]) -> EvalReport:
    """A journal line's evaluation; numbers that are not finite were written by name."""
    scores = {name: float(score) for name, score in line["scores"].items()}
    return EvalReport(step=line["step"], scores=scores, counts=line["counts"])


def merged(one: EvalReport | None, other: EvalReport | None) -> EvalReport | None:
    """Two reports of the same state as one."""
    if one is None or other is None:
        return one or other
    return EvalReport(step=one.step, scores={**one.scores, **other.scores}, counts={**one.counts, **other.counts})


def _suites(lines: Iterable[Mapping[str, Any]]) -> tuple[SuiteReport, ...]:
    """The reports of a journal by update; what was asked twice of a state counts as it was said last."""
    last = {(line["step"], line["suite"]): line for line in lines}
    made = [
        from_json({key: value for key, value in line.items() if key != "kind"}, SuiteReport) for line in last.values()
    ]
    return tuple(sorted(made, key=lambda report: report.step or 0))


def versions() -> dict[str, str]:
    """What decides how numbers come out, by name."""
    return {
        "fulltune": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": str(transformers.__version__),
        "tokenizers": str(tokenizers.__version__),
        "numpy": numpy.__version__,
    }


def peak_bytes() -> int:
    """Most memory that this process held: on the device if there is one, else on the host."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
