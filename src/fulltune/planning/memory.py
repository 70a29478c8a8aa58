"""How much memory a run takes: in closed form, from a model's shape, before anything of it is loaded. Pure.

Where the formulas come from, and how they were held against reality: docs/memory.md.
"""

from collections.abc import Iterator
from dataclasses import replace

from fulltune.base.formats import BYTES
from fulltune.base.memory import ATTENDED, CHUNK_BYTES, CODED_AT_ONCE, GIB, MOVED_AT_ONCE, NARROWED, Forecast, Part
from fulltune.base.records import ModelFacts
from fulltune.planning import standing
from fulltune.planning.way import Pass, Way

_LIVE = 10**9
"""Weights that ZeRO 3 keeps whole if they are used again soon: DeepSpeed's `stage3_max_live_parameters`."""

GATHERED = "gathered weights"

_HOLES = 0.35
"""Of gradients that are freed after each update, what the allocator cannot always use again: a run of 301 million
parameters held 4.8 or 5.5 GB, as addresses fell (14 processes). It is half of the difference; the rest has room.
"""
_CERTAIN = 0.85
"""Part of the activations by the formula that is there for certain: peaks of others were up to 16% off (docs)."""

_MIB = 2**20
_MAPPED = 32 * _MIB
"""Bytes from which glibc gives every tensor memory of its own, which it gives back with it."""


def forecast(way: Way, model: ModelFacts, load: Pass) -> Forecast:
    """What each process holds at its fullest moment.

    That is either the beginning of a backward pass, with all activations and the first gradients to come, or the
    optimizer's step, with all gradients: memory that passes leave free takes gradients, unless those of another
    micro-batch are there already. How well an allocator does that is what `high` leaves open.
    """
    weights, gradients, moments = (
        standing.weights(way, model),
        standing.gradients(way, model, load),
        standing.moments(way, model),
    )
    kept = _activations(way, model, load)
    moved, stays = _waiting(way, model, load, kept) if way.waits and way.kind == "cuda" else ([], kept)
    whole = [*_casts(way, model), *_gathered(way, model), stays, _logits(way, model, load)]
    pulls = list(standing.pulls(way, model))
    state = [weights, gradients, moments, *pulls]
    if not load.several and way.engine != "ddp":  # DDP has room for all gradients from the start
        state[1] = _late(way, model, gradients, whole)
    elif way.spares and way.engine == "single" and way.dtypes.weights == "float32":
        # Those of a first micro-batch lie in the format of computing until others come (adding.py).
        late, first = _late(way, model, gradients, whole).low, model.parameters * way.compute
        state[1] = replace(gradients, low=min(gradients.low, max(late, first)))
    host: list[Part] = []
    if way.offload and way.kind == "cuda":
        host, state = standing.offloaded(way, model, [weights, gradients, moments, *pulls])
    elif way.moments_wait and way.kind == "cuda":
        host, state[2] = [moments], standing.under_way(way, model, moments)
    return Forecast(
        engine=way.engine,
        offload=way.offload,
        processes=way.processes,
        parts=(*state, *whole, _overhead(way, model, load, state, whole)),
        host=(*host, *moved),
    )


def _late(way: Way, model: ModelFacts, gradients: Part, passes: list[Part]) -> Part:
    """Gradients for which memory is needed besides what activations leave as they go."""
    low = max(0, gradients.low - sum(part.low for part in passes))
    if way.kind == "cpu":  # its allocator hardly puts one in the place of the other
        return Part(gradients.name, low, gradients.high)
    # The head's come while all activations are there still, and those of a block before its own have gone.
    first = int((model.shape.outside + model.shape.block) * way.dtypes.bytes["gradients"])
    later = max(0, gradients.high - sum(part.high for part in passes))
    return Part(gradients.name, low, max(low, min(gradients.high, later + first)))


def _casts(way: Way, model: ModelFacts) -> Iterator[Part]:
    """Weights once more in the format of computing: until the backward pass, or of one block where it is made again."""
    if way.engine == "fsdp2" or way.stage or way.compute == BYTES[way.dtypes.weights]:
        return
    blocks = model.parameters - model.shape.outside
    kept = way.compute * (model.shape.block if way.checkpointed or way.waits else blocks)
    yield Part("weights in 16 bits", 0 if way.spares else kept, kept + way.compute * model.shape.outside)


def _gathered(way: Way, model: ModelFacts) -> Iterator[Part]:
    """Weights whole while they compute: one block and what lies outside of blocks, or all; and what arrives and leaves.

    Beside them are the next block's, the buffers that weights arrive in, and gradients that leave whole to be added up.
    """
    if way.stage == 3 and way.shards > 1:  # what is used again soon is kept; that is all of a model of this size
        kept = way.compute * min(model.parameters, _LIVE)
        yield Part(GATHERED, way.compute * (model.shape.outside + model.shape.block) // 2, 2 * kept)
    if way.engine != "fsdp2" or way.shards == 1:
        return
    compute, reduced = way.compute, BYTES[way.dtypes.reduction]
    outside, block = model.shape.outside, model.shape.block
    kept = 0 if way.reshard else compute * (model.parameters - outside - block)
    if way.kind == "cpu":  # measured: gloo copies besides, and what small buffers leave is of little use
        low = compute * (3 * outside + 6 * block)
        high = (compute + reduced) * (4 * outside + 5 * block) + 12 * min(_MAPPED, compute * (outside + block))
    else:
        low, high = compute * (outside + block), (2 * compute + reduced) * (outside + 2 * block)
    yield Part(GATHERED, kept + low, kept + high)


def _activations(way: Way, model: ModelFacts, load: Pass) -> Part:
    """What the forward pass leaves for the backward pass (Korthikanti et al. 2022, arXiv 2205.05198, by element)."""
    tokens, tile = load.tokens, 0
    if way.tile is not None and tokens > way.tile:
        model, tile = _tiled(way, model)
    shape = model.shape
    low, high = (int(tokens * each) for each in _of_blocks(way, model, shape.inner, model.layers))
    if way.checkpointed:
        kept = tokens * way.stream * model.hidden * model.layers
        low, high = (kept + int(tokens * each) for each in _of_blocks(way, model, shape.inner_block, 1))
        if way.checkpointing == "selective":
            results = [int(tokens * each) for each in _results(way, model)]
            low, high = low + results[0], high + results[1]
    blocks = 1 if way.checkpointed else model.layers
    pairs = load.rows * load.width**2
    if way.eager:  # the weights, in float32 for the softmax and in the format of computing
        low += blocks * pairs * shape.heads * way.compute
        high += blocks * pairs * shape.heads * (4 + 2 * way.compute)
    elif way.layout == "packed" and way.masks:  # a mask, and what kernels make of it
        low += pairs
        high += pairs * (1 + 4 + (blocks + 1) * way.compute)
    if way.blockwise and way.kind == "cpu" and way.dtypes.compute != "float16":  # 64: the diagonal's blocks
        longest = load.longest if way.layout == "packed" else load.width
        high += blocks * load.tokens * shape.heads * way.compute * (min(longest, ATTENDED) + 64) // 2
    return Part("activations", low + int(_CERTAIN * tile), high + 2 * tile)


def _tiled(way: Way, model: ModelFacts) -> tuple[ModelFacts, int]:
    """The model without its MLPs, and the bytes of a tile in one of them; its gradients are as many once more."""
    shape, tokens = model.shape, way.tile or 0
    each = shape.mlps // max(1, model.layers)
    rest = replace(shape, inner=shape.inner - shape.mlps, inner_block=shape.inner_block - each, widest=0)
    return replace(model, shape=rest), tokens * way.compute * (each + shape.widest)


def _waiting(way: Way, model: ModelFacts, load: Pass, kept: Part) -> tuple[list[Part], Part]:
    """What waits on the host, and what is on the device: a block's, another's that comes or goes, results kept."""
    alone = _activations(replace(way, checkpointing="full"), replace(model, layers=1), load)
    if not way.checkpointed:
        # The casts of weights wait too: they are saved as any result is.
        casts = [Part(part.name, 0, part.high) for part in _casts(replace(way, waits=False), model)]
        return [kept, *casts], Part(kept.name, alone.low, 2 * alone.high)
    inputs = load.tokens * way.stream * model.hidden * model.layers
    low, high = (int(load.tokens * each) for each in _results(way, model))
    results = (low, high) if way.checkpointing == "selective" else (0, 0)
    stays = Part(kept.name, alone.low + results[0], 2 * alone.high + results[1])
    return [Part(kept.name, inputs, inputs)], stays


def _of_blocks(way: Way, model: ModelFacts, inner: int, blocks: int) -> tuple[float, float]:
    """Bytes for each token of so many blocks, whose inner sides are `inner` together: lowest and highest."""
    shape, compute = model.shape, way.compute
    beside = inner + shape.widest * blocks
    if way.compute == way.stream == 4:
        hidden = 2 * (4 + 4 + 4)  # of both norms: what comes in, what is scaled, what goes out
    elif way.stream == 4:
        hidden = 2 * (4 + 4) + 5 * compute  # and a copy in 16 bits for each of five matrices
    else:
        hidden = 2 * (4 + 2 + 2)
    exact = compute * beside + hidden * model.hidden * blocks  # one operation after the other, as in transformers
    fused = compute * beside + 4 * compute * model.hidden * blocks  # norms in one kernel each
    # Kernels that take a mask want keys and values for every head.
    repeated = compute * shape.repeated * blocks if way.layout == "packed" and way.masks else 0
    low = exact if way.kind == "cpu" else fused
    if way.spares:  # of a gated MLP two sides of four; of norms what comes in, and what goes out as products want it
        norms = hidden if way.stream < 4 else 2 * (4 + compute)
        low = compute * (inner - shape.mlps * blocks // max(1, 3 * model.layers)) + norms * model.hidden * blocks
    return _CERTAIN * max(0, low), exact + repeated


def _results(way: Way, model: ModelFacts) -> tuple[float, float]:
    """Bytes for each token of what matrices and attention gave in all blocks but the one that is made again.

    Of each block the inner sides but the widest, which comes of an activation function and is made again, and two
    hidden states: what attention and what the MLP add to the stream.
    """
    shape = model.shape
    inner, others = shape.inner - shape.inner_block, model.layers - 1
    hidden = 2 * model.hidden * others
    low = max(0, inner - shape.widest * others) + hidden
    return _CERTAIN * way.compute * low, way.compute * (inner + hidden)


def _logits(way: Way, model: ModelFacts, load: Pass) -> Part:
    """Of as many tokens as are held at once: one tensor, with what is float32 of it, or what a softmax takes."""
    numbers = _logits_at_once(model, load)
    if model.shape.cut and way.dtypes.compute == "bfloat16":
        held = 2 * numbers + 4 * min(numbers, NARROWED * model.vocab)
        return Part("logits", held, held + 2 * numbers + 2 * model.shape.tensor)
    narrow = way.compute if way.compute < 4 else 0
    return Part("logits", (4 if model.shape.cut else 2 * 4) * numbers, (3 * 4 + 2 * narrow) * numbers)


def _logits_at_once(model: ModelFacts, load: Pass) -> int:
    """How many numbers."""
    tokens = load.taught
    if model.shape.cut:
        tokens = min(tokens, max(1, CHUNK_BYTES // (4 * model.vocab)))
    return tokens * model.vocab


def _overhead(way: Way, model: ModelFacts, load: Pass, state: list[Part], passes: list[Part]) -> Part:
    """What libraries and allocators take, and what is held for a moment."""
    held, passing = sum(part.high for part in state), sum(part.high for part in passes)
    moment = 4 * model.shape.tensor  # gradients of a head in pieces, and of an embedding tied to it, are added up
    if not way.dtypes.bytes["gradients"]:  # of one weight at a time, and what its update is made of
        moment += 3 * BYTES[way.dtypes.gradients] * model.shape.tensor
    if way.dtypes.weights != "float32":  # moved in float32, without passes
        moment = max(moment, _moved(way, model) - sum(part.low for part in passes))
    if way.engine == "ddp":  # after the first update it makes its buckets anew, in the order in which gradients came
        moment += standing.gradients(way, model, load).high
    if way.kind == "cpu":
        if way.engine in ("single", "ddp") and way.dtypes.bytes["gradients"]:
            moment += int(_HOLES * standing.gradients(way, model, load).high)
        scattered = _scattered(way, model, load, passes)
        return Part(
            "overhead", 0, int(moment + scattered + 0.05 * (held + passing) + (200 if way.stage else 150) * _MIB)
        )
    context, exchange = 1.5 * GIB, GIB if way.processes > 1 else 0
    return Part("overhead", int(0.3 * GIB), int(moment + 0.05 * held + 0.15 * passing + context + exchange))


def _moved(way: Way, model: ModelFacts) -> int:
    """What it takes to move a bfloat16 weight, or a part of it, in float32 (docs/precision.md)."""
    whole, dtypes = model.shape.tensor, way.dtypes
    in_parts = dtypes.parts and "pulls" not in dtypes.bytes
    numbers = min(whole, MOVED_AT_ONCE[way.kind]) if in_parts else whole
    return 30 * numbers + (28 * min(numbers, CODED_AT_ONCE) if dtypes.moments == "int8" else 0)


def _scattered(way: Way, model: ModelFacts, load: Pass, passes: list[Part]) -> float:
    """Of small tensors that passes leave and free, what glibc's allocator cannot use again (measured).

    It is up to half of them, and all of them between gradients that stay: those of other micro-batches, or of an MLP
    of which tile after tile is made again.
    """
    sizes: dict[str, float] = {part.name: part.high for part in passes if part.name != GATHERED}
    if load.tokens * model.hidden * way.compute >= _MAPPED:
        sizes["activations"] *= 0.2
    if 4 * _logits_at_once(model, load) >= _MAPPED:
        sizes["logits"] = 0
    between = load.several or (way.checkpointed and way.tile is not None and load.tokens > way.tile)
    return (1.2 if between else 0.5) * sum(sizes.values())
