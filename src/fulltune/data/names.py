"""Short names of the sources of a split, under which scores tell them apart."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import count
from pathlib import PurePosixPath

from fulltune.base.records import DataFacts
from fulltune.recipe.kinds import is_address

_ENDING = re.compile(r"(\.(jsonl|ndjson|json|csv|tsv|txt|md|parquet|arrow|gz|zst))+$", re.IGNORECASE)
_OTHER = re.compile(r"[^\w-]+")


def by_source(facts: DataFacts, split: str) -> dict[str, range]:
    """Name of each source that has examples in a split -> where they stand in the store, one source after the other."""
    sizes, sources = facts.splits[split].by_source, facts.sources[split]
    there = [number for number, size in enumerate(sizes) if size]
    names = short_names([sources[number].path for number in there])
    ends = [sum(sizes[: number + 1]) for number in there]
    return {name: range(end - sizes[n], end) for name, n, end in zip(names, there, ends, strict=True)}


def short_names(paths: Sequence[str]) -> list[str]:
    """Unique names: that of each file, without its ending and without dots; numbered where several are the same."""
    stems = [_stem(path) for path in paths]
    shared = {stem for stem, times in Counter(stems).items() if times > 1}
    taken = set(stems)
    names = []
    for stem in stems:
        free = (f"{stem}_{number}" for number in count(1))
        names.append(next(name for name in free if name not in taken) if stem in shared else stem)
        taken.add(names[-1])
    return names


def _stem(path: str) -> str:
    """`data/chat.v2.jsonl.gz` -> `chat_v2`; of a pattern such as `data/*.jsonl`, which names no file, its folder."""
    place = path.partition("?")[0] if is_address(path) else path  # behind it signed addresses have their keys
    bare = (_ENDING.sub("", part) for part in reversed(PurePosixPath(place).parts))
    names = (_OTHER.sub("_", part).strip("_") for part in bare)
    return next(filter(None, names), "source")
