"""What may be given as a step, and the errors that say what may not."""

from __future__ import annotations

import operator

from ..limits import STEP_GIVEN_MAX


class StepError(Exception):
    """Marks an error of use in `step`, so that the fast path does not take it for a value it cannot pack."""


class _StepTypeError(StepError, TypeError):
    pass


class _StepValueError(StepError, ValueError):
    pass


def check_step(step: object) -> int:
    """`step` as an int.

    Raises:
        TypeError: It is not an integer (a bool is not; a numpy integer is).
        ValueError: It is negative or beyond 2**62.
    """
    try:
        number = operator.index(step)  # type: ignore[arg-type]
    except TypeError:
        raise _StepTypeError(f"log() step is {type(step).__name__} {step!r}, expected a non-negative int") from None
    if isinstance(step, bool):
        raise _StepTypeError(f"log() step is bool {step!r}, expected a non-negative int")
    if not 0 <= number <= STEP_GIVEN_MAX:
        raise _StepValueError(f"log() step is {number}, expected 0 to {STEP_GIVEN_MAX}")
    return number
