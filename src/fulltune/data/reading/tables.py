"""Parquet and Arrow files -> rows, batch by batch."""

import datetime
import decimal
import math
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import parquet

from fulltune.data.example import Row, RowFault
from fulltune.data.findings import Findings
from fulltune.data.reading.lines import LONGEST_ROW, too_long
from fulltune.data.strict import CONTROL, DEEPEST

_TOGETHER = 64
"""Rows that are held at once."""
BROKEN = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)
"""What damaged tables raise: pyarrow's own errors, and Python's for values that it cannot hold."""


def rows(stream: BinaryIO, path: str, findings: Findings) -> Iterator[tuple[int, Row]]:
    """Every row with its number. Structs lose the keys that are null: they belong to other rows of the column."""
    number = 0
    try:
        for batch in _batches(stream, path, findings):
            for made in _plain_rows(batch):
                number += 1
                try:
                    yield number, own_row(made, f"{path}:{number}", findings)
                except RowFault as fault:
                    findings.bad_row(f"{path}:{number}", fault)
    except BROKEN as fault:
        told = " ".join(str(fault).split())[:300] or type(fault).__name__
        findings.bad_file(path, "damaged", f"not a whole Parquet or Arrow file: {told}", "copy the file again")
        return
    if number == 0:
        findings.bad_file(path, "empty_file", "the table is empty (0 rows)", "check how it was made")


def _batches(stream: BinaryIO, path: str, findings: Findings) -> Iterator[Any]:
    head = stream.read(6)
    stream.seek(0)
    if head.startswith(b"PAR1"):
        file = parquet.ParquetFile(stream)
        if _is_named_once(file.schema_arrow, path, findings):
            yield from file.iter_batches(batch_size=_TOGETHER)
    elif head == b"ARROW1":
        with pa.ipc.open_file(stream) as reader:
            if _is_named_once(reader.schema, path, findings):
                yield from (reader.get_batch(index) for index in range(reader.num_record_batches))
    else:
        with pa.ipc.open_stream(stream) as reader:
            if _is_named_once(reader.schema, path, findings):
                yield from reader


def _is_named_once(schema: Any, path: str, findings: Findings) -> bool:
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        what = f"the columns {', '.join(map(repr, twice))} are there more than once"
        findings.bad_file(path, "columns", what, "give each column a name of its own")
    return not twice


def _plain_rows(batch: Any) -> Iterator[dict[str, Any]]:
    """Rows as Python values; checked before, since pyarrow reads damaged offsets out of bounds."""
    batch.validate(full=True)
    for start in range(0, batch.num_rows, _TOGETHER):
        yield from batch.slice(start, _TOGETHER).to_pylist(maps_as_pydicts="strict")


def own_row(row: dict[str, Any], where: str, findings: Findings) -> Row:
    """The row with plain values, without the keys that its structs have only because other rows do."""
    reading = _Reading()
    made = {key: reading.plain(value, 1) for key, value in row.items()}
    if reading.size > LONGEST_ROW:
        raise too_long(reading.size)
    if reading.control:
        findings.note("control_char", where)
    return made


class _Reading:
    """Walks through the values of one row."""

    def __init__(self) -> None:
        self.size, self.control = 0, False

    def plain(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            self.size += len(value.encode("utf-8", "surrogatepass"))
            self.control = self.control or CONTROL.search(value) is not None
            return value
        if isinstance(value, dict | list | tuple) and depth >= DEEPEST:
            raise RowFault("json_parse", f"nested more than {DEEPEST} deep", "a row is a flat object")
        if isinstance(value, dict):
            inner = {str(key): self.plain(one, depth + 1) for key, one in value.items()}
            return {key: one for key, one in inner.items() if one is not None}
        if isinstance(value, list | tuple):
            return [self.plain(one, depth + 1) for one in value]
        if isinstance(value, float) and not math.isfinite(value) and depth > 1:
            raise RowFault("json_nan", f"{value} is not JSON", "write null, or leave the row out")
        self.size += 8
        return _scalar(value)


def _scalar(value: Any) -> Any:
    """What JSON does not have, in a way that no format takes for a text to teach."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, bytes):
        return {"bytes": len(value)}
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta | decimal.Decimal):
        return {type(value).__name__: str(value)}
    return {type(value).__name__: repr(value)}
