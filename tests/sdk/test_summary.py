from __future__ import annotations

from typing import Any

import numpy
import pytest

from sdk._summary import ARRAY_VALUES_MAX, MissingKeyError, Summary, summary_value


class _Run:
    """A store in memory that does with the facts what the reader does."""

    def __init__(self, **logged: Any) -> None:
        self.logged = logged
        self.facts: list[dict[str, Any]] = []
        self.reads = 0
        self.summary = Summary(self.read, self.facts.append)

    def read(self) -> dict[str, Any]:
        self.reads += 1
        return dict(self.logged)


def test_a_key_that_was_set_is_read_without_the_store() -> None:
    """Explicit values never wait."""
    run = _Run()
    run.summary["best"] = 3
    run.summary.text = "a"
    assert run.summary["best"] == run.summary.best == 3
    assert run.reads == 0
    assert run.facts == [{"summary": {"best": 3}}, {"summary": {"text": "a"}}]


def test_a_key_that_was_logged_is_looked_up() -> None:
    """The last logged value, unless one was set."""
    run = _Run(loss=0.5)
    assert run.summary["loss"] == 0.5
    run.summary["loss"] = 1
    assert run.summary["loss"] == 1


def test_a_missing_key_is_a_key_error_also_by_attribute() -> None:
    """And `hasattr` and `get` work."""
    summary = _Run().summary
    with pytest.raises(KeyError):
        summary["x"]
    with pytest.raises(KeyError):
        summary.x  # noqa: B018
    assert not hasattr(summary, "x")
    assert summary.get("x", 3) == 3
    assert issubclass(MissingKeyError, KeyError)


def test_mapping_protocol() -> None:
    """`dict()`, `in`, `len`, `keys`, `items`, over both kinds of values."""
    run = _Run(loss=0.5, acc=1)
    run.summary["best"] = 2
    assert dict(run.summary) == {"loss": 0.5, "acc": 1, "best": 2}
    assert set(run.summary.keys()) == {"loss", "acc", "best"}
    assert len(run.summary) == 3
    assert "loss" in run.summary
    assert "none" not in run.summary


def test_update_is_one_record() -> None:
    """Several values, one fact; nothing for nothing."""
    run = _Run()
    run.summary.update({"a": 1}, b=2)
    run.summary.update({})
    assert run.facts == [{"summary": {"a": 1, "b": 2}}]


def test_nested_values_are_live() -> None:
    """A write into a part stores the whole value of its top key."""
    run = _Run()
    run.summary["best"] = {"acc": 1, "at": {"step": 3}}
    run.summary["best"]["acc"] = 2
    run.summary.best.at.epoch = 5
    assert run.facts[1:] == [
        {"summary": {"best": {"acc": 2, "at": {"step": 3}}}},
        {"summary": {"best": {"acc": 2, "at": {"step": 3, "epoch": 5}}}},
    ]
    assert run.summary.as_dict() == {"best": {"acc": 2, "at": {"step": 3, "epoch": 5}}}
    assert run.facts[0] == {"summary": {"best": {"acc": 1, "at": {"step": 3}}}}


def test_logged_nested_values_read_by_both_names() -> None:
    """A nested dict that was logged has dotted names in the store."""
    run = _Run(**{"val.acc": 1, "val.loss": 2})
    assert run.summary["val.acc"] == run.summary["val"]["acc"] == run.summary.val.acc == 1
    assert dict(run.summary["val"]) == {"acc": 1, "loss": 2}
    with pytest.raises(KeyError):
        run.summary["val"]["none"]


def test_a_nested_value_of_an_earlier_attempt_is_read_in_parts() -> None:
    """The store gives what was set before as a whole."""
    run = _Run(best={"acc": 1})
    assert run.summary["best"]["acc"] == 1
    assert dict(run.summary["best"]) == {"acc": 1}


def test_deleting() -> None:
    """A set key, a logged key, a nested key; a key that is nowhere is a KeyError."""
    run = _Run(loss=1)
    run.summary["best"] = {"a": 1, "b": 2}
    del run.summary["best"]["a"]
    del run.summary["best"]
    del run.summary["loss"]
    assert run.facts[1:] == [
        {"summary": {"best": {"b": 2}}},
        {"summary_removed": ["best"]},
        {"summary_removed": ["loss"]},
    ]
    with pytest.raises(KeyError):
        del run.summary["none"]
    run.summary.x = 1
    del run.summary.x
    assert "x" not in run.summary


def test_a_refused_write_is_not_kept() -> None:
    """After `finish` the run refuses: nothing changes here either."""

    def refuse(facts: object) -> None:
        raise RuntimeError

    summary = Summary(dict, refuse)
    with pytest.raises(RuntimeError):
        summary["a"] = 1
    assert "a" not in summary


def test_arrays() -> None:
    """Short ones are lists, long ones statistics, of size one a number."""
    assert summary_value(numpy.float32(0.5), "k") == 0.5
    assert summary_value(numpy.array([[7]]), "k") == 7
    assert summary_value(numpy.arange(ARRAY_VALUES_MAX), "k") == list(range(ARRAY_VALUES_MAX))
    found = summary_value(numpy.arange(ARRAY_VALUES_MAX + 1), "k")
    assert found["size"] == ARRAY_VALUES_MAX + 1
    assert (found["min"], found["max"], found["mean"], found["p25"]) == (0, 32, 16, 8)


def test_what_cannot_be_stored_is_an_error_of_use() -> None:
    """It names the key."""
    with pytest.raises(TypeError, match="'k'"):
        _Run().summary["k"] = object()


def test_a_nested_write_keeps_what_is_stored_beside_it() -> None:
    """What an earlier attempt set as a whole."""
    run = _Run(best={"acc": 1, "loss": {"min": 2}})
    run.summary["best"]["acc"] = 3
    run.summary["best"]["loss"]["max"] = 4
    assert run.facts[-1] == {"summary": {"best": {"acc": 3, "loss": {"min": 2, "max": 4}}}}
    assert run.summary["best"].as_dict() == {"acc": 3, "loss": {"min": 2, "max": 4}}


def test_a_logged_key_that_was_deleted_stays_away() -> None:
    """Until it is set again."""
    run = _Run(loss=0.5)
    del run.summary["loss"]
    assert ("loss" in run.summary, dict(run.summary)) == (False, {})
    run.summary["loss"] = 2
    assert run.summary["loss"] == 2
