"""Held-out loss weighted by token, whatever the batches; greedy answers that stop."""

import math
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from fulltune.base.errors import Interrupted
from fulltune.base.stop import listening
from fulltune.batch import Batch
from fulltune.data.feed import once
from fulltune.data.lay import Budget
from fulltune.evaluation.generate import greedy
from fulltune.evaluation.heldout import measure
from tests import tiny
from tests.contract.ground import Ground


def score(ground: Ground, examples: int, tokens: int = 10_000, layout: str = "padded") -> dict[str, float]:
    budget = Budget(examples, tokens, layout)  # type: ignore[arg-type]
    splits = {"heldout": {"all": lambda: once(ground.store, budget)}}
    return measure(splits, ground.engine, ground.objective, step=0).scores


def test_the_loss_is_a_token_mean_whatever_the_batches(tmp_path: Path) -> None:
    ground = Ground(tmp_path, tiny.model("llama"), count=13)
    total = count = 0.0
    with torch.no_grad():
        for ids, labels in ground.rows():
            logits = ground.model.eval()(input_ids=ids[None], use_cache=False).logits[0].double()
            total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
            count += int((labels != -100).sum())
    ground.model.train()
    for examples, tokens, layout in (
        (1, 10**4, "padded"),
        (2, 10**4, "padded"),
        (13, 40, "padded"),
        (13, 99, "packed"),
    ):
        scores = score(ground, examples, tokens, layout)
        assert scores["heldout.loss"] == pytest.approx(total / count, abs=1e-5)
        assert scores["heldout.perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)


def test_perplexity_is_exp_of_one_mean_over_all_tokens() -> None:
    """10 tokens at 2.0 and 1000 at 5.0: 144.1, not 33.1 (a mean of means) and not 77.9 (a mean of exps)."""

    class Fixed:
        weights: ClassVar = {"next_token": 1.0}
        world = type("W", (), {"device": "cpu"})

        def counts(self, batch: Batch) -> dict[str, float]:
            return {"next_token": batch.weight}

        def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
            return {"next_token": torch.tensor({10.0: 2.0, 1000.0: 5.0}[batch.weight] * batch.weight)}

        def sum(self, value: torch.Tensor) -> torch.Tensor:
            return value

        def any(self, flag: bool) -> bool:
            return flag

        evaluating = torch.no_grad

    def batch(tokens: int) -> Batch:
        empty = torch.zeros(1, 1)
        return Batch(empty, empty, empty, None, torch.zeros(tokens), (0,), (tokens,), float(tokens))

    report = measure({"heldout": {"all": lambda: [batch(10), batch(1000)]}}, Fixed(), Fixed(), step=0)  # type: ignore[arg-type, dict-item]
    assert report.scores["heldout.perplexity"] == pytest.approx(144.1, abs=0.05)
    assert report.counts == {"heldout": 1010}


def test_each_source_has_its_loss_and_the_whole_is_their_token_mean(tmp_path: Path) -> None:
    """No batch is looked at twice for it, and the total is what one part of them all gives."""
    ground = Ground(tmp_path, tiny.model("llama"), count=13)
    parts = {"chat": range(3), "code": range(3, 4), "rest": range(4, 13)}
    budget, seen = Budget(2, 10_000, "padded"), []

    def batches(members: range) -> Iterator[Batch]:
        for made in once(ground.store, budget, members=members):
            seen.extend(made.examples)
            yield made

    splits = {"heldout": {name: partial(batches, members) for name, members in parts.items()}}
    report = measure(splits, ground.engine, ground.objective, step=0)
    assert sorted(seen) == list(range(13))
    assert report.scores["heldout.loss"] == pytest.approx(score(ground, 2)["heldout.loss"], abs=1e-6)
    assert report.counts["heldout"] == sum(report.counts[f"heldout.{name}"] for name in parts)
    mean = sum(report.scores[f"heldout.{name}.loss"] * report.counts[f"heldout.{name}"] for name in parts)
    assert report.scores["heldout.loss"] == pytest.approx(mean / report.counts["heldout"], abs=1e-12)
    for name, members in parts.items():
        alone = {"x": {name: partial(batches, members)}}
        assert measure(alone, ground.engine, ground.objective, step=0).scores == {
            "x.loss": report.scores[f"heldout.{name}.loss"],
            "x.perplexity": pytest.approx(math.exp(report.scores[f"heldout.{name}.loss"])),
        }, "one source alone is not named besides"


def test_measuring_switches_dropout_off_and_the_mode_back(tmp_path: Path) -> None:
    ground = Ground(tmp_path, tiny.model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5), count=5)
    assert ground.model.training
    assert score(ground, 2) == score(ground, 2)
    assert ground.model.training


def test_measuring_keeps_no_graph_and_no_gradients(tmp_path: Path) -> None:
    ground = Ground(tmp_path, tiny.model("llama"), count=5)
    score(ground, 2)
    assert all(p.grad is None for p in ground.model.parameters())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mamba"])
def test_greedy_equals_taking_the_largest_logit_again_and_again(kind: str) -> None:
    model = tiny.model(kind)
    prompts = [[5, 6, 7], [9, 10, 11, 12, 13]]
    for prompt, answer in zip(prompts, greedy(model, prompts, stop_ids=[2], tokens=6), strict=True):
        ids = list(prompt)
        for _ in range(6):
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        assert answer == ids[len(prompt) :][: len(answer)]
        assert len(answer) == 6 or ids[len(prompt) + len(answer)] == 2


def test_greedy_stops_at_stop_tokens_and_leaves_them_out() -> None:
    model = tiny.model("llama")
    first = greedy(model, [[5, 6, 7]], stop_ids=[2], tokens=4)[0]
    assert greedy(model, [[5, 6, 7]], stop_ids=[first[1]], tokens=4) == [first[: first.index(first[1])]]


def test_greedy_takes_nothing_from_the_models_own_generation_config() -> None:
    model = tiny.model("llama")
    plain = greedy(model, [[5, 6, 7]], stop_ids=[2], tokens=6)
    own = model.generation_config
    slips = {"repetition_penalty": 5.0, "max_length": 4, "num_beams": 3, "bad_words_ids": [[plain[0][0]]]}
    for name, value in {**slips, "suppress_tokens": plain[0], "max_time": 1e-9, "stop_strings": ["x"]}.items():
        setattr(own, name, value)
    assert greedy(model, [[5, 6, 7]], stop_ids=[2], tokens=6) == plain
    assert model.generation_config is own
    model.train()
    greedy(model, [[5]], stop_ids=[2], tokens=1)
    assert model.training


def test_greedy_ends_where_the_positions_end() -> None:
    model = tiny.model("gpt2", n_positions=12)
    full, nearly = list(range(5, 17)), list(range(5, 15))
    made = greedy(model, [full, nearly, nearly[:3]], stop_ids=[2], tokens=50)
    assert made[0] == []
    assert len(made[1]) <= 2
    assert len(made[2]) <= 9


def test_a_signal_ends_measuring_between_two_batches(tmp_path: Path) -> None:
    ground = Ground(tmp_path, tiny.model("llama"), count=6)
    seen: list[int] = []

    def batches() -> Iterator[Batch]:
        for number, batch in enumerate(once(ground.store, Budget(2, 10_000, "padded"))):
            seen.append(number)
            if number == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with listening(), pytest.raises(Interrupted):
        measure({"heldout": {"all": batches}}, ground.engine, ground.objective, step=0)
    assert seen == [0, 1]
    assert ground.model.training, "as it was before"


def test_a_signal_ends_answering_before_the_next_prompt() -> None:
    model = tiny.model("llama").train()
    asked: list[int] = []

    def prompts() -> Iterator[list[int]]:
        for number in range(3):
            asked.append(number)
            if number == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield [5, 6, 7]

    with listening(), pytest.raises(Interrupted):
        greedy(model, prompts(), stop_ids=[2], tokens=4)
    assert asked == [0, 1]
    assert model.training
