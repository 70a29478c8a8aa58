"""The formulas, by cases that were computed by hand, and by peaks that others have published."""

from dataclasses import replace
from typing import Any

import pytest

from fulltune.base.memory import AWAY_AT_ONCE, CHUNK_BYTES, GIB, MOVED_AT_ONCE, Forecast, Part, Shape, between
from fulltune.base.records import ModelFacts, Precision
from fulltune.planning.memory import forecast
from fulltune.planning.precision import precision_plan
from fulltune.planning.way import Pass, Way
from fulltune.recipe.schema import OptimSection
from tests.unit.planning.test_make import model

LOAD = Pass(rows=2, width=16, taught=20, several=False)
MIB = 2**20


def way(precision: Precision = "float32", *, several: bool = False, moments: Any = "float32", **given: Any) -> Way:
    values: dict[str, Any] = {"engine": "single", "processes": 1, "kind": "cpu", **given}
    return Way(dtypes=precision_plan(precision, OptimSection(moments=moments), several=several), **values)


def parts(asked: Way, load: Pass = LOAD, of: ModelFacts | None = None) -> dict[str, tuple[int, int]]:
    return {part.name: (part.low, part.high) for part in forecast(asked, of or model(), load).parts}


def test_one_process_in_float32() -> None:
    """1,000 parameters; 32 tokens through two blocks of 60 inner, 16 widest, 8 hidden numbers; 20 * 100 logits."""
    block = 4 * (60 + 16) + 24 * 8
    activations, spared = 32 * 2 * block, 32 * 2 * (4 * 60 + 16 * 8)
    found = parts(way())
    assert found["weights"] == (4000, 4000)
    assert found["moments"] == (8000, 8000)
    assert found["activations"] == (int(0.85 * spared), activations), "blocks may keep less"
    assert parts(way(compiled=True))["activations"] == (int(0.85 * activations), activations)
    assert found["logits"] == (4 * 2000, 3 * 4 * 2000)
    assert found["gradients"] == (0, 4000), "they come where activations have gone"
    scattered = 0.5 * (activations + 24_000)
    rest = 4 * 100 + 0.35 * 4000 + 0.05 * (16_000 + activations + 24_000) + 150 * MIB
    assert found["overhead"] == (0, pytest.approx(scattered + rest, abs=1))
    made = forecast(way(), model(), LOAD)
    assert (made.low, made.high) == tuple(map(sum, zip(*found.values(), strict=True)))


def test_gradients_count_where_activations_leave_no_room_for_them() -> None:
    few = Pass(rows=1, width=1, taught=1, several=False)
    passes = sum(parts(way(), few)[name][0] for name in ("activations", "logits"))
    assert parts(way(), few)["gradients"] == (4000 - passes, 4000)
    assert parts(way(), replace(LOAD, several=True))["gradients"] == (4000, 4000), "those of other micro-batches"
    assert parts(way(engine="ddp", processes=2))["gradients"] == (4000, 4000), "its buckets"
    several = replace(LOAD, several=True)
    assert parts(way("bf16-mixed"), several)["gradients"] == (2000, 4000), "in 16 bits until others come"
    assert parts(way("bf16-mixed", compiled=True), several)["gradients"] == (4000, 4000)


def test_a_block_that_is_computed_again_leaves_its_input() -> None:
    block = 4 * (60 + 16) + 24 * 8
    found = parts(way(checkpointing="full", compiled=True))
    kept = 32 * 4 * 8 * 2
    assert found["activations"] == (kept + int(0.85 * 32 * block), kept + 32 * block)
    assert parts(way("bf16-sr", checkpointing="full"))["activations"][0] >= 32 * 2 * 8 * 2, "hidden states of 2 bytes"


def test_a_block_that_is_computed_again_but_for_products_leaves_their_results_besides() -> None:
    """Of one of two blocks: 60 inner numbers, 16 of them made again, and two hidden states of 8."""
    full, found = (parts(way(checkpointing=how))["activations"] for how in ("full", "selective"))
    assert found[0] == full[0] + int(32 * 0.85 * 4 * (60 - 16 + 2 * 8))
    assert found[1] == full[1] + 32 * 4 * (60 + 2 * 8)
    assert found[1] < parts(way())["activations"][1]
    mixed = (parts(way("bf16-mixed", checkpointing=how)) for how in ("full", "selective"))
    assert len({found["weights in 16 bits"] for found in mixed}) == 1, "of one block"


def test_what_waits_on_the_host_is_not_on_the_device() -> None:
    block = 4 * (60 + 16) + 4 * 4 * 8, 4 * (60 + 16) + 24 * 8  # norms in one kernel each, or one operation at a time
    for how, there, more in (
        ("none", parts(way(kind="cuda"))["activations"], (0, 0)),
        ("full", (32 * 4 * 8 * 2,) * 2, (0, 0)),
        ("selective", (32 * 4 * 8 * 2,) * 2, (int(32 * 0.85 * 4 * 60), 32 * 4 * 76)),
    ):
        made = forecast(way(kind="cuda", checkpointing=how, waits=True), model(), LOAD)
        assert made.host == (Part("activations", *there),)
        here = {part.name: (part.low, part.high) for part in made.parts}["activations"]
        inputs = 32 * 4 * 8
        assert here == (inputs + int(32 * 0.85 * block[0]) + more[0], 2 * (inputs + 32 * block[1]) + more[1])
    mixed = forecast(way("bf16-mixed", kind="cuda", waits=True), model(), LOAD)
    assert {part.name: part.high for part in mixed.host}["weights in 16 bits"] == 2 * 1000
    assert {part.name: part.low for part in mixed.parts}["weights in 16 bits"] == 2 * 400


def test_a_kernel_that_reads_no_mask_holds_none() -> None:
    packed = {"kind": "cuda", "layout": "packed"}
    low, high = parts(way("bf16-mixed", **packed, masks=False))["activations"]
    assert (low, high) == parts(way("bf16-mixed", kind="cuda"))["activations"]
    masked = parts(way("bf16-mixed", **packed))["activations"]
    assert masked[0] > low
    assert masked[1] > high


def test_moments_that_wait_on_the_host_come_in_portions() -> None:
    made = forecast(way(kind="cuda", moments_wait=True), model(), LOAD)
    assert made.host == (Part("moments", 8000, 8000),)
    assert parts(way(kind="cuda", moments_wait=True))["moments"] == (0, 8000), "all of so small a model are one portion"
    large = replace(model(), parameters=10**9)
    assert parts(way(kind="cuda", moments_wait=True), of=large)["moments"] == (0, 3 * 8 * (AWAY_AT_ONCE + 100))
    rounded = way("bf16-sr", kind="cuda", moments_wait=True)
    assert parts(rounded, of=large)["moments"] == (0, 3 * 8 * 100), "of three weight tensors"
    assert parts(way(moments_wait=True))["moments"] == (8000, 8000), "on a CPU there is nowhere else"


def test_computing_in_16_bits_holds_weights_twice() -> None:
    found = parts(way("bf16-mixed", compiled=True))
    assert found["weights in 16 bits"] == (2 * 800, 2 * 1000), "of all blocks, and of what lies outside"
    assert parts(way("bf16-mixed"))["weights in 16 bits"] == (0, 2 * 1000), "or they are made again"
    gated = replace(model(), shape=replace(model().shape, mlps=2 * 36))
    spared = 32 * 2 * (2 * (60 - 12) + (8 + 4) * 8)
    assert parts(way("bf16-mixed"), of=gated)["activations"][0] == int(0.85 * spared)
    block = 2 * (60 + 16) + (16 + 10) * 8
    assert found["activations"][1] == 32 * 2 * block
    assert found["logits"] == (6 * 2000, 8 * 2000 + 2 * 100), "of few tokens all are float32 besides"
    many = parts(way("bf16-mixed"), replace(LOAD, rows=100, width=100, taught=10**4))["logits"]
    assert many[0] == 2 * 10**4 * 100 + 4 * 256 * 100, "of many 256"
    half = parts(way("fp16-mixed"))["logits"]
    assert half == (4 * 2000, (3 * 4 + 2 * 2) * 2000)
    assert parts(way("bf16-mixed", checkpointing="full", compiled=True))["weights in 16 bits"] == (2 * 400, 2 * 600)
    assert parts(way("float32")).keys() == parts(way("bf16-sr")).keys() == found.keys() - {"weights in 16 bits"}


def test_bf16_sr_holds_two_bytes_and_moves_one_tensor_in_float32() -> None:
    found = parts(way("bf16-sr", moments="bfloat16"), replace(LOAD, rows=1, width=1, taught=1))
    assert (found["weights"], found["moments"]) == ((2000, 2000), (4000, 4000))
    assert found["activations"][1] == 2 * (2 * (60 + 16) + 16 * 8)
    assert found["overhead"][1] > 30 * 100 + 150 * MIB - 2000
    coded = parts(way("bf16-sr", moments="int8"), replace(LOAD, rows=1, width=1, taught=1))
    assert coded["moments"] == (2031, 2031), "two codes and their part of two scales, of 1,000 weights"
    assert coded["overhead"][1] == pytest.approx(found["overhead"][1] + 28 * 100 - 0.05 * 1969, abs=1)
    assert parts(way("bf16-sr", several=True), replace(LOAD, several=True))["gradients"] == (4000, 4000)


def test_a_large_tensor_is_moved_in_parts_where_each_number_is_moved_by_itself() -> None:
    """30 bytes for each that is moved at once: less than a head of 100 million numbers takes in the backward pass."""
    few, of = replace(LOAD, rows=1, width=1, taught=1), replace(model(), shape=replace(model().shape, tensor=10**8))
    ema = OptimSection(pulls=({"use": "ema", "options": {"decay": 0.9}},))  # type: ignore[arg-type]

    def overhead(section: OptimSection, kind: str) -> int:
        asked = replace(way("bf16-sr", kind=kind), dtypes=precision_plan("bf16-sr", section, several=False))
        return parts(asked, few, of)["overhead"][1]

    for kind, numbers in MOVED_AT_ONCE.items():
        saved = 30 * 10**8 - max(4 * 10**8, 30 * numbers)
        for section in (OptimSection(name="adafactor"), ema):
            apart = overhead(section, kind) - overhead(OptimSection(), kind)
            assert apart == pytest.approx(saved, rel=1e-2), (kind, section.name)


def test_fsdp2_divides_the_state_and_gathers_a_block() -> None:
    found = parts(way(engine="fsdp2", processes=4, kind="cuda"))
    assert (found["weights"], found["moments"]) == ((1000, 1000), (2000, 2000))
    assert found["gathered weights"] == (4 * 600, (2 * 4 + 4) * 1000), "400 of a block, 200 outside; a second block"
    kept = parts(way(engine="fsdp2", processes=4, kind="cuda", reshard=False))
    assert kept["gathered weights"][0] == 4 * 1000
    assert kept["gradients"][1] == found["gradients"][1] == 1000
    waiting = parts(way(engine="fsdp2", processes=4, kind="cuda", reshard=False), replace(LOAD, several=True))
    assert waiting["gradients"] == (4000, 4000), "whole, for the last micro-batch"
    half = parts(way("bf16-mixed", engine="fsdp2", processes=4, kind="cuda"))
    assert half["gathered weights"] == (2 * 600, (2 * 2 + 4) * 1000)
    assert "weights in 16 bits" not in half
    grid = parts(way(engine="fsdp2", processes=4, replicas=2, kind="cuda"))
    assert grid["weights"] == (2000, 2000), "two groups of two"
    assert "gathered weights" not in parts(way(engine="fsdp2", processes=1))


def test_gloo_takes_more() -> None:
    found = parts(way(engine="fsdp2", processes=2))
    assert found["gathered weights"] == (4 * (3 * 200 + 6 * 400), 8 * (4 * 200 + 5 * 400) + 12 * 4 * 600)


def test_what_is_offloaded_stands_on_the_host() -> None:
    made = forecast(way(engine="fsdp2", processes=4, kind="cuda", offload=True), model(), LOAD)
    assert made.host == (Part("weights", 1000, 1000), Part("gradients", 1000, 1000), Part("moments", 2000, 2000))
    assert {part.name for part in made.parts} == {"gathered weights", "activations", "logits", "overhead"}
    assert forecast(way(engine="fsdp2", processes=4, offload=True), model(), LOAD).host == (), "of a CPU there is one"


def test_logits_are_held_in_pieces_unless_the_head_is_unusual() -> None:
    many = replace(LOAD, rows=1000, width=1000, taught=10**6)
    low = parts(way(), many)["logits"][0]
    assert low == pytest.approx(CHUNK_BYTES, rel=0.01)
    whole = replace(model(), shape=replace(model().shape, cut=False))
    assert parts(way(), many, whole)["logits"][0] == 2 * 4 * 10**8


def test_attention_that_writes_its_weights_out() -> None:
    pairs, plain = 2 * 16 * 16 * 2 * 2, parts(way())["activations"]  # two rows, two heads, two blocks
    low, high = parts(way(eager=True))["activations"]
    assert (low - plain[0], high - plain[1]) == (4 * pairs, 12 * pairs)


def test_attention_in_blocks_may_keep_its_weights_below_the_diagonal() -> None:
    """Two rows of 16 tokens, two heads, two blocks, on a CPU; a row's last block counts to its end."""
    for load, width in ((LOAD, 16), (Pass(rows=1, width=4096, taught=20, several=False), 1024)):
        for precision, size in (("float32", 4), ("bf16-mixed", 2), ("bf16-sr", 2)):
            here, there = (parts(way(precision, blockwise=asked), load)["activations"] for asked in (True, False))
            assert (here[0], here[1] - there[1]) == (there[0], 2 * load.tokens * 2 * size * (width + 64) // 2)
    for other in (way(blockwise=True, kind="cuda"), way("fp16-mixed", blockwise=True)):
        assert parts(other) == parts(replace(other, blockwise=False)), "kernels hold none"


def test_a_packed_row_has_a_mask_and_keys_for_every_head() -> None:
    row, plain = Pass(rows=1, width=32, taught=20, several=False), parts(way())["activations"]
    low, high = parts(way(layout="packed"), row)["activations"]
    assert low - plain[0] == 32 * 32
    assert high - plain[1] == 32 * 2 * 4 * 8 + 32 * 32 * (5 + 3 * 4)


def test_what_an_unknown_optimizer_keeps_is_left_open() -> None:
    dtypes = precision_plan("float32", OptimSection(name="mine:Own"), several=False)
    assert parts(replace(way(), dtypes=dtypes))["moments"] == (0, 8000)
    dtypes = precision_plan("float32", OptimSection(name="adafactor"), several=False)
    assert parts(replace(way(), dtypes=dtypes))["moments"] == (0, 100), "rows and columns"


def test_ddp_makes_its_buckets_anew_after_the_first_update() -> None:
    ddp, alone = (parts(way(engine=name, processes=2))["overhead"][1] for name in ("ddp", "single"))
    assert ddp - alone == 4 * 1000


@pytest.mark.parametrize(
    ("engine", "weights", "gradients"),
    [
        # 1,000 parameters over 2 processes: weights that compute and float32 ones, both of 4 bytes; gradients as passes
        # make them and, at most, added up besides, a part of them copied, and two buckets of 2^20 numbers of 8 bytes.
        ("zero1", 4000 + 2000, (4000, 8000 + 2000 + 16 * 2**20)),
        ("zero2", 4000 + 2000, (2000, 6000 + 16 * 2**20)),
        ("zero3", 2000 + 2000, (2000, 6000 + 16 * 2**20)),
    ],
)
def test_zero_divides_by_its_stage_and_holds_float32_weights_besides(
    engine: Any, weights: int, gradients: tuple[int, int]
) -> None:
    found = parts(way(engine=engine, processes=2), replace(LOAD, several=True))
    assert found["weights"] == (weights, weights)
    assert found["gradients"] == gradients
    assert found["moments"] == (4000, 4000)
    assert ("gathered weights" in found) == (engine == "zero3")


def test_what_zero_offloads_is_what_the_optimizer_moves() -> None:
    for engine, stays in (("zero1", 4000), ("zero2", 4000), ("zero3", 0)):
        made = forecast(way(kind="cuda", engine=engine, processes=2, offload=True), model(), LOAD)
        device = {part.name: part.low for part in made.parts}
        assert device.get("weights", 0) == stays, engine
        assert {part.name: part.low for part in made.host}["moments"] == 4000, engine


def test_a_gpu_has_a_context_and_processes_that_exchange_more() -> None:
    alone, several = (parts(way(kind="cuda", engine="ddp", processes=n))["overhead"] for n in (1, 2))
    assert alone[0] == several[0] == int(0.3 * GIB)
    assert several[1] - alone[1] == GIB


def llama(hidden: int, layers: int, inner: int, kv: int, vocab: int, *, tied: bool, cut: bool) -> ModelFacts:
    """As large as the real one."""
    block = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * inner + 2 * hidden
    outside = (1 if tied else 2) * vocab * hidden + hidden
    sides = 2 * hidden + 2 * kv + 3 * inner
    heads = hidden // 128
    return ModelFacts(
        architecture="LlamaForCausalLM",
        parameters=layers * block + outside,
        layers=layers,
        hidden=hidden,
        vocab=vocab,
        context=None,
        tied_embeddings=tied,
        dtype="bfloat16",
        shape=Shape(
            block=block,
            outside=outside,
            tensor=vocab * hidden,
            inner=layers * sides,
            inner_block=sides,
            widest=inner,
            heads=heads,
            repeated=2 * (hidden - kv),
            cut=cut,
        ),
    )


LLAMA_3B = llama(3072, 28, 8192, 1024, 128256, tied=True, cut=True)
LLAMA_7B = llama(4096, 32, 11008, 4096, 32000, tied=False, cut=False)
LLAMA_8B = llama(4096, 32, 14336, 1024, 128256, tied=False, cut=False)


def whole(of: ModelFacts) -> ModelFacts:
    """All logits at once."""
    return replace(of, shape=replace(of.shape, cut=False))


@pytest.mark.parametrize(
    ("of", "precision", "rows", "width", "checkpointing", "peak"),
    [
        (whole(LLAMA_3B), "bf16-sr", 2, 4096, "none", 60.0),
        (LLAMA_3B, "bf16-sr", 2, 4096, "none", 42.9),
        (LLAMA_3B, "bf16-sr", 2, 4096, "full", 24.9),
        (LLAMA_7B, "bf16-sr", 1, 2048, "none", 50.69),
        (LLAMA_7B, "float32", 1, 2048, "none", 101.39),
        (LLAMA_8B, "bf16-sr", 1, 8192, "full", 61.79),
    ],
    ids=["3B", "3B, logits in pieces", "3B, checkpointed", "7B", "7B in float32", "8B, checkpointed"],
)
def test_peaks_on_gpus_that_others_measured_or_traced_lie_inside(
    of: ModelFacts, precision: Any, rows: int, width: int, checkpointing: Any, peak: float
) -> None:
    """Of torchtune (its README) and of torch's MemTracker, with weights, gradients and moments of 16 bits; in GiB."""
    moments = "bfloat16" if precision == "bf16-sr" else "float32"
    asked = way(precision, moments=moments, kind="cuda", checkpointing=checkpointing)
    made = forecast(asked, of, Pass(rows=rows, width=width, taught=rows * width, several=False))
    assert made.low <= peak * GIB <= made.high
    assert made.high <= 1.65 * made.low


def test_numbers_of_parameters_are_those_of_the_real_models() -> None:
    for made, billions in ((LLAMA_3B, 3.21), (LLAMA_7B, 6.74), (LLAMA_8B, 8.03)):
        assert made.parameters / 1e9 == pytest.approx(billions, abs=0.01)


def test_an_interval_is_told_in_few_digits() -> None:
    assert between(GIB, GIB + 1) == "1.00"
    assert between(1.5 * GIB, 12.34 * GIB) == "1.50 to 12.3"
    made = Forecast(engine="ddp", offload=False, processes=2, parts=(Part("weights", GIB, GIB), Part("none", 0, 0)))
    assert str(made) == "1.00 GiB for each of 2 processes: weights 1.00"
    assert made.rows() == {
        "memory": "1.00 GiB, each of 2 processes, by ddp",
        "memory: weights": "1.00 GiB",
        "memory: none": "0.00 GiB",
    }


def test_what_pulls_remember_is_divided_as_moments_are() -> None:
    """Start weights and Fisher information: 8 bytes for each of 1,000 parameters."""
    ewc = OptimSection(pulls=({"use": "ewc", "options": {"strength": 1}},))  # type: ignore[arg-type]
    made = precision_plan("float32", ewc, several=False)
    assert made.bytes["pulls"] == 8
    assert made.rows()["pulls"] == "float32, 8 bytes"
    for engine, held in {"single": 8000, "ddp": 8000, "fsdp2": 4000, "zero1": 4000}.items():
        asked = replace(way(engine=engine, processes=1 if engine == "single" else 2), dtypes=made)
        assert parts(asked)["pulls"] == (held, held)
    assert "pulls" not in parts(way())


def test_pulls_that_add_to_gradients_make_them_float32() -> None:
    penalty = OptimSection(pulls=({"use": "l2_sp_penalty", "options": {"alpha": 1}},))  # type: ignore[arg-type]
    assert precision_plan("bf16-sr", penalty, several=False).bytes["gradients"] == 4
    behind = OptimSection(pulls=({"use": "ema"},))  # type: ignore[arg-type]
    assert precision_plan("bf16-sr", behind, several=False).bytes["gradients"] == 2
