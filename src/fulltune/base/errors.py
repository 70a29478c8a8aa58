"""What can go wrong, said so that the reader can mend it. Each kind of fault has its exit code."""

import errno
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from fulltune.base.secrets import masked

SHOWN_PER_CODE = 50
"""Faults of one kind that are printed in full; of the rest only the places are listed."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong: what, where (`file:line`), how to mend it, and a short code to count it by."""

    what: str
    where: str = ""
    mend: str = ""
    code: str = ""

    def __str__(self) -> str:
        lines = [f"error: {self.what}"]
        lines += [f"where: {self.where}"] if self.where else []
        lines += [f"mend:  {self.mend}"] if self.mend else []
        return "\n".join(lines)


class FulltuneError(Exception):
    """One or many faults. The command line prints them and leaves with `exit_code`; no traceback."""

    exit_code: ClassVar[int] = 1

    def __init__(
        self, what: str = "", *, where: str = "", mend: str = "", faults: Sequence[Fault] = (), note: str = ""
    ) -> None:
        self.faults = tuple(faults) or (Fault(what, where, mend),)
        self.note = note
        super().__init__(masked(self._text()))

    def _text(self) -> str:
        by_code: dict[str, list[Fault]] = defaultdict(list)
        for fault in self.faults:
            by_code[fault.code].append(fault)
        parts: list[str] = []
        for code, group in by_code.items():
            parts += [str(fault) for fault in group[:SHOWN_PER_CODE]]
            if rest := group[SHOWN_PER_CODE:]:
                parts.append(f"... and {len(rest)} more of kind {code!r}: " + ", ".join(f.where for f in rest))
        if self.note:
            parts.append(self.note)
        return "\n\n".join(parts)


class RecipeError(FulltuneError):
    """The recipe names something unknown, contradicts itself, or the command was used wrongly."""

    exit_code = 2


class DataError(FulltuneError):
    """A row, a file, a chat template or a model folder cannot be used as it is."""

    exit_code = 3


class MachineError(FulltuneError):
    """The run does not fit this machine."""

    exit_code = 4


class DivergedError(FulltuneError):
    """Loss or gradient stopped being finite, too often."""

    exit_code = 5


class CheckpointError(FulltuneError):
    """A checkpoint is damaged, or the run folder belongs to another recipe."""

    exit_code = 6


class DiskError(FulltuneError):
    """The disk is full or cannot be written."""

    exit_code = 7


class RankError(FulltuneError):
    """A process of several ended, or did not answer in time."""

    exit_code = 8


class LockedError(FulltuneError):
    """Another process writes to this run folder."""

    exit_code = 9


class GateError(FulltuneError):
    """The result is there in full, and `--gate` says that it must not be shipped."""

    exit_code = 10


class Interrupted(FulltuneError):
    """A signal asked the process to stop, and what is done is on disk: the same command goes on."""

    exit_code = 75


_FREE = "free some space, then run the same command: it goes on with what is done"
_HEALTHY = "check the disk, or name a folder on another with --out"
_DISK = {errno.ENOSPC: _FREE, errno.EDQUOT: _FREE, errno.EROFS: _HEALTHY, errno.EIO: _HEALTHY, errno.EFBIG: _HEALTHY}
"""What the disk itself may say, also without naming a file."""


def disk_error(fault: OSError) -> DiskError:
    """What the operating system said of a file, or of the disk; anything else is a bug of ours, and is raised again."""
    if fault.errno not in _DISK and fault.filename is None:
        raise fault
    what = fault.strerror or str(fault)
    mend = _DISK.get(fault.errno or 0, "check the name and its permissions, then run the same command")
    return DiskError(what, where=str(fault.filename or "the disk"), mend=mend)


def told(fault: FulltuneError) -> dict[str, Any]:
    """An error as JSON values, for another process."""
    faults = [[one.what, one.where, one.mend, one.code] for one in fault.faults]
    return {"fault": type(fault).__name__, "faults": faults, "note": fault.note}


def again(values: Mapping[str, Any]) -> FulltuneError:
    """The error that another process told of."""
    kinds: list[type[FulltuneError]] = [FulltuneError, *FulltuneError.__subclasses__()]
    kind = next(kind for kind in kinds if kind.__name__ == values["fault"])
    faults = [Fault(*parts) for parts in values["faults"]]
    return kind(faults=faults, note=values["note"])
