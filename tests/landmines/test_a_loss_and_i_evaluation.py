"""Landmines A and I: how a loss is normalised, in training and in evaluation. docs/landmines.md lists them all."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fulltune
from fulltune.base.records import IGNORE
from fulltune.training.journal import read
from fulltune.training.step import step
from tests import tiny
from tests.conftest import ROOT
from tests.contract.ground import Ground


def updated(folder: Path, *, micro: int, optimizer: str = "sgd", count: int = 8, **more: Any) -> torch.Tensor:
    """All weights after one update, in one vector."""
    ground = Ground(folder, tiny.model("llama"), count=count, micro=micro, optimizer=optimizer, lr=0.5, **more)
    step(ground.batches(), [0.5, 0.5], engine=ground.engine, objective=ground.objective)
    return torch.cat([p.detach().flatten() for p in ground.model.parameters()])


def lines(run: Path, kind: str) -> list[dict[str, Any]]:
    return list(read(run / "journal.jsonl", kind))


@pytest.fixture
def recipe(llama: Path, data: Path) -> dict[str, Any]:
    return tiny.recipe(llama, data)


def test_landmine_A1_accumulation_weighs_tokens_not_micro_batches(tmp_path: Path) -> None:
    """Supervised counts 1, 2, 15, 3, 14, 1, 1, 8: one update of 8x1, 4x2, 1x8 gives the same weights."""
    whole = updated(tmp_path / "8", micro=8)
    for micro in (1, 2, 4):
        assert (updated(tmp_path / str(micro), micro=micro) - whole).abs().max() < 1e-6


def test_landmine_A5_the_denominator_counts_labels_that_are_predicted(tmp_path: Path) -> None:
    """With nothing masked the mean is over T - 1 tokens, padded or packed."""
    for layout in ("padded", "packed"):
        ground = Ground(tmp_path / layout, tiny.model("llama"), count=1, layout=layout)
        encoded = ground.store[0]
        batch = ground.batches()[0]
        everything = torch.tensor([*encoded.ids[1:].tolist(), IGNORE])
        labels = torch.full_like(batch.labels, IGNORE)
        labels[0, : len(everything)] = everything
        taught = torch.arange(len(everything) - 1)
        weights = (labels != IGNORE).float()
        full = type(batch)(batch.ids, labels, weights, batch.positions, taught, (0,), batch.lengths, float(len(taught)))
        outcome = step([full], [0.0, 0.0], engine=ground.engine, objective=ground.objective)
        ids = torch.tensor(encoded.ids.tolist())
        logits = ground.model(input_ids=ids[None], use_cache=False).logits[0, :-1].detach()
        wanted = torch.nn.functional.cross_entropy(logits, ids[1:])
        assert outcome.loss == pytest.approx(float(wanted), abs=1e-5)


def test_landmine_A6_a_short_last_update_is_a_mean_of_what_it_has(tmp_path: Path, llama: Path) -> None:
    """10 rows, 8 an update: the second update's loss is the mean of its 2 rows, not 2/8 of it."""
    rows = tiny.jsonl(tmp_path / "rows.jsonl", tiny.rows(10))
    run = {"heldout": 0}
    asked = tiny.recipe(llama, rows, data=run, train={"batch_examples": 8, "micro_examples": 1}, optim={"lr": 1e-12})
    del asked["train"]["steps"]
    asked["train"]["epochs"] = 1
    fulltune.train(asked, out=tmp_path / "a")
    asked["train"]["batch_examples"] = 10
    fulltune.train(asked, out=tmp_path / "b")
    first, second = lines(tmp_path / "a", "step")
    (whole,) = lines(tmp_path / "b", "step")
    tokens = first["supervised_tokens"] + second["supervised_tokens"]
    mean = first["loss"] * first["supervised_tokens"] + second["loss"] * second["supervised_tokens"]
    assert mean / tokens == pytest.approx(whole["loss"], abs=1e-5)


def test_landmine_A7_every_example_is_stepped_on(tmp_path: Path, llama: Path) -> None:
    """10 rows, 4 an update: 3 updates, and the schedule reaches its floor on the third."""
    rows = tiny.jsonl(tmp_path / "rows.jsonl", tiny.rows(10))
    asked = tiny.recipe(llama, rows, data={"heldout": 0}, train={"batch_examples": 4})
    del asked["train"]["steps"]
    asked["train"]["epochs"] = 1
    record = fulltune.train(asked, out=tmp_path / "run")
    steps = lines(tmp_path / "run", "step")
    assert len(steps) == record.plan.updates == math.ceil(10 / 4)
    assert record.progress.position == 10
    assert sum(s["supervised_tokens"] for s in steps) == record.data.splits["train"].supervised_tokens
    assert steps[-1]["lr"] == pytest.approx(1e-3 * 0.1)


def test_landmine_A9_micro_batches_and_updates_without_supervised_tokens(tmp_path: Path) -> None:
    """An empty micro-batch changes nothing; an update without any is no update at all: no decay, no momentum."""
    ground = Ground(tmp_path, tiny.model("llama"), count=4)
    empty = ground.batches([])
    assert not empty or empty[0].supervised == 0
    from fulltune.data.feed import collate

    nothing = collate(ground.store, [], ground.budget)
    before = [p.detach().clone() for p in ground.model.parameters()]
    outcome = step([nothing, nothing], [0.5, 0.5], engine=ground.engine, objective=ground.objective)
    assert not outcome.applied
    assert all(torch.equal(a, b) for a, b in zip(before, ground.model.parameters(), strict=True))
    outcome = step([*ground.batches(), nothing], [1e-3, 1e-3], engine=ground.engine, objective=ground.objective)
    assert outcome.applied
    assert all(bool(torch.isfinite(p).all()) for p in ground.model.parameters())
    other = Ground(tmp_path / "b", tiny.model("llama"), count=4)
    step(other.batches(), [1e-3, 1e-3], engine=other.engine, objective=other.objective)
    for a, b in zip(ground.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_landmine_A11_what_balances_experts_is_no_part_of_the_loss_and_routers_learn_alike(tmp_path: Path) -> None:
    """Also where the config asks for it: a term of each forward pass would weigh more the more passes there are."""
    found = []
    for micro in (8, 2, 1):
        model = tiny.model("mixtral", output_router_logits=True, router_aux_loss_coef=10.0)
        ground = Ground(tmp_path / str(micro), model, count=8, micro=micro)
        found.append(ground.gradients())
    rows = ground.rows()
    plain = tiny.model("mixtral")
    logits = [plain(input_ids=ids[None], use_cache=False).logits[0] for ids, _ in rows]
    labels = torch.cat([labels for _, labels in rows])
    torch.nn.functional.cross_entropy(torch.cat(logits), labels, ignore_index=IGNORE).backward()
    for name, parameter in plain.named_parameters():
        for gradients in found:
            assert (gradients[name] - parameter.grad).abs().max() < 1e-6, name
    routers = [name for name in found[0] if name.endswith("gate.weight")]
    assert len(routers) == 2 and all(found[0][name].abs().max() > 1e-4 for name in routers)


@pytest.mark.parametrize("micro", [1, 4])
def test_landmine_A12_the_logged_loss_is_the_optimised_loss(tmp_path: Path, micro: int) -> None:
    """Tested on tokens recomputed one example at a time."""
    ground = Ground(tmp_path, tiny.model("gemma2"), count=8, micro=micro)
    total = count = 0.0
    with torch.no_grad():
        for ids, labels in ground.rows():
            logits = ground.model(input_ids=ids[None], use_cache=False).logits[0].float()
            total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
            count += int((labels != IGNORE).sum())
    outcome = step(ground.batches(), [0.0, 0.0], engine=ground.engine, objective=ground.objective)
    assert outcome.loss == pytest.approx(total / count, abs=1e-5)


@pytest.mark.slow
def test_landmine_A13_and_I1_held_out_loss_hangs_on_nothing_but_weights_and_data(
    tmp_path: Path, recipe: dict[str, Any]
) -> None:
    """Neither accumulation nor the size of evaluation's batches changes it."""
    found = []
    for number, train in enumerate(
        ({"micro_examples": 1}, {"micro_examples": 8}, {"micro_tokens": 40}, {"layout": "packed", "micro_tokens": 200})
    ):
        asked = {**recipe, "train": {**recipe["train"], **train}}
        fulltune.train(asked, out=tmp_path / str(number))
        found.append([line["scores"]["heldout.loss"] for line in lines(tmp_path / str(number), "evaluation")])
    for scores in found[1:]:
        assert scores == pytest.approx(found[0], abs=1e-5)


def test_landmine_I3_perplexity_is_exp_of_the_token_mean(tmp_path: Path, recipe: dict[str, Any]) -> None:
    """The closed form on made-up losses is in tests/unit/evaluation; here the two figures of a run agree."""
    record = fulltune.train(recipe, out=tmp_path / "run")
    for report in record.evaluations:
        assert report.scores["heldout.perplexity"] == pytest.approx(math.exp(report.scores["heldout.loss"]))


def test_landmine_I7_the_model_trains_in_train_mode_and_is_measured_in_eval_mode(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """from_pretrained gives a model in eval mode, and generate() leaves it so: dropout would silently be off."""
    from fulltune.engine.native import NativeEngine

    modes: list[tuple[bool, bool]] = []
    forward = NativeEngine.forward

    def spy(self: NativeEngine, batch: Any) -> Any:
        modes.append((self._model.training, torch.is_grad_enabled()))
        return forward(self, batch)

    monkeypatch.setattr(NativeEngine, "forward", spy)
    model = tiny.folder(tmp_path / "model", "gpt2", resid_pdrop=0.1)
    asked = tiny.recipe(model, data, evaluate={"every": 2, "samples": 2})
    fulltune.train(asked, out=tmp_path / "run")
    assert {mode for mode, grad in modes if grad} == {True}
    assert {mode for mode, grad in modes if not grad} == {False}
    assert len([1 for _, grad in modes if grad]) == 1 + 6, "the trial's, and one for each update"


EVALUATIONS = ["heldout", "text", "answer"]


@pytest.fixture(scope="module")
def peaks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """By the kind of an evaluation, what `tests.landmines.memory_of_evaluation` says of it in MiB."""
    folder = tmp_path_factory.mktemp("peaks")
    words = [sys.executable, "-m", "tests.landmines.memory_of_evaluation", str(folder), *EVALUATIONS]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [[int(number) / 2**20 for number in line.split()] for line in done.stdout.splitlines()]
    return dict(zip(EVALUATIONS, lines, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("kind", EVALUATIONS)
def test_landmine_I6_peak_memory_of_an_evaluation_does_not_grow_with_its_rows(
    peaks: dict[str, list[float]], kind: str
) -> None:
    """Also trl#4679. In a process of its own; the third number shows that what is kept would be seen."""
    _, grown, kept = peaks[kind]
    assert grown < 24, f"{grown:.0f} MiB more for twenty times as many rows"
    assert kept > 200
