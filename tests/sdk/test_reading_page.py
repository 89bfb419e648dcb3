from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import pytest

import sdk
from sdk.reader import digest, listing
from tests.builders import compact, make_run, make_store

PAGE = Path(__file__).parents[2] / "docs" / "reading.md"


@pytest.mark.parametrize("compacted", [False, True], ids=["rows", "columns"])
def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compacted: bool) -> None:
    """Every example of docs/reading.md does what it says, one after the other, over rows and over columns."""
    pytest.importorskip("tsdownsample")
    pytest.importorskip("polars")
    pytest.importorskip("pandas")
    store = make_store(tmp_path)
    for name in ("a41f", "b52e"):
        rows = [{"train/loss": 5.0 / (n + 1), "train/acc": n / 5000} for n in range(5000 if name == "b52e" else 50)]
        made = make_run(store, name, rows, project="digits", config={"lr": 1e-3})
        if compacted:
            compact(made)
    monkeypatch.setenv("STEPD_DIR", store)
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) >= 6
    names: dict[str, Any] = {"print": lambda *_: None}
    for example in examples:
        exec(compile(example, str(PAGE), "exec"), names)
    assert sdk.open_store().path == store


def test_the_numbers_of_the_cache() -> None:
    """Magic, version and limits of runs.cache are the same on the page and in the code."""
    text = PAGE.read_text(encoding="utf-8")
    assert f"magic: `{listing._MAGIC.decode()}`" in text
    assert f"version: {listing._VERSION}" in text
    assert listing._HEAD.size == struct.calcsize("<8sII") == 16
    assert f"more than {listing.SETTLED_SECONDS:.0f} s old" in text
    assert f"longer than {listing._CONFIG_BYTES_MAX // 1024} KiB" in text
    assert f"longer than {digest.DIGEST_BYTES_MAX // 1024} KiB" in text
    assert f"at most {digest._SERIES_MAX} series" in text
    assert f"more than {digest.ROW_BYTES_MAX >> 20} MiB of the run" in text
    assert f"at most {digest._TEXT_CHARACTERS_MAX} characters" in text
