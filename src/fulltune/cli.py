"""Verbs. Parses, calls a stage, prints; decides nothing. Results go to standard output, progress to standard error."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import fulltune
from fulltune import afterwards, printing
from fulltune.base.errors import RecipeError
from fulltune.base.place import FOLLOWED, place
from fulltune.base.version import __version__
from fulltune.ending import ended, require_shipped
from fulltune.options import (
    AsJson,
    Fresh,
    Gated,
    Keep,
    NodeRank,
    Nodes,
    Out,
    Overrides,
    Processes,
    Prune,
    RecipeOrRun,
    Rendezvous,
    Split,
    fields,
    machines,
)

if TYPE_CHECKING:
    from fulltune.training.progress import ProgressLine

app = typer.Typer(
    name="fulltune",
    help="Full-parameter fine-tuning of language models, from raw rows to a verified model folder.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


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
    from fulltune import lean

    given = fields(recipe, overrides)
    lean.begin(recipe, given)
    from fulltune.data.doctor.report import retold

    if check_only:
        checked = fulltune.check(recipe, out=out, **given)
        typer.echo(printing.as_json(checked.card) if as_json else checked.report)
        if checked.refusal is not None:
            raise checked.refusal
        return
    facts = fulltune.prepare(recipe, out=out, fresh=fresh, **given)
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

    from fulltune import lean

    given = fields(recipe, overrides)
    lean.begin(recipe, given)
    from fulltune.inspection.terminal import put

    chosen: dict[str, Any] = {"split": split, "row": row, "origin": origin, "longest": longest, "random": random}
    rows = fulltune.inspect(recipe, **chosen, first=first, html=html, out=out, **given)
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
    given = fields(recipe, overrides)
    made = fulltune.plan(recipe, out=out, fresh=fresh, **given)
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
    processes: Processes = None,
    nodes: Nodes = 1,
    node_rank: NodeRank = None,
    rendezvous: Rendezvous = None,
    gate: Gated = False,
    as_json: AsJson = False,
) -> None:
    """Train, from rows to a verified model folder; the same command goes on where it stopped."""
    overrides = [*(overrides or []), *([f"engine.processes={processes}"] if processes else [])]
    given = fields(recipe, overrides)
    if hosts := machines(nodes, node_rank, rendezvous, alone={"--dry-run": dry, "--fresh": fresh}):
        told = {"--json": as_json, "--gate": gate}
        options = [
            *(name for name, given in told.items() if given),
            *(f"--accept-change={name}" for name in accept_change or []),
        ]
        from fulltune.gathering import train_here

        train_here(recipe, hosts, overrides, out=out, options=options)
        return
    if dry:
        if gate:
            raise RecipeError("a dry run has no result to judge", where="--gate", mend="leave one of the two out")
        figures = fulltune.dry_run(recipe, out=out, fresh=fresh, **given)
        typer.echo(printing.as_json(figures) if as_json else printing.as_table(figures))
        return
    with _progress() as sink:
        accept = accept_change or []
        how: dict[str, Any] = {"out": out, "fresh": fresh, "accept": accept, "gate": gate}
        record = fulltune.train(recipe, sinks=[sink], **how, **given)
    if place().rank == 0:
        _print(record, printing.outcome(record), as_json)
        if gate:
            require_shipped(record.verdict, str(Path(record.result).parent))


@app.command()
def sweep(
    recipe: RecipeOrRun,
    overrides: Overrides = None,
    over: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=VALUES", help="Vary a field: LOW:HIGH, LOW:HIGH:log, or A,B,C."),
    ] = None,
    budget: Annotated[int, typer.Option(min=1, help="Trials in all.")] = 20,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of each trial, its schedule compressed; by default the whole run.")
    ] = None,
    by: Annotated[
        str | None, typer.Option(metavar="SCORE", help="What trials are ranked by; by default checkpoint.best_by.")
    ] = None,
    prune: Annotated[Prune, typer.Option(help="How trials that lie behind are ended early.")] = "median",
    jobs: Annotated[int, typer.Option(min=1, help="Trials at a time, which share cores and GPUs.")] = 1,
    keep: Annotated[Keep, typer.Option(help="Whose checkpoints and models stay on disk.")] = "all",
    out: Annotated[Path | None, typer.Option(help="The sweep's folder; by default runs/<recipe's stem>-sweep.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train with other values in some fields, and rank the runs; the same command goes on where it stopped."""
    given = fields(recipe, overrides)
    from fulltune.base.files import to_json

    chosen: dict[str, Any] = {"tokens": tokens, "by": by, "prune": prune, "jobs": jobs, "keep": keep}
    made = fulltune.sweep(recipe, over=over or (), budget=budget, out=out, **chosen, **given)
    typer.echo(printing.as_json(to_json(made)) if as_json else printing.sweep(made))


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


for _verb in (
    afterwards.evaluate,
    afterwards.export,
    afterwards.blend,
    afterwards.report,
    afterwards.compare,
    afterwards.chat,
):
    app.command()(_verb)


def main() -> int:
    """Run a command; the exit codes are those of docs/architecture.md."""
    return ended(app)
