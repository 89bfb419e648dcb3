from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sdk.errors import UsageError
from sdk.query import expression as language
from sdk.query.expression import FACTS, OPERATIONS, parse, parse_list

NOW = 1_000_000_000.0  # 2001-09-09 01:46:40 UTC
RUN: dict[str, Any] = {
    "state": "finished", "name": "calm-otter-12", "id": "4f2a", "step": 100, "tags": ["good", "paper"], "duration": 7300.0,
    "started": NOW - 3600, "config.lr": 1e-4, "config.method": "adam", "config.amp": True, "lr": 1e-4, "method": "adam",
    "val/acc": 0.9, "best:val/acc": 0.95, "best:val acc": 0.5, "last:val/acc": 0.9, "config.odd key": 3, "nan": math.nan,
    "system/gpu.0.memory": 5, "count": 10**400,
}  # fmt: skip


@pytest.fixture(autouse=True)
def utc() -> Iterator[None]:
    """Days begin where the test says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def holds(text: str) -> bool:
    return parse(text, now=NOW).matches(RUN.get)


@pytest.mark.parametrize(
    "text",
    [
        "state = finished", "state == 'finished'", 'state = "finished" and step >= 100', "state != failed", "state <> failed",
        "config.lr < 1e-3 and state = finished", "config.lr<1e-3", "1e-3 > config.lr", "lr = .0001", "step = 1_00",
        "not state = failed", "NOT (state = failed OR step < 3)", "state = failed or step = 100 and lr < 1",
        'best:"val acc" = 0.5', "best:'val acc' < 1", "best:val/acc > last:val/acc", "val/acc >= 0.9", 'config."odd key" = 3',
        "name ~ otter", "name ~ 'CALM-*'", "name ~ '*-1[12]'", "tags = paper", "tags ~ 'pa*'", "tags in (none_such, good)",
        "state in (failed, finished)", "state not in ('failed', crashed)", "method in (adam)", "id = 4f2a", "id in (4f2a, '00')",
        "config.missing is null", "config.lr is not null", "config.missing = null", "lr != null", "config.amp", "config.amp = true",
        "step + 1 = 101", "step*2 - 1 = 199", "step / 8 = 12.5", "-step = -100", "- -step = 100", "+step = 100", "2 * (step + 1) = 202",
        "best:val/acc - last:val/acc > 0.04", "best:val/acc - last:val/acc < 0.06", "1 - 2 - 3 = -4", "16 / 4 / 2 = 2", "2+3*4 = 14",
        "started > 2h", "started < 30min", "2h < started", "started > '2h ago'", "started > '2001-09-09'", "started < 2001-09-10",
        "started = '2001-09-09'", "started != 2001-09-08", "started > '2001-09-09T00:00:00Z'", "started < '2001-09-09 12:00'",
        "duration > 2h", "duration < 1d", "not not state = finished", "null is null", "system/gpu.0.memory = 5", "count > 1e300",
        "name = 'it''s' or step = 100", "step in (1, 100)",
    ],
)  # fmt: skip
def test_what_holds(text: str) -> None:
    """Comparisons, `and` before `or`, products before sums, texts with and without quotes, patterns, lists, times, lengths."""
    assert holds(text)


@pytest.mark.parametrize(
    "text",
    [
        "state = failed", "config.missing < 3", "config.missing > 3", "config.missing != 3", "config.missing = config.missing",
        "step < finished", "state < 3", "name > 3", "tags > 3", "tags != paper", "state + 1 = 2", "step / 0 = 1", "step / 0 != 1",
        "nan = nan", "nan < 1", "config.missing not in (1)", "state not in (finished)", "config.missing", "null", "false", "count + 1 < 3",
        "started = 2001-09-08", "started < 2h", "lr = '0.0001'", "name ~ null", "config.missing ~ a", "best:val/loss > 0",
    ],
)  # fmt: skip
def test_what_does_not(text: str) -> None:
    """What is not there and what is of another kind compares false, whichever way it is asked; nothing is raised."""
    assert not holds(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("step", 100), ("best:val/acc", 0.95), ("step * 2 + 1", 201), ("state", "finished"), ("tags", ["good", "paper"]), ("'a'", "a"),
        ("config.missing", None), ("step / 0", None), ("step + name", None), ("count * count", math.inf), ("2h", 7200.0),
    ],
)  # fmt: skip
def test_values(text: str, value: Any) -> None:
    """An expression is also a column: a number, a text, a list, or nothing; integers stay ones."""
    found = parse(text, now=NOW).value(RUN.get)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("name ~ sgd* and state = finished", "name ~ 'sgd*'"), ("name ~ sgd*", "name ~ 'sgd*'"), ("name ~ *sgd", "name ~ '*sgd'"),
        ("step > 3 and tags ~ run?", "tags ~ 'run?'"), ("name~sgd*lr", "name ~ 'sgd*lr'"), ("best:val/acc ~ [ab]", "best:val/acc ~ '[ab]'"),
    ],
)  # fmt: skip
def test_a_pattern_without_quotes(text: str, hint: str) -> None:
    """A star behind `~` is meant as one of a pattern, not as a product: the error says how it is written."""
    with pytest.raises(UsageError) as found:
        parse(text)
    assert found.value.hint == f"a pattern in quotes: {hint}"
    with pytest.raises(UsageError, match="Try: 'config.lr"):
        parse("name ~ 'sgd*' and")


def test_names() -> None:
    """An expression tells which names it asks for, as a lookup gets them, and which of them may be missing; texts are none."""
    found = parse("config.lr < 1e-3 and state = finished and best:'val acc' > lr and config.x is null")
    assert found.names == {"config.lr", "state", "best:val acc", "config.x"}
    assert found.optional == {"config.x"}
    assert parse("batch > 3 and lr < batch").names == {"batch", "lr"}
    assert (parse("best:val/acc").name, parse("(lr)").name, parse("lr + 1").name) == ("best:val/acc", "lr", None)


def test_only_what_is_needed_is_looked_up() -> None:
    """`and` and `or` end as soon as the answer is known: what is expensive may stand behind what is cheap."""
    asked: list[str] = []

    def lookup(name: str) -> Any:
        asked.append(name)
        return RUN.get(name)

    assert not parse("state = failed and best:val/acc > 0.9").matches(lookup)
    assert parse("state = finished or best:val/acc > 0.9").matches(lookup)
    assert asked == ["state", "state"]


def test_lists() -> None:
    """Expressions with commas between them, each with its own text; a minus before one of a list that sorts is its direction."""
    found = parse_list("-best:val/acc, name,lr*2 , in_the_end", signed=True)
    assert [(one.text, one.descending) for one in found] == [
        ("best:val/acc", True), ("name", False), ("lr*2", False), ("in_the_end", False),
    ]  # fmt: skip
    assert [one.text for one in parse_list("id, -step")] == ["id", "-step"]


@pytest.mark.parametrize(
    ("text", "column", "expected"),
    [
        ("", 0, "a name or a value"), ("config.lr < < 3", 12, "a name or a value, found '<'"), ("a = 1 = 1", 6, "the end, found '='"),
        ("a b", 2, "'and', 'or', a comparison or the end"), ("a = 'x", 4, "an end of this text"), ("(a", 2, "')', found the end"),
        ("a $ b", 2, "a name, a value or a sign, found '$'"), ("a in 3", 5, "'('"), ("a in (3", 7, "')'"), ("a not b", 6, "'in'"),
        ("a is 3", 5, "'null' or 'not null'"), ("a and", 5, "a name or a value"), ("started > soon", 10, "a time: '2026-11-20'"),
        ("in", 0, "a name"), ("a,b", 1, "'and', 'or'"), ("started > '9999999d x'", 10, "a time"),
    ],
)  # fmt: skip
def test_errors_show_the_place(text: str, column: int, expected: str) -> None:
    """An error says what was expected and found, and points at it under the text."""
    with pytest.raises(UsageError) as caught:
        parse(text, now=NOW)
    _, line, caret, *_ = caught.value.message.split("\n")
    assert expected in caught.value.message
    assert (line.strip(), caret) == (text.strip(), " " * (4 + column) + "^")


def test_an_error_in_a_long_text_shows_only_the_place() -> None:
    """Of a long text the error shows some words around the place, on one line, without control characters."""
    with pytest.raises(UsageError) as caught:
        parse("a = 1 and\n" * 300 + "b \x1b[31m" + " and c = 2" * 300)
    message, line, caret, *_ = caught.value.message.split("\n")
    assert len(message) < 200
    assert "\x1b" not in line
    assert line[len(caret) - 1] == "?"


def test_limits() -> None:
    """Length and depth are bounded; a row of a thousand operands is no depth."""
    long, deep = language._CHARACTERS_MAX, language._DEPTH_MAX
    with pytest.raises(UsageError, match=f"at most {long:,}"):
        parse(" " * long + "1")
    with pytest.raises(UsageError, match="levels"):
        parse("(" * deep + "1" + ")" * deep)
    assert parse(" " * (long - 1) + "1").value(RUN.get) == 1
    assert parse("(" * (deep - 1) + "1" + ")" * (deep - 1)).value(RUN.get) == 1
    assert parse("1+" * 4990 + "1").value(RUN.get) == 4991
    assert parse("step*" * 1900 + "1").value(RUN.get) == math.inf
    assert parse("not " * 2000 + "true").matches(RUN.get)
    assert parse("-" * 9000 + "1").value(RUN.get) == 1
    assert parse("step = 1 or " * 800 + "step = 100").matches(RUN.get)


def test_depth_fits_into_the_stack() -> None:
    """The deepest expression is parsed and evaluated far below the recursion limit of a fresh interpreter."""
    text = "(not 0 in (1, " * (language._DEPTH_MAX - 1) + "1" + "))" * (language._DEPTH_MAX - 1)
    depths: list[int] = []

    def count(frame: Any, event: str, argument: Any) -> None:
        depths.append(0)
        while frame is not None:
            frame, depths[-1] = frame.f_back, depths[-1] + 1

    sys.setprofile(count)
    try:
        parse(text).matches(RUN.get)
    finally:
        sys.setprofile(None)
    assert max(depths) - depths[0] < 450


_PIECES = st.sampled_from(
    [
        *sorted(FACTS), *(f"{one}:" for one in OPERATIONS), *language._KEYWORDS, *language._UNITS, "config.", "summary.", "a/b", "é",
        "''", '"', "'", "(", ")", ",", "=", "!=", "<=", "~", "+", "-", "*", "/", "1e-3", "2026-11-20", "3d", "1_0", ".5", " ", "\n",
        "\0", "[", "\ud800",
    ]
)  # fmt: skip
_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=3), st.just(10**400),
    st.lists(st.one_of(st.integers(), st.text(max_size=3)), max_size=3), st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)  # fmt: skip


@given(
    st.one_of(
        st.text(max_size=60), st.lists(_PIECES, max_size=25).map("".join), st.lists(_PIECES, max_size=25).map(" ".join)
    ),
    _VALUES,
)
@example("started = 0001-01-01", 1.0)
@example("started = 9999-12-31", 1.0)
@example("started > '2026-11-20T10:00:00+99:99'", 1.0)
@example("a * a * a = a", 10**400)
@example("a ~ '[' or a ~ '[!a'", "x")
def test_whatever_is_written(text: str, value: Any) -> None:
    """Any text is parsed or raises UsageError, nothing else; what is parsed gives a value for whatever a store holds."""
    try:
        found = parse(text, now=NOW)
    except UsageError:
        return
    assert found.matches(lambda name: value) in (True, False)
    found.value(lambda name: value)
