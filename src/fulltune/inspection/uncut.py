"""How long rows were before they were cut: read and rendered once more, since the store holds what is left."""

import sys
from collections.abc import Collection

from fulltune.base import stop
from fulltune.data.findings import Findings
from fulltune.data.intake import Intake, RowReader
from fulltune.data.prepare import Kit
from fulltune.data.render import Encoded, Renderer
from fulltune.data.sources import places
from fulltune.recipe.data import DataSection, sources


def uncut_lengths(data: DataSection, split: str, origins: Collection[str], kit: Kit) -> dict[str, int]:
    """Tokens of these rows (`file:line`) of a split without `data.max_length`; all else as it was prepared."""
    renderer = Renderer(
        kit.tokenizer,
        kit.template,
        supervise=data.supervise,
        max_length=sys.maxsize,
        over_length=data.over_length,
        stop_ids=kit.stop_ids,
        control_tokens=data.control_tokens,
    )
    found: dict[str, int] = {}
    # What is held out may come from the training files.
    for source in sources(data, split) or sources(data, "train"):
        for place in places(source, Findings()):
            wanted = {origin for origin in origins if origin.rpartition(":")[0] == place.path}
            intake = Intake(source, [place], Findings())
            for _, line, row in intake if wanted else ():
                stop.check()
                origin = f"{place.path}:{line}"
                if origin not in wanted:
                    continue
                taken = RowReader(source, intake.format, data).read(row)
                (outcome,) = renderer.render([taken.content])
                if isinstance(outcome, Encoded):
                    found[origin] = len(outcome.ids)
                wanted.discard(origin)
                if not wanted:
                    break
    return found
