"""docs/sync.md says what is true."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from daemon.cli import cli
from daemon.sync import outcome
from daemon.sync.carrying import carry_run
from daemon.sync.driver import BACK_OFF_SECONDS, BACK_OFF_SECONDS_MAX, TRIES_MAX
from daemon.sync.place import parse
from tests.builders import RunBuilder, make_store

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "sync.md").read_text(encoding="utf-8")


def test_the_example_of_a_target_works(tmp_path: Path) -> None:
    """What the page shows as a target of one's own carries a run that grows, each value once."""
    names: dict[str, Any] = {}
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code, names)
    store = make_store(tmp_path)
    run = RunBuilder(store, "a41f")
    main = run.stream()
    target = names["CountTarget"](parse(f"count:{tmp_path}/out?unit=points"))
    for ends in (False, True):
        for _ in range(5):
            main.log({"loss": 1.0, "acc": 2.0})
        if ends:
            main.finish()
        run.flush()
        assert carry_run(store, "a41f", target).points == 10
    told = json.loads((tmp_path / "out" / "a41f.json").read_text())
    assert told == {"name": "calm-otter-12", "count": 20, "unit": "points"}


def test_states_and_numbers() -> None:
    """Every state has its row, every option its place, and numbers are those of the code."""
    rows = set(re.findall(r"^\| `([a-z ]+)` \|", PAGE, re.MULTILINE))
    assert rows >= outcome.STATES
    help_page = CliRunner().invoke(cli, ["sync", "--help"]).stdout
    options = set(re.findall(r"(--[a-z-]+)", help_page)) - {"--help", "--dir"}
    assert options <= set(re.findall(r"--[a-z-]+", PAGE))
    assert (BACK_OFF_SECONDS, BACK_OFF_SECONDS_MAX, TRIES_MAX) == (0.5, 60.0, 5)
