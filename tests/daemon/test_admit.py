"""daemon.pipeline.admit: who is served, and with how much credit."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.pipeline import admit
from sdk.limits import BATCH_BYTES_MAX, CREDIT_BYTES, RUN_ID_CHARACTERS_MAX, WIRE_VERSION, WIRE_VERSION_MIN
from sdk.wire.messages import Hello

STORE = bytes(range(16))


def hello(**changes: Any) -> Hello:
    whole = Hello(
        WIRE_VERSION_MIN, WIRE_VERSION, 7, "a41f", STORE, 0, "", 1, "0.1.0", {"batch_bytes_max": BATCH_BYTES_MAX}
    )
    return whole._replace(**changes)


@pytest.mark.parametrize(
    "changes",
    [{}, {"version_max": WIRE_VERSION + 5}, {"version_min": 0}, {"limits": {}}, {"run": "x" * RUN_ID_CHARACTERS_MAX}],
)
def test_a_stream_of_ours_is_served(changes: dict[str, Any]) -> None:
    """Whoever speaks one of our versions and means our store."""
    assert admit.refusal(hello(**changes), STORE) is None


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"version_min": WIRE_VERSION + 1, "version_max": WIRE_VERSION + 2}, "version"),
        ({"version_min": 0, "version_max": WIRE_VERSION_MIN - 1}, "version"),
        ({"store": bytes(16)}, "store"),
        ({"store": b""}, "store"),
        ({"run": ""}, "hello"),
        ({"run": "x" * (RUN_ID_CHARACTERS_MAX + 1)}, "hello"),
        ({"stream": 0}, "hello"),
    ],
)
def test_who_cannot_be_served_is_told_why(changes: dict[str, Any], code: str) -> None:
    """And that another Hello would not help."""
    answer = admit.refusal(hello(**changes), STORE)
    assert answer is not None
    assert (answer.code, answer.retriable) == (code, False)
    assert answer.text


def test_a_version_refusal_names_both_sides_and_the_cure() -> None:
    """The user has two installations: the message says which must be started."""
    answer = admit.refusal(hello(version_min=7, version_max=9), STORE)
    assert answer is not None
    assert "7 to 9" in answer.text
    assert f"{WIRE_VERSION_MIN} to {WIRE_VERSION}" in answer.text
    assert "stepd restart" in answer.text


def test_credit_is_shared_but_always_lets_two_batches_fly() -> None:
    """Full for sixteen streams, less for more, never so little that a batch does not fit."""
    assert admit.credit(0) == admit.credit(1) == admit.credit(16) == CREDIT_BYTES
    assert CREDIT_BYTES > admit.credit(20) > admit.credit(23)
    assert admit.credit(10**6) == 2 * BATCH_BYTES_MAX


def test_limits_are_the_smaller_of_both() -> None:
    """A trainer may send less than we take, never more; what it does not name is ours."""
    assert admit.common_limits(hello(limits={})) == {"batch_bytes_max": BATCH_BYTES_MAX}
    assert admit.common_limits(hello(limits={"batch_bytes_max": 10})) == {"batch_bytes_max": 10}
    assert admit.common_limits(hello(limits={"batch_bytes_max": 2**60, "other": 1})) == {
        "batch_bytes_max": BATCH_BYTES_MAX
    }
