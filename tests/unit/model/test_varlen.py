"""Attention of varying lengths: what torch's kernel is asked for, by a kernel of ours that says what it must answer."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.attention.varlen as torchs
from torch import Tensor

from fulltune.base.errors import MachineError, RecipeError
from fulltune.model import probe, varlen
from fulltune.model.facts import blocks, checkpoint_blocks
from fulltune.model.kept import _policy
from fulltune.model.load import load_model, outline_model
from fulltune.recipe.schema import ModelSection
from tests import tiny
from tests.contract.ground import Ground

KINDS = ["llama", "qwen2", "qwen3", "granite", "olmo2"]


def weights(query: Tensor, key: Tensor, scale: float | None) -> Tensor:
    """Of one example, [heads, tokens, tokens]."""
    scores = torch.einsum("qhd,khd->hqk", query, key.repeat_interleave(query.shape[1] // key.shape[1], 1))
    scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    return (scores + torch.full(scores.shape[1:], -torch.inf).triu(1)).softmax(-1)


def attended(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, scale: float | None) -> Tensor:
    found = []
    for start, stop in bounds.unfold(0, 2, 1).tolist():
        part = slice(start, stop)
        values = value[part].repeat_interleave(query.shape[1] // value.shape[1], 1)
        found.append(torch.einsum("hqk,khd->qhd", weights(query[part], key[part], scale), values))
    return torch.cat(found)


@pytest.fixture(scope="module", autouse=True)
def _kernel() -> Iterator[None]:
    """What GPUs have, for the host: the operators stay torch's own, and with them who saves what for whom."""

    @torchs._varlen_attn.register_kernel("cpu")
    def forward(
        query: Tensor, key: Tensor, value: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int,
        is_causal: bool = False, scale: float | None = None, window: Any = None, gqa: bool = False, *_: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        assert is_causal
        assert window == [-1, 0]
        assert gqa == (query.shape[1] != key.shape[1])
        assert cu_q.dtype == torch.int32
        assert max_q == max_k == int(cu_q.diff().max())
        assert int(cu_q[-1]) == len(query)
        assert torch.equal(cu_q, cu_k)
        sums = query.new_zeros(query.shape[1], len(query), dtype=torch.float32)
        assert query.dtype == key.dtype == value.dtype
        assert all(tensor.stride(-1) == 1 for tensor in (query, key, value)), "as the kernel of GPUs asks"
        assert cu_q.is_contiguous()
        with torch.autocast("cpu", enabled=False):
            found = attended(query.float(), key.float(), value.float(), cu_q, scale).to(query.dtype)
        return found, sums, torch.zeros(2, dtype=torch.uint64)

    @torchs._varlen_attn_backward.register_kernel("cpu")
    def backward(
        slope: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, cu_q: Tensor, cu_k: Tensor,
        max_q: int, max_k: int, is_causal: bool, rng: Tensor, scale: float | None = None, window: Any = None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        formats = [tensor.dtype for tensor in (query, key, value)]
        query, key, value, slope = (tensor.float() for tensor in (query, key, value, slope))
        each, made = query.shape[1] // key.shape[1], [torch.empty_like(tensor) for tensor in (query, key, value)]
        for start, stop in cu_q.unfold(0, 2, 1).tolist():
            part = slice(start, stop)
            seen = weights(query[part], key[part], scale)
            keys, values = (tensor[part].repeat_interleave(each, 1) for tensor in (key, value))
            of_seen = torch.einsum("qhd,khd->hqk", slope[part], values)
            scores = seen * (of_seen - (of_seen * seen).sum(-1, keepdim=True))
            scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
            made[0][part] = torch.einsum("hqk,khd->qhd", scores, keys)
            for target, heads in (
                (made[1], torch.einsum("hqk,qhd->khd", scores, query[part])),
                (made[2], torch.einsum("hqk,qhd->khd", seen, slope[part])),
            ):
                target[part] = heads.unflatten(1, (-1, each)).sum(2)
        of_query, of_key, of_value = (tensor.to(number) for tensor, number in zip(made, formats, strict=True))
        return of_query, of_key, of_value

    varlen.offer()
    yield


def plain(kind: str) -> Any:
    return tiny.model(kind) if kind in tiny.KINDS else tiny.model("llama", model_type=kind)


def model(kind: str = "llama") -> Any:
    """With this attention."""
    made = plain(kind)
    made.set_attn_implementation(varlen.VARLEN)
    assert varlen.attends_so(made)
    return made


def passes(folder: Path, made: Any, layout: str = "packed", **engine: Any) -> tuple[float, dict[str, Tensor]]:
    ground = Ground(folder, made.train(), count=9, micro=4, layout=layout, **engine)
    return ground.backward(), {name: weight.grad for name, weight in made.named_parameters()}


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_other_attention(tmp_path: Path, kind: str, layout: str) -> None:
    loss, expected = passes(tmp_path / "sdpa", plain(kind), layout)
    ours, found = passes(tmp_path / "varlen", model(kind), layout)
    assert ours == pytest.approx(loss, rel=1e-6)
    for name, gradient in expected.items():
        assert float((found[name] - gradient).norm()) <= 1e-5 * float(gradient.norm()), name


def test_whoever_is_told_where_examples_lie_asks_no_device_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, _ = passes(tmp_path / "told", model())
    ground = Ground(tmp_path / "untold", model().train(), count=9, micro=4, layout="packed")
    ground.objective._told = False
    asked, found = [], varlen._found
    monkeypatch.setattr(varlen, "_found", lambda *given: asked.append(1) or found(*given))
    assert ground.backward() == loss
    assert len(asked) == 2 * len(ground.batches()), "once in each layer"
    asked.clear()
    passes(tmp_path / "again", model())
    assert not asked


def test_where_nobody_tells_positions_do_and_are_read_once_for_all_layers() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1, 0, 1, 2, 3]])
    bounds, longest = varlen._found(positions, 1, 9, torch.device("cpu"))
    assert bounds.tolist() == [0, 3, 5, 9]
    assert bounds.dtype == torch.int32
    assert longest == 4
    assert varlen._found(positions, 1, 9, torch.device("cpu"))[0] is bounds
    rows = varlen._found(torch.arange(4)[None], 3, 4, torch.device("cpu"))
    assert (rows[0].tolist(), rows[1]) == ([0, 4, 8, 12], 4)
    behind = varlen._found(torch.arange(3, 7)[None], 2, 4, torch.device("cpu"))  # positions that begin elsewhere
    assert behind[0].tolist() == [0, 4, 8]
    assert varlen._found(None, 2, 5, torch.device("cpu"))[0].tolist() == [0, 5, 10]


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_model_is_found_to_isolate_what_is_packed(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    made = model(kind)
    monkeypatch.setattr(probe, "arithmetic", lambda *_: nullcontext())  # it is asked in 16 bits, which is a GPU's
    assert probe.ask(made, packed=True) == probe.Answers(cut=True, isolates=True)
    monkeypatch.setattr(varlen, "_found", lambda _, rows, length, device: (
        torch.arange(0, rows * length + 1, length, dtype=torch.int32), length
    ))  # fmt: skip
    assert not probe.ask(made, packed=True).isolates, "or the question could not fail"


def test_answers_are_the_same_alone_and_beside_others() -> None:
    for ids, mask in (
        (torch.arange(5, 14)[None], torch.ones(1, 9, dtype=torch.long)),
        (torch.stack([torch.arange(5, 14), torch.arange(20, 29)]), torch.tensor([[0] * 4 + [1] * 5, [1] * 9])),
    ):
        said = [
            made.eval().generate(input_ids=ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
            for made in (tiny.model("llama"), model())
        ]
        assert torch.equal(*said)


def test_what_it_cannot_compute_stops() -> None:
    made = model()
    layer = made.model.layers[0].self_attn
    query, key = (torch.randn(1, heads, 8, 8) for heads in (4, 2))
    attend = varlen._attend
    attend(layer, query, key, key, None, scaling=0.3, sliding_window=None)
    for more in ({"sliding_window": 4}, {"dropout": 0.1}, {"softcap": 30.0}, {"is_causal": False}):
        with pytest.raises(AssertionError, match="more of its attention"):
            attend(layer, query, key, key, None, **more)


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("llama", {}, None),
        ("gemma2", {}, "not known"),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, "not known"),
        ("llama", {"attention_dropout": 0.1}, "not known"),
        ("llama", {"head_dim": 12}, "these have 12"),
        ("qwen3", {"head_dim": 264}, "these have 264"),
    ],
)
def test_models_that_want_more_or_have_other_heads_are_refused(
    kind: str, changes: dict[str, Any], said: str | None
) -> None:
    made = tiny.model(kind, **changes)
    if said is None:
        varlen.require_known(made)
        return
    with pytest.raises(RecipeError, match=said):
        varlen.require_known(made)


def test_a_folder_is_loaded_with_it_where_there_is_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = ModelSection(path=str(tiny.folder(tmp_path / "llama")), attention="varlen")
    assert not varlen.attends_so(load_model(section)), "a result is measured on the host too"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert varlen.attends_so(load_model(section))
    assert varlen.attends_so(outline_model(section))
    other = ModelSection(path=str(tiny.folder(tmp_path / "gemma2", "gemma2")), attention="varlen")
    for load in (load_model, outline_model):
        with pytest.raises(RecipeError, match="not known"):
            load(other)


def test_a_torch_without_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchs, "varlen_attn", lambda query, key, value, is_causal: None)  # as first versions were
    with pytest.raises(MachineError, match="no attention of varying lengths"):
        varlen.offer()


def test_blocks_that_are_made_again_keep_it_and_give_the_same_bits(tmp_path: Path) -> None:
    assert "MUST_SAVE" in str(_policy(None, torch.ops.torch_attn._varlen_attn.default, dropout_p=0.1))
    loss, found = passes(tmp_path / "none", model())
    for way in ("full", "selective"):
        made = model()
        checkpoint_blocks(made, keep_products=way == "selective")
        ours, again = passes(tmp_path / way, made)
        assert ours == loss
        assert all(torch.equal(again[name], gradient) for name, gradient in found.items()), way


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo asks every tensor
def test_compiled_blocks_are_one_graph_each(tmp_path: Path) -> None:
    loss, found = passes(tmp_path / "eager", model())
    made = model()
    torch.compiler.reset()
    for block in blocks(made):
        block.forward = torch.compile(block.forward, dynamic=True, backend="aot_eager", fullgraph=True)
    ours, again = passes(tmp_path / "compiled", made)
    assert ours == pytest.approx(loss, rel=1e-6)
    assert all(torch.allclose(again[name], gradient, atol=1e-6) for name, gradient in found.items())


def test_norms_of_queries_and_keys_that_are_float32_are_brought_into_16_bits(tmp_path: Path) -> None:
    loss, _ = passes(tmp_path / "sdpa", tiny.model("qwen3"), precision="bf16-mixed")
    ours, _ = passes(tmp_path / "varlen", model("qwen3"), precision="bf16-mixed")
    assert ours == pytest.approx(loss, rel=1e-2)
