"""sdk.segment.naming: names of a store are made and taken apart in one place."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.segment.naming import RUNS, SegmentName, format_segment, parse_segment, run_path


@given(st.integers(0, 2**64 - 1), st.integers(0, 999_999))
def test_a_name_is_taken_apart_as_it_was_made(writer: int, number: int) -> None:
    """parse is the inverse of format."""
    name = SegmentName(writer, number)
    assert parse_segment(format_segment(name)) == name


@pytest.mark.parametrize(
    "text",
    ["", "run.json", "history-0123456789abcdef-000001.seg.tmp", "history-0123456789ABCDEF-000001.seg", "history-1-1.seg",
     "xhistory-0123456789abcdef-000001.seg", "history-0123456789abcdef-000001.seg\n", "history-0123456789abcdef-0000001.seg",
     "history-0123456789abcdef-00000١.seg"],
)  # fmt: skip
def test_other_files_are_no_segments(text: str) -> None:
    """Drafts, other cases, other lengths and digits of other scripts are not ours."""
    assert parse_segment(text) is None


def test_a_run_never_leaves_the_store() -> None:
    """An id that looks like a path stays one directory below `runs`."""
    for run_id in ("..", ".", "a/b", "/etc", "~"):
        path = run_path("/store", run_id)
        assert os.path.dirname(os.path.normpath(path)) == f"/store/{RUNS}"
