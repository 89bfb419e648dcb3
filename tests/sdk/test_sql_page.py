from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import sdk
from sdk.query.sql.columns import COLUMNS
from tests.builders import make_run, make_store

PAGE = Path(__file__).parents[2] / "docs" / "sql.md"
TEXT = PAGE.read_text(encoding="utf-8")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store with the names of the page."""
    path = make_store(tmp_path)
    for number, name in enumerate(("07ce", "07cc")):
        config = {"lr": 0.1, "method": "adam", "seed": 3 + number, "model": {"name": "cnn"}}
        make_run(path, name, [{"loss": 1.0 / (n + 1), "val/acc": n / 10} for n in range(10)], config=config)
    monkeypatch.setenv("STEPD_DIR", path)
    return path


def test_the_queries_run(store: str) -> None:
    """Every query of docs/sql.md is taken as it stands there."""
    shown = [
        found.replace('\\"', '"')
        for found in re.findall(r"^\$ stepd sql \"(.*?[^\\])\"$", TEXT, re.DOTALL | re.MULTILINE)
    ]
    given = [query for block in re.findall(r"```sql\n(.*?)```", TEXT, re.DOTALL) for query in block.split(";\n")]
    assert len(shown) + len(given) >= 12
    for query in [*shown, *given]:
        assert sdk.sql(query, store=sdk.open_store(store)).columns, query


def test_the_examples_in_python_run(store: str) -> None:
    """The examples in Python do what they say."""
    names: dict[str, Any] = {"print": lambda *_: None}
    for example in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(compile(example, str(PAGE), "exec"), names)
    assert len(names["answer"]) == 2


def test_the_table_of_relations() -> None:
    """The page names all relations, each with its columns in order."""
    told = {
        relation: re.findall(r"`(\w+)`", columns)
        for relation, columns in re.findall(r"^\| `(\w+)` \| (.*?) \|", TEXT, re.MULTILINE)
    }
    assert told == {relation: list(columns) for relation, columns in COLUMNS.items()}
