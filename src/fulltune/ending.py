"""How a command ends: what was wrong in three lines on standard error, and the exit code of it."""

import os
import shlex
import sys

import typer

from fulltune import printing
from fulltune.base.errors import FulltuneError, GateError, RecipeError, disk_error
from fulltune.base.gate import GateVerdict
from fulltune.base.log import speak
from fulltune.base.place import place


def ended(app: typer.Typer) -> int:
    """Run a command; the exit codes are those of docs/architecture.md."""
    code = _run(app)
    if place().launched:
        # What gloo leaves behind may abort a process that ends in order, and turn its exit code into a signal.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def require_shipped(verdict: GateVerdict | None, run: str) -> None:
    """GateError unless the verdict on a run's result is SHIP; called when all is written and shown."""
    if verdict is None:
        what, mend = "the record is from before there was a gate", f"fulltune evaluate {shlex.quote(run)} --gate"
        raise GateError(f"NOT JUDGED: {what}", where=run, mend=mend)
    if not verdict.ship:
        what = "; ".join(verdict.failures)
        raise GateError(f"{verdict.word}: {what}", where=run, mend="the result is written in full; see its report.html")


def _run(app: typer.Typer) -> int:
    speak(quiet=place().rank > 0)  # the first speaks for all
    try:
        if app(standalone_mode=False) == 130:  # typer keeps a KeyboardInterrupt to itself, and gives its exit code
            raise KeyboardInterrupt
    except FulltuneError as fault:
        return _fail(str(fault), fault.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command goes on with what is done", 130)
    except OSError as fault:
        failing = disk_error(fault)
        return _fail(str(failing), failing.exit_code)
    except typer.Exit as leaving:
        return leaving.exit_code
    except typer.TyperException as fault:  # a wrong option or a missing argument
        return _fail(f"error: {fault}\nmend:  fulltune --help", RecipeError.exit_code)
    return 0


def _fail(text: str, code: int) -> int:
    sys.stderr.write(printing.plain(text) + "\n")
    return code
