"""A call of `log()` made plain, outside of every lock: conversion, splitting, and what errors of use become."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .. import values
from ..limits import INLINE_TENSOR_BYTES_MAX
from ..record import FLAG_MARKED, HEADER_SIZE, encode_map
from ..rows import flatten
from ..values.device import Awaited
from .calls import Prepared
from .large import Call, Large
from .split import split
from .steps import StepError, check_step


class Preparing:
    """The slow way into a stream, up to the ring.

    Attributes:
        misused: Key to text of what was left out, under misuse="warn".
    """

    def __init__(self, misuse: str, on_notice: Callable[[str, str], None], *, defers: bool = True) -> None:
        self._is_lenient = misuse == "warn"
        self._on_notice = on_notice
        self._defers = defers
        self.misused: dict[str, str] = {}

    def prepare(self, data: Any, large: Large | None, record_max: int, capacity: int) -> Prepared:
        """The payloads of a call: one, or several for a dict too wide for one record. Runs foreign code.

        Returns:
            No payload and nothing awaited where there is nothing to log; none yet, and `awaited`, where a value is still
            on its way from a device.

        Raises:
            TypeError, ValueError: An error of use, under misuse="raise". Under "warn" a `data` that is no mapping gives
                no payload.
        """
        if not isinstance(data, Mapping):
            text = f"log() data is {type(data).__name__}, expected a dict of str to values"
            if not self._is_lenient:
                raise TypeError(text)
            self.note("data", text)
            return Prepared([], 0, None)
        call = Call(large) if large is not None else None
        is_blocking = large is not None and large.is_blocking()
        awaited = Awaited(INLINE_TENSOR_BYTES_MAX if is_blocking else None) if self._defers else None
        plain, bad = values.plain(
            data, keep_going=self._is_lenient, put=call.put if call else None, admit=_admit(large), awaited=awaited
        )
        if awaited is None or awaited.is_empty:
            return self._packed(plain, bad, call, record_max, capacity)
        awaited.begin(plain)
        self._note_all(bad)
        return Prepared([], FLAG_MARKED if bad else 0, call, awaited)

    def complete(self, call: Prepared, large: Large | None, record_max: int, capacity: int) -> Prepared:
        """The same of a call whose values have come. May run in any thread; never raises for a value."""
        assert call.awaited is not None
        put = None
        if call.large is not None:
            call.large.may_wait, put = False, call.large.put
        plain, bad = values.completed(call.awaited, put, _admit(large))
        try:
            ready = self._packed(plain, bad, call.large, record_max, capacity, is_lenient=True)
        except Exception as error:  # the caller is gone: there is nobody to raise for
            ready = self._packed({}, {"data": f"log() data from a device: {error!r}"}, None, record_max, capacity, True)
        return ready._replace(flags=ready.flags | call.flags)

    def _packed(
        self, plain: dict[str, Any], bad: dict[str, str], call: Call | None, record_max: int, capacity: int,
        is_lenient: bool = False,
    ) -> Prepared:  # fmt: skip
        payloads = [encode_map(plain)]
        room = record_max - HEADER_SIZE
        if len(payloads[0]) > room:
            payloads = split(flatten(plain), room, capacity, call.put if call else None, bad.__setitem__)
        if bad:
            if not is_lenient and not self._is_lenient:
                raise ValueError(next(iter(bad.values())))
            self._note_all(bad)
        is_marked = bad or (call is not None and call.dropped)
        return Prepared(payloads, FLAG_MARKED if is_marked else 0, call)

    def permitted_step(self, step: int | None, call: Prepared) -> tuple[int | None, Prepared]:
        """The step, or under misuse="warn" None (the open row) instead of one that cannot be."""
        if step is None:
            return None, call
        try:
            return check_step(step), call
        except StepError as error:
            if not self._is_lenient:
                raise
            self.note("step", str(error))
            return None, call._replace(flags=call.flags | FLAG_MARKED)

    def note(self, key: str, text: str) -> None:
        """Something of the user's was left out: counted by key, told once."""
        if key not in self.misused:
            self._on_notice("misuse", text)
        self.misused[key] = text

    def _note_all(self, bad: Mapping[str, str]) -> None:
        for key, text in bad.items():
            self.note(key, text)


def _admit(large: Large | None) -> values.Admit | None:
    return large.budget.admit if large is not None and large.budget is not None else None
