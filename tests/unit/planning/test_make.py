"""Facts -> numbers, or a refusal."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fulltune.base.errors import RecipeError
from fulltune.base.memory import ATTENDED, Shape
from fulltune.base.records import DataFacts, Machine, ModelFacts, SourceFacts, SplitFacts
from fulltune.planning.make import make_plan, require_names
from fulltune.planning.precision import precision_notes
from fulltune.recipe.load import load_recipe
from fulltune.recipe.schema import TrainSection
from fulltune.recipe.write import as_yaml

CPU = Machine(kind="cpu", name="a CPU", devices=1, bytes_per_device=1 << 30, cores=2, bf16=False)
SHAPE = Shape(block=400, outside=200, tensor=100, inner=120, inner_block=60, widest=16, heads=2, repeated=8, cut=True)
SOURCE = SourceFacts(path="a.jsonl", files=("a.jsonl",), format="text", sha256="", rows=1, examples=1)
MINIMAL = {"model": {"path": "x"}, "data": {"train": "a"}}
GPUS = Machine(kind="cuda", name="a GPU", devices=4, bytes_per_device=80 << 30, cores=16, bf16=True)


def split(examples: int, longest: int = 100) -> SplitFacts:
    lengths = {"min": 2, "p50": 50, "p90": 90, "p99": 99, "max": longest if examples else 0}
    return SplitFacts(
        examples=examples,
        tokens=50 * examples,
        supervised_tokens=20 * examples,
        lengths=lengths,
        by_source=(examples,),
        tokens_by_source=(50 * examples,),
    )


def facts(train: int = 100, heldout: int = 5, retention: int = 0, longest: int = 100) -> DataFacts:
    splits = {
        "train": split(train, longest),
        "heldout": split(heldout),
        "test": split(0),
        "retention": split(retention),
    }
    return DataFacts(
        fingerprint="f",
        rows=105,
        kept=105,
        dropped={},
        truncated=0,
        splits=splits,
        sources=dict.fromkeys(splits, (SOURCE,)),
        notes={},
        template="t",
        stop_ids=(2,),
        doctor={},
    )


def model(context: int | None = 4096) -> ModelFacts:
    return ModelFacts(
        architecture="Llama",
        parameters=1000,
        layers=2,
        hidden=8,
        vocab=100,
        context=context,
        tied_embeddings=True,
        dtype="float32",
        shape=SHAPE,
    )


@pytest.mark.parametrize(
    ("changes", "packed"),
    [
        ({}, True),
        ({"train": {"precision": "fp16-mixed"}}, False),
        ({"train": {"compile": True}}, False),
        ({"model": {"path": "x", "attention": "sdpa"}}, False),
        ({"model": {"path": "x", "dropout": 0.1}}, False),
        ({"optim": {"in_backward": "two_passes"}, "train": {"batch_examples": 5}}, True),
        ({"train": {"layout": "padded"}}, False),
        ({"longest": ATTENDED + 1}, False),
        ({"machine": GPUS}, False),
        ({"causal": False}, False),
    ],
    ids=str,
)
def test_examples_are_packed_where_attention_takes_them_one_by_one(changes: dict[str, Any], packed: bool) -> None:
    changes = {"longest": ATTENDED, "machine": CPU, "causal": True, **changes}
    card, known = facts(longest=changes.pop("longest")), replace(model(), causal=changes.pop("causal"))
    machine = changes.pop("machine")
    recipe = load_recipe({"model": {"path": "x"}, "data": {"train": "a"}, **changes})
    made = make_plan(recipe, card, known, machine, count)
    assert made.layout == ("packed" if packed else "padded")
    if "layout" not in changes.get("train", {}):
        assert any(note.startswith(f"layout: {made.layout}, ") for note in made.notes)


def count(train: TrainSection, examples: int) -> int:
    return -(-examples // train.batch_examples)


def plan(card: DataFacts | None = None, machine: Machine = CPU, context: int | None = 4096, **sections: Any) -> Any:
    recipe = load_recipe({"model": {"path": "x"}, "data": {"train": "a", **sections.pop("data", {})}, **sections})
    return make_plan(recipe, card or facts(), model(context), machine, count)


def test_epochs_become_examples_and_updates() -> None:
    for epochs, examples, updates in ((3.0, 300, 10), (0.5, 50, 2), (0.001, 1, 1), (1.0, 100, 4)):
        made = plan(train={"epochs": epochs})
        assert (made.examples, made.updates, made.epoch_examples) == (examples, updates, 100)
    made = plan(train={"steps": 7})
    assert (made.examples, made.updates) == (None, 7)


@pytest.mark.parametrize(
    ("warmup", "updates", "wanted"),
    [(0, 10, 0), (0.0, 10, 0), (0.06, 100, 6), (0.06, 10, 1), (1, 10, 1), (9, 10, 9), (0.99, 10, 9), (0.5, 1, 0)],
)
def test_warmup_is_a_share_or_a_number(warmup: float, updates: int, wanted: int) -> None:
    assert plan(train={"steps": updates}, optim={"warmup": warmup}).warmup_updates == wanted


def test_a_warmup_as_long_as_the_run_is_refused() -> None:
    for warmup in (10, 11):
        with pytest.raises(RecipeError, match="warm-up of"):
            plan(train={"steps": 10}, optim={"warmup": warmup})


def test_precision_and_micro_batches_follow_the_machine_unless_said() -> None:
    assert (plan().precision, plan(machine=GPUS).precision) == ("float32", "bf16-mixed")
    assert plan(machine=GPUS, train={"precision": "float32"}).precision == "float32"
    assert plan().micro_tokens == 1024
    assert plan(facts(longest=5000)).micro_tokens == 5000, "the longest example fits"
    made = plan(train={"micro_examples": 2, "micro_tokens": 77, "layout": "packed"})
    assert (made.micro_examples, made.micro_tokens, made.layout) == (2, 77, "packed")
    assert plan().layout == "padded"


@pytest.mark.parametrize(
    ("precision", "formats", "sizes"),
    [
        ("float32", ("float32", "float32", "float32", "float32"), (4, 4, 8)),
        ("bf16-mixed", ("float32", "float32", "float32", "bfloat16"), (4, 4, 8)),
        ("fp16-mixed", ("float32", "float32", "float32", "float16"), (4, 4, 8)),
        ("bf16-sr", ("bfloat16", "bfloat16", "float32", "bfloat16"), (2, 2, 8)),
    ],
)
def test_a_precision_says_what_everything_is_held_in(precision: str, formats: Any, sizes: Any) -> None:
    made = plan(train={"precision": precision, "micro_tokens": 4096}).dtypes  # an update is one micro-batch
    assert (made.weights, made.gradients, made.moments, made.compute) == formats
    assert tuple(made.bytes.values()) == sizes
    assert made.reduction == "float32"
    assert f"{sum(sizes)} bytes per parameter together" in str(made)


def test_gradients_of_several_micro_batches_cost_float32() -> None:
    for train in ({"micro_examples": 31}, {"micro_tokens": 3583}, {"layout": "packed"}, {"batch_tokens": 100}):
        made = plan(train={"precision": "bf16-sr", **train}).dtypes
        assert made.bytes == {"weights": 2, "gradients": 4, "moments": 8}, train
        assert made.rows()["gradients"] == "bfloat16 of a micro-batch, added up in float32, 4 bytes"
    whole = plan(train={"precision": "bf16-sr", "micro_tokens": 3584})
    assert whole.dtypes.bytes["gradients"] == 2, "32 examples of 100 tokens, padded to 112"
    row = plan(train={"precision": "bf16-sr", "layout": "packed", "micro_tokens": 3200})
    assert row.dtypes.bytes["gradients"] == 2, "32 examples of 100 tokens in one row"


@pytest.mark.parametrize(
    ("optim", "wanted"),
    [
        ({}, 8),
        ({"moments": "bfloat16"}, 4),
        ({"moments": "int8"}, 2 + 8 / 256),
        ({"moments": "int8", "options": {"amsgrad": True}}, 3 + 12 / 256),
        ({"options": {"amsgrad": True}}, 12),
        ({"name": "lion"}, 4),
        ({"name": "lion", "moments": "bfloat16"}, 2),
        ({"name": "sgd"}, 0),
        ({"name": "sgd", "options": {"momentum": 0.9}}, 4),
    ],
)
def test_moments_are_counted_by_optimizer_and_options(optim: dict[str, Any], wanted: int) -> None:
    made = plan(train={"precision": "bf16-sr", "micro_tokens": 4096}, optim=optim).dtypes
    assert made.bytes["moments"] == wanted
    assert made.rows()["moments"] == f"{optim.get('moments', 'float32')}, {wanted:.3g} bytes"
    assert f"; {4 + wanted:.3g} bytes per parameter together" in str(made)


def test_what_an_optimizer_of_the_users_own_keeps_is_not_guessed() -> None:
    made = plan(optim={"name": "mine:Own"}).dtypes
    assert made.bytes == {"weights": 4, "gradients": 4}
    assert made.rows()["moments"] == "float32, size unknown"


def test_what_does_not_go_with_a_precision_is_refused_before_any_row_is_read() -> None:
    def asked(**sections: Any) -> None:
        require_names(load_recipe({"model": {"path": "x"}, "data": {"train": "a"}, **sections}))

    for precision in ("auto", "float32", "bf16-mixed", "fp16-mixed"):
        with pytest.raises(RecipeError, match="rounded stochastically") as caught:
            asked(train={"precision": precision}, optim={"moments": "bfloat16"})
        assert caught.value.faults[0].where == "optim.moments"
    with pytest.raises(
        RecipeError, match="known to be right for adafactor, adamw, apollo, apollo_mini, lion, muon, sgd"
    ):
        asked(train={"precision": "bf16-sr"}, optim={"name": "mine:Own"})
    with pytest.raises(RecipeError, match="rounded stochastically"):
        asked(optim={"moments": "int8"})
    with pytest.raises(RecipeError, match="treat each number by itself, and adafactor does not"):
        asked(train={"precision": "bf16-sr"}, optim={"moments": "int8", "name": "adafactor"})
    asked(train={"precision": "bf16-sr"}, optim={"moments": "bfloat16", "name": "sgd"})
    asked(train={"precision": "bf16-sr"}, optim={"moments": "int8", "name": "lion"})
    asked(train={"precision": "fp16-mixed"}, optim={"name": "mine:Own"})


def test_a_rate_that_adafactor_takes_for_another_is_mentioned() -> None:
    assert any("2e-05 hardly moves it" in note for note in plan(optim={"name": "adafactor"}).notes)
    assert not any("hardly" in note for note in plan(optim={"name": "adafactor", "lr": 1e-3}).notes)
    assert not any("hardly" in note for note in plan().notes)


def test_a_precision_that_does_not_suit_the_models_file_is_mentioned() -> None:
    half = replace(model(), dtype="bfloat16")
    assert any("65504" in note for note in precision_notes(load_recipe(MINIMAL), "fp16-mixed", half, CPU))
    assert not any("65504" in note for note in plan(train={"precision": "fp16-mixed"}).notes)
    assert any("rounded to bf16 before" in note for note in plan(train={"precision": "bf16-sr"}).notes)
    assert not any("rounded" in note for note in precision_notes(load_recipe(MINIMAL), "bf16-sr", half, CPU))


def test_devices_that_are_not_used_are_mentioned() -> None:
    def told(**engine: Any) -> bool:
        return any("of 4 devices" in note for note in plan(machine=GPUS, engine=engine).notes)

    assert (told(), told(processes=4)) == (False, False), "all are used"
    assert told(name="single")
    assert told(processes=2)


def test_a_last_update_without_a_rate_is_mentioned() -> None:
    assert any("moves nothing" in note for note in plan(optim={"floor": 0.0}).notes)


def test_more_tokens_than_positions_are_refused() -> None:
    with pytest.raises(RecipeError, match="positions for 512") as caught:
        plan(context=512)
    assert "data.max_length=512" in caught.value.faults[0].mend
    assert plan(context=None).updates
    assert plan(context=512, data={"max_length": 512}).updates


def test_unknown_names_are_refused_all_at_once_with_their_places() -> None:
    sources = ["a.jsonl", {"path": "b.jsonl", "format": "message"}]
    data = {"train": sources, "heldout": sources[1:], "retention": {"path": "c.jsonl", "format": "nosuchmodule:x"}}
    with pytest.raises(RecipeError) as caught:
        require_names(load_recipe({"model": {"path": "x"}, "data": data, "optim": {"schedule": "cosin"}}))
    assert {fault.where for fault in caught.value.faults} == {
        "data.train.1.format",
        "data.heldout.0.format",
        "data.retention.0.format",
        "optim.schedule",
    }
    assert all(fault.mend for fault in caught.value.faults)


def test_known_names_are_none_of_a_fault() -> None:
    data = {"train": [{"path": "a", "format": "messages"}, "b"], "test": {"path": "c", "format": "json:loads"}}
    require_names(load_recipe({"model": {"path": "x"}, "data": data, "optim": {"schedule": "wsd"}}))


def test_a_resolved_recipe_plans_as_the_one_it_came_from(tmp_path: Path) -> None:
    recipe = load_recipe({"model": {"path": "x"}, "data": {"train": "a", "heldout": 0}})
    (tmp_path / "recipe.yaml").write_text(as_yaml(recipe))
    made = [
        make_plan(r, facts(heldout=0), model(), CPU, count) for r in (recipe, load_recipe(tmp_path / "recipe.yaml"))
    ]
    assert made[0] == made[1]


def test_a_score_that_cannot_be_measured_has_a_mend() -> None:
    with pytest.raises(RecipeError, match=r"data\.heldout=0\.05, or leave checkpoint\.best_by out"):
        plan(facts(heldout=0), checkpoint={"best_by": "heldout.loss"})


def test_the_best_is_chosen_by_something_measured() -> None:
    with pytest.raises(RecipeError, match="does not measure"):
        plan(checkpoint={"best_by": "heldout.accuracy"})
    with pytest.raises(RecipeError, match="does not measure"):
        plan(facts(heldout=0, retention=3), checkpoint={"best_by": "heldout.loss"})
    with pytest.raises(RecipeError, match="nothing is held out"):
        plan(facts(heldout=0), checkpoint={"patience": 2})
    assert plan(facts(heldout=0)).updates
    assert plan(facts(heldout=0, retention=3)).updates
    assert plan(facts(heldout=0, retention=3), checkpoint={"best_by": "retention.loss"}).updates


def test_the_best_may_be_chosen_by_one_source_of_several() -> None:
    card = facts()
    heldout = replace(card.splits["heldout"], by_source=(3, 0, 2), tokens_by_source=(9, 0, 6))
    named = [replace(SOURCE, path=f"data/{name}.jsonl") for name in ("chat", "none", "code")]
    card = replace(card, splits={**card.splits, "heldout": heldout}, sources={**card.sources, "heldout": tuple(named)})
    assert plan(card, checkpoint={"best_by": "heldout.code.loss"}).updates
    with pytest.raises(RecipeError, match="does not measure") as caught:
        plan(card, checkpoint={"best_by": "heldout.none.loss"})
    assert caught.value.faults[0].mend.endswith("heldout.perplexity, heldout.chat.loss, heldout.code.loss")
    with pytest.raises(RecipeError, match="does not measure"):
        plan(checkpoint={"best_by": "heldout.a.loss"})


def test_patience_needs_something_to_judge_by() -> None:
    with pytest.raises(RecipeError, match="best_by names none"):
        plan(facts(heldout=0, retention=3), checkpoint={"patience": 2})
    assert plan(facts(heldout=0, retention=3), checkpoint={"patience": 2, "best_by": "retention.loss"}).updates


def test_flash_attention_needs_bf16() -> None:
    with pytest.raises(RecipeError, match="flash"):
        plan(model={"path": "x/y", "attention": "flash_attention_2"}, train={"precision": "float32"})


def test_what_a_micro_batch_may_hold() -> None:
    assert plan(train={"batch_tokens": 4000}).micro_examples == 4000, "the default of batch_examples is no limit then"
    assert plan(train={"batch_examples": 8}).micro_examples == 8
    assert any("exceeds train.micro_tokens" in note for note in plan(train={"micro_tokens": 16}).notes)
    assert plan().context == 4096


def mixed(*sizes: int, longest: int = 100) -> DataFacts:
    """A card whose train split has sources of so many examples."""
    card = facts(train=sum(sizes), longest=longest)
    train = replace(card.splits["train"], by_source=sizes, tokens_by_source=tuple(50 * size for size in sizes))
    return replace(card, splits={**card.splits, "train": train})


def test_epochs_count_passes_over_the_training_data_and_replay_comes_besides() -> None:
    made = plan(mixed(90, 40), data={"replay": {"sources": "g", "share": 0.1}}, train={"epochs": 2})
    assert (made.examples, made.epoch_examples) == (199, 99), "the 180th of its own ends the run"
    own, again = made.mix
    assert (own.path, own.replay, own.passes) == (str(Path.cwd() / "a"), False, pytest.approx(199 * 0.9 / 90))
    assert (again.replay, again.examples, again.share) == (True, 40, pytest.approx(0.1))
    assert plan(mixed(90, 40), data={"train": ["a", "b"]}).examples == 390, "without replay nothing is added"


def test_sources_that_come_very_often_or_not_whole_are_noted() -> None:
    shares = {"train": [{"path": "a", "share": 1.0}, {"path": "b", "share": 1.0}]}
    made = plan(mixed(900, 10), data=shares, train={"epochs": 1})
    assert [round(source.passes, 2) for source in made.mix] == [0.51, 45.5]
    said = [note for note in made.notes if "is seen" in note]
    assert len(said) == 2
    assert "/a is seen 0.51 times: not all of it is used" in said[0]
    assert "/b is seen 45.50 times: beyond 4 passes" in said[1]
    fine = plan(mixed(50, 50), data=shares, train={"epochs": 4})
    assert not any("is seen" in note for note in fine.notes)
    epochs = plan(mixed(90, 40), data={"replay": {"sources": "g", "share": 0.5}}, train={"epochs": 10})
    (note,) = (note for note in epochs.notes if "is seen" in note)
    assert "/g is seen 22.4" in note, "how often the rest comes was asked for in epochs"


def test_a_run_of_so_many_updates_is_mixed_too() -> None:
    replay = {"replay": {"sources": "g", "share": 0.25}}
    made = plan(mixed(100, 100), data=replay, train={"steps": 10, "batch_examples": 20})
    assert [source.passes for source in made.mix] == pytest.approx([1.5, 0.5])
    by_tokens = plan(mixed(100, 100), data=replay, train={"steps": 10, "batch_tokens": 1000})
    assert [source.passes for source in by_tokens.mix] == pytest.approx([1.5, 0.5])
