"""The rules of the house, as checks: a rule without a check is a wish. Raising a budget is a reviewed change."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

SRC = ROOT / "src"
MODULES = sorted((SRC / "fulltune").rglob("*.py"))
BENCHMARKS = sorted(path for room in (".", "contestants") for path in (ROOT / "benchmarks" / room).glob("*.py"))
LINES_OF_A_MODULE = 300
LINES_OF_A_FUNCTION = 60
LINES_OF_LOOP_AND_STEP = 40
ARGUMENTS = 7
FORBIDDEN_NAMES = ("utils", "misc", "helpers", "manager")
LAZY = {"cli.py", "afterwards.py", "options.py", "lean.py", "__init__.py"}
"""The only modules that import the package's own modules inside functions, for start-up time."""


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def name(path: Path) -> str:
    return str(path.relative_to(SRC if path.is_relative_to(SRC) else ROOT))


def test_there_is_something_to_check() -> None:
    assert len(MODULES) > 40
    assert len(BENCHMARKS) > 10


@pytest.mark.parametrize("path", [*MODULES, *BENCHMARKS], ids=name)
def test_sizes(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LINES_OF_A_MODULE
    for function in functions(path):
        lines = (function.end_lineno or 0) - function.lineno + 1
        limit = LINES_OF_LOOP_AND_STEP if path.name in ("loop.py", "step.py") else LINES_OF_A_FUNCTION
        assert lines <= limit, f"{function.name} has {lines} lines"
        arguments = function.args
        given = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        count = len([argument for argument in given if argument.arg not in ("self", "cls")])
        # Commands and stages mirror their options, which users give by name.
        if path.name not in ("cli.py", "afterwards.py", "stages.py", "preparing.py", "trials.py"):
            assert count <= ARGUMENTS, f"{function.name} takes {count} arguments"


FOREIGN_CODE = ("template.py", "folder.py", "load.py", "hub.py", "opened.py", "harness.py")
"""Modules that run what a user brings: templates, a model folder's files and code, data sets, file systems, tasks."""


@pytest.mark.parametrize("path", [*MODULES, *BENCHMARKS], ids=name)
def test_no_guessing_and_no_swallowing(path: Path) -> None:
    """No getattr or hasattr on our own objects; foreign models are questioned in model/facts.py alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and path.name != "facts.py":
            assert node.func.id not in ("getattr", "hasattr", "setattr", "eval", "exec"), f"line {node.lineno}"
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or (
                isinstance(node.type, ast.Name) and node.type.id in ("BaseException", "Exception")
            )
            reraises = any(isinstance(inner, ast.Raise) and inner.exc is None for inner in ast.walk(node))
            # What foreign code raises cannot be listed; there it may become one of our errors, with its cause.
            last = node.body[-1]
            told = path.name in FOREIGN_CODE and isinstance(last, ast.Raise) and last.cause is not None
            assert not broad or reraises or told, f"line {node.lineno} catches everything and goes on"
            silent = all(isinstance(inner, ast.Pass | ast.Continue) for inner in node.body)
            assert not silent, f"line {node.lineno} swallows"


@pytest.mark.parametrize("path", [*MODULES, *BENCHMARKS], ids=name)
def test_names_say_a_role(path: Path) -> None:
    parts = Path(name(path)).with_suffix("").parts
    assert not any(part in FORBIDDEN_NAMES or part.startswith("base_") for part in parts)


@pytest.mark.parametrize("path", [*MODULES, *BENCHMARKS], ids=name)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def imports(path: Path, *, lazy: bool) -> set[str]:
    """Modules of ours that a module imports, at its top or anywhere."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if lazy else _outside_functions(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("fulltune"):
            deeper = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {module for module in deeper if module in NAMES} or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("fulltune")}
    return found


def _outside_functions(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
            yield from _outside_functions(node)


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")


NAMES = {dotted(path) for path in MODULES}


def test_no_circles_even_through_lazy_imports() -> None:
    graph = {dotted(path): imports(path, lazy=True) & NAMES for path in MODULES}
    graph["fulltune"] = set()  # the face of the package names the stages for those who import it
    state: defaultdict[str, int] = defaultdict(int)

    def visit(module: str, way: list[str]) -> None:
        assert state[module] != 1, " -> ".join([*way, module])
        if state[module] == 0:
            state[module] = 1
            for inner in sorted(graph.get(module, ())):
                visit(inner, [*way, module])
            state[module] = 2

    for module in sorted(graph):
        visit(module, [])


@pytest.mark.parametrize("path", [p for p in MODULES if p.name not in LAZY], ids=name)
def test_only_the_faces_import_lazily(path: Path) -> None:
    assert imports(path, lazy=True) == imports(path, lazy=False)


@pytest.mark.parametrize("path", [p for p in MODULES if p.parts[-2] in ("base", "recipe", "planning")], ids=name)
def test_the_ground_needs_no_torch(path: Path) -> None:
    assert not re.search(r"^\s*(import|from) (torch|transformers)", path.read_text(), re.MULTILINE)


def test_no_module_is_called_as_a_function_of_the_package() -> None:
    """It would stand in the function's place as soon as it is loaded."""
    import fulltune

    assert not set(fulltune.__all__) & {path.stem for path in SRC.glob("fulltune/*.py")}


OTHERS_PICKLE = ("plain_save.py",)
"""A contestant of the benchmarks that writes a pickle, since that is what it stands for. Nobody reads it."""


def test_nothing_reads_pickles() -> None:
    for path in [*MODULES, *(path for path in BENCHMARKS if path.name not in OTHERS_PICKLE)]:
        unsafe = r"import (pickle|joblib|dill)|torch\.(load|save)\(|shell=True"
        assert not re.search(unsafe, path.read_text()), name(path)


def test_every_setting_is_read_somewhere() -> None:
    """A field of the recipe that no other module mentions would be a setting without effect."""
    from fulltune.recipe.data import Source
    from fulltune.recipe.schema import Recipe

    source = "\n".join(p.read_text() for p in MODULES if "recipe" not in p.parts)
    fields = {name for section in Recipe.model_fields.values() for name in section.annotation.model_fields}  # type: ignore[union-attr]
    unread = {field for field in fields | set(Source.model_fields) if not re.search(rf"\.{field}\b", source)}
    assert unread == set()


def test_the_map_shows_every_module() -> None:
    """docs/architecture.md has a tree of the house; a module that is not in it has no room."""
    text = (ROOT / "docs/architecture.md").read_text()
    for path in [*MODULES, *BENCHMARKS]:
        if path.name != "__init__.py":
            assert re.search(rf"\b{path.stem}\b", text), name(path)


def test_nothing_of_this_machine_is_written_down() -> None:
    words = ("/ho" + "me/", "/wo" + "rk/", "/ro" + "ot/")
    room = ROOT / "benchmarks"
    told = [*room.glob("*.md"), *room.glob("*.txt"), *(room / "results").glob("*.*"), *BENCHMARKS]
    for path in [*ROOT.glob("*.md"), *ROOT.glob("*.toml"), *(ROOT / "docs").rglob("*.md"), *MODULES, *told]:
        assert not any(word in path.read_text() for word in words), path
