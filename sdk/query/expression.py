"""The language in which runs are chosen, sorted and computed with: ``config.lr < 1e-3 and state = finished`` (docs/runs.md#expressions).

A small parser, never `eval`: a text becomes a tree of functions, each of which gets a `Lookup`, what says the value of a name. Depth and
length are bounded; whatever the text, nothing but `UsageError` is raised, and whatever the values are, evaluating raises nothing.

    expression = conjunction ("or" conjunction)*
    conjunction = negation ("and" negation)*
    negation   = "not" negation | comparison
    comparison = sum [("=" | "==" | "!=" | "<>" | "<" | "<=" | ">" | ">=" | "~") sum
                      | ["not"] "in" "(" sum ("," sum)* ")" | "is" ["not"] "null"]
    sum        = product (("+" | "-") product)*
    product    = unary (("*" | "/") unary)*
    unary      = ("-" | "+") unary | "(" expression ")" | number | text | length | "true" | "false" | "null" | name

A slash or a dash inside of a word belongs to the word (`val/acc`); `a / b` divides.
"""

from __future__ import annotations

import fnmatch
import math
import operator
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from .. import clock
from ..errors import UsageError

# What gives the value of a name; None: there is none.
Lookup = Callable[[str], Any]
_Node = Callable[[Lookup], Any]

# Names of what every run has; they come before keys of the same name.
FACTS = frozenset(
    "state name id project group job_type tags notes created started updated duration step records size host exit_code".split()
)
TIMES = frozenset({"created", "started", "updated"})
# What is asked of a series: best:val/acc.
OPERATIONS = ("best", "last", "first", "min", "max")
CONFIG, SUMMARY = "config.", "summary."

# Limit: a level of parentheses takes 13 calls, of the 1000 that Python allows; a text this long is parsed in 20 ms.
_CHARACTERS_MAX = 10_000
_DEPTH_MAX = 30
_EXAMPLE = "'config.lr < 1e-3 and state = finished'; docs/runs.md#expressions"
# Behind a `~` a star would multiply, and `?` and `[` are no signs.
_BARE_PATTERN = re.compile(r"([\w.@%/:-]+)\s*~\s*([\w.@%/?*\[\]-]*[?*\[][\w.@%/?*\[\]-]*)")
# What an error shows around the place.
_SHOWN_CHARACTERS = 60

_WORD = r"[\w@%][\w.@%]*(?:[/-][\w.@%]+)*"
_TEXT = r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\""
_TOKEN = re.compile(
    rf"""\s*(?:
      (?P<date>[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}(?:[T][0-9:.+-]*Z?)?(?![\w/]))
    | (?P<number>(?:[0-9][0-9_]*(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![\w.@%]))
    | (?P<length>[0-9]+(?:\.[0-9]+)?(?:s|min|m|h|d|w)(?![\w./@%-]))
    | (?P<of>(?:{"|".join(OPERATIONS)}):(?:{_TEXT}|[\w./@%-]+) | (?:config|summary)\.(?:{_TEXT}))
    | (?P<word>{_WORD})
    | (?P<text>{_TEXT})
    | (?P<sign><=|>=|==|!=|<>|[-=<>~+*/(),])
    | (?P<end>$)
    )""",
    re.VERBOSE,
)
_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_AGE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(s|min|m|h|d|w)(?: ago)?\s*")
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_KEYWORDS = frozenset({"and", "or", "not", "in", "is", "null", "none", "true", "false"})
_SAME = {"==": "=", "<>": "!="}
_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_SIGNS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
}  # fmt: skip
_NUMBERS = (int, float)
# Limit: integers beyond this many bits are no numbers to compute with; a chain of products would grow without end.
_INTEGER_BITS_MAX = 1024


class Expression:
    """A parsed text. Immutable; may be used for any number of runs.

    Attributes:
        text: What was parsed.
        names: Every name that it asks for, as a lookup gets it: "state", "config.lr", "best:val acc" (without quotes), "lr".
        optional: Those of which it may be asked whether they are there: of `is null`.
        name: The name, where it is nothing but one.
        descending: Of a list that sorts: whether a minus stood before it.
    """

    __slots__ = ("_node", "descending", "name", "names", "optional", "text")

    def __init__(
        self, text: str, node: _Node, names: frozenset[str], optional: frozenset[str], name: str | None, *, descending: bool = False
    ) -> None:  # fmt: skip
        self.text = text
        self.names = names
        self.optional = optional
        self.name = name
        self.descending = descending
        self._node = node

    def __repr__(self) -> str:
        return f"Expression({self.text!r})"

    def value(self, lookup: Lookup) -> Any:
        """What it is for one run: a number, text, list or truth value, or None where something of it is not there."""
        return self._node(lookup)

    def matches(self, lookup: Lookup) -> bool:
        """Whether it holds. What is not there, and what is of another kind, compares false."""
        return _truth(self._node(lookup))


def parse(text: str, *, now: float | None = None) -> Expression:
    """Parses one expression.

    Args:
        now: What "2h" ago counts from, Unix seconds; None: the clock.

    Raises:
        UsageError: With the place, and what was expected there.
    """
    parser = _Parser(text, now)
    found = parser.whole()
    parser.expect_end()
    return found


def parse_list(text: str, *, signed: bool = False, now: float | None = None) -> list[Expression]:
    """Parses expressions with commas between them.

    Args:
        signed: A minus before one means that it descends, not that it is negative.

    Raises:
        UsageError: As `parse`.
    """
    parser = _Parser(text, now)
    found = [parser.whole(signed=signed)]
    while parser.take(","):
        found.append(parser.whole(signed=signed))
    parser.expect_end()
    return found


class _Token(NamedTuple):
    kind: str
    text: str
    start: int
    end: int


class _Operand(NamedTuple):
    """A node, and what is known of it before it is evaluated.

    Attributes:
        name: The name that it is.
        is_bare: Whether that is a word which may also be meant as a text.
        constant: The text or `_Length` that it is.
    """

    node: _Node
    name: str | None = None
    is_bare: bool = False
    constant: Any = None


class _Length(float):
    """Seconds that were written with a unit."""


class _Parser:
    def __init__(self, text: str, now: float | None) -> None:
        if not isinstance(text, str):
            raise UsageError(f"an expression is {type(text).__name__}, expected str: {text!r:.100}")
        if len(text) > _CHARACTERS_MAX:
            raise UsageError(f"an expression of {len(text):,} characters, expected at most {_CHARACTERS_MAX:,}")
        self._text = text
        self._now = now
        self._depth = 0
        self._names: list[str] = []
        self._optional: set[str] = set()
        self._token = self._next(0)
        self._before = 0

    # Tokens.

    def _next(self, at: int) -> _Token:
        match = _TOKEN.match(self._text, at)
        if match is None:
            at += len(self._text[at:]) - len(self._text[at:].lstrip())
            quote = self._text[at] in "'\""
            expected = (
                "an end of this text: a quote like the one at its beginning" if quote else "a name, a value or a sign"
            )
            raise self._error(expected, at)
        kind = match.lastgroup or ""
        return _Token(kind, match[kind], match.start(kind), match.end(kind))

    def _error(self, expected: str, at: int | None = None) -> UsageError:
        place = self._token.start if at is None else at
        first = max(0, place - _SHOWN_CHARACTERS // 2)
        shown = self._text[first : first + _SHOWN_CHARACTERS]
        line = "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in shown)
        lead = "…" if first else ""
        caret = " " * (len(lead) + place - first) + "^"
        found = repr(self._text[place] if at is not None else self._token.text[:_SHOWN_CHARACTERS])
        if not self._text[place:].strip():
            found = "the end"
        return UsageError(
            f"cannot read an expression: expected {expected}, found {found}\n    {lead}{line}\n    {caret}",
            hint=self._quoted_pattern(place) or _EXAMPLE,
        )

    def _quoted_pattern(self, place: int) -> str | None:
        """How a pattern is meant that stands without quotes behind a ``~``, before or at a place."""
        first = max(0, place - _SHOWN_CHARACTERS)
        for match in _BARE_PATTERN.finditer(self._text[first : place + _SHOWN_CHARACTERS]):
            end = first + match.end(2)
            if first + match.start(2) <= place and not self._text[end:place].strip():
                return f"a pattern in quotes: {match[1]} ~ '{match[2]}'"
        return None

    def _advance(self) -> _Token:
        token, self._before = self._token, self._token.end
        self._token = self._next(token.end)
        return token

    def take(self, *signs: str) -> str | None:
        """The sign that comes next, if it is one of these."""
        return self._advance().text if self._token.kind == "sign" and self._token.text in signs else None

    def _word(self, *words: str) -> bool:
        """Takes the keyword that comes next, if it is one of these."""
        if self._token.kind == "word" and self._token.text.lower() in words:
            self._advance()
            return True
        return False

    def _need(self, sign: str) -> None:
        if self.take(sign) is None:
            raise self._error(f"{sign!r}")

    def expect_end(self) -> None:
        if self._token.kind != "end":
            raise self._error("'and', 'or', a comparison or the end")

    # The grammar.

    def whole(self, *, signed: bool = False) -> Expression:
        self._names, self._optional = [], set()
        sign = self.take("-", "+") if signed else None
        start = self._token.start
        found = self._either()
        text = self._text[start : self._before]
        return Expression(
            text, found.node, frozenset(self._names), frozenset(self._optional), found.name, descending=sign == "-"
        )

    def _either(self) -> _Operand:
        self._depth += 1
        if self._depth > _DEPTH_MAX:
            raise self._error(f"at most {_DEPTH_MAX} levels of parentheses")
        found = self._chain(self._both, "or", _any)
        self._depth -= 1
        return found

    def _both(self) -> _Operand:
        return self._chain(self._negation, "and", _all)

    def _chain(self, part: Callable[[], _Operand], word: str, join: Callable[[list[_Node]], _Node]) -> _Operand:
        first = part()
        if not (self._token.kind == "word" and self._token.text.lower() == word):
            return first
        nodes = [first.node]
        while self._word(word):
            nodes.append(part().node)
        return _Operand(join(nodes))

    def _negation(self) -> _Operand:
        count = 0
        while self._word("not"):
            count += 1
        found = self._comparison()
        if not count:
            return found
        node, wanted = found.node, count % 2 == 0
        return _Operand(lambda lookup: _truth(node(lookup)) is wanted)

    def _comparison(self) -> _Operand:
        left = self._sum()
        sign = self.take("=", "==", "!=", "<>", "<", "<=", ">", ">=", "~")
        if sign is not None:
            start = self._token.start
            right = self._sum()
            if sign == "~" and self._quoted_pattern(start) is not None:
                raise self._error("a text", start)
            return self._compared(left, _SAME.get(sign, sign), right, start)
        if self._word("is"):
            negative = self._word("not")
            if not self._word("null", "none"):
                raise self._error("'null' or 'not null'")
            return _Operand(_null(self._asked(left), negative=negative))
        negative = self._word("not")
        if self._word("in"):
            return self._among(left, negative=negative)
        if negative:
            raise self._error("'in'")
        return left

    def _asked(self, operand: _Operand) -> _Node:
        if operand.name is not None:
            self._optional.add(operand.name)
        return operand.node

    def _compared(self, left: _Operand, sign: str, right: _Operand, start: int) -> _Operand:
        right = self._meant(left, right, start)
        if right.constant is None and left.constant is not None and right.name in TIMES:
            left = self._meant(right, left, start)
        if right.node is _NULL and sign in ("=", "!="):
            return _Operand(_null(self._asked(left), negative=sign == "!="))
        if sign == "~":
            return _Operand(_like(left.node, right.node))
        if sign in ("=", "!="):
            return _Operand(_equal(left.node, right.node, negative=sign == "!="))
        return _Operand(_ordered(left.node, _ORDERS[sign], right.node))

    def _meant(self, left: _Operand, right: _Operand, start: int) -> _Operand:
        """The right side of a comparison: a word that is no fact is a text, and beside a time a text is one."""
        if right.is_bare and right.name is not None and right.name not in FACTS:
            text = right.name
            self._names.pop()  # the last one that was read
            right = _Operand(_constant(text), constant=text)
        if left.name in TIMES and right.constant is not None:
            return _Operand(_constant(self._time(right.constant, start)))
        return right

    def _time(self, said: Any, start: int) -> Any:
        """Unix seconds, or of a day a range of them."""
        now = clock.wall_ns() / 1e9 if self._now is None else self._now
        if isinstance(said, _Length):
            return now - said
        age = _AGE.fullmatch(said)
        if age is not None:
            return now - float(age[1]) * _UNITS[age[2]]
        import datetime

        try:
            # Why the Z apart: before Python 3.11 it is not read.
            when = datetime.datetime.fromisoformat(re.sub("Z$", "+00:00", said.strip()))
            first = when.timestamp()
            if not _DAY.fullmatch(said.strip()):
                return first
            return _Day((first, (when + datetime.timedelta(days=1)).timestamp()))
        except (ValueError, OverflowError, OSError):
            raise self._error("a time: '2026-11-20', '2026-11-20 14:02', or '2h' (ago)", start) from None

    def _among(self, left: _Operand, *, negative: bool) -> _Operand:
        self._need("(")
        nodes = []
        while True:
            start = self._token.start
            nodes.append(self._meant(left, self._sum(), start).node)
            if self.take(",") is None:
                break
        self._need(")")
        equal = [_equal(left.node, node, negative=False) for node in nodes]
        if not negative:
            return _Operand(_any(equal))
        node, found = left.node, _any(equal)
        return _Operand(lambda lookup: node(lookup) is not None and not found(lookup))

    def _sum(self) -> _Operand:
        return self._row(self._product, "+", "-")

    def _product(self) -> _Operand:
        return self._row(self._unary, "*", "/")

    def _row(self, part: Callable[[], _Operand], *signs: str) -> _Operand:
        """Operands with signs between them, from left to right: a loop and no tree, which a long row would make deep."""
        first = part()
        rest: list[tuple[Callable[[Any, Any], Any], _Node]] = []
        while (sign := self.take(*signs)) is not None:
            rest.append((_SIGNS[sign], part().node))
        return _Operand(_computed(first.node, rest)) if rest else first

    def _unary(self) -> _Operand:
        negative = False
        sign = None
        while (one := self.take("-", "+")) is not None:
            sign, negative = one, negative ^ (one == "-")
        found = self._primary()
        if sign is None:
            return found
        return _Operand(_computed(_constant(0), [(operator.sub if negative else operator.add, found.node)]))

    def _primary(self) -> _Operand:
        if self.take("("):
            found = self._either()
            self._need(")")
            return _Operand(found.node, found.name)
        token = self._token
        if token.kind in ("end", "sign") or (token.kind == "word" and token.text.lower() in _KEYWORDS - _VALUES.keys()):
            raise self._error("a name or a value")
        self._advance()
        if token.kind == "number":
            return _Operand(_constant(_number(token.text)))
        if token.kind == "length":
            match = _AGE.fullmatch(token.text)
            assert match is not None
            length = _Length(float(match[1]) * _UNITS[match[2]])
            return _Operand(_constant(float(length)), constant=length)
        if token.kind in ("text", "date"):
            text = _unquoted(token.text)
            return _Operand(_constant(text), constant=text)
        if token.text.lower() in _VALUES:
            return _Operand(_VALUES[token.text.lower()])
        return self._named(token)

    def _named(self, token: _Token) -> _Operand:
        name = token.text
        if token.kind == "of":
            prefix = re.match(r"[a-z]+[:.]", name)
            assert prefix is not None
            name = prefix[0] + _unquoted(name[prefix.end() :])
        self._names.append(name)
        is_bare = token.kind == "word" and not name.startswith((CONFIG, SUMMARY))
        return _Operand(lambda lookup: lookup(name), name, is_bare)


class _Day(tuple[float, float]):
    """The seconds at which a day begins and ends; a time is equal to it that lies in it."""

    __slots__ = ()


def _constant(value: Any) -> _Node:
    return lambda lookup: value


_NULL = _constant(None)
_VALUES = {"true": _constant(True), "false": _constant(False), "null": _NULL, "none": _NULL}


def _number(text: str) -> int | float:
    digits = text.replace("_", "")
    if digits.isdecimal() and len(digits) <= 300:
        return int(digits)
    return float(digits)


def _unquoted(text: str) -> str:
    if text[:1] in ("'", '"'):
        return text[1:-1].replace(text[0] * 2, text[0])
    return text


# Values.


def _truth(value: Any) -> bool:
    """Whether a value counts as true, whatever it is."""
    if isinstance(value, (bool, int, float, str, list, tuple, dict)):
        return bool(value)
    return False


def _any(nodes: list[_Node]) -> _Node:
    return lambda lookup: any(_truth(node(lookup)) for node in nodes)


def _all(nodes: list[_Node]) -> _Node:
    return lambda lookup: all(_truth(node(lookup)) for node in nodes)


def _null(node: _Node, *, negative: bool) -> _Node:
    return lambda lookup: (node(lookup) is None) is not negative


def _is_equal(one: Any, other: Any) -> bool:
    if isinstance(other, _Day):
        return isinstance(one, _NUMBERS) and other[0] <= one < other[1]
    if isinstance(one, list) and not isinstance(other, list):
        return any(not isinstance(item, list) and _is_equal(item, other) for item in one)
    if isinstance(one, (str, *_NUMBERS)) and isinstance(other, (str, *_NUMBERS)):
        return bool(one == other)
    try:
        return isinstance(one, list) and isinstance(other, list) and bool(one == other)
    except RecursionError:  # lists inside of a thousand lists
        return False


def _equal(left: _Node, right: _Node, *, negative: bool) -> _Node:
    def compare(lookup: Lookup) -> bool:
        one, other = left(lookup), right(lookup)
        return one is not None and other is not None and _is_equal(one, other) is not negative

    return compare


def _ordered(left: _Node, order: Callable[[Any, Any], bool], right: _Node) -> _Node:
    def compare(lookup: Lookup) -> bool:
        one, other = left(lookup), right(lookup)
        one, other = (value[0] if isinstance(value, _Day) else value for value in (one, other))
        if isinstance(one, _NUMBERS) and isinstance(other, _NUMBERS):
            return order(one, other)
        return isinstance(one, str) and isinstance(other, str) and order(one, other)

    return compare


def _like(left: _Node, right: _Node) -> _Node:
    def compare(lookup: Lookup) -> bool:
        one, pattern = left(lookup), right(lookup)
        if not isinstance(pattern, (str, *_NUMBERS)) or one is None:
            return False
        items = one if isinstance(one, list) else [one]
        try:
            return any(_is_like(str(item), str(pattern)) for item in items if isinstance(item, (str, *_NUMBERS)))
        except ValueError:  # an integer of more digits than Python writes
            return False

    return compare


def _is_like(text: str, pattern: str) -> bool:
    text, pattern = text.lower(), pattern.lower()
    return fnmatch.fnmatchcase(text, pattern) if any(sign in pattern for sign in "*?[") else pattern in text


def _computed(first: _Node, rest: list[tuple[Callable[[Any, Any], Any], _Node]]) -> _Node:
    def compute(lookup: Lookup) -> Any:
        found = first(lookup)
        for sign, node in rest:
            other = node(lookup)
            if not isinstance(found, _NUMBERS) or not isinstance(other, _NUMBERS):
                return None
            try:
                found = sign(found, other)
            except (ArithmeticError, ValueError):
                return None
            if isinstance(found, int) and found.bit_length() > _INTEGER_BITS_MAX:
                return math.inf if found > 0 else -math.inf
        return found

    return compute
