"""Other people's types: who says what is stored of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Handler = Callable[[Any], Any]

# What the packer takes by itself, subclasses included: nobody would be asked.
_PACKED = (bool, int, float, str, bytes, bytearray, memoryview, list, tuple, dict, type(None))

_handlers: dict[type, Handler] = {}


def register_value(type_: type, handler: Handler | None) -> None:
    """Sets what `log` stores of a type, and of the types that derive from it.

    The nearest base that has a handler decides, and it is asked before everything that stepd knows itself: also for the
    types of numpy's and torch's arrays. It is called in the thread that logs, without any lock.

    Args:
        type_: Any class but the plain ones of Python (str, dict, …), their subclasses and numpy's scalars, which are
            stored before anybody is asked.
        handler: Called with the value; what it returns is logged in its place: a number, a dict, an `Image`, … None takes
            a handler away again.

    Raises:
        TypeError: It is no class, or such a one; or `handler` cannot be called.
    """
    if not isinstance(type_, type):
        raise TypeError(f"register_value() is given {type_!r}, expected a class")
    if issubclass(type_, _PACKED) or any(
        base.__name__ == "generic" and base.__module__ == "numpy" for base in type_.__mro__
    ):
        raise TypeError(
            f"register_value() is given {type_.__qualname__}, whose values are stored as plain ones before anybody is asked; "
            "convert them before log()"
        )
    if handler is None:
        _handlers.pop(type_, None)
    elif callable(handler):
        _handlers[type_] = handler
    else:
        raise TypeError(f"register_value() handler is {handler!r}, expected a function of one argument")


def handler_of(type_: type) -> Handler | None:
    """Who says what is stored of a value of exactly this type."""
    return next((_handlers[base] for base in type_.__mro__ if base in _handlers), None) if _handlers else None
