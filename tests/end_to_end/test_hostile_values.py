"""What a script may log although nobody should: accepted by `log()` is stored and read back, refused is said at once."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

import sdk
from sdk.limits import KEY_BYTES_MAX, NESTING_MAX

EVIL = "\x1b]0;x\x07\r\n\0\u202e\ud800"


def deep(levels: int, kind: type) -> Any:
    value: Any = 1.0
    for _ in range(levels):
        value = {"a": value} if kind is dict else [value]
    return value


def logged(store: Path, *rows: dict[Any, Any], pieces: bool = False) -> list[dict[str, Any]]:
    """Logs through a daemon, each row in two pieces if wanted, and reads back what is stored."""
    run = sdk.init(id="r", settings={"silent": True})
    for row in rows:
        if pieces:
            run.log({"x": 0}, commit=False)
        run.log(row)
    run.finish()
    found = sdk.open_store(store).run("r")
    assert not found.damage
    assert not found.gaps
    return list(found.rows())


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize(
    "row",
    [
        {EVIL: EVIL, f"a/{EVIL}": 1.0, "": 2.0},
        {"k" * KEY_BYTES_MAX: 1.0, "k" * (KEY_BYTES_MAX + 1): 2.0, "\u00e9" * 500_000: 3.0},
        {f"key/{n}": float(n) for n in range(100_000)},
        {"list": deep(NESTING_MAX, list)},
        {"list": deep(500, list)},
        {"_step": 1.0, "_timestamp": 2.0, "_runtime": 3.0},
        {"text": "x" * 900_000, "bytes": bytes(900_000)},
    ],
    ids=["control characters", "long keys", "wide", "deep", "deeper", "reserved", "large"],
)
def test_accepted_is_stored_and_read_back(store: Path, row: dict[str, Any], pieces: bool) -> None:
    """Whatever `log()` took comes back as it was, from single records and from merged pieces."""
    (found,) = logged(store, row, pieces=pieces)
    named = {"_step": "_logged_step", "_timestamp": "_logged_timestamp"}
    assert {named.get(key, key) for key in row} <= found.keys()
    assert all(found[named.get(key, key)] == value for key, value in row.items())


@pytest.mark.parametrize("pieces", [False, True])
def test_deep_dicts_become_long_names(store: Path, pieces: bool) -> None:
    """A dict of 500 levels is one key of 500 parts."""
    (found,) = logged(store, deep(500, dict), pieces=pieces)
    assert found[".".join("a" * 500)] == 1.0


@pytest.mark.parametrize(
    "value", [deep(2000, list), deep(2000, dict), {"x": deep(1100, list)}], ids=["list", "dict", "in"]
)
def test_too_deep_is_an_error_at_once(store: Path, value: Any) -> None:
    """What the packer cannot take raises, nothing of the call is stored, and the run goes on."""
    run = sdk.init(id="r", settings={"silent": True})
    with pytest.raises(ValueError, match="nested deeper than"):
        run.log({"v": value})
    run.log({"x": 1.0})
    run.finish()
    assert [row["x"] for row in sdk.open_store(store).run("r").rows()] == [1.0]


def test_ever_new_keys(store: Path) -> None:
    """10^5 keys, a hundred new ones at each step, are all there in the end."""
    rows = [{f"k{step}-{n}": 1.0 for n in range(100)} for step in range(1000)]
    run = sdk.init(id="r", settings={"silent": True})
    for row in rows:
        run.log(row)
    run.finish()
    found = sdk.open_store(store).run("r")
    assert len(found.keys()) == 100_000
    assert not found.damage
    assert not found.gaps


def test_hostile_facts(store: Path) -> None:
    """Name, notes, tags, config, summary, metrics and alerts of any text are kept to the letter, and stop nobody."""
    run = sdk.init(
        id="r", name=EVIL, notes=EVIL, tags=[EVIL[:20]], group=EVIL, job_type=EVIL, config={EVIL: {EVIL: [EVIL]}},
        settings={"silent": True},
    )  # fmt: skip
    run.define_metric(EVIL, summary="max")
    run.alert(EVIL, EVIL)
    run.summary[EVIL] = EVIL
    run.config.update({"deep": deep(60, list)})
    run.log({EVIL: random.random()})
    run.finish()
    found = sdk.open_store(store).run("r")
    assert (found.name, found.notes, found.group, found.job_type) == (EVIL,) * 4
    assert found.config[EVIL] == {EVIL: [EVIL]}
    assert found.summary[EVIL] == EVIL
    assert EVIL in found.metrics
