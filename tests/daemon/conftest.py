"""A store of its own for each test, without a daemon."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sdk.location import StoreIdentity
from tests.serving import temporary_store


@pytest.fixture
def store() -> Iterator[StoreIdentity]:
    """An empty store; what a daemon or a trainer leaves of it outside is removed."""
    with temporary_store() as made:
        yield made
