"""What of a model's state lies where between passes: weights, gradients, moments, what pulls remember. Pure."""

from collections.abc import Iterator

from fulltune.base.formats import BYTES
from fulltune.base.memory import AWAY_AT_ONCE, Part
from fulltune.base.records import ModelFacts
from fulltune.planning.deepspeed import SMALLEST_BUCKET
from fulltune.planning.way import Pass, Way

_UNKNOWN_MOMENTS = 8
"""Bytes for each parameter that an optimizer of the user's own is expected to keep at most."""


def offloaded(way: Way, model: ModelFacts, state: list[Part]) -> tuple[list[Part], list[Part]]:
    """What lies on the host, and what stays on the device."""
    weights, gradients, *others = state
    if way.stage not in (1, 2):
        return state, []
    # What the optimizer moves, and gradients in its format; the weights that compute and their gradients stay.
    stay = model.parameters * way.compute
    moved = Part("float32 weights", weights.low - stay, weights.high - stay)
    copied = model.parameters * BYTES[way.dtypes.reduction] // way.shards
    return [moved, Part(gradients.name, copied, copied), *others], [Part(weights.name, stay, stay), gradients]


def _held(way: Way, model: ModelFacts, what: str) -> int:
    """Of all parameters together."""
    return int(model.parameters * way.dtypes.bytes[what])


def weights(way: Way, model: ModelFacts) -> Part:
    """In all formats that they are held in, but for copies that a pass makes."""
    size = _held(way, model, "weights") // way.divided("weights")
    if way.stage:  # those that compute, and float32 ones that the optimizer moves, which are divided in any stage
        size = model.parameters * way.compute // way.divided("weights")
        size += _held(way, model, "weights") // way.shards
    return Part("weights", size, size)


def gradients(way: Way, model: ModelFacts, load: Pass) -> Part:
    """Of an update, when its passes are made."""
    size = _held(way, model, "gradients") // way.divided("gradients")
    if way.stage:
        return _of_zero(way, model)
    if way.engine == "fsdp2" and not way.reshard and load.several:  # they wait whole for the last micro-batch
        return Part("gradients", model.parameters * way.compute, _held(way, model, "gradients"))
    return Part("gradients", size, size)


def _of_zero(way: Way, model: ModelFacts) -> Part:
    """Gradients in DeepSpeed: as passes make them, exchanged by the bucket, added up, copied for the optimizer."""
    made, added = way.compute, BYTES[way.dtypes.reduction]
    whole, divided = (made + added, added) if way.stage == 1 else (0, made + 2 * added)
    # Stages 2 and 3 let go of a gradient when its bucket was exchanged; a bucket holds the largest tensor at least.
    bucket = 2 * (made + added) * max(model.shape.tensor, model.hidden**2, SMALLEST_BUCKET)
    low = model.parameters * made // way.divided("gradients")
    return Part("gradients", low, model.parameters * whole + model.parameters * divided // way.shards + bucket)


def moments(way: Way, model: ModelFacts) -> Part:
    """What the optimizer keeps, wherever it waits."""
    dtypes = way.dtypes
    if "moments" in dtypes.bytes:
        others = model.parameters - (model.shape.matrices if dtypes.spares_matrices else 0)
        low = _held(way, model, "moments")
        high = low + int(others * dtypes.beside)
        low = high if dtypes.spares_matrices else low
        # Two moments of each number of the longer sides, and a projection; of narrow matrices it is less.
        projected = dtypes.projected * (2 * model.shape.longer + model.shape.shorter)
        high += int(min(projected, 1.5 * dtypes.beside * model.shape.matrices))
    else:
        low, high = 0, model.parameters * _UNKNOWN_MOMENTS
    parts = way.divided("moments")
    return Part("moments", low // parts, high // parts)


def pulls(way: Way, model: ModelFacts) -> Iterator[Part]:
    """What pulls remember, divided as moments are."""
    if "pulls" in way.dtypes.bytes:
        held = _held(way, model, "pulls") // way.divided("moments")
        yield Part("pulls", held, held)


def under_way(way: Way, model: ModelFacts, moments: Part) -> Part:
    """Of moments that wait on the host, what is on the device while weights are moved: of three portions at most."""
    portion = AWAY_AT_ONCE + model.shape.tensor if way.dtypes.weights == "float32" else model.shape.tensor
    each = moments.high / model.parameters
    return Part(moments.name, 0, min(moments.high, int(3 * portion * each)))
