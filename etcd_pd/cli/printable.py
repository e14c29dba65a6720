"""Text that others wrote, made fit for a terminal and a log."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text, with what is not to be seen (control characters, escapes, marks of direction) spelled out."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
