"""Verbs about what came of a run: evaluate, export, blend, report, compare, chat. As in cli.py they decide nothing."""

import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

import fulltune
from fulltune import printing
from fulltune.base.errors import FulltuneError, RecipeError
from fulltune.ending import require_shipped
from fulltune.options import (
    AsJson,
    Blind,
    Choices,
    DType,
    Gated,
    Judge,
    JudgeTimeout,
    Overrides,
    Prompts,
    fields,
)


def evaluate(
    recipe: Annotated[
        Path, typer.Argument(metavar="WHAT", help="A recipe, a run folder; with --suite any model; with --count a key.")
    ],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; with --suite where answers are written.")] = None,
    model: Annotated[Path | None, typer.Option(help="Any model folder, in place of the run's result.")] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(metavar="SUITE", help="Questions: a suite file, or NAME=DATA such as gsm8k=FILE."),
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Another model folder or run to compare with, or `base`.")
    ] = None,
    batch_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens of a batch of questions.")] = None,
    gate: Gated = False,
    judge: Judge = None,
    judge_timeout: JudgeTimeout = None,
    blind: Blind = None,
    prompts: Prompts = None,
    count: Choices = None,
    as_json: AsJson = False,
) -> None:
    """Score base and result on held-out, test and retention data; or any model on suites of questions."""
    _require_one({"--judge": judge, "--blind": blind, "--count": count})
    _require_none({"--judge-timeout": judge_timeout if judge is None else None})
    _require_none({"--prompts": prompts if blind is None else None})
    if not suite and all(one is None for one in (against, judge, blind, count)):
        if batch_tokens is not None:
            raise RecipeError("--batch-tokens is of suites", where="--batch-tokens", mend="train.micro_tokens=N")
        _scored(recipe, out, model, gate=gate, as_json=as_json, **fields(recipe, overrides))
        return
    said = ("is of losses, not of suites", "name the model itself first")
    _require_none({"--model": model, "--gate": gate or None, "KEY=VALUE": overrides}, *said)
    from fulltune.base.files import to_json

    if count is not None:
        _require_none({"--suite": suite, "--against": against, "--out": out, "--batch-tokens": batch_tokens})
        wins = fulltune.count_choices(recipe, count)
        typer.echo(printing.as_json(to_json(wins)) if as_json else printing.preferred([wins]))
        return
    asked: dict[str, Any] = {"suites": suite or (), "against": against, "batch_tokens": batch_tokens}
    if blind is not None:
        _require_none({"--out": out})
        page = to_json(fulltune.blind(recipe, page=blind, prompts=prompts or 50, **asked))
        typer.echo(printing.as_json(page) if as_json else printing.as_table(page))
        return
    found = fulltune.examine(recipe, out=out, judge=judge, judge_timeout=judge_timeout or 3600.0, **asked)
    typer.echo(printing.as_json(to_json(found)) if as_json else printing.examination(found))


def _scored(recipe: Path, out: Path | None, model: Path | None, *, gate: bool, as_json: bool, **changes: Any) -> None:
    """Losses, and the verdict on them."""
    from fulltune.base.files import to_json

    made = fulltune.judge(recipe, out=out, model=model, gate=gate, **changes)
    values = {name: to_json(report) for name, report in made.reports.items()}
    if made.verdict is not None:
        values["verdict"] = to_json(made.verdict)
    shown = [printing.scores(made.reports), *([] if made.verdict is None else [printing.verdict(made.verdict)])]
    typer.echo(printing.as_json(values) if as_json else "\n\n".join(shown))
    if gate:
        require_shipped(made.verdict, str(recipe if out is None else out))


def _require_one(apart: Mapping[str, object]) -> None:
    """RecipeError for options that exclude each other."""
    given = [name for name, value in apart.items() if value is not None]
    if len(given) > 1:
        raise RecipeError(f"{given[0]} and {given[1]} exclude each other", where=given[1], mend="give one of them")


def _require_none(
    options: Mapping[str, object], said: str = "means nothing beside the other options", mend: str = "leave it out"
) -> None:
    """RecipeError for an option that would have no effect beside the others."""
    for name, value in options.items():
        if value:
            raise RecipeError(f"{name} {said}", where=name, mend=mend)


def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    to: Annotated[Path, typer.Argument(help="The model folder to write.")],
    step: Annotated[int | None, typer.Option(min=1, help="Which checkpoint; by default the best, or the last.")] = None,
    dtype: Annotated[
        DType | None, typer.Option(help="Number format of the weights; by default that of the recipe.")
    ] = None,
) -> None:
    """Write a checkpoint as a Hugging Face folder, and verify it."""
    typer.echo(f"written and verified: {fulltune.export(run, to, step=step, dtype=dtype)}")


def blend(
    run: Annotated[Path, typer.Argument(help="A run that is done.")],
    others: Annotated[list[str] | None, typer.Option("--with", help="`base`, runs, model folders.")] = None,
    at: Annotated[str, typer.Option(help="Parts of the run's weights: first:last:step, or 0.2,0.5.")] = "0:1:0.1",
    write: Annotated[float | None, typer.Option(help="The part that is written to --to.")] = None,
    to: Annotated[Path | None, typer.Option(help="The model folder to write.")] = None,
    as_json: AsJson = False,
) -> None:
    """Mix the weights of a run with its base, or average those of several runs; score each mixture, write one."""
    from fulltune.base.files import to_json

    made = fulltune.blend(run, others=others or ["base"], at=at, write=write, to=to)
    typer.echo(printing.as_json(to_json(made)) if as_json else printing.blend(made))


def report(
    run: Annotated[Path, typer.Argument(help="A run folder, also of a run that is not done.")],
    out: Annotated[Path | None, typer.Option(help="The page to write; by default report.html in the folder.")] = None,
) -> None:
    """Write the report of a run: one page that needs no network."""
    with suppress(FulltuneError):  # of a folder whose recipe cannot be read it tells what it can
        from fulltune import lean

        lean.begin(run, {})
    typer.echo(f"{fulltune.report(run, out=out)} is written")


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Run folders.")],
    page: Annotated[Path | None, typer.Option(help="Write a page with curves over each other, too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show runs side by side: scores with the best marked, and where their recipes differ."""
    from fulltune.base import torchless

    torchless.begin()  # folders are read, and no model
    found = fulltune.compare(runs, page=page)
    typer.echo(printing.as_json(found.as_values()) if as_json else printing.plain(found.as_text()))
    if page is not None:
        sys.stderr.write(f"{page} is written\n")


def chat(
    run: Annotated[Path, typer.Argument(help="A run folder, or any model folder with a chat template.")],
    tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 512,
) -> None:
    """Talk to the tuned model through its own chat template."""
    from fulltune.chat import chat

    chat(run, tokens=tokens)
