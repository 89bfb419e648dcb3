"""sdk.ids: names that are unique, that W&B would take, and directories that are safe."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk import ids, limits
from tests.torture.traversal import distinct_ids

run_ids = st.text(min_size=1, max_size=limits.RUN_ID_CHARACTERS_MAX)


def test_ids_do_not_use_the_seed_of_the_user() -> None:
    """The state of `random` is the same before and after; two ids differ."""
    before = random.getstate()
    assert ids.new_run_id() != ids.new_run_id()
    assert ids.random_u64() != ids.random_u64()
    ids.new_run_name(1)
    assert random.getstate() == before


def test_forms() -> None:
    """Run ids have 8 base-36 characters, u64 ids 16 hex digits and are never 0, names two words and the number."""
    assert re.fullmatch(r"[0-9a-z]{8}", ids.new_run_id())
    assert re.fullmatch(r"[a-z]+-[a-z]+-12", ids.new_run_name(12))
    assert ids.hex_u64(0xAB) == "00000000000000ab"
    assert all(0 < ids.random_u64() < 2**64 for _ in range(100))


def test_zero_is_never_an_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the system gives eight zero bytes the id is 1."""
    monkeypatch.setattr("os.urandom", bytes)
    assert ids.random_u64() == 1


@pytest.mark.parametrize("good", ["a", "my run", "UPPER.case_-(1)", "é", "x" * limits.RUN_ID_CHARACTERS_MAX, "..", "%"])
def test_good_run_ids_are_returned(good: str) -> None:
    """Anything printable without the forbidden characters is taken as it is."""
    assert ids.check_run_id(good) == good


@pytest.mark.parametrize(
    "bad", ["", " ", " a", "a\n", "a:b", "a;b", "a,b", "a#b", "a?b", "a/b", "a'b", "a\0b", "\ud800", "a\x7f"]
    + ["x" * (limits.RUN_ID_CHARACTERS_MAX + 1)],
)  # fmt: skip
def test_bad_run_ids_are_refused_with_the_reason(bad: str) -> None:
    """ValueError, and the message shows the id or its beginning."""
    with pytest.raises(ValueError, match="run id"):
        ids.check_run_id(bad)


@pytest.mark.parametrize("bad", [None, 1, b"a", ["a"]])
def test_run_ids_that_are_not_str_are_type_errors(bad: object) -> None:
    """TypeError naming the type."""
    with pytest.raises(TypeError, match=type(bad).__name__):
        ids.check_run_id(bad)


def test_no_id_is_the_directory_of_all_runs() -> None:
    """Not even the empty id, which a ring or a message may claim, leads to the directory that holds the runs."""
    assert ids.run_directory("") not in ("", ".", "..")


def test_names_that_look_alike_have_directories_of_their_own() -> None:
    """Of some hundred names that try to leave the store no two share a directory, on no file system."""
    assert [names for names in distinct_ids().values() if len(names) > 1] == []


@given(run_ids)
def test_directory_is_safe(run_id: str) -> None:
    """One path component of bounded length, the same on a disk that folds case, never hidden, never an option."""
    name = ids.run_directory(run_id)
    assert 1 <= len(name) <= ids._DIRECTORY_CHARACTERS_MAX
    assert re.fullmatch(r"[0-9a-z%][0-9a-z%_~-]*", name)
    assert name not in ids._RESERVED


@given(run_ids, run_ids)
def test_different_ids_have_different_directories(one: str, other: str) -> None:
    """The directory is a function of the id, and two ids never share one."""
    assert (ids.run_directory(one) == ids.run_directory(other)) == (one == other)


@pytest.mark.parametrize(
    ("run_id", "directory"),
    [
        ("abc-1_x", "abc-1_x"),
        ("A", "%41"),
        (".", "%2e"),
        ("..", "%2e%2e"),
        ("-x", "%2dx"),
        ("_x", "%5fx"),
        ("é", "%c3%a9"),
    ],
)
def test_known_directories_stay_the_same(run_id: str, directory: str) -> None:
    """Directories of existing stores must be found by every later version."""
    assert ids.run_directory(run_id) == directory


def test_neighbours_that_once_could_collide() -> None:
    """Case, a percent sign that was typed, device names and cut names are all kept apart."""
    long = "x" * limits.RUN_ID_CHARACTERS_MAX
    names = ["a", "A", "%41", "%61", "con", "con~", long, long[:-1] + "y", "é" * 40, "é" * 41]
    assert len({ids.run_directory(n) for n in names}) == len(names)
