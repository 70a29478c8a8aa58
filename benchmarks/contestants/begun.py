"""How long it takes until a run can learn: fulltune on prepared data, or what nobody can do without.

Option: `fulltune`, or `floor` (torch and transformers imported, weights and tokenizer loaded).
"""

import dataclasses
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.contestants.course import Course, Mark


@dataclass(slots=True)
class Moments:
    """Hears the journal until the first update."""

    marks: dict[str, Mark] = field(default_factory=dict)

    def hear(self, kind: str, values: Mapping[str, Any]) -> None:
        now = Mark.now()
        if kind == "start":  # the model is loaded, and all that a run needs is built
            self.marks["loaded"] = now
        elif kind == "step" and "updated" not in self.marks:
            self.marks["tried"] = Mark(now.at - values["seconds"], now.cpu)
            self.marks["updated"] = now


def ours(course: Course) -> dict[str, Mark]:
    """Of `train` on a run folder that is prepared."""
    import fulltune

    moments = Moments()
    fulltune.train(course.out, sinks=[moments])
    return moments.marks


def floor(course: Course) -> dict[str, Mark]:
    """Of a script that does nothing else."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoTokenizer.from_pretrained(course.model)
    AutoModelForCausalLM.from_pretrained(course.model, dtype=torch.float32)
    return {"loaded": Mark.now()}


def main() -> None:
    """Do it, then say when."""
    course = Course.given()
    marks = {"fulltune": ours, "floor": floor}[sys.argv[2]](course)
    plain = {name: dataclasses.asdict(mark) for name, mark in marks.items()}
    Path(course.answer).write_text(json.dumps(plain), encoding="utf-8")


if __name__ == "__main__":
    main()
