"""The optimizer in the backward pass: what does not go with it, and how large its one micro-batch must be. Pure."""

from fulltune.base.errors import Fault, RecipeError
from fulltune.data.lay import Budget
from fulltune.planning.precision import moves_one
from fulltune.planning.pulls import pulls_of
from fulltune.recipe.schema import Recipe, TrainSection

_WHERE = "optim.in_backward"


def require_in_backward(recipe: Recipe) -> None:
    """RecipeError for all that needs whole gradients, or an update that can be left out."""
    optim, train = recipe.optim, recipe.train
    if optim.in_backward == "off":
        return
    faults = []
    if recipe.engine.name not in ("auto", "single") or (recipe.engine.processes or 1) > 1:
        faults.append(_several())
    if not moves_one(optim.name):
        said = f"weights are moved one by one, which is not known to be right for {optim.name}"
        faults.append(Fault(said, _WHERE, "optim.in_backward=off, or optim.name=adamw"))
    if train.precision == "fp16-mixed":
        said = "whether a gradient overflows its loss scale is known of all together"
        faults.append(Fault(said, _WHERE, "train.precision=bf16-mixed, bf16-sr or float32"))
    if mixing := [name for name, pull in pulls_of(optim).items() if pull.mixes]:
        said = f"{mixing[0]} puts weights back behind the whole backward pass"
        faults.append(Fault(said, _WHERE, f"optim.in_backward=off, or no {mixing[0]}"))
    if train.compile:
        said = "compiled blocks give the gradients of a whole block at once"
        faults.append(Fault(said, _WHERE, "train.compile=false, or optim.in_backward=off"))
    if train.batch_tokens is not None and train.layout != "packed":
        said = "of batch_tokens it is not known how many padded rows an update has, and it must be one micro-batch"
        faults.append(Fault(said, _WHERE, "train.batch_examples, or train.layout=packed"))
    if optim.in_backward == "one_pass":
        faults += _once(recipe)
    if faults:
        raise RecipeError(faults=faults)


def _once(recipe: Recipe) -> list[Fault]:
    """What takes two passes."""
    faults = []
    if recipe.optim.clip is not None:
        said = "a gradient is clipped by the norm of all, which is not known while one_pass moves weights"
        faults.append(Fault(said, _WHERE, "optim.clip=null, or optim.in_backward=two_passes"))
    if recipe.train.on_nonfinite == "skip":
        said = "one_pass may have moved weights before a gradient is found that is not finite: it cannot be left out"
        mend = "train.on_nonfinite=rollback or stop, or optim.in_backward=two_passes"
        faults.append(Fault(said, _WHERE, mend))
    return faults


def require_one_process(recipe: Recipe, processes: int) -> None:
    """RecipeError if weights are to be moved in the backward pass of several."""
    if recipe.optim.in_backward != "off" and processes > 1:
        raise RecipeError(faults=[_several()])


def _several() -> Fault:
    said = "processes exchange whole gradients, and a weight that is moved in its backward pass has none behind it"
    return Fault(said, _WHERE, "optim.in_backward=off, or one process (engine.name=single)")


def all_tokens(train: TrainSection, budget: Budget, longest: int) -> int:
    """Tokens of the largest update, padding included, the longest example having so many."""
    if train.batch_tokens is not None:
        return max(train.batch_tokens, longest)
    return train.batch_examples * budget.width(longest)


def require_one_micro(train: TrainSection, budget: Budget, longest: int) -> None:
    """RecipeError if an update may be more than one micro-batch: a gradient is whole when the last of them is there."""
    examples, needed = train.batch_tokens or train.batch_examples, all_tokens(train, budget, longest)
    rows = budget.examples if budget.layout == "padded" else examples
    if examples > rows or needed > budget.tokens:
        raise RecipeError(
            f"a weight that moves in its backward pass needs its whole gradient: an update of {needed:,} tokens "
            f"must be one micro-batch, of at most {budget.examples:,} examples and {budget.tokens:,} tokens",
            where=_WHERE,
            mend="leave train.micro_tokens and train.micro_examples out, or lower train.batch_examples",
        )
