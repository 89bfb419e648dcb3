"""Times as people say them."""

from __future__ import annotations

_UNITS = (("d", 86400.0), ("h", 3600.0), ("min", 60.0))


def ago(when: float, now: float) -> str:
    """How long before `now` (both Unix seconds): "just now", "5 min ago", "2 h ago", "yesterday", "12 d ago"."""
    if when <= 0:
        return "at an unknown time"
    age = now - when
    if age < 60:
        return "just now"
    if 86400 <= age < 2 * 86400:
        return "yesterday"
    for unit, seconds in _UNITS:
        if age >= seconds:
            return f"{int(age // seconds)} {unit} ago"
    return "just now"


def duration(seconds: float) -> str:
    """A length of time in its two largest units: "41 s", "2 h 14 min"."""
    seconds = max(seconds, 0.0)
    if seconds < 60:
        return f"{seconds:.0f} s"
    whole = int(seconds)
    days, hours, minutes = whole // 86400, whole % 86400 // 3600, whole % 3600 // 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s"
