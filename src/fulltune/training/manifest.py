"""The manifest of a checkpoint: what belongs to it, byte for byte. Written last, believed only if all of it is true."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fulltune.base.errors import CheckpointError
from fulltune.base.files import sha256

NAME = "MANIFEST.json"
FORMAT = 2
_DIGEST = "sha256"
_HASHING = 4
"""Files that are read and hashed at once: one core does about 1 GB a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Of the state after `step` updates: sizes and digests of its files, and whose it is."""

    step: int
    journal: int
    """Bytes that the run's journal had: what came later is forgotten on resume."""
    healthy: bool
    """Whether the last update before it was neither skipped nor a spike: what a run may go back to."""
    world: int
    """Processes that wrote it."""
    identity: Mapping[str, Any]
    """The resolved recipe, and fingerprints of data, tokenizer and chat template."""
    versions: Mapping[str, str]
    files: Mapping[str, Mapping[str, Any]]
    """Name -> bytes and sha256."""


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Into a folder in which everything else is written; its last line is a digest of the manifest itself."""
    (folder / NAME).write_bytes(_text(manifest))


def facts(path: Path, digest: str | None = None) -> dict[str, Any]:
    """What a manifest says of a file; `digest` if it is known from what was written."""
    return {"bytes": path.stat().st_size, "sha256": digest or sha256(path)}


def read_manifest(folder: Path) -> Manifest:
    """CheckpointError unless it is, to the byte, one that `write_manifest` wrote for this folder."""
    path = folder / NAME
    try:
        found = path.read_bytes()
        values: dict[str, Any] = json.loads(found)
        form, digest = values.pop("format"), values.pop(_DIGEST)
    except FileNotFoundError as fault:
        raise damaged(path, "it is missing") from fault
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as fault:
        raise damaged(path, "it is no manifest") from fault
    if form != FORMAT:
        raise damaged(path, f"it has format {form!r}, this version reads {FORMAT}")
    try:
        manifest = Manifest(**values)
    except TypeError as fault:
        raise damaged(path, "it is no manifest") from fault
    if found != _text(manifest) or digest != _digest(values):
        raise damaged(path, "its content changed (sha256 differs)")
    if folder.name != step_name(manifest.step):
        raise damaged(path, f"it is the manifest of {step_name(manifest.step)}")
    return manifest


def verify(folder: Path) -> Manifest:
    """The manifest, after every file was found as it says; CheckpointError names the first that is not."""
    manifest = read_manifest(folder)
    for name, said in manifest.files.items():  # sizes first: they cost nothing
        path = folder / name
        if Path(name).name != name:
            raise damaged(folder / NAME, f"it names {name!r}, which is no file of this folder")
        if not path.is_file():
            raise damaged(path, "it is missing")
        if path.stat().st_size != said["bytes"]:
            raise damaged(path, f"it has {path.stat().st_size} bytes, not {said['bytes']}")
    with ThreadPoolExecutor(_HASHING) as pool:
        digests = pool.map(lambda name: sha256(folder / name), manifest.files)
        for (name, said), digest in zip(manifest.files.items(), digests, strict=True):
            if digest != said["sha256"]:
                raise damaged(folder / name, "its content changed (sha256 differs)")
    return manifest


def step_name(step: int) -> str:
    """The folder of the state after so many updates; names sort as numbers do."""
    return f"step-{step:08d}"


def damaged(path: Path, how: str) -> CheckpointError:
    """What to say of a file of a checkpoint that is not as it was written."""
    return CheckpointError(
        f"the checkpoint is damaged: {how}",
        where=str(path),
        mend="`fulltune train` on the run goes on from the newest checkpoint that is whole",
    )


def _text(manifest: Manifest) -> bytes:
    values = dataclasses.asdict(manifest)
    whole = {"format": FORMAT, **values, _DIGEST: _digest(values)}
    return (json.dumps(whole, indent=1, ensure_ascii=False) + "\n").encode()


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
