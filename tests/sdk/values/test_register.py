"""sdk.register_value: who says what is stored of other people's types."""

from __future__ import annotations

import collections
import enum
from typing import Any

import numpy
import pytest

import sdk
from sdk import data_types
from sdk.values import register


class Base: ...


class Derived(Base): ...


class Own(numpy.ndarray[Any, Any]): ...


class Color(enum.Enum):
    RED = 1


@pytest.fixture(autouse=True)
def none_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(register, "_handlers", {})


def test_the_nearest_base_decides(world: Any) -> None:
    """The exact type first, then its bases, in lists and dicts too; taken away, it is as before."""
    sdk.register_value(Base, lambda value: "base")
    sdk.init()
    sdk.log({"a": Base(), "b": [Derived()], "c": {"d": Derived()}})
    sdk.register_value(Derived, lambda value: {"kind": ("derived", 1)})
    sdk.log({"a": Base(), "b": [Derived()]})
    assert world.rows == [{"a": "base", "b": ["base"], "c.d": "base"}, {"a": "base", "b": [{"kind": ["derived", 1]}]}]
    sdk.register_value(Base, None)
    with pytest.raises(TypeError, match="'a'.*Base, which cannot be stored"):
        sdk.log({"a": Base()})
    sdk.register_value(Base, None)


def test_it_may_give_media(world: Any) -> None:
    """And media may be what is replaced."""
    sdk.register_value(Base, lambda value: sdk.Html("<p>", inject=False))
    sdk.register_value(sdk.Graph, lambda graph: len(graph.nodes))
    sdk.init()
    sdk.log({"a": Base(), "g": sdk.Graph()})
    assert world.rows[0]["a"]["_type"] == "html-file"
    assert world.rows[0]["g"] == 0


def test_it_is_asked_before_what_is_known(world: Any) -> None:
    """Arrays, enums; a config asks it as well."""
    sdk.register_value(numpy.ndarray, lambda array: "array")
    sdk.register_value(Color, lambda color: color.name)
    sdk.init(config={"color": Color.RED})
    sdk.log({"a": numpy.zeros(3), "own": numpy.zeros(3).view(Own), "c": Color.RED})
    assert world.rows == [{"a": "array", "own": "array", "c": "RED"}]
    assert sdk.config["color"] == "RED"


def test_one_that_gives_its_own_type(world: Any) -> None:
    """It would be asked again for ever; two that pass a value to each other end as well."""
    sdk.register_value(Base, lambda value: Derived())
    sdk.init()
    with pytest.raises(TypeError, match=r"'a'.*handler of .*Base \(register_value\) returned a .*Derived"):
        sdk.log({"a": Base()})
    sdk.register_value(Base, lambda value: Color.RED)
    sdk.register_value(Color, lambda value: Base())
    with pytest.raises(ValueError, match="nested deeper"):
        sdk.log({"a": Base()})
    assert world.rows == []


def test_one_that_raises(world: Any) -> None:
    """Its error reaches the caller, and nothing is stored; a run that goes on leaves the key out."""

    def broken(value: Any) -> Any:
        raise RuntimeError("own reasons")

    sdk.register_value(Base, broken)
    run = sdk.init()
    with pytest.raises(RuntimeError, match="own reasons"):
        sdk.log({"a": Base(), "b": 1})
    assert world.rows == []
    run.finish()
    sdk.init(misuse="warn")
    sdk.log({"a": Base(), "b": 1})
    assert world.rows == [{"b": 1}]


@pytest.mark.parametrize(
    "kind", [int, bool, str, dict, list, tuple, type(None), collections.OrderedDict, enum.IntEnum, numpy.float32]
)
def test_what_is_stored_before_anybody_is_asked(kind: type) -> None:
    """Plain types, what derives from them, and numpy's scalars: a handler would be called at times, and at times not."""
    with pytest.raises(TypeError, match=f"{kind.__qualname__}, whose values are stored"):
        sdk.register_value(kind, str)


def test_bad_arguments() -> None:
    """What is no class, and what cannot be called."""
    with pytest.raises(TypeError, match="expected a class"):
        sdk.register_value("Base", str)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a function"):
        sdk.register_value(Base, "str")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", data_types.__all__)
def test_the_module_of_values(name: str) -> None:
    """Each name of W&B's module is there, and the package's are the same."""
    assert getattr(data_types, name) is getattr(sdk, name, getattr(data_types, name))
    assert name in dir(data_types)
    with pytest.raises(AttributeError, match="no_such"):
        data_types.no_such  # noqa: B018
