"""Short names of sources: unique, and without dots."""

import pytest
from hypothesis import given, strategies

from fulltune.data.names import short_names


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/chat.jsonl", "chat"),
        ("chat.v2.JSONL.gz", "chat_v2"),
        ("s3://bucket/some rows.parquet", "some_rows"),
        ("/data/general", "general"),
        ("org/dolly-15k.5", "dolly-15k_5"),
        ("/data/general/*.jsonl", "general"),
        ("/data/*/part-[0-9]*.jsonl", "part-_0-9"),
        ("/.../*.jsonl", "source"),
        ("größe.txt", "größe"),
        ("https://host/rows.jsonl?token=abcdef", "rows"),
        ("../../etc/passwd", "passwd"),
        ("..\\..\0\x1b", "source"),
        ("/data/.jsonl", "data"),
    ],
)
def test_a_name_is_that_of_the_file(path: str, name: str) -> None:
    assert short_names([path]) == [name]


def test_names_that_several_share_are_numbered() -> None:
    assert short_names(["a/rows.jsonl", "b.csv", "c/rows.csv"]) == ["rows_1", "b", "rows_2"]
    assert short_names(["a/x.csv", "b/x.csv", "x_1.csv", "c/x.csv"]) == ["x_2", "x_3", "x_1", "x_4"]


@given(strategies.lists(strategies.text("ab_1.*/", min_size=1), max_size=9))
def test_names_are_unique_and_have_no_dots(paths: list[str]) -> None:
    names = short_names(paths)
    assert len(set(names)) == len(names) == len(paths)
    assert all(name and "." not in name for name in names)
