"""How fast this machine multiplies matrices of a model's shapes: forward, and both products of the backward pass.

Options: tokens of a batch, tokens of an example, supervised tokens of a batch. The answer: operations a second of
`body`, `head` and `attention`.
"""

import json
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.contestants.course import Course

_LEAST, _FEWEST = 0.1, 5
"""Each product is repeated for so many seconds and at least so often; the median counts."""


def body(config: Any, tokens: int) -> Iterator[tuple[int, int, int]]:
    """Rows, inner size and columns of the products of one block's matrices with the hidden states."""
    hidden, inter = config.hidden_size, config.intermediate_size
    head = hidden // config.num_attention_heads
    for inner, columns in (
        (hidden, hidden),
        (hidden, config.num_key_value_heads * head),
        (hidden, config.num_key_value_heads * head),
        (hidden, hidden),
        (hidden, inter),
        (hidden, inter),
        (inter, hidden),
    ):
        yield tokens, inner, columns


def rate(shapes: Iterable[tuple[int, int, int]], dtype: torch.dtype, *, batch: int = 0) -> float:
    """Operations a second, over all shapes together; `batch`: so many products at once."""
    operations = seconds = 0.0
    for shape in shapes:
        rows, inner, columns = shape
        lead = (batch,) if batch else ()
        x, w = torch.randn(*lead, rows, inner, dtype=dtype), torch.randn(*lead, columns, inner, dtype=dtype)
        g = torch.randn(*lead, rows, columns, dtype=dtype)
        for one, other in ((x, w.mT), (g, w), (g.mT, x)):
            operations += 2.0 * rows * inner * columns * max(1, batch)
            seconds += _best(one, other)
    return operations / seconds


def _best(one: torch.Tensor, other: torch.Tensor) -> float:
    """Seconds of one product."""
    out = one @ other
    taken: list[float] = []
    over = time.perf_counter() + _LEAST
    while time.perf_counter() < over or len(taken) < _FEWEST:
        begun = time.perf_counter()
        torch.matmul(one, other, out=out)
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def main() -> None:
    """Measure, then write."""
    course = Course.given()
    tokens, length, supervised = map(int, sys.argv[2:5])
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(course.model)
    dtype = torch.float32 if course.precision == "float32" else torch.bfloat16
    size, heads = config.hidden_size // config.num_attention_heads, config.num_attention_heads
    found = {
        "body": rate(list(body(config, tokens)), dtype),
        "head": rate([(supervised, config.hidden_size, config.vocab_size)], dtype),
        "attention": rate([(length, size, length)], dtype, batch=heads * max(1, tokens // length)),
    }
    Path(course.answer).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
