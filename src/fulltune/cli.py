"""Verbs. Parses, calls a stage, prints; decides nothing. Results go to standard output, progress to standard error."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fulltune import printing
from fulltune.base.errors import FulltuneError, RecipeError, of_the_disk
from fulltune.base.place import FOLLOWED, place
from fulltune.base.version import __version__

if TYPE_CHECKING:
    from fulltune.training.progress import ProgressLine

app = typer.Typer(
    name="fulltune",
    help="Full-parameter fine-tuning of language models, from raw rows to a verified model folder.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipeOrRun = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file, or a run folder.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Fields of the recipe, such as optim.lr=1e-5.")
]
Out = Annotated[Path | None, typer.Option(help="The run folder; by default runs/<the recipe's stem>.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Make a new run folder in place of going on with one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Split = Literal["train", "heldout", "test", "retention"]
DType = Literal["base", "float32", "bfloat16", "float16"]


@app.callback(invoke_without_command=True)
def _alone(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version or context.invoked_subcommand is None:
        typer.echo(__version__ if version else context.get_help())
        raise typer.Exit


@app.command()
def quickstart(out: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/quickstart")) -> None:
    """Fine-tune the embedded tiny model on the embedded data, offline, and show what it learned and what it kept."""
    from fulltune.quickstart import quickstart

    with _progress() as sink:
        typer.echo(quickstart(out, sink))


@app.command()
def init(path: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("recipe.yaml")) -> None:
    """Write a commented recipe to begin with."""
    from fulltune.recipe.write import starter

    if path.exists():
        raise RecipeError("the file exists", where=str(path), mend="name another, or remove it")
    if not path.parent.is_dir():
        raise RecipeError("there is no such folder", where=str(path.parent), mend="make it, or name another")
    path.write_text(starter(), encoding="utf-8")
    typer.echo(f"{path} is written; name your model and data in it, then: fulltune train {path}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from fulltune.recipe.write import schema

    typer.echo(schema())


@app.command()
def prepare(
    recipe: RecipeOrRun,
    overrides: Overrides = None,
    out: Out = None,
    fresh: Fresh = False,
    check_only: Annotated[bool, typer.Option("--check-only", help="Look at the rows, and keep nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Turn raw rows into tokens on disk, and name every row that cannot be taught."""
    from fulltune import stages
    from fulltune.data.doctor.report import retold

    if check_only:
        checked = stages.check(recipe, out=out, **_given(overrides))
        typer.echo(printing.as_json(checked.card) if as_json else checked.report)
        if checked.refusal is not None:
            raise checked.refusal
        return
    facts = stages.prepare(recipe, out=out, fresh=fresh, **_given(overrides))
    if not as_json:
        typer.echo(retold(facts.doctor) + "\n")
    _print(facts, {name: f"{split.examples:,} examples" for name, split in facts.splits.items()}, as_json)


@app.command()
def inspect(
    recipe: RecipeOrRun,
    overrides: Overrides = None,
    split: Annotated[Split, typer.Option(help="Which part of the data.")] = "train",
    row: Annotated[int | None, typer.Option(help="The row of this number, from 0.")] = None,
    origin: Annotated[str | None, typer.Option(metavar="FILE:LINE", help="The row that stood there.")] = None,
    longest: Annotated[bool, typer.Option("--longest", help="The longest row.")] = False,
    random: Annotated[int | None, typer.Option(help="So many rows, spread over the split.")] = None,
    first: Annotated[int | None, typer.Option(help="So many from the start; by default 3, on a page 100.")] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Print every token with its label and weight.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page to look at in a browser.")] = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Show what the model will be taught: rows as training sees them, the taught tokens marked."""
    from rich.console import Console

    from fulltune import stages
    from fulltune.inspection.terminal import put

    chosen: dict[str, Any] = {"split": split, "row": row, "origin": origin, "longest": longest, "random": random}
    rows = stages.inspect(recipe, **chosen, first=first, html=html, out=out, **_given(overrides))
    if as_json:
        typer.echo(printing.as_json([item.as_values() for item in rows], rows=True))
    elif html is not None:
        typer.echo(f"{html} is written: {len(rows)} rows")
    else:
        put(Console(highlight=False), rows, tokens=tokens)


@app.command()
def plan(
    recipe: RecipeOrRun,
    overrides: Overrides = None,
    out: Out = None,
    fresh: Fresh = False,
    as_json: AsJson = False,
) -> None:
    """Say what a run would do: updates, warm-up, micro-batches, what is held in which precision, and its memory."""
    from fulltune import stages

    made = stages.plan(recipe, out=out, fresh=fresh, **_given(overrides))
    _print(made, printing.plan(made), as_json)


@app.command()
def train(
    recipe: RecipeOrRun,
    overrides: Overrides = None,
    out: Out = None,
    fresh: Fresh = False,
    dry: Annotated[bool, typer.Option("--dry-run", help="All of it up to one update and a trial save.")] = False,
    accept_change: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD", help="Go on although this changed: a recipe field, data, tokenizer or template."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train, from rows to a verified model folder; the same command goes on where it stopped."""
    from fulltune import stages

    if dry:
        figures = stages.dry_run(recipe, out=out, fresh=fresh, **_given(overrides))
        typer.echo(printing.as_json(figures) if as_json else printing.as_table(figures))
        return
    with _progress() as sink:
        accept = accept_change or []
        record = stages.train(recipe, out=out, fresh=fresh, accept=accept, sinks=[sink], **_given(overrides))
    if place().rank == 0:
        _print(record, printing.outcome(record), as_json)


@app.command()
def evaluate(
    recipe: RecipeOrRun,
    overrides: Overrides = None,
    out: Out = None,
    model: Annotated[Path | None, typer.Option(help="Any model folder, in place of the run's result.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score the base and the result on held-out, test and retention data."""
    from fulltune import stages
    from fulltune.base.files import to_json

    reports = stages.evaluate(recipe, out=out, model=model, **_given(overrides))
    if as_json:
        typer.echo(printing.as_json({name: to_json(report) for name, report in reports.items()}))
    else:
        typer.echo(printing.scores(reports))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    to: Annotated[Path, typer.Argument(help="The model folder to write.")],
    step: Annotated[int | None, typer.Option(min=1, help="Which checkpoint; by default the best, or the last.")] = None,
    dtype: Annotated[
        DType | None, typer.Option(help="Number format of the weights; by default that of the recipe.")
    ] = None,
) -> None:
    """Write a checkpoint as a Hugging Face folder, and verify it."""
    from fulltune import stages

    typer.echo(f"written and verified: {stages.export(run, to, step=step, dtype=dtype)}")


@app.command()
def blend(
    run: Annotated[Path, typer.Argument(help="A run that is done.")],
    others: Annotated[list[str] | None, typer.Option("--with", help="`base`, runs, model folders.")] = None,
    at: Annotated[str, typer.Option(help="Parts of the run's weights: first:last:step, or 0.2,0.5.")] = "0:1:0.1",
    write: Annotated[float | None, typer.Option(help="The part that is written to --to.")] = None,
    to: Annotated[Path | None, typer.Option(help="The model folder to write.")] = None,
    as_json: AsJson = False,
) -> None:
    """Mix the weights of a run with its base, or average those of several runs; score each mixture, write one."""
    from fulltune import stages

    made = stages.blend(run, others=others or ["base"], at=at, write=write, to=to)
    typer.echo(printing.as_json(asdict(made)) if as_json else printing.blend(made))


@app.command()
def chat(
    run: Annotated[Path, typer.Argument(help="A run folder, or any model folder with a chat template.")],
    tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 512,
) -> None:
    """Talk to the tuned model through its own chat template."""
    from fulltune.chat import chat

    chat(run, tokens=tokens)


def _given(overrides: list[str] | None) -> dict[str, Any]:
    from fulltune.recipe.load import given

    return given(overrides or [])


@contextmanager
def _progress() -> Iterator["ProgressLine"]:
    from rich.console import Console

    from fulltune.training.progress import ProgressLine

    sink = ProgressLine(Console(stderr=True, quiet=FOLLOWED in os.environ))
    try:
        yield sink
    finally:
        sink.close()


def _print(record: Any, shown: Mapping[str, Any], as_json: bool) -> None:
    from fulltune.base.files import to_json

    typer.echo(printing.as_json(to_json(record)) if as_json else printing.as_table(shown))


def main() -> int:
    """Run a command; the exit codes are those of docs/architecture.md."""
    code = _run()
    if place().launched:
        # What gloo leaves behind may abort a process that ends in order, and turn its exit code into a signal.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _run() -> int:
    from fulltune.base.log import speak

    speak(quiet=place().rank > 0)  # the first speaks for all
    try:
        if app(standalone_mode=False) == 130:  # typer keeps a KeyboardInterrupt to itself, and gives its exit code
            raise KeyboardInterrupt
    except FulltuneError as fault:
        return _fail(str(fault), fault.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command goes on with what is done", 130)
    except OSError as fault:
        failing = of_the_disk(fault)
        if failing is None:
            raise
        return _fail(str(failing), failing.exit_code)
    except typer.Exit as leaving:
        return leaving.exit_code
    except typer.TyperException as fault:  # a wrong option or a missing argument
        return _fail(f"error: {fault}\nmend:  fulltune --help", RecipeError.exit_code)
    return 0


def _fail(text: str, code: int) -> int:
    sys.stderr.write(printing.plain(text) + "\n")
    return code
