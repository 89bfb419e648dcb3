"""How much room a text takes in a terminal: Chinese, Japanese and Korean letters take two cells, marks that stand above others none."""

from __future__ import annotations


def cells(text: str) -> int:
    """How many cells of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(map(width, text))


def width(character: str) -> int:
    """How many cells a character takes."""
    import unicodedata

    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def left(text: str, room: int) -> str:
    """A text at the left of so many cells."""
    return text + " " * (room - cells(text))


def right(text: str, room: int) -> str:
    """A text at the right of so many cells."""
    return " " * (room - cells(text)) + text


def cut(text: str, room: int, mark: str) -> str:
    """A text in at most so many cells, with a mark of one cell where something was cut off."""
    if cells(text) <= room:
        return text
    kept = ""
    room -= 1
    for character in text:
        room -= width(character)
        if room < 0:
            break
        kept += character
    return kept + mark
