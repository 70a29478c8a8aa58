"""The data section of a recipe: sources, and what is done with their rows."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from fulltune.base.errors import RecipeError
from fulltune.recipe.checks import Policy, check_policies
from fulltune.recipe.kinds import MOST, Count, FilePath, Listed, Mixed, Names, Section, Share, Used, is_number

BRANCHES = ("<share>", "<kept back>", "<sources>")
"""Tags of the ways to write data.heldout; pydantic puts them into the place of a fault, where they are no keys."""
_MOST_APART = 1e6
"""Ratio of two shares; what is rarer comes less than once in a million examples, and rounds to never."""


class Augmentation(Section):
    """Further rows made of each row that is trained on."""

    use: str
    """Which: an entry of AUGMENTS (`field_order`, `phrasings`) or package.module:name."""
    copies: Annotated[int, Field(ge=1, le=1000)] = 1
    """Most further rows of each row; `field_order` gives one, `phrasings` one for each phrasing."""
    options: dict[str, Any] = Field(default_factory=dict)
    """What it takes, such as `{column: instruction, phrasings: ["Please {{ instruction }}"]}`."""


def _one_line(value: str) -> str:
    """A separator as it is looked for."""
    if not (line := value.strip()) or "\n" in line:
        raise ValueError("a separator is one line that is not blank")
    return line


class Source(Section):
    """One set of rows."""

    path: FilePath
    """JSONL, JSON, CSV, TSV, Parquet, Arrow or text (also gzip, zstd); a folder, a pattern, an address, a hub id; a run
    folder, whose own rows are read anew: `split: heldout`, or `train` to replay what it learned.
    """
    format: str = "auto"
    """How rows are read, an entry of FORMATS or package.module:name; `auto`: by their keys.

    `messages`, `sharegpt`, `instruction`, `prompt_completion`, `input_output`, `text`, `tokens`; `classification` and
    `preference` are read and checked, but not trained on yet.
    """
    columns: dict[str, str] = Field(default_factory=dict)
    """What the format calls a column -> what this source calls it, `{prompt: question, completion: answer}`, or a Jinja
    template over its columns, `{text: "{{ title }}: {{ body }}"}`. Others are not read then.
    """
    share: Annotated[float, Field(ge=1e-9, le=1e9)] | None = None
    """How often this source is seen beside the others (0.7 and 0.3, or 7 and 3); by default by its size."""
    document: Literal["file", "paragraph", "line"] = "file"
    """What is one document of a plain text (.txt, .md): the whole file, each paragraph or each line."""
    separator: Annotated[str, AfterValidator(_one_line)] | None = None
    """The line that stands between the documents of a plain text, such as `<|endoftext|>`, in place of `document`."""
    header: Annotated[Names, Field(min_length=1)] | None = None
    """Column names of CSV or TSV files whose first line is a row already."""
    quoted: bool | None = None
    """Whether cells may stand in double quotes; by default they may in CSV and not in TSV."""
    split: str | None = None
    """Split of a hub data set or of a folder of `save_to_disk`, or a part of it, such as `train[:10%]`; of a run."""
    join: bool = False
    """Whether documents that follow each other are joined, each with its end token, up to `max_length`; none is cut
    unless it is longer than that alone.
    """
    name: str | None = None
    """Configuration of a hub data set that has several; of a run one of its sources, as scores call it."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set; a commit pins it for good."""
    streaming: bool = False
    """Whether a hub data set is read while it is downloaded and not kept; `split: train[:10000]` stops early."""
    augment: Annotated[tuple[Augmentation, ...], Used] = ()
    """Further rows made of each row of this source, under its format's names: a name, a mapping, or a list of them."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.separator is not None and self.document != "file":
            raise ValueError("`separator` says already where a document ends, so leave `document` out")
        return self


def _unmixed(sources: tuple[Source, ...]) -> tuple[Source, ...]:
    """Sources that are only measured on; a share or further rows would be settings without effect."""
    if any(source.share is not None for source in sources):
        raise ValueError("`share` mixes the sources of data.train; these are read once and whole, so leave it out")
    if any(source.augment for source in sources):
        raise ValueError("`augment` makes more of what is trained on; these are measured as they are, so leave it out")
    return sources


def _mixable(sources: tuple[Source, ...]) -> tuple[Source, ...]:
    """Sources that are mixed by their shares, or by their sizes if none has one."""
    shares = [source.share for source in sources if source.share is not None]
    if shares and len(shares) < len(sources):
        raise ValueError("give every source a `share`, or none")
    if shares and max(shares) / min(shares) > _MOST_APART:
        raise ValueError("the shares are more than a million times apart: the least would hardly be seen")
    return sources


class KeptBack(Section):
    """A part of the training rows that is measured on and not taught."""

    share: Annotated[float, Field(gt=0, lt=1)]
    """Of the training rows. Content hashes decide, so a row stays on its side when others are added."""
    max_examples: Count | None = None
    """Most examples: with more rows the share shrinks, and rows only ever go from here to training."""
    stratify_by: str | None = None
    """A column whose every value is kept back in just this share. Unstable: added rows may change sides."""


def _way(value: Any) -> str:
    """Which of BRANCHES a value of data.heldout is written in."""
    if is_number(value):
        return BRANCHES[0]
    portion = isinstance(value, KeptBack) or (isinstance(value, Mapping) and "share" in value and "path" not in value)
    return BRANCHES[1] if portion else BRANCHES[2]


Sources = Annotated[tuple[Source, ...], Listed, AfterValidator(_unmixed)]
Trained = Annotated[tuple[Source, ...], Listed, Field(min_length=1), AfterValidator(_mixable)]
Measured = Annotated[
    Annotated[Share, Tag(BRANCHES[0])] | Annotated[KeptBack, Tag(BRANCHES[1])] | Annotated[Sources, Tag(BRANCHES[2])],
    Discriminator(_way),
]


def portion(value: Any) -> KeptBack | None:
    """What `data.heldout` or `data.test` takes from the training rows, if it takes any."""
    if isinstance(value, KeptBack):
        return value
    return KeptBack(share=float(value)) if is_number(value) and value > 0 else None


class ReplaySection(Section):
    """General data mixed into every update, so that what the model knew is not forgotten."""

    sources: Trained
    """What is mixed in, never held out: a path, a mapping, or a list of them."""
    share: Annotated[float, Field(ge=1e-4, le=0.99)] = 0.1
    """Its part of every update; `train.epochs` counts passes over data.train, so a run grows by 1 / (1 - share)."""


def _checks(value: Any) -> Any:
    """Codes and policies that there are; ValueError with all that there are not."""
    if isinstance(value, Mapping):
        try:
            check_policies({str(code): str(policy) for code, policy in value.items()})
        except RecipeError as fault:
            raise ValueError("; ".join(f"{one.what}: {one.mend}" for one in fault.faults)) from fault
    return value


class DataSection(Section):
    """What to learn from, and what to measure on."""

    train: Trained
    """What the model learns: a path, a mapping, or a list of them."""
    replay: Annotated[ReplaySection | None, Mixed] = None
    """General data against forgetting: `{sources: general.jsonl, share: 0.1}`, or its sources alone."""
    share_by: Literal["examples", "tokens"] = "examples"
    """What shares of sources and of replay count; `tokens` allows for how long the examples of each source are."""
    heldout: Measured = 0.05
    """Kept back to judge training by: a share of `train` by content hash, such as `0.05` or
    `{share: 0.05, max_examples: 500}`, or sources of its own.
    """
    test: Measured = ()
    """Never looked at while training or choosing a checkpoint; `fulltune evaluate` scores it. Written as `heldout`."""
    retention: Sources = ()
    """What must not be forgotten: its loss is measured whenever the held-out loss is."""
    max_length: Annotated[int, Field(ge=2, le=MOST)] = 2048
    """Most tokens of one example."""
    over_length: Literal["error", "drop", "truncate", "split"] = "error"
    """What a longer example is: a bad row, left out and counted, cut at its end and counted, or (documents only) cut
    into several examples of which no token is lost.
    """
    supervise: Literal["assistant", "last_turn", "completion", "all"] = "assistant"
    """Which tokens are taught: every assistant turn, the last one, those after the last user turn, or all tokens."""
    control_tokens: Literal["text", "drop", "keep"] = "text"
    """What `<|im_end|>` and the like in a row are: letters, left out, or control tokens that were meant; noted each."""
    on_bad_row: Literal["error", "drop"] = "error"
    """Whether rows that cannot be taught stop the run, each named with its line, or are left out and counted."""
    duplicates: Literal["error", "drop", "keep"] = "error"
    """What a row is whose content stood before: a bad row, left out and counted, or taught again."""
    group_by: str | None = None
    """A column: rows that share its value go to the held-out share together, or not at all."""
    checks: Annotated[dict[str, Policy], BeforeValidator(_checks)] = Field(default_factory=dict)
    """What is done about findings that leave a row teachable, by their codes: `keep` (the default), `drop` or `error`,
    such as `{near_duplicate: drop, pii_email: error}`; near_duplicate, near_leak and
    benchmark_overlap may also be `off`.
    """
    benchmarks: Sources = ()
    """Texts that should not stand in the training rows: questions of benchmarks that the model will be judged by."""
    processes: Count | None = None
    """Processes that turn rows into tokens; by default as many as there are cores. Small data needs one only."""

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.share_by == "tokens" and not self.is_mixed:
            raise ValueError("`share_by` says what shares count, but there are none: no replay, no sources with shares")
        return self

    @model_validator(mode="after")
    def _sides(self) -> Self:
        portions = [part for part in map(portion, (self.heldout, self.test)) if part is not None]
        if sum(part.share for part in portions) >= 1:
            raise ValueError("data.heldout and data.test together leave nothing to train on")
        if self.group_by is not None and not portions:
            raise ValueError("`group_by` steers the held-out share, but neither data.heldout nor data.test is a share")
        if self.group_by is not None and any(part.stratify_by is not None for part in portions):
            raise ValueError("`group_by` and `stratify_by` exclude each other: groups cannot be cut to fit the strata")
        if len({part.stratify_by for part in portions}) > 1:
            raise ValueError("data.heldout and data.test are stratified by different columns; name the same in both")
        return self

    @property
    def is_mixed(self) -> bool:
        """Whether anything is seen more or less often than its size says."""
        return self.replay is not None or (len(self.train) > 1 and self.train[0].share is not None)


def sources(data: DataSection, split: str) -> tuple[Source, ...]:
    """The sources of one split, of train those of replay last; none if it is a share of the training rows."""
    named = {
        "train": (*data.train, *(() if data.replay is None else data.replay.sources)),
        "heldout": data.heldout,
        "test": data.test,
        "retention": data.retention,
        "benchmarks": data.benchmarks,
    }
    found = named[split]
    return found if isinstance(found, tuple) else ()
