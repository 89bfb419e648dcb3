"""The base of every value that is more than plain data: images, tables, tensors and so on.

`log()` asks such a value to describe itself as a map of plain values, blobs and further media. The map becomes one
extension of the record (docs/media.md); each blob in it is stored apart, or inside where it is small.

An error in a constructor raises on the user's own line; but a run that asked not to be ended by errors of use (disabled,
or misuse="warn") is not: the value is then broken, and `log` leaves its key out.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any, ClassVar


def goes_on() -> bool:
    """Whether a value that cannot be stored must not end the script: a disabled run, or misuse="warn"."""
    run = sys.modules[__name__.partition(".")[0]].__dict__.get("run")
    if run is not None:
        return bool(run.disabled or run.settings.misuse == "warn")
    environ = os.environ
    mode = environ.get("STEPD_MODE") or environ.get("WANDB_MODE")
    return environ.get("STEPD_MISUSE") == "warn" or mode == "disabled"


class Media:
    """A value that `log()` takes and `run.media` gives back.

    A subclass takes its one copy of the caller's data in its constructor and raises there for what it cannot store.

    Attributes:
        broken: What the constructor would have raised, in a run that goes on without the value.
    """

    _type: ClassVar[str] = ""
    broken: Exception | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in cls.__dict__:
            cls.__init__ = going_on(cls.__init__)  # type: ignore[method-assign]

    def describe(self) -> dict[str, Any]:
        """What is stored: str to plain values, `Blob`s, other media, and lists and maps of these. "_type" is added."""
        raise NotImplementedError


def going_on(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def init_or_break(self: Media, *args: Any, **kwargs: Any) -> None:
        try:
            init(self, *args, **kwargs)
        except Exception as error:  # also what foreign code raises: RuntimeError of a meta tensor
            if not goes_on():
                raise
            self.broken = self.broken or error

    return init_or_break


def known(**facts: Any) -> dict[str, Any]:
    """Those of the facts that are not None."""
    return {name: value for name, value in facts.items() if value is not None}
