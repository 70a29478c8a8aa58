"""Files that are whole or absent: atomic writes, fingerprints, records as JSON."""

import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError

from fulltune.base.errors import CheckpointError, DiskError, Interrupted, MachineError
from fulltune.base.secrets import masked_tree

T = TypeVar("T")

_IN_ORDER = json.JSONEncoder(sort_keys=True, ensure_ascii=False)


def write_whole(path: Path, text: str) -> None:
    """Write so that a reader sees the old file or the new one, never half of it, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    try:
        draft.write_text(text, encoding="utf-8")
        flush(draft)
        draft.replace(path)
    except BaseException:  # such as a full disk: half a file is of no use to anybody
        draft.unlink(missing_ok=True)
        raise
    flush(path.parent)


def private_folder(path: Path) -> None:
    """Make a folder that only its owner may enter; one that exists stays as it is, and so do those above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)


def flush(path: Path) -> None:
    """Have the operating system put a file or folder on the disk now (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A draft folder beside `target` that takes its name in one rename if the block succeeds, or vanishes.

    An existing `target` is replaced; the old one is removed after the new one stands. If the block fails, folders
    above it that had to be made vanish too.
    """
    old = target.with_name(f".{target.name}.old")
    if old.exists():  # killed between the renames below, or while the old one was removed
        remove(old) if target.exists() else old.replace(target)
    made = [folder for folder in target.parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.part-", dir=target.parent))
    umask = os.umask(0)
    os.umask(umask)
    draft.chmod(0o777 & ~umask)  # mkdtemp makes it private, and safetensors its files; others are to read them
    try:
        yield draft
        for file in (p for p in draft.rglob("*") if p.is_file()):
            file.chmod(0o666 & ~umask)
            flush(file)
        flush(draft)
    except BaseException:
        shutil.rmtree(draft)
        for folder in made:
            if not any(folder.iterdir()):
                folder.rmdir()
        raise
    if target.exists():
        target.replace(old)
    draft.replace(target)
    flush(target.parent)
    if old.exists():
        remove(old)


@contextmanager
def begun_folder(folder: Path, name: str) -> Iterator[Path]:
    """A folder for work that goes on if the name is the same: after a kill or a signal, or where memory ran out.

    It is gone when the block ends in any other way.

    What was begun under another name is removed: nobody will go on with it.
    """
    made = folder / f".begun-{name}"
    for other in folder.glob(".begun-*") if folder.is_dir() else ():
        if other != made or other.is_symlink():  # a link would have the work done, and removed, elsewhere
            remove(other)
    above = [one for one in (folder, *folder.parents) if not one.exists()]
    private_folder(folder)
    made.mkdir(exist_ok=True)
    try:
        yield made
    except (MachineError, Interrupted):
        raise
    except Exception:
        discard(made)
        for one in above:
            if not any(one.iterdir()):
                one.rmdir()
        raise
    discard(made)  # as one: half of it would pass for parts that are done


def sweep(folder: Path) -> None:
    """Remove the drafts that a killed process left in a folder."""
    for draft in filter(is_draft, folder.iterdir() if folder.is_dir() else ()):
        remove(draft)


def remove(folder: Path) -> None:
    """Remove a folder and what is in it; of a link to one the link, never what it leads to."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder)


def discard(folder: Path) -> None:
    """Remove a folder as one: a kill leaves all of it under its name, or a draft that is swept."""
    gone = folder.with_name(f".{folder.name}.part-gone")
    if gone.exists():
        remove(gone)
    folder.replace(gone)
    remove(gone)


def is_draft(path: Path) -> bool:
    """Whether this is a folder that was being written; nothing else is called `.something.part-...`."""
    return path.is_dir() and path.name.startswith(".") and ".part-" in path.name


def is_begun(path: Path) -> bool:
    """Whether this is what a killed process left to go on with."""
    return path.is_dir() and path.name.startswith(".begun-")


def require_room(folder: Path, needed: int, what: str) -> None:
    """DiskError if the volume of an existing folder has not so many bytes left."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskError(
            f"no room for {what}: it needs {_shown(needed)}, {_shown(free)} are free",
            where=str(folder),
            mend="free some space, or name a folder on another disk with --out; the same command goes on",
        )


def _shown(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Lets a full disk that safetensors meets be an OSError, as it is everywhere else."""
    try:
        yield
    except SafetensorError as fault:
        if (number := re.search(r"os error (\d+)", str(fault))) is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from fault


def fingerprint(value: Any) -> str:
    """A short hash of any JSON-able value, the same on every machine."""
    text = _IN_ORDER.encode(value)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def sha256(path: Path) -> str:
    """The digest of a file, read in pieces."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def to_json(record: Any) -> dict[str, Any]:
    """A record as plain JSON values; a number that is not finite becomes its name, since JSON has none."""
    plain: dict[str, Any] = _finite(dataclasses.asdict(record))
    return plain


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    return value


def write_record(path: Path, record: Any) -> None:
    """A dataclass as indented JSON, whole or absent, its secrets masked."""
    write_whole(path, as_text(record))


def as_text(record: Any) -> str:
    """What `write_record` writes."""
    return json.dumps(masked_tree(to_json(record), keys=False), indent=2, ensure_ascii=False) + "\n"


def from_json(values: Mapping[str, Any], kind: type[T]) -> T:
    """The record that `to_json` made these values of."""
    return TypeAdapter(kind).validate_python(dict(values))


def read_record(path: Path, kind: type[T]) -> T:
    """The record that `write_record` wrote; CheckpointError if the file is not one."""
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except OSError as fault:
        raise CheckpointError(
            f"the record cannot be read: {fault.strerror}", where=str(path), mend="use a new run folder (--fresh)"
        ) from fault
    except ValidationError as fault:
        raise CheckpointError(
            f"not a {kind.__name__}: {fault.errors()[0]['msg']}",
            where=str(path),
            mend="the file was changed by hand or written by another version; use a new run folder",
        ) from fault
