"""A data set of the `datasets` library, counted and dumped by its columns."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.contestants import dump


def counts(ids: Any, taught: Any) -> tuple[int, int, int]:
    """Rows, tokens and supervised tokens; `ids` and `taught` are Arrow columns of lists, 0 where nothing is taught."""
    return len(ids), len(pc.list_flatten(ids)), pc.sum(pc.list_flatten(taught)).as_py()


def mask(labels: Any) -> Any:
    """A column of labels as one that has 1 for what is taught."""
    chunks = [
        pa.ListArray.from_arrays(chunk.offsets, pc.cast(pc.not_equal(chunk.values, dump.IGNORE), pa.int8()))
        for chunk in labels.cast(pa.list_(pa.int64())).chunks
    ]
    return pa.chunked_array(chunks)


def write_dump(folder: str, ids: Any, taught: Any) -> None:
    """Both columns as flat arrays."""
    flat = [np.asarray(pc.list_flatten(column).combine_chunks()) for column in (ids, taught)]
    dump.write(folder, flat[0], flat[1], np.asarray(pc.list_value_length(ids).combine_chunks()))
