"""How long rows were before they were cut: read and rendered once more, since the store holds what is left."""

import sys
from collections.abc import Collection

from fulltune.data.findings import Findings
from fulltune.data.intake import Intake
from fulltune.data.prepare import sources
from fulltune.data.render import Encoded, Renderer
from fulltune.data.sources import places
from fulltune.data.template import Template, Tokenizer
from fulltune.recipe.schema import DataSection


def uncut_lengths(
    data: DataSection,
    split: str,
    origins: Collection[str],
    tokenizer: Tokenizer,
    template: Template,
    stop_ids: Collection[int] = (),
) -> dict[str, int]:
    """Tokens of these rows (`file:line`) of a split without `data.max_length`; all else as it was prepared."""
    renderer = Renderer(
        tokenizer,
        template,
        supervise=data.supervise,
        max_length=sys.maxsize,
        over_length=data.over_length,
        stop_ids=stop_ids,
        control_tokens=data.control_tokens,
    )
    found: dict[str, int] = {}
    # What is held out may come from the training files.
    for number, source in enumerate(sources(data, split) or sources(data, "train")):
        for place in places(source, Findings()):
            wanted = {origin for origin in origins if origin.rpartition(":")[0] == place.path}
            for example in Intake(number, source, [place], data, Findings()) if wanted else ():
                origin = f"{place.path}:{example.line}"
                if origin not in wanted:
                    continue
                (outcome,) = renderer.render([example])
                if isinstance(outcome, Encoded):
                    found[origin] = len(outcome.ids)
                wanted.discard(origin)
                if not wanted:
                    break
    return found
