from __future__ import annotations

from typing import Any

import pytest

import sdk
from sdk import _greeting
from tests.sdk.test_cards import checked
