"""sdk._folding: lines out of what a thread writes to a terminal."""

from __future__ import annotations

import random

import pytest

from sdk._folding import LINE_CHARACTERS_MAX, ROWS_MAX, Folding, moves_cursor

UP = "\x1b[A"


def shown(*texts: str) -> list[str]:
    """The lines of some writes, and what is left at the end."""
    folding = Folding()
    return [line for text in texts for line in folding.feed(text)] + folding.settle()


@pytest.mark.parametrize(
    ("texts", "lines"),
    [
        (("a\n",), ["a"]),
        (("a", " ", "b", "\n"), ["a b"]),
        (("a\nb\n\nc",), ["a", "b", "", "c"]),
        (("\n",), [""]),
        (("a\r\nb\r\n",), ["a", "b"]),
        (("abc\rX\n",), ["Xbc"]),
        (("\r 1%", "\r 50%", "\r100%\n"), ["100%"]),
        (("\r 1%", "\r 50%"), [" 50%"]),
        (("long line", "\r", "         ", "\r", "next\n"), ["next"]),
        (("12\b\b34\n",), ["34"]),
        (("\b\bx\n",), ["x"]),
        (("\x1b[31mred\x1b[0m\n",), ["red"]),
        (("\x1b]0;title\x07a\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\\n",), ["alink"]),
        (("abcdef\r\x1b[Kx\n",), ["x"]),
        (("abcdef\x1b[2K\rx\n",), ["x"]),
        (("abcdef\x1b[3Dxy\n",), ["abcxyf"]),
        (("abc\x1b[1Gx\n",), ["xbc"]),
        (("a\x1b[2Cb\n",), ["a  b"]),
        (("one\n\rtwo\n" + UP + "\r2\n", "three\n"), ["one", "two", "2wo", "three"]),
        (("one\ntwo\n", UP + "\r2\n", "three\n"), ["one", "two", "2", "three"]),
        (("\x1b",), []),
    ],
)
def test_lines(texts: tuple[str, ...], lines: list[str]) -> None:
    """What stands on the screen at the end are the lines, without colours and titles."""
    assert shown(*texts) == lines


def test_nested_bars_give_their_last_states() -> None:
    """Of two bars that rewrite one another a hundred times, their ends are lines, and one state of the upper one."""
    writes = ["\router 0"]
    for outer in range(10):
        for inner in range(10):
            writes += ["\n", f"\rinner {inner}", UP]
        writes += [f"\router {outer + 1}"]
    writes += ["\n", "\r        \r", "done\n"]
    assert shown(*writes) == ["outer 0", "outer 10", "done"]


def test_three_bars() -> None:
    """Bars three deep are rows of their own."""
    writes = ["\ra", "\n", "\rb", UP, "\n\n", "\rc", UP + UP]
    for number in range(20):
        writes += [f"\ra{number}", "\n", f"\rb{number}", UP, "\n\n", f"\rc{number}", UP + UP]
    writes += ["\n\n\n", "end\n"]
    assert shown(*writes)[-4:] == ["a19", "b19", "c19", "end"]
    assert len(shown(*writes)) <= 8


def test_what_is_live_is_what_stands_there_now() -> None:
    """Lines that are not ended can be looked at without changing anything."""
    folding = Folding()
    assert folding.live() == []
    folding.feed("Loading… ")
    assert folding.live() == ["Loading…"]
    assert folding.feed("done\n") == ["Loading… done"] and folding.live() == []
    folding.feed("\router 1" + "\n" + "\rinner 1" + UP)
    folding.feed("\router 2")
    assert folding.live() == ["outer 2", "inner 1"]


def test_after_a_bar_the_fast_path_is_back() -> None:
    """Plain text behind a finished bar is split at newlines again."""
    folding = Folding()
    folding.feed("\r50%\r100%\n")
    assert not folding.is_folded and folding.feed("a\nb") == ["a"] and folding.line == "b"


def test_a_line_without_end_is_cut() -> None:
    """Memory has a bound, with and without a cursor, and no character is lost."""
    for start in ("", "\r"):
        texts = [start + "x" * 1000] + ["x" * 1000] * (2 * LINE_CHARACTERS_MAX // 1000)
        lines = shown(*texts)
        assert sum(map(len, lines)) == 1000 * len(texts)
        assert len(lines) >= 2 and max(map(len, lines)) <= LINE_CHARACTERS_MAX + 1000


def test_any_bytes_give_lines_and_never_fail() -> None:
    """Random text with every special character in it raises nothing, keeps its rows bounded, and has no newline in a line."""
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    pieces = [
        "\n",
        "\r",
        "\b",
        UP,
        "\x1b[",
        "\x1b]",
        "\x1b[2K",
        "\x1b[99999C",
        "\x1b[999A",
        "\x1b[J",
        "a",
        "bc ",
        "é",
        "\udc80",
    ]
    folding = Folding()
    for _ in range(3000):
        for line in folding.feed("".join(chance.choices(pieces, k=chance.randrange(1, 6)))):
            assert "\n" not in line and "\r" not in line and "\x1b" not in line, f"seed {seed}"
        assert len(folding._above) <= ROWS_MAX and len(folding._below) <= ROWS_MAX, f"seed {seed}"


def test_plain_text_in_any_pieces_gives_the_same_lines() -> None:
    """However a text is cut into writes, its lines are those of the text."""
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    text = "".join(chance.choices(["\n", "ab", " ", "ü"], k=500))
    whole = text.split("\n")
    cuts = sorted(chance.choices(range(len(text)), k=40))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]
    folding = Folding()
    lines = [line for piece in pieces for line in folding.feed(piece)]
    assert [*lines, folding.line] == whole, f"seed {seed}"


def test_what_moves_the_cursor() -> None:
    """Returns, backspaces and escapes that move or erase do; colours, titles and ends of lines do not."""
    assert all(map(moves_cursor, ["\ra", "a\r", "\b", UP, "\x1b[2K", "\x1b[3D"]))
    assert not any(map(moves_cursor, ["a\r\n", "\x1b[31ma\x1b[0m", "\x1b]0;t\x07", "a\n", ""]))
