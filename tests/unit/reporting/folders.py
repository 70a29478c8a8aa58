"""Run folders for reports: a real one of a tiny run, and what is made of it."""

import json
import math
from pathlib import Path
from typing import Any

import fulltune
from tests import tiny

EVIL = (
    "@BODY@ \u202eabc\u2066 \x1b[31mred\x07 </script><script>document.title='stolen'</script></style>"
    "<img src=x onerror=alert(1)>\"'` &amp; @STYLE@ <!-- ]]> javascript:alert(1) https://evil.example/x"
)
"""Text that tries to become markup, to speak to a terminal, and to turn what is read."""


def trained(folder: Path, model: Path, **sections: dict[str, Any]) -> Path:
    """A real run of six updates whose rows say evil things, with held-out and retention data."""
    rows = tiny.rows(40)
    evil = [{"prompt": f"{row['prompt']} {EVIL}"[:160], "completion": f"{row['completion']} {EVIL}"} for row in rows]
    name = folder / "<b>rows'.jsonl"
    tiny.jsonl(name, evil)
    kept = tiny.jsonl(folder / "kept.jsonl", [{"text": row["prompt"]} for row in tiny.rows(6, seed=3)])
    data = {"retention": [str(kept)], "max_length": 256, "over_length": "truncate", **sections.pop("data", {})}
    asked = tiny.recipe(model, name, data=data, **sections)
    fulltune.train(asked, out=folder / "run")
    return folder / "run"


def journal(run: Path, lines: list[dict[str, Any]]) -> None:
    """The run's journal with these lines in place of its own."""
    (run / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def step(number: int, loss: float | str, **values: Any) -> dict[str, Any]:
    """A line of one update."""
    line = {"kind": "step", "step": number, "loss": loss, "lr": 1e-4, "grad_norm": 1.0}
    return {**line, "tokens": 100, "supervised_tokens": 50, "seconds": 0.5, **values}


def evaluation(number: int, heldout: float, retention: float | None = None, **values: Any) -> dict[str, Any]:
    """A line of one evaluation."""
    scores = {"heldout.loss": heldout} | ({} if retention is None else {"retention.loss": retention})
    counts = {"heldout": 200, "retention": 300}
    return {"kind": "evaluation", "step": number, "scores": scores, "counts": counts, **values}


def bare(folder: Path, lines: list[dict[str, Any]], **cards: Any) -> Path:
    """A run folder that holds a journal and the named cards, and nothing else."""
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(
        "# The resolved recipe of the run that this folder holds, written by fulltune. Change your own recipe.\n"
        "model:\n  path: my-org/my-model\noptim:\n  lr: 1.0e-05\n"
    )
    journal(folder, lines)
    for name, values in cards.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return folder


def long(count: int) -> list[dict[str, Any]]:
    """The journal of so many updates, noisy, with one spike and a value that is not finite."""
    noisy = [step(n, 1 + math.exp(-n / 2000) + 0.1 * math.sin(n * n), lr=1e-5 * n / count) for n in range(1, count + 1)]
    noisy[count // 2]["loss"], noisy[count // 3]["loss"] = 47.25, "NaN"
    every = count // 100
    lines: list[dict[str, Any]] = [{"kind": "start", "updates": count, "pid": 1}, evaluation(0, 3.0, 1.0)]
    for at, line in enumerate(noisy, 1):
        lines.append(line)
        if at % every == 0:
            lines.append(evaluation(at, 2.0 - at / count, 1 + at / count))
    return [*lines, {"kind": "end", "step": count, "result_step": count, "seconds": 0.5 * count}]
