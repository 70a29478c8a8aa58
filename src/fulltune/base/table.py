"""Named things of one kind: the one way in which new things plug in."""

import difflib
import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Generic, TypeVar, cast

from fulltune.base.errors import RecipeError
from fulltune.base.files import sha256

T = TypeVar("T")


class Table(Generic[T]):
    """Entries written out where they are made; `package.module:name` reaches code outside the package."""

    def __init__(self, kind: str, entries: Mapping[str, T]) -> None:
        self.kind = kind
        self._entries = dict(entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __getitem__(self, name: str) -> T:
        """The entry; RecipeError with the nearest known name if there is none."""
        return self.find(name)

    def find(self, name: str, *, where: str = "") -> T:
        """The entry; RecipeError that says where it was asked for if there is none."""
        if name in self._entries:
            return self._entries[name]
        if ":" in name:
            return self._foreign(name, where)
        near = difflib.get_close_matches(name, self._entries, n=1)
        known = ", ".join(sorted(self._entries))
        raise RecipeError(
            f"no {self.kind} is called {name!r}",
            where=where,
            mend=f"did you mean {near[0]!r}?" if near else f"one of {known}, or package.module:name",
        )

    def _foreign(self, name: str, where: str) -> T:
        module, _, attribute = name.partition(":")
        if not all(part.isidentifier() for part in (*module.split("."), attribute)):
            raise RecipeError(f"{name!r} names no {self.kind}", where=where, mend="write package.module:name")
        try:
            return cast(T, vars(importlib.import_module(module))[attribute])
        except ImportError as fault:
            raise RecipeError(
                f"the {self.kind} {name!r} cannot be imported: {fault}",
                where=where,
                mend="install the package, or put its folder on PYTHONPATH",
            ) from fault
        except KeyError as fault:
            raise RecipeError(
                f"module {module!r} has no {attribute!r}", where=where, mend=f"check the {self.kind} {name!r}"
            ) from fault


def code(name: str) -> str:
    """Digest of the module that a `package.module:name` lies in; empty for a name that a table has."""
    module, colon, _ = name.partition(":")
    if not colon:
        return ""
    spec = importlib.util.find_spec(module)
    origin = Path(spec.origin) if spec is not None and spec.origin is not None else None
    return sha256(origin) if origin is not None and origin.is_file() else ""
