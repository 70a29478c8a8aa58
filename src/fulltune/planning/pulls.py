"""The pulls that a recipe asks for, and what does not go with them: known before any row is read. Pure."""

from fulltune.base.errors import Fault, RecipeError
from fulltune.base.records import EngineName
from fulltune.optim.pulls import Asked, Pull, ScheduleFreeAverage, make
from fulltune.recipe.schema import ZERO, OptimSection, Recipe

SCHEDULE_FREE = "schedule_free_adamw"
"""The optimizer whose model is an average of the weights that it trains."""


def pulls_of(section: OptimSection) -> dict[str, Pull]:
    """By name, with nothing remembered yet: those of the recipe, and what its optimizer brings.

    RecipeError if one is not known, or does not take its options.
    """
    own: dict[str, Pull] = {SCHEDULE_FREE: ScheduleFreeAverage()} if section.name == SCHEDULE_FREE else {}
    return own | _asked(section)


def _asked(section: OptimSection) -> dict[str, Pull]:
    """In the recipe's order."""
    return make([Asked(asked.use, asked.options) for asked in section.pulls])


def require_whole(section: OptimSection, engine: EngineName) -> None:
    """RecipeError if this engine divides weights that a pull needs whole."""
    for number, (name, pull) in enumerate(_asked(section).items()):
        if pull.mixes and engine not in ("single", "ddp"):
            raise RecipeError(
                f"{name} draws for whole weights, and {engine} divides them: each part would be drawn by itself",
                where=f"optim.pulls.{number}",
                mend="engine.name=ddp, or one process; or l2_sp, which works on parts",
            )


def require_pulls(recipe: Recipe) -> None:
    """RecipeError for all that pulls cannot do in this run."""
    faults: list[Fault] = []
    if recipe.optim.name == SCHEDULE_FREE and recipe.optim.schedule != "constant":
        said = f"{SCHEDULE_FREE} takes a rate that stays where it is behind the warm-up: its average stands for a fall"
        faults.append(Fault(said, "optim.schedule", "optim.schedule=constant"))
    for number, (name, pull) in enumerate(_asked(recipe.optim).items()):
        where, file = f"optim.pulls.{number}", recipe.optim.pulls[number].file
        if why := pull.fault(recipe.optim.lr):
            faults.append(Fault(f"{name}: {why}", where, "lower it, or optim.lr"))
        if pull.on_gradients and recipe.engine.name in ZERO:
            said = f"{name} adds to gradients, which DeepSpeed keeps to itself until it has clipped them"
            faults.append(Fault(said, where, "engine.name=fsdp2; or l2_sp, which acts behind the update"))
        if recipe.optim.name == SCHEDULE_FREE and type(pull).after is not Pull.after:
            said = f"{name} acts on the weights behind an update, and {SCHEDULE_FREE} makes another model of them"
            faults.append(Fault(said, where, "l2_sp_penalty or ewc, which act on gradients; or optim.name=adamw"))
        if not pull.needs_fisher and file is not None:
            faults.append(Fault(f"{name} takes no file", f"{where}.file", "leave it out"))
        estimates = pull.needs_fisher and (file is None or pull.online > 0)
        if pull.online and file is None:
            said = f"{name} is to go on with the information of earlier tasks, and there is no file of it"
            faults.append(Fault(said, where, "file: the fisher.safetensors of the run before; or leave online out"))
        if estimates and not recipe.data.retention:
            said = f"{name} estimates what is important on data.retention, and there is none"
            faults.append(Fault(said, where, "give data.retention, or a file that another run has estimated"))
        if estimates and recipe.train.precision == "fp16-mixed":
            said = f"{name} would estimate with gradients in float16, of which many vanish or overflow"
            faults.append(Fault(said, where, "train.precision=bf16-mixed or float32, or a file of another run"))
        if pull.mixes and recipe.train.precision == "bf16-sr":
            said = f"{name} puts weights back after each pass, and bf16-sr has none in float32"
            faults.append(Fault(said, where, "train.precision=bf16-mixed or float32"))
    if faults:
        raise RecipeError(faults=faults)
