"""Arguments and options of the commands, as typer reads them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fulltune.base.errors import RecipeError

if TYPE_CHECKING:
    from fulltune.engine.agent import Hosts

RecipeOrRun = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file, or a run folder.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Fields of the recipe, such as optim.lr=1e-5.")
]
Out = Annotated[Path | None, typer.Option(help="The run folder; by default runs/<the recipe's stem>.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Make a new run folder in place of going on with one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Gated = Annotated[bool, typer.Option("--gate", help="Leave with exit code 10 unless the verdict is SHIP.")]
Split = Literal["train", "heldout", "test", "retention"]
DType = Literal["base", "float32", "bfloat16", "float16"]
Prune = Literal["median", "halving", "none"]
Keep = Literal["all", "best"]
Processes = Annotated[int | None, typer.Option(min=1, help="On this machine; the same as engine.processes.")]
Nodes = Annotated[int, typer.Option(min=1, help="Machines, on each of which this command is run.")]
NodeRank = Annotated[int | None, typer.Option(min=0, help="Which of them this is; by default as they come.")]
Rendezvous = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Where they meet: on the first of them.")]

Judge = Annotated[
    str | None, typer.Option(metavar="COMMAND", help="With --against: says which of two answers is better.")
]
JudgeTimeout = Annotated[
    float | None, typer.Option(min=1, help="Seconds that it may take for a suite; by default an hour.")
]
Blind = Annotated[
    Path | None, typer.Option(metavar="PAGE", help="With --against: a page of answers to choose from blindly.")
]
Prompts = Annotated[int | None, typer.Option(min=1, help="With --blind: most prompts of each suite; by default 50.")]
Choices = Annotated[Path | None, typer.Option(metavar="CHOICES", help="Count the choices of a blind page.")]


def fields(recipe: Path, overrides: list[str] | None) -> dict[str, Any]:
    """What `KEY=VALUE` words say of a recipe. What is wrong with it is told before the stages load, for seconds."""
    from fulltune.recipe.load import given, recipe_of

    found = given(overrides or [])
    recipe_of(recipe, found)
    return found


def machines(nodes: int, number: int | None, rendezvous: str | None, *, alone: Mapping[str, bool]) -> "Hosts | None":
    """The machines of a run; None if it has one. RecipeError if what was said of them does not go together.

    `alone`: options that are of one machine, and whether they were given.
    """
    from fulltune.engine.agent import Hosts

    told = {"--node-rank": number is not None, "--rendezvous": rendezvous is not None}
    if nodes == 1:
        for name in (name for name, given in told.items() if given):
            raise RecipeError(f"{name} is of several machines", where=name, mend="say how many: --nodes N")
        return None
    if rendezvous is None or not re.fullmatch(r"\S+:\d+", rendezvous):
        raise RecipeError(
            f"{nodes} machines must know where to meet",
            where="--rendezvous",
            mend="--rendezvous FIRST-HOST:29500 on all",
        )
    if number is not None and number >= nodes:
        raise RecipeError(f"of {nodes} machines none is number {number}", where="--node-rank", mend="count from 0")
    for name in (name for name, given in alone.items() if given):
        raise RecipeError(f"{name} is of one machine", where=name, mend="leave it out; --out names a new folder")
    return Hosts(nodes, rendezvous, number)
