"""The loss of a trained model on examples that nobody has seen, computed for all alike: in float32, one by one.

Option: the model's folder.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from benchmarks.contestants.course import Course


@torch.no_grad()
def loss(folder: str, rows: list[dict[str, list[int]]]) -> float:
    """Mean over all supervised tokens."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    total, count = 0.0, 0
    for row in rows:
        labels = torch.tensor(row["labels"])[1:]
        logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
        count += int((labels != -100).sum())
    return total / count


def main() -> None:
    """Measure, then write."""
    course = Course.given()
    rows = [json.loads(line) for line in Path(course.heldout).read_text(encoding="utf-8").splitlines()]
    Path(course.answer).write_text(json.dumps({"loss": loss(sys.argv[2], rows)}), encoding="utf-8")


if __name__ == "__main__":
    main()
