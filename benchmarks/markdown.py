"""Tables as the pages of docs/ show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, figures: bool = True) -> str:
    """A table in Markdown, without a last line end.

    Args:
        head: the names of the columns.
        rows: the cells.
        figures: whether all but the first column stand to the right.
    """
    others = "---:" if figures else "---"
    lines = [head, ["---", *[others] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
