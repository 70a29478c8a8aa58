"""Attention in blocks of rows: the numbers of torch's own kernel, and whose attention it leaves alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fulltune.base.memory import ATTENDED
from fulltune.model import attention
from fulltune.model.attention import attend_in_blocks, causal
from fulltune.model.facts import blocks, checkpoint_blocks
from tests import tiny
from tests.contract.ground import Ground
from tests.unit.model.test_kept import Counted

KERNEL = "_scaled_dot_product_flash_attention_for_cpu"


@pytest.mark.parametrize(
    ("heads", "groups", "size", "length"),
    [(6, 2, 64, 100), (3, 3, 16, 70), (8, 1, 8, 33), (4, 2, 8, 2), (2, 1, 8, 300), (4, 4, 8, 64)],
)
def test_attention_and_its_gradients_are_as_exact_as_the_kernels(
    heads: int, groups: int, size: int, length: int
) -> None:
    torch.manual_seed(length)
    given = [torch.randn(2, length, many, size).transpose(1, 2).requires_grad_() for many in (heads, groups, groups)]
    slope = torch.randn(2, length, heads, size)

    def found(act: Any, *tensors: Tensor) -> list[Tensor]:
        seen = act(*tensors)
        return [seen.detach(), *torch.autograd.grad(seen, given, slope.to(seen.dtype))]

    def kernel(*tensors: Tensor) -> Tensor:
        return scaled_dot_product_attention(*tensors, is_causal=True, enable_gqa=True, scale=0.3).transpose(1, 2)

    exact = found(kernel, *(tensor.double() for tensor in given))
    ours, theirs = found(lambda *tensors: causal(*tensors, 0.3), *given), found(kernel, *given)
    for true, here, there in zip(exact, ours, theirs, strict=True):
        largest = float(true.abs().max())
        assert float((here - true).abs().max()) < 2e-6 * largest
        assert float((here - there).abs().max()) < 5e-6 * largest
    default = causal(*given, None)
    assert torch.equal(default, causal(*given, size**-0.5)), "the scale that is meant where none is said"


@pytest.mark.parametrize("spread", [1, 4], ids=["flat", "peaky"])
@pytest.mark.parametrize("mixed", [False, True], ids=["all in it", "by autocast"])
def test_in_bfloat16_it_is_nearer_to_the_exact_numbers_than_the_kernel_is(spread: int, mixed: bool) -> None:
    """Scores and softmax are float32; under autocast queries and keys come so too, after their rotation."""
    torch.manual_seed(0)
    drawn = [torch.randn(2, many, 150, 16).bfloat16() for many in (6, 2, 2)]
    drawn[:2] = [tensor * spread for tensor in drawn[:2]]
    given = [tensor.float() if mixed and at < 2 else tensor for at, tensor in enumerate(drawn)]
    slope = torch.randn(2, 150, 6, 16).bfloat16()

    def found(act: Any, tensors: list[Tensor]) -> list[Tensor]:
        asked = [tensor.detach().clone().requires_grad_() for tensor in tensors]
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed and act is not exact):
            seen = act(*asked)
        slopes = torch.autograd.grad(seen, asked, slope.to(seen.dtype))
        assert [each.dtype for each in slopes] == [tensor.dtype for tensor in tensors]
        return [seen.detach(), *slopes]

    def exact(*tensors: Tensor) -> Tensor:
        repeated = [tensor.repeat_interleave(6 // tensor.shape[1], 1) for tensor in tensors]
        return scaled_dot_product_attention(*repeated, is_causal=True).transpose(1, 2)

    true = found(exact, [tensor.double() for tensor in drawn])
    ours = found(lambda *tensors: causal(*tensors, None), given)
    theirs = found(lambda *tensors: exact(*tensors), given)
    assert ours[0].dtype == theirs[0].dtype == torch.bfloat16
    for right, here, there in zip(true, ours, theirs, strict=True):
        assert float((here - right).norm()) <= 1.1 * float((there - right).norm()) < 0.02 * float(right.norm())


def documents(*lengths: int) -> Tensor:
    """The mask [1, 1, tokens, tokens] of examples in one row: a token sees those of its own up to itself."""
    number = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return (number[:, None] == number).tril()[None, None]


def attended(
    mask: Tensor | None, *, heads: int = 6, groups: int = 2, length: int = 150, given: slice | None = None
) -> list[Tensor]:
    """Attention of a llama's layer through the table of transformers, and its gradients; the last says whose it was.

    `given`: only these of 150 tokens.
    """
    model = tiny.model("llama")
    attend_in_blocks(model)
    torch.manual_seed(0)
    whole = [torch.randn(1, many, max(length, 150), 16) for many in (heads, groups, groups)]
    part = given or slice(length)
    tokens = [tensor[:, :, part].clone().requires_grad_() for tensor in whole]
    layer = model.model.layers[0].self_attn
    layer.num_key_value_groups = heads // groups
    found = ALL_ATTENTION_FUNCTIONS["sdpa"](layer, *tokens, mask, scaling=0.25)[0]
    slope = torch.randn(1, max(length, 150), heads, 16, generator=torch.Generator().manual_seed(1))[:, part]
    ours = torch.tensor(float(found.grad_fn.name() == "_CausalBackward"))
    return [found.detach(), *torch.autograd.grad(found, tokens, slope), ours]


def test_packed_examples_are_attended_as_if_alone() -> None:
    lengths = (40, 1, 70, 39)  # in bands of 70, 40 and 39, and 1
    *found, ours = attended(documents(*lengths))
    assert ours
    start = 0
    for length in lengths:
        here = slice(start, start := start + length)
        alone = [one[:, here] if one.shape[1] == 150 else one[:, :, here] for one in found]
        *expected, _ = attended(None, length=length, given=here)
        for ours, theirs in zip(alone, expected, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    masked = documents(*lengths).float().log()  # not what it takes over
    *expected, others = attended(masked)
    assert not others
    for here, there in zip(found, expected, strict=True):
        assert torch.allclose(here, there, rtol=1e-5, atol=1e-5)


def test_examples_beside_each_other_are_about_as_long() -> None:
    """Behind a shorter one lie zeros, which take memory; a mask says what its examples are, once for all blocks."""
    lengths = (9, 100, 51, 1, 50, 49, 2)
    examples = attention._packed(documents(*lengths)[0, 0])
    assert [(one.start, one.length) for one in examples] == [
        (sum(lengths[:place]), length) for place, length in enumerate(lengths)
    ]
    laid = attention._laid(examples, 262, 2, 3)
    assert [[one.length for one in band.examples] for band in laid.bands] == [[100, 51, 50], [49], [9], [2, 1]]
    first = laid.bands[0]
    assert [(block.start, block.stop, block.count) for block in first.blocks] == [
        (0, 32, 3), (32, 64, 3), (64, 96, 1), (96, 100, 1),
    ]  # fmt: skip


def test_a_mask_is_read_once_for_all_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    read, packed = [], attention._packed
    monkeypatch.setattr(attention, "_packed", lambda seen: read.append(len(seen)) or packed(seen))
    model = tiny.model("llama")
    attend_in_blocks(model)
    ids, positions = torch.arange(1, 25)[None], torch.cat([torch.arange(10), torch.arange(14)])[None]
    for _ in range(2):
        model.train()(input_ids=ids, position_ids=positions, use_cache=False)
    assert read == [24, 24]


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(1, 1, 150, 150, dtype=torch.bool),  # sees what comes after it
        documents(150) & ~torch.eye(150, dtype=torch.bool),  # does not see itself, the first sees nothing
        documents(150).expand(1, 6, -1, -1),  # one for each head
        documents(150).triu(-20),  # a window
        documents(70, 80) | documents(150).triu(-5),  # the second sees the end of the first
    ],
)
def test_other_masks_are_left_to_transformers(mask: Tensor) -> None:
    assert not attended(mask)[-1]


def test_long_examples_are_left_to_transformers_and_long_rows_are_not() -> None:
    """Weights of attention grow as the square of what a token sees."""
    most = ATTENDED
    few: dict[str, Any] = {"heads": 1, "groups": 1}
    assert attended(None, length=most, **few)[-1]
    assert not attended(None, length=most + 1, **few)[-1]
    assert attended(documents(most // 2, most // 2, most // 2), length=3 * most // 2, **few)[-1]


def made_here(model: Any, *, rows: int = 2, length: int = 24, **inputs: Any) -> int:
    """In how many layers a forward pass attends in blocks."""
    ids = torch.randint(300, (rows, length), generator=torch.Generator().manual_seed(0))
    left = [model.train()(input_ids=ids, use_cache=False, **inputs).logits.grad_fn]
    seen = set()
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [before for before, _ in node.next_functions]
    return sum(node.name() == "_CausalBackward" for node in seen)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "granite", "mixtral"])
def test_training_attends_in_blocks_and_nothing_else_does(kind: str) -> None:
    model = tiny.model(kind)
    assert made_here(model) == 0, "it was not asked"
    attend_in_blocks(model)
    assert made_here(model) == 2
    with torch.autocast("cpu", torch.bfloat16):
        assert made_here(model) == 2
    with torch.autocast("cpu", torch.float16):
        assert made_here(model) == 0, "another number format"
    if kind != "gpt2":  # which does not tell packed examples apart
        positions = torch.cat([torch.arange(12), torch.arange(12)]).expand(2, -1)
        assert made_here(model, position_ids=positions) == 0, "a mask for several rows"
    with torch.no_grad(), Counted() as seen:
        model(input_ids=torch.zeros(2, 24, dtype=torch.long), use_cache=False)
    assert seen.counts[KERNEL] == 2, "nothing is trained"
    assert made_here(tiny.model(kind)) == 0, "another model"


def test_what_is_not_plainly_causal_is_left_to_transformers() -> None:
    changes: list[tuple[str, dict[str, Any]]] = [
        ("llama", {"attention_dropout": 0.1}),
        ("gemma3", {}),  # a window
        ("gemma2", {}),  # a soft cap
    ]
    for kind, change in changes:
        model = tiny.model(kind, **change)
        attend_in_blocks(model)
        assert made_here(model) == 0, kind
    model = tiny.model("llama")
    attend_in_blocks(model)
    for module in model.modules():
        if "is_causal" in vars(module):
            module.is_causal = False
    assert made_here(model) == 0, "tokens see what comes after them"


def test_what_is_not_known_is_left_to_transformers() -> None:
    """Of what models tell their attention some has no meaning for it, and some may come to have one."""
    model = tiny.model("llama")
    layer = model.model.layers[0].self_attn
    query, key = (torch.randn(1, heads, 8, 8, requires_grad=True) for heads in (4, 2))
    attend_in_blocks(model)
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def here(**said: Any) -> bool:
        return str(attend(layer, query, key, key, None, **said)[0].grad_fn.name()) == "_CausalBackward"

    assert here(scaling=0.3, sliding_window=None, use_cache=False, output_attentions=False)
    assert not here(sliding_window=8)
    assert not here(is_causal=False)
    assert not here(invented=1.0)


def gradients(
    folder: Path, *, blocks: bool, way: str = "none", precision: str = "float32"
) -> tuple[float, dict[str, Tensor]]:
    """Of an update of three micro-batches, and its loss."""
    model = tiny.model("qwen3")
    if way != "none":
        checkpoint_blocks(model, keep_products=way == "selective")
    if blocks:
        attend_in_blocks(model)
    ground = Ground(folder, model, count=12, precision=precision)
    loss = 0.0
    batches = ground.batches()
    for batch in batches:
        with ground.engine.micro(last=batch is batches[-1]):
            share = ground.engine.forward(batch)["next_token"]
            ground.engine.backward(share)
            loss += float(share.detach())
    return loss, {name: weight.grad for name, weight in model.named_parameters()}


@pytest.mark.parametrize(("precision", "near"), [("float32", 1e-6), ("bf16-mixed", 1e-2)])
def test_an_update_learns_the_same_and_blocks_that_are_made_again_give_the_same_bits(
    tmp_path: Path, precision: str, near: float
) -> None:
    loss, plain = gradients(tmp_path / "sdpa", blocks=False, precision=precision)
    ours, found = gradients(tmp_path / "none", blocks=True, precision=precision)
    assert ours == pytest.approx(loss, rel=near)
    for name, gradient in plain.items():
        assert float((found[name] - gradient).norm()) <= 10 * near * float(gradient.norm()), name
    for way in ("full", "selective"):
        again, made = gradients(tmp_path / way, blocks=True, way=way, precision=precision)
        assert again == ours
        assert all(torch.equal(made[name], gradient) for name, gradient in found.items()), way


def test_compiled_blocks_go_on_to_transformers_and_each_has_its_own_weights() -> None:
    """What the compiler reads of a module that a set of modules led it to were the weights of the first block."""
    model = tiny.model("llama").eval()
    layers = blocks(model)
    assert len(layers) > 1, "or the test could not fail"
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        before = model(input_ids=ids, use_cache=False).logits
    attend_in_blocks(model)
    torch.compiler.reset()
    for block in layers:
        block.forward = torch.compile(block.forward, dynamic=True, backend="eager")
    with torch.no_grad():
        found = model(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(found, before, rtol=0, atol=1e-6)
