"""What the base predicts, kept on disk: measured against it, held to it, made anew where it is of something else."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from fulltune.data.feed import once
from fulltune.data.lay import Budget
from fulltune.divergence import divergence, likeliest
from fulltune.engine.contract import Update
from fulltune.engine.crew import Alone
from fulltune.evaluation.heldout import measure
from fulltune.references import spread
from fulltune.training.reference import References, bytes_of
from fulltune.training.step import Outcome, step
from tests import tiny
from tests.contract.ground import Ground

COUNT = 12
TOP = 20
REPLAY = [1, 4, 5, 10]
"""Examples that are compared, in tests that compare some."""
WEIGHTS = [1.0, 0.5, 2.0] * 4


def made(
    ground: Ground, folder: Path, members: Sequence[int], key: str = "k", cut: dict[int, int] | None = None
) -> References:
    """What the model of a ground predicts of these examples."""
    found = References(folder / "base-some", key, TOP, cut or {})
    batches = once(ground.store, Budget(3, 10_000, "padded"), members=members)
    found.make(batches, ground.engine, ground.objective, Alone())
    return found


def moved(model: Any, seed: int = 7, by: float = 0.05) -> None:
    """Other weights, as training would leave them."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=draw))


def logits_of(model: Any, ground: Ground, member: int) -> Tensor:
    """Float32 [supervised, vocab] of one example alone, from the model's own forward pass."""
    ids, labels = ground.rows()[member]
    return model(input_ids=ids[None], use_cache=False).logits[0][labels != -100].float()  # type: ignore[no-any-return]


def exact(base: Tensor, model: Tensor) -> Tensor:
    p, q = (logits.double().log_softmax(-1) for logits in (base, model))
    return (p.exp() * (p - q)).sum(-1)


@pytest.mark.parametrize(
    "kind, options", [("llama", {}), ("gemma2", {}), ("llama", {"cut": False}), ("mamba", {"cut": False})]
)
def test_the_score_is_the_token_mean_of_what_each_example_alone_gives(
    tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    """Whatever the batches and the chunks of logits; no more than the exact divergence, and by its weights."""
    ground = Ground(tmp_path, tiny.model(kind), count=COUNT, weights=WEIGHTS, **options)
    base = [logits_of(ground.model.eval(), ground, member).detach() for member in range(COUNT)]
    with mock.patch("fulltune.objectives.CHUNK_BYTES", 4 * tiny.VOCAB * 4):
        refer = made(ground, tmp_path, range(COUNT))
        moved(ground.model)
        now = [logits_of(ground.model, ground, member).detach() for member in range(COUNT)]
        split = {"retention": {"all": lambda: once(ground.store, Budget(5, 10_000, "padded"), refer=refer)}}
        report = measure(split, ground.engine, ground.objective, step=1)
    each = [divergence(new, likeliest(old, TOP)) for old, new in zip(base, now, strict=True)]
    weight = sum(w * len(found) for w, found in zip(WEIGHTS, each, strict=True))
    wanted = sum(w * float(found.sum()) for w, found in zip(WEIGHTS, each, strict=True)) / weight
    whole = sum(w * float(exact(o, n).sum()) for w, o, n in zip(WEIGHTS, base, now, strict=True)) / weight
    assert report.scores["retention.kl"] == pytest.approx(wanted, rel=1e-4)
    assert 0.001 < report.scores["retention.kl"] < whole
    assert report.counts["retention.kl"] == sum(map(len, each)) == report.counts["retention"]


def test_some_tokens_of_some_examples_are_compared_and_the_loss_is_over_all(tmp_path: Path) -> None:
    ground = Ground(tmp_path, tiny.model("llama"), count=COUNT)
    base = {member: logits_of(ground.model.eval(), ground, member).detach() for member in (2, 4, 7)}
    refer = made(ground, tmp_path, [2, 4, 7], cut={4: 5})
    budget = Budget(4, 10_000, "padded")
    before = measure({"x": {"all": lambda: once(ground.store, budget)}}, ground.engine, ground.objective, step=0)
    moved(ground.model)
    found = [divergence(logits_of(ground.model, ground, m).detach(), likeliest(base[m], TOP)) for m in base]
    found[1] = found[1][:5]
    with_it = {"x": {"a": lambda: once(ground.store, budget, members=range(5), refer=refer)}}
    with_it["x"]["b"] = lambda: once(ground.store, budget, members=range(5, 8), refer=refer)
    with_it["x"]["c"] = lambda: once(ground.store, budget, members=range(8, COUNT), refer=refer)
    report = measure(with_it, ground.engine, ground.objective, step=0)
    assert report.scores["x.kl"] == pytest.approx(float(torch.cat(found).mean()), rel=1e-4)
    assert report.scores["x.b.kl"] == pytest.approx(float(found[2].mean()), rel=1e-4)
    assert report.counts["x.a.kl"] == len(found[0]) + 5
    assert "x.c.kl" not in report.scores, "nothing of it is compared"
    assert "x.kl" not in before.scores
    alone = measure({"x": {"all": lambda: once(ground.store, budget)}}, ground.engine, ground.objective, step=0)
    assert report.scores["x.loss"] == pytest.approx(alone.scores["x.loss"], abs=1e-6)


def test_the_base_is_no_way_from_itself(tmp_path: Path) -> None:
    """Also where it was asked in other batches."""
    ground = Ground(tmp_path, tiny.model("llama"), count=COUNT)
    refer = made(ground, tmp_path, range(COUNT))
    for rows in (1, 3, 12):
        split = {"x": {"all": lambda rows=rows: once(ground.store, Budget(rows, 10_000, "padded"), refer=refer)}}
        assert 0 <= measure(split, ground.engine, ground.objective, step=0).scores["x.kl"] < 1e-10


def test_they_are_of_one_model_and_these_texts_and_whole_or_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ground = Ground(tmp_path, tiny.model("llama"), count=COUNT)
    refer = made(ground, tmp_path, range(COUNT))
    folder = tmp_path / "base-some"
    assert refer.stand(Alone())
    assert References(folder, "k", TOP, {}).stand(Alone())
    assert not References(folder, "another", TOP, {}).stand(Alone()), "of other data, say"
    assert not References(tmp_path / "base-none", "k", TOP, {}).stand(Alone())
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}
    rows = next(folder.glob("*.safetensors"))
    content = bytearray(rows.read_bytes())
    content[-1] ^= 1
    rows.write_bytes(content)
    assert not References(folder, "k", TOP, {}).stand(Alone())
    assert "is damaged: what the base predicts is worked out anew" in caplog.text
    made(ground, tmp_path, range(COUNT))
    assert refer.stand(Alone()), "and it stands in the place of the old"
    (folder / "card.json").write_text('{"key": ')
    assert not refer.stand(Alone())


def test_files_are_begun_anew_as_they_fill_and_take_what_was_foretold(tmp_path: Path) -> None:
    """So that no more is held than one of them; what is read of them does not depend on it."""
    ground = Ground(tmp_path, tiny.model("llama"), count=COUNT)
    with mock.patch("fulltune.training.reference._FILE", bytes_of(10, TOP)):
        several = made(ground, tmp_path, range(COUNT))
    files = list((tmp_path / "base-some").glob("*.safetensors"))
    assert len(files) > 2
    single = made(ground, tmp_path / "one", range(COUNT))
    assert len(list((tmp_path / "one/base-some").glob("*.safetensors"))) == 1
    one, other = (next(once(ground.store, Budget(12, 10**4, "padded"), refer=it)).reference for it in (several, single))
    assert one is not None and other is not None
    assert torch.equal(one.ids, other.ids) and torch.equal(one.logs, other.logs) and torch.equal(one.rows, other.rows)
    card = json.loads((tmp_path / "base-some/card.json").read_text())
    size = sum(path.stat().st_size for path in files)
    assert bytes_of(card["tokens"], TOP) < size < 1.2 * bytes_of(card["tokens"], TOP) + 600 * len(files)
    assert 0 < card["rest"] < 1


def test_the_chosen_tokens_are_spread_and_the_same_each_time(tmp_path: Path) -> None:
    ground = Ground(tmp_path, tiny.model("llama"), count=48)
    taught = [int((labels != -100).sum()) for _, labels in ground.rows()]
    chosen = spread(ground.store, 90)
    assert sum(chosen.values()) == 90 and chosen == spread(ground.store, 90)
    assert all(0 < tokens <= taught[member] for member, tokens in chosen.items())
    assert sum(tokens < taught[member] for member, tokens in chosen.items()) <= 1, "one is cut at most"
    assert {member // 16 for member in chosen} == {0, 1, 2}, "of each third of the store"
    assert spread(ground.store, 10**6) == dict(enumerate(taught))


def held(folder: Path, kl: float, micro: int = 12, **options: Any) -> Ground:
    """A ground that is held to what its model says of some examples, and that has moved since."""
    ground = Ground(folder, tiny.model("llama"), count=COUNT, weights=WEIGHTS, micro=micro, kl=kl, **options)
    if kl:
        ground.refer = made(ground, folder, REPLAY)
    moved(ground.model)
    return ground


@pytest.mark.parametrize("micro, layout", [(12, "padded"), (2, "padded"), (5, "packed")])
def test_the_penalty_has_a_count_of_its_own_over_the_whole_update(tmp_path: Path, micro: int, layout: str) -> None:
    """Its gradient is plain autograd's, of loss + weight * mean over the compared tokens, however the update is cut."""
    ground = held(tmp_path, 3.0, micro, layout=layout)
    base = {member: logits_of(tiny.model("llama"), ground, member).detach() for member in REPLAY}
    loss = kl = torch.zeros(())
    for member, (_, labels) in enumerate(ground.rows()):
        logits = logits_of(ground.model, ground, member)
        cross = torch.nn.functional.cross_entropy(logits, labels[labels != -100], reduction="sum")
        loss = loss + WEIGHTS[member] * cross
        if member in REPLAY:
            kl = kl + WEIGHTS[member] * divergence(logits, likeliest(base[member], TOP)).sum()
    taught = [int((labels != -100).sum()) for _, labels in ground.rows()]
    loss = loss / sum(w * n for w, n in zip(WEIGHTS, taught, strict=True))
    kl = kl / sum(WEIGHTS[member] * taught[member] for member in REPLAY)
    wanted = torch.autograd.grad(loss + 3.0 * kl, list(ground.model.parameters()))
    norm = torch.stack([gradient.norm() for gradient in wanted]).norm()
    with mock.patch("fulltune.objectives.CHUNK_BYTES", 4 * tiny.VOCAB * 6):
        found = step(ground.batches(), [0.0, 0.0], engine=Kept(ground), objective=ground.objective)  # type: ignore[arg-type]
    assert isinstance(found, Outcome)
    assert found.loss == pytest.approx(loss.item(), rel=1e-5), "what is reported is the loss of the data"
    assert found.penalty == pytest.approx(3.0 * kl.item(), rel=1e-4)
    assert found.penalty > 0.01
    for parameter, gradient in zip(ground.model.parameters(), wanted, strict=True):
        assert parameter.grad is not None
        assert float((parameter.grad - gradient).abs().max()) < 1e-5 * max(1.0, norm.item())


class Kept:
    """The engine of a ground, which leaves gradients where they are in place of an update."""

    def __init__(self, ground: Ground) -> None:
        self.forward, self.micro, self.backward = ground.engine.forward, ground.engine.micro, ground.engine.backward
        self.sum, self.any, self.world = ground.engine.sum, ground.engine.any, ground.engine.world

    def update(self, rates: Sequence[float]) -> Update:
        return Update(1.0, applied=True)


def test_a_weight_of_nothing_changes_no_bit(tmp_path: Path) -> None:
    """Beside an objective that was never told of one; a weight that is something changes the update."""
    states = []
    for name, kl in (("none", {}), ("nothing", {"kl": 0.0}), ("some", {"kl": 3.0})):
        ground = held(tmp_path / name, kl.get("kl", 0.0)) if name == "some" else plain(tmp_path / name, **kl)
        moves = [step(ground.batches(), [1e-3, 1e-3], engine=ground.engine, objective=ground.objective) for _ in "ab"]
        states.append((moves, {key: value.clone() for key, value in ground.model.state_dict().items()}))
    (none, first), (nothing, second), (some, third) = states
    assert none == nothing and all(torch.equal(first[key], second[key]) for key in first)
    assert some != none and not all(torch.equal(first[key], third[key]) for key in first)


def plain(folder: Path, **options: Any) -> Ground:
    ground = Ground(folder, tiny.model("llama"), count=COUNT, weights=WEIGHTS, micro=12, **options)
    moved(ground.model)
    return ground


def test_an_update_without_compared_texts_is_one_of_its_loss_alone(tmp_path: Path) -> None:
    ground, other = held(tmp_path / "held", 3.0), plain(tmp_path / "plain")
    some = [0, 2, 3]
    found, wanted = (
        step(made.batches(some), [1e-3, 1e-3], engine=made.engine, objective=made.objective) for made in (ground, other)
    )
    assert found == wanted


def test_it_is_held_where_it_was(tmp_path: Path) -> None:
    """Updates by the penalty bring the model back; without it they lead away."""
    far = []
    for kl in (0.0, 100.0):
        ground = held(tmp_path / str(kl), kl)
        refer = ground.refer or made(Ground(tmp_path / "base", tiny.model("llama"), count=COUNT), tmp_path, REPLAY)
        for _ in range(5):
            step(ground.batches(), [3e-3, 3e-3], engine=ground.engine, objective=ground.objective)
        split = {"x": {"all": lambda g=ground, r=refer: once(g.store, g.budget, members=REPLAY, refer=r)}}
        far.append(measure(split, ground.engine, ground.objective, step=5).scores["x.kl"])
    assert far[1] < 0.7 * far[0]
