"""Landmines C: several examples in one row."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies

import fulltune
from fulltune.base.errors import RecipeError
from fulltune.base.records import IGNORE
from fulltune.batch import Batch
from fulltune.data import feed
from fulltune.data.feed import collate
from fulltune.data.lay import Budget, lay
from fulltune.data.store import Store
from fulltune.model.probe import packing_isolates
from fulltune.training.journal import read
from tests import tiny
from tests.contract.ground import Ground
from tests.unit.evaluation.test_evaluation import score


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "gemma3", "gpt2"])
@pytest.mark.parametrize("training", [True, False])
def test_landmine_C1_packed_examples_do_not_see_each_other(tmp_path: Path, kind: str, training: bool) -> None:
    """Another first example moves no logit of the second, though the config says use_cache, as all configs do."""
    model = tiny.model(kind).train(training)
    assert model.config.use_cache
    ground = Ground(tmp_path, model, count=2, layout="packed")
    ground.model.train(training)
    batch = ground.batches()[0]
    first = batch.lengths[0]
    changed = batch.ids.clone()
    changed[0, :first] = (changed[0, :first] + 7) % tiny.VOCAB
    cut = ground.objective._cut[0]
    assert cut is not None
    with torch.no_grad():
        one, other = (
            cut.backbone(input_ids=ids, position_ids=batch.positions, use_cache=False)[0][0, first:]
            for ids in (batch.ids, changed)
        )
        alone = cut.backbone(input_ids=batch.ids[:, first:], use_cache=False)[0][0]
    assert torch.equal(one, other)
    assert torch.allclose(one, alone, atol=1e-5)


def test_landmine_C1_a_model_that_leaks_is_refused(tmp_path: Path, data: Path) -> None:
    model = tiny.folder(tmp_path / "model", "mamba")
    with pytest.raises(RecipeError, match="see each other") as caught:
        fulltune.train(tiny.recipe(model, data, train={"layout": "packed"}), out=tmp_path / "run")
    assert "train.layout=padded" in caught.value.faults[0].mend
    assert fulltune.train(tiny.recipe(model, data, train={"steps": 1}), out=tmp_path / "run2").result_step == 1


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_landmine_C8_the_layout_that_was_asked_for_is_the_one_that_is_trained(
    tmp_path: Path, llama: Path, data: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the plan, in the run's record and in every batch of training; a model that cannot pack is refused (C1)."""
    made: list[tuple[str, Batch]] = []

    def seen(store: Store, members: Sequence[int], budget: Budget, *more: Any) -> Batch:
        made.append((budget.layout, collate(store, members, budget, *more)))
        return made[-1][1]

    monkeypatch.setattr(feed, "collate", seen)
    asked = tiny.recipe(llama, data, train={"layout": layout, "steps": 2})
    record = fulltune.train(asked, out=tmp_path / "run")
    assert record.plan.layout == layout
    trained = [batch for kind, batch in made if kind == layout]
    assert max(len(batch.lengths) for batch in trained) > 1
    for batch in trained:
        rows = 1 if layout == "packed" else max(1, len(batch.lengths))
        assert len(batch.ids) == rows
        assert (batch.positions is not None) == (layout == "packed")
    # Held-out losses are asked for padded in any case: they hang on no layout.
    assert {kind for kind, _ in made} == {layout, "padded"}


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_landmine_C2_no_mask_is_made_that_could_be_misread(tmp_path: Path, layout: str) -> None:
    """No module of the model is ever handed a mask of two dimensions, whose integers would collapse to booleans."""
    ground = Ground(tmp_path, tiny.model("llama"), count=6, layout=layout)
    given_masks: list[Any] = []

    def look(module: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        given_masks.extend(value for key, value in named.items() if "mask" in key)

    hooks = [m.register_forward_pre_hook(look, with_kwargs=True) for m in ground.model.modules()]
    for batch in ground.batches():
        assert not any("mask" in name for name in batch.__dataclass_fields__)
        ground.engine.forward(batch)
    for hook in hooks:
        hook.remove()
    assert given_masks, "the hooks saw no layer"
    assert all(mask is None or mask.dim() == 4 for mask in given_masks)


DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}
"""Rotations that stretch as soon as a position lies beyond those that the model was made for."""


@pytest.mark.parametrize(("kind", "changes"), [("llama", {}), ("llama", DYNAMIC), ("gpt2", {})], ids=str)
def test_landmine_C4_a_row_may_be_wider_than_the_model_has_positions(
    tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    """For they restart: an update in one packed row learns what eight padded rows do."""
    found = {}
    for layout in ("padded", "packed"):
        model = tiny.model(kind, max_position_embeddings=32, **changes)
        ground = Ground(tmp_path / layout, model, count=8, micro=8, layout=layout)
        (batch,) = ground.batches()
        with ground.engine.micro(last=True):
            share = ground.engine.forward(batch)["next_token"]
            ground.engine.backward(share)
        found[layout] = [share.detach(), *(weight.grad for weight in ground.model.parameters())]
    assert batch.ids.shape == (1, sum(batch.lengths)) and sum(batch.lengths) > 2 * 32 > max(batch.lengths)
    for one, other in zip(found["padded"], found["packed"], strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_landmine_C3_no_example_predicts_the_first_token_of_the_next(tmp_path: Path) -> None:
    batch = Ground(tmp_path, tiny.model("llama"), count=8, layout="packed").batches()[0]
    ends = np.cumsum(batch.lengths) - 1
    assert (batch.labels[0, ends] == IGNORE).all()


def test_landmine_C4_positions_restart_and_padding_makes_no_documents(tmp_path: Path) -> None:
    packed = Ground(tmp_path / "a", tiny.model("llama"), count=8, layout="packed").batches()[0]
    assert packed.positions is not None
    assert packed.positions[0].tolist() == [p for length in packed.lengths for p in range(length)]
    assert packed.ids.shape[1] == sum(packed.lengths), "a packed row has no padding at all"
    padded = Ground(tmp_path / "b", tiny.model("llama"), count=8).batches()[0]
    assert padded.positions is None


@given(
    strategies.lists(strategies.integers(2, 50), max_size=60),
    strategies.integers(1, 120),
    strategies.sampled_from(["padded", "packed"]),
)
def test_landmine_C5_packing_drops_and_cuts_nothing(lengths: list[int], tokens: int, layout: Any) -> None:
    laid = lay(lengths, Budget(60, tokens, layout))
    assert sorted(i for micro in laid for i in micro) == list(range(len(lengths)))
    assert all(len(micro) == 1 or sum(lengths[i] for i in micro) <= tokens for micro in laid)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("portion", [{"batch_examples": 7}, {"batch_tokens": 150}])
def test_landmine_C6_the_schedule_ends_with_the_last_executed_update(
    tmp_path: Path, llama: Path, data: Path, layout: str, portion: dict[str, int]
) -> None:
    asked = tiny.recipe(llama, data, data={"heldout": 0}, evaluate={"samples": 0}, optim={"floor": 0.25})
    asked["train"] = {"epochs": 1.5, "layout": layout, "precision": "float32", **portion}
    record = fulltune.train(asked, out=tmp_path / "run")
    rates = [line["lr"] for line in read(tmp_path / "run/journal.jsonl", "step")]
    assert len(rates) == record.plan.updates
    assert rates[-1] == pytest.approx(0.25e-3)
    assert min(rates[1:-1]) > 0.25e-3
    assert record.progress.position == 60


def test_landmine_C7_held_out_loss_is_the_same_packed_and_padded(tmp_path: Path) -> None:
    ground = Ground(tmp_path, tiny.model("llama"), count=12)
    padded, packed = (score(ground, 4, 90, layout)["heldout.loss"] for layout in ("padded", "packed"))
    assert packed == pytest.approx(padded, abs=1e-5)


def test_landmine_C9_recurrent_state_that_runs_on_is_seen(tmp_path: Path) -> None:
    """The leak is real: another first example moves the second's logits. So packing is refused; padding is not."""
    model = tiny.model("mamba")
    ids = torch.arange(1, 21)[None]
    changed = ids.clone()
    changed[0, :10] += 7
    with torch.no_grad():
        one, other, alone = (model(row, use_cache=False).logits[0, -10:] for row in (ids, changed, ids[:, 10:]))
        padded = model(torch.nn.functional.pad(ids[:, 10:], (0, 6)), use_cache=False).logits[0, :10]
    assert not torch.allclose(one, other, atol=1e-4)
    assert torch.allclose(padded, alone, atol=1e-5)
    assert not packing_isolates(model, tiny.VOCAB)
    assert packing_isolates(tiny.model("llama"), tiny.VOCAB)


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_landmine_C10_ids_and_labels_of_every_example_stay_beside_each_other(tmp_path: Path, layout: str) -> None:
    ground = Ground(tmp_path, tiny.model("llama"), count=17, layout=layout)
    seen = []
    for batch in ground.batches():
        at = 0
        for row, (index, length) in enumerate(zip(batch.examples, batch.lengths, strict=True)):
            place = (0, slice(at, at + length)) if layout == "packed" else (row, slice(0, length))
            assert batch.ids[place].tolist() == ground.store[index].ids.tolist()
            assert batch.labels[place].tolist() == ground.store[index].labels.tolist()
            assert batch.weights[place].tolist() == ground.store[index].weights.tolist()
            at += length
            seen.append(index)
    assert sorted(seen) == list(range(17))
