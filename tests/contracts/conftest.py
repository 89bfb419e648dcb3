"""The cases are no test modules, and assert all the same: a failure shows what was found."""

import pytest

pytest.register_assert_rewrite("tests.contracts.cases")
