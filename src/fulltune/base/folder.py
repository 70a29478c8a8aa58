"""How the folder of a run is told from any other."""

from pathlib import Path

from fulltune.base.errors import RecipeError

MARK = "# The resolved recipe of the run that this folder holds, written by fulltune. Change your own recipe.\n"
"""First line of a run's recipe. A folder with any other recipe.yaml is a project, whose data and models are its own."""


def is_run_folder(path: Path) -> bool:
    """Whether a path is a run's folder; RecipeError if it cannot be looked at."""
    try:
        recipe = path / "recipe.yaml"
        return recipe.is_file() and recipe.read_bytes().startswith(MARK.encode())
    except OSError as fault:  # such as a name too long for any disk
        raise RecipeError(
            f"cannot be read: {fault.strerror}", where=str(path), mend="name a recipe file or a run folder"
        ) from fault
